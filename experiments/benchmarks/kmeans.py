"""One-dimensional k-means against sorting (time) and against the exact dynamic programme
(distortion).

python -m experiments.benchmarks.kmeans [--out results.json]
"""

import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.numerics.clusters import kmeans

from .common import at_most, race, ratio, report

N = 10_000_000
DRAW = {
    "normal": lambda rng: rng.standard_normal(N, np.float32),
    "laplace": lambda rng: rng.laplace(size=N).astype(np.float32),
}
FIRST_CALL = """
import time, jax, jax.numpy as jnp, numpy as np
from jaxprune.numerics import kmeans
shapes = [(64 + 20 * i, 64 + 24 * i) for i in range(30)]
leaves = [
    jnp.asarray(np.random.default_rng(i).standard_normal(shape, np.float32))
    for i, shape in enumerate(shapes)
]
start = time.perf_counter()
for x in leaves:
    jax.block_until_ready(kmeans.assign(x, kmeans.codebook(x, 16)))
print(time.perf_counter() - start)
"""


def optimum(points: np.ndarray, k: int) -> np.ndarray:
    """The best k levels for equally heavy points, by dynamic programming: D[j] = min over i of
    D'[i] + cost(i, j).
    """
    m = points.size
    S, Q = (np.concatenate([[0.0], np.cumsum(points.astype(np.float64) ** p)]) for p in (1, 2))
    count = np.maximum(np.arange(m + 1) - np.arange(m + 1)[:, None], 0)
    cost = (Q - Q[:, None]) - (S - S[:, None]) ** 2 / np.maximum(count, 1)
    cost = np.where(count > 0, cost, np.where(np.eye(m + 1, dtype=bool), 0.0, np.inf))
    best = cost[0]
    cuts = []
    for _ in range(k - 1):
        total = best[:, None] + cost
        cuts.append(total.argmin(0))
        best = total.min(0)
    ends = [m]
    for cut in reversed(cuts):
        ends.insert(0, cut[ends[0]])
    b = np.concatenate([[0], ends])
    return np.diff(S[b]) / np.maximum(np.diff(b), 1)


def polish(x: np.ndarray, S: np.ndarray, c: np.ndarray, steps: int = 300) -> np.ndarray:
    """Lloyd's algorithm on all of the sorted x; S: its prefix sums."""
    for _ in range(steps):
        b = np.concatenate([[0], np.searchsorted(x, (c[1:] + c[:-1]) / 2), [x.size]])
        n = np.diff(b)
        c = np.where(n > 0, np.diff(S[b]) / np.maximum(n, 1), c)
    return c


def distortion(x: np.ndarray, c: np.ndarray) -> float:
    c = np.asarray(c, np.float64)
    b = np.concatenate([[0], np.searchsorted(x, (c[1:] + c[:-1]) / 2), [x.size]])
    return float(sum(np.sum((x[i:j] - level) ** 2) for i, j, level in zip(b, b[1:], c)))


def one(name: str, k: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    x = DRAW[name](np.random.default_rng(0))
    w = jnp.asarray(x)
    fit = jax.jit(lambda w: kmeans.codebook(w, k)).lower(w).compile()
    book = fit(w)
    assign = jax.jit(kmeans.assign).lower(w, book).compile()
    times = race(
        {
            "codebook": partial(fit, w),
            "assign": partial(assign, w, book),
            "np.sort": partial(np.sort, x),
            "searchsorted": partial(np.searchsorted, np.asarray((book[1:] + book[:-1]) / 2), x),
        },
        7,
    )
    x = np.sort(x).astype(np.float64)
    S = np.concatenate([[0.0], np.cumsum(x)])
    best = min(
        distortion(x, polish(x, S, start))
        for start in (
            optimum(x[: x.size // 2000 * 2000].reshape(2000, -1).mean(1), k),
            np.sort(np.asarray(book, np.float64)),
        )
    )
    rows = [
        at_most(
            f"{name}, k={k}: codebook / np.sort, wall",
            ratio(times, "codebook", "np.sort", "wall_ms"),
            0.5,
        ),
        at_most(
            f"{name}, k={k}: codebook / np.sort, CPU time", ratio(times, "codebook", "np.sort"), 0.5
        ),
        at_most(
            f"{name}, k={k}: assign / np.searchsorted, CPU time",
            ratio(times, "assign", "searchsorted"),
            0.5,
        ),
        at_most(f"{name}, k={k}: distortion / best", distortion(x, np.asarray(book)) / best, 1.01),
        at_most(
            f"{name}, k={k}: temporary memory / array",
            fit.memory_analysis().temp_size_in_bytes / w.nbytes,
            0.2,
        ),
    ]
    return rows, times


def main() -> None:
    rows = []
    figures = {}
    for name in DRAW:
        for k in (16, 256):
            new, figures[f"{name}, k={k}"] = one(name, k)
            rows += new
    run = subprocess.run(
        [sys.executable, "-c", FIRST_CALL], capture_output=True, text=True, check=True
    )
    rows.append(
        at_most(
            "30 leaves of 30 shapes, codebook and assign, first call, seconds", float(run.stdout), 1
        )
    )
    report("kmeans", "One-dimensional k-means, 10M weights", rows, figures)


if __name__ == "__main__":
    main()
