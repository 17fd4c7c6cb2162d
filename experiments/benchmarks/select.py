"""Exact selection against sorting: the k-th magnitude, its memory, N:M masks, and the time of a
first call.

python -m experiments.benchmarks.select [--out results.json]
"""

import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.numerics import patterns, select

from .common import at_least, at_most, race, ratio, report, timed

FIRST_CALL = """
import sys, time, jax, jax.numpy as jnp, numpy as np
from jaxprune.numerics import patterns, select
shapes = [(256, 256)] * 100
if sys.argv[1] == "shapes":
    shapes = [(64 + 20 * i, 64 + 24 * i) for i in range(30)]
leaves = [
    jnp.asarray(np.random.default_rng(i).standard_normal(shape, np.float32))
    for i, shape in enumerate(shapes)
]
compiles = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: compiles.append(name) if "backend_compile" in name else None)
start, compiles[:] = time.perf_counter(), []
jax.block_until_ready([select.keep_largest(x, x.size // 2, magnitude=True) for x in leaves])
host, host_compiles = time.perf_counter() - start, len(compiles)
start, compiles[:] = time.perf_counter(), []
if sys.argv[1] == "one":
    keep = jax.jit(lambda x, k: select.keep_largest(x, k, magnitude=True))
    jax.block_until_ready([keep(x, x.size // 2 + i) for i, x in enumerate(leaves)])
print(host, host_compiles, time.perf_counter() - start, len(compiles))
"""


def first_call(kind: str) -> list[float]:
    run = subprocess.run(
        [sys.executable, "-c", FIRST_CALL, kind], capture_output=True, text=True, check=True
    )
    return [float(v) for v in run.stdout.split()]


def threshold(n: int, rounds: int) -> tuple[dict[str, Any], float]:
    x = jnp.asarray(np.random.default_rng(0).standard_normal(n, np.float32))
    size = np.abs(np.asarray(x))
    k = jnp.int32(0.9 * n)
    find = jax.jit(lambda x, k: select.kth(x, k, magnitude=True)).lower(x, k).compile()
    key = select.order_key(jnp.asarray(np.partition(size, int(k))[int(k)]), magnitude=True)
    assert find(x, k)[0] == key, "the threshold is not exact"
    times = race(
        {"kth": lambda: find(x, k), "np.partition": lambda: np.partition(size, int(k))}, rounds
    )
    return times, find.memory_analysis().temp_size_in_bytes / x.nbytes


def mask_with_ties(n: int = 1_000_000) -> bool:
    x = np.random.default_rng(0).integers(-50, 51, n).astype(np.float32) / 8
    order = np.lexsort((-np.arange(n), np.abs(x)))
    remove = n // 3
    want = np.ones(n, bool)
    want[order[:remove]] = False
    got = jax.jit(partial(select.keep_largest, magnitude=True))(x, remove)
    return bool(
        (np.asarray(got) == want).all()
        and (np.asarray(select.keep_largest(x, remove, magnitude=True)) == want).all()
    )


def double_argsort(x: jax.Array) -> jax.Array:
    runs = -jnp.abs(x).reshape(-1, 4)
    return (jnp.argsort(jnp.argsort(runs, 1), 1) < 2).reshape(x.shape)


def main() -> None:
    few, few_memory = threshold(10_000_000, 9)
    many, many_memory = threshold(100_000_000, 5)
    x = jnp.asarray(np.random.default_rng(0).standard_normal(10_000_000, np.float32))
    sort = jax.jit(jnp.sort).lower(x).compile()
    jnp_sort = timed(lambda: sort(x))
    w = x[: 1 << 22].reshape(2048, 2048)
    masks = {
        "n_m": jax.jit(lambda x: patterns.n_m(x, 2, 4, -1, magnitude=True)),
        "argsort": jax.jit(double_argsort),
    }
    assert (masks["n_m"](w) == masks["argsort"](w)).all()
    two_of_four = race({name: partial(f, w) for name, f in masks.items()}, 5)
    shapes = first_call("shapes")
    one = first_call("one")
    rows = [
        at_least(
            "10M: jnp.sort / kth, CPU time",
            jnp_sort["cpu_ms"] / few["kth"]["cpu_ms"]["median"],
            100,
        ),
        at_most("10M: kth / np.partition, CPU time", ratio(few, "kth", "np.partition"), 2),
        at_most("10M: kth / np.partition, wall", ratio(few, "kth", "np.partition", "wall_ms"), 2),
        at_most("100M: kth / np.partition, CPU time", ratio(many, "kth", "np.partition"), 2),
        at_most("100M: kth / np.partition, wall", ratio(many, "kth", "np.partition", "wall_ms"), 2),
        at_most("10M: temporary memory / array", few_memory, 0.1),
        at_most("100M: temporary memory / array", many_memory, 0.1),
        at_least("1M with ties: mask equal to a sort's, to the bit", float(mask_with_ties()), 1),
        at_least(
            "4M, 2:4: double argsort / n_m, CPU time", ratio(two_of_four, "argsort", "n_m"), 50
        ),
        at_most("30 leaves of 30 shapes, first call, seconds", shapes[0], 1),
        at_most("30 leaves of 30 shapes, compilations", shapes[1], 0),
        at_most("100 leaves of one shape in jit, compilations", one[3], 1),
    ]
    figures = {
        "10M": few,
        "100M": many,
        "jnp.sort 10M": jnp_sort,
        "2:4 of 4M": two_of_four,
        "first call": [shapes, one],
    }
    report("select", "Exact selection", rows, figures)


if __name__ == "__main__":
    main()
