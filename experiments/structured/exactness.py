"""The small function beside the large one with zeros in place of what was cut: every architecture of the tests.

    python -m experiments.structured.exactness        (goes on where it was: what is in the file is not run again)

Units are cut at random in every group, until 0.9, 0.5 and 0.1 of all are left, or one of each group. The figures are
max |small − large| / max |large| of the outputs, in float32 and float64; of the gradients of Σ cos(outputs), at 0.5 in
float32; and which indices may be shifted by one without the output feeling it.
"""

import argparse
import itertools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from experiments.benchmarks.common import machine
from jaxprune.core.where import leaf_path
from tests.structure.models import MODELS, STATE

HERE = pathlib.Path(__file__).parent
RATIOS = (0.9, 0.5, 0.1)
NARROW = {"recurrent"}  # Flax's cells carry float32 whatever they are given


def distance(a: Any, b: Any) -> float:
    """Of two trees, relative to the largest number of the first."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    scale = max(float(jnp.abs(x).max()) for x, _ in pairs)
    return max(float(jnp.abs(x - y).max()) for x, y in pairs) / scale


def floats(tree: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


def values_and_gradients(f: Any, args: Any) -> Any:
    """params -> (outputs, gradients of the sum of their cosines)."""
    total = lambda outs: sum(jnp.cos(x).sum() for x in jax.tree.leaves(outs))
    return jax.jit(lambda p: (f(p, *args), jax.grad(lambda p: total(f(p, *args)), allow_int=True)(p)))


def cut(name: str, ratio: float, wide: bool) -> tuple[Any, Any, Any, jp.Plan]:
    """(f, params, args, the small one): units at random, as many of every group."""
    f, params, args = MODELS[name]()
    if wide:
        float64 = lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x
        params, args = jax.tree.map(float64, params), jax.tree.map(float64, args)
    rng = np.random.default_rng(0)
    score = jax.tree.map(lambda x: rng.random(x.shape), params)
    groups = [g for g in jp.axes(f, params, *args, state=STATE.get(name)).groups if not g.approximate]
    least = len(groups) / sum(g.size for g in groups) + 1e-9
    thin = jp.shrink(f, params, *args, ratio=max(ratio, least), score=score, scope="group", state=STATE.get(name))
    return f, params, args, thin


def shifted(tree: Any, path: str, axis: int) -> Any:
    """One leaf rolled by one along an axis."""
    return jax.tree_util.tree_map_with_path(lambda k, w: jnp.roll(w, 1, axis) if leaf_path(k) == path else w, tree)


def halved(name: str) -> dict[str, Any]:
    """Half of the units gone: values, gradients, and every index shifted by one.

    A shift is seen if the outputs change. Of one that is not, the largest gradient of the leaf, relative to the
    largest of all, says whether the outputs feel the leaf at all.
    """
    f, params, args, thin = cut(name, 0.5, False)
    y, grads = values_and_gradients(f, args)(thin.plan.mask(params))
    small = values_and_gradients(thin.apply, args)
    z, ours = small(thin.params)
    y = thin.cut(y) if name in STATE else y
    found = {
        "values": distance(y, z),
        "gradients": distance(floats(thin.cut(grads)), floats(ours)),
        "params": thin.report.params,
    }
    steep = max(float(jnp.abs(g).max()) for g in floats(ours))
    slopes = {
        leaf_path(k): float(jnp.abs(g).max()) / steep
        for k, g in jax.tree_util.tree_leaves_with_path(ours)
        if jnp.issubdtype(g.dtype, jnp.floating)
    }
    seen, unseen = 0, []
    for path, axes in thin.plan.keep.items():
        for axis in (k for k in axes if thin.plan.small(path)[k] > 1):
            change = distance(z, small(shifted(thin.params, path, axis))[0])
            seen += change > 1e-5
            unseen += [] if change > 1e-5 else [{"index": f"{path}[{axis}]", "change": change, "slope": slopes[path]}]
    return found | {"error": thin.report.error, "seen": seen, "unseen": unseen}


def stage(name: str, key: str) -> Any:
    """One figure, or all at half the units."""
    if key == "half":
        return halved(name)
    bits, ratio = key.split()
    with jax.enable_x64(bits == "float64"):
        return cut(name, float(ratio), bits == "float64")[3].report.error


STAGES = ["half", *(f"{bits} {ratio}" for bits in ("float64", "float32") for ratio in RATIOS)]
STAGES.remove("float32 0.5")  # is among "half"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=pathlib.Path, default=HERE / "results/exactness/results.json")
    file = parser.parse_args().file
    jax.config.update("jax_disable_most_optimizations", True)  # small programs, each compiled once
    found = json.loads(file.read_text()) if file.exists() else {"machine": machine(), "rows": {}}
    for key, name in itertools.product(STAGES, MODELS):
        done = found["rows"].setdefault(name, {})
        if key not in done and not (name in NARROW and key.startswith("float64")):
            done[key] = stage(name, key)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found, indent=1, default=list))
            print(name, key, json.dumps(done[key], default=list), flush=True)


if __name__ == "__main__":
    main()
