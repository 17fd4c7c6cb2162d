"""How long it takes to find out what can be cut: CPU seconds of `jp.coupled_axes`, tracing
included.

    python -m experiments.structured.analysis_time

ResNet-56, a transformer of 24 layers, and chains of layers from 80 to 10,000 equations: time per
equation shows whether it is linear. CPU time of the process, medians over rounds in which all take
turns; only shapes are given. With Python's garbage collector, which looks at all objects again as
they grow more, and without it.
"""

import argparse
import gc
import pathlib
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import jaxprune as jp
from experiments import resnet
from experiments.benchmarks.common import machine
from experiments.results import run_file
from experiments.transformer import transformer
from jaxprune.app.experiments.results import write_json
from jaxprune.structure.axes.walk import Walked


def shape(*sides):
    return jax.ShapeDtypeStruct(sides, jnp.float32)


def tokens(*sides):
    return jax.ShapeDtypeStruct(sides, jnp.int32)


def resnet56() -> tuple[Any, ...]:
    """Shapes as `experiments.resnet` has them."""

    def norm(n):
        return {k: shape(n) for k in ("scale", "bias", "mean", "var")}

    params = {
        "conv1": {"kernel": shape(3, 3, 3, 16)},
        "bn1": norm(16),
        "linear": {"kernel": shape(64, 10)},
    }
    before = 16
    for stage, width in enumerate((16, 32, 64), 1):
        for block in range(9):
            at = f"layer{stage}.{block}."
            params |= {
                at + "conv1": {"kernel": shape(3, 3, before, width)},
                at + "bn1": norm(width),
            }
            params |= {at + "conv2": {"kernel": shape(3, 3, width, width)}, at + "bn2": norm(width)}
            before = width
    params["linear"]["bias"] = shape(10)
    return resnet.apply, params, shape(2, 32, 32, 3)


def transformer24() -> tuple[Any, ...]:
    """Width 384, 6 heads, 128 tokens."""
    model = transformer(24, 384, 6, 65, 128)
    return model.apply, jax.eval_shape(model.init, jax.random.key(0)), tokens(2, 128)


def chain(layers: int) -> tuple[Any, ...]:
    """Dense layers in residual blocks, eight equations each."""

    def f(params: Any, x: Any) -> Any:
        for p in params["layers"]:
            y = jax.lax.max(x @ p["w"] + p["b"], 0.0) * p["s"]
            x = x + y @ p["v"]
        return x @ params["out"]

    layer = {"w": shape(16, 32), "b": shape(32), "s": shape(32), "v": shape(32, 16)}
    return f, {"layers": [layer] * layers, "out": shape(16, 4)}, shape(2, 16)


CASES: dict[str, Callable[[], tuple[Any, ...]]] = {
    "ResNet-56": resnet56,
    "transformer of 24 layers": transformer24,
    **{f"chain of {n} layers": lambda n=n: chain(n) for n in (10, 100, 300, 1000, 1250)},
}


def equations(program: Walked) -> int:
    """Those of a walked program, with those inside."""
    inner = [
        w
        for r in program.records
        if isinstance(r.extra, list)
        for w in r.extra
        if isinstance(w, Walked)
    ]
    return len(program.records) + sum(map(equations, inner))


def call(f: Callable[..., Any], *args: Any) -> Any:
    return f(*args)


def seconds(f: Callable[..., Any], *args: Any) -> float:
    start = time.process_time()
    f(*args)
    return time.process_time() - start


def measured(rounds: int) -> dict[str, Any]:
    """For each case: equations, groups, and the median seconds of all of it and of the trace
    alone.
    """
    cases = {name: make() for name, make in CASES.items()}
    times = {name: [] for name in CASES}
    found = {
        name: jp.coupled_axes(*case) for name, case in cases.items()
    }  # the first time, whatever JAX keeps is made
    for _ in range(rounds):
        for name, (f, params, x) in cases.items():
            again = partial(call, f)  # a function of its own: no trace is remembered
            times[name].append(
                (
                    seconds(jp.coupled_axes, again, params, x),
                    seconds(jax.make_jaxpr(partial(call, f)), params, x),
                )
            )
    rows = {}
    for name, groups in found.items():
        whole, trace = (statistics.median(part) for part in zip(*times[name]))
        n = equations(groups.programs[0])
        rows[name] = {
            "equations": n,
            "groups": len(groups.groups),
            "seconds": whole,
            "trace": trace,
        }
        rows[name] |= {
            "milliseconds an equation": 1e3 * whole / n,
            "rounds": [list(pair) for pair in times[name]],
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--file", type=pathlib.Path, default=run_file("structured", "analysis_time")
    )
    asked = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "rows": measured(asked.rounds)}
    gc.disable()
    found["without the garbage collector"] = measured(asked.rounds)
    write_json(asked.file, found)
    for name, r in found["rows"].items():
        bare = found["without the garbage collector"][name]["seconds"]
        times = f"{r['seconds']:.2f} s, the trace {r['trace']:.2f}, no garbage collector {bare:.2f}"
        print(f"{name:26} {r['equations']:>6} equations  {times}")


if __name__ == "__main__":
    main()
