"""The small function beside the large one with zeros in place of what was cut: every architecture
of the tests.

    python -m experiments.structured.exactness        (goes on where it was: what is in the file is
                                                      not run again)

Units are cut at random in every group, until 0.9, 0.5 and 0.1 of all are left, or one of each
group. The figures are max |small − large| / max |large| of the outputs and of the gradients of Σ c
· outputs, c ~ N(0, 1), in float32 and float64; and, at 0.5 in float32, which indices may be shifted
by one without the outputs changing by more than 1e-5.
"""

import argparse
import itertools
import json
import pathlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from experiments.benchmarks.common import machine
from experiments.results import run_file
from jaxprune.app.experiments.results import write_json
from jaxprune.core.leaves.paths import flatten_with_path, leaf_path, map_with_path
from tests.structure.models import MODELS, STATE, distance, floats, value_and_grads

RATIOS = (0.9, 0.5, 0.1)


def cut(name: str, ratio: float, wide: bool) -> tuple[Any, Any, Any, jp.Plan]:
    """(f, params, args, the small one): units at random, as many of every group."""
    f, params, args = MODELS[name]()
    if wide:

        def float64(x):
            return x.astype(jnp.float64) if x.dtype == jnp.float32 else x

        params = jax.tree.map(float64, params)
        args = jax.tree.map(float64, args)
    rng = np.random.default_rng(0)
    score = jax.tree.map(lambda x: rng.random(x.shape), params)
    groups = [
        g
        for g in jp.coupled_axes(f, params, *args, state=STATE.get(name)).groups
        if not g.approximate
    ]
    least = len(groups) / sum(g.size for g in groups) + 1e-9
    thin = jp.shrink(
        f, params, *args, ratio=max(ratio, least), score=score, scope="group", state=STATE.get(name)
    )
    return f, params, args, thin


def shifted(tree: Any, path: str, axis: int) -> Any:
    """One leaf rolled by one along an axis."""
    return map_with_path(lambda k, w: jnp.roll(w, 1, axis) if leaf_path(k) == path else w, tree)


def compared(name: str, ratio: float, wide: bool) -> tuple[Any, dict[str, Any]]:
    """(the small one, with its outputs and gradients; the figures)."""
    f, params, args, thin = cut(name, ratio, wide)
    rng = np.random.default_rng(1)
    cut_state = thin.cut if name in STATE else lambda outs: outs
    c = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), jax.eval_shape(f, params, *args)
    )
    y, grads = value_and_grads(f, args)(thin.plan.mask(params), c)
    small = partial(value_and_grads(thin.apply, args), c=cut_state(c))
    z, ours = small(thin.params)
    y = cut_state(y)
    found = {"values": distance(y, z), "gradients": distance(floats(thin.cut(grads)), floats(ours))}
    return (thin, small, z, ours), found | {
        "check": thin.report.error,
        "params": thin.report.params,
    }


def shifts(thin: Any, small: Any, z: Any, ours: Any) -> dict[str, Any]:
    """Every index of every leaf shifted by one.

    A shift is seen if the outputs change. Of one that is not, the largest gradient of the leaf,
    relative to the largest of all, says whether the outputs feel the leaf at all.
    """
    steep = max(float(jnp.abs(g).max()) for g in floats(ours))
    slopes = {leaf_path(k): g for k, g in flatten_with_path(ours)[0]}
    seen = 0
    unseen = []
    for path, axes in thin.plan.keep.items():
        for axis in (k for k in axes if thin.plan.small(path)[k] > 1):
            change = distance(z, small(shifted(thin.params, path, axis))[0])
            slope = float(jnp.abs(slopes[path]).max()) / steep
            seen += change > 1e-5
            unseen += (
                []
                if change > 1e-5
                else [{"index": f"{path}[{axis}]", "change": change, "slope": slope}]
            )
    return {"seen": seen, "unseen": unseen}


def stage(name: str, bits: str, ratio: float) -> dict[str, Any]:
    """The figures of one architecture at one ratio."""
    with jax.enable_x64(bits == "float64"):
        made, found = compared(name, ratio, bits == "float64")
        return found | (shifts(*made) if (bits, ratio) == ("float32", 0.5) else {})


def worst(rows: Any, bits: str, what: str) -> float:
    """Of all architectures and ratios."""
    return max(row[key][what] for row in rows.values() for key in row if key.startswith(bits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=pathlib.Path, default=run_file("structured", "exactness"))
    file = parser.parse_args().file
    jax.config.update("jax_disable_most_optimizations", True)  # small programs, each compiled once
    found = json.loads(file.read_text()) if file.exists() else {"machine": machine(), "rows": {}}
    for name, bits, ratio in itertools.product(MODELS, ("float32", "float64"), RATIOS):
        done = found["rows"].setdefault(name, {})
        key = f"{bits} {ratio}"
        if key not in done:
            done[key] = stage(name, bits, ratio)
            write_json(file, found)
            print(name, key, json.dumps(done[key]), flush=True)
    for bits, what in itertools.product(("float32", "float64"), ("values", "gradients")):
        print(f"{bits}, {what}: {worst(found['rows'], bits, what):.1e} at most")


if __name__ == "__main__":
    main()
