"""Slow one-dimensional k-means: the optimum by dynamic programming, and Lloyd's algorithm, on
sorted points.
"""

import numpy as np


def prefix(values: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def optimal(x: np.ndarray, k: int, h: np.ndarray | None = None) -> np.ndarray:
    """The best codebook (Wang and Song 2011): D[j] = min over i of D'[i] + cost(i, j), one more
    cluster a round.

    cost(i, j) = Σ h x² − (Σ h x)² / Σ h over the sorted points i … j−1: O(k n²).
    """
    order = np.argsort(x, kind="stable")
    x = x[order].astype(np.float64)
    h = np.ones_like(x) if h is None else h[order].astype(np.float64)
    H = prefix(h)
    S = prefix(h * x)
    Q = prefix(h * x * x)
    mass = H[None] - H[:, None]
    with np.errstate(all="ignore"):
        cost = (Q[None] - Q[:, None]) - (S[None] - S[:, None]) ** 2 / mass
    cost = np.where(
        mass > 0, np.maximum(cost, 0), np.where(np.tri(len(H), dtype=bool).T, 0, np.inf)
    )
    best = cost[0]
    cuts = []
    for _ in range(k - 1):
        total = best[:, None] + cost
        cuts.append(np.argmin(total, 0))
        best = total[cuts[-1], np.arange(len(H))]
    ends = [len(x)]
    for cut in reversed(cuts):
        ends.insert(0, cut[ends[0]])
    starts = np.array([0, *ends[:-1]])
    full = H[ends] > H[starts]
    return np.where(full, (S[ends] - S[starts]) / np.where(full, H[ends] - H[starts], 1), x[-1])


def lloyd(x: np.ndarray, c: np.ndarray, steps: int) -> np.ndarray:
    """Assign each point to the nearest level, move each level to the mean of its points; x sorted,
    c ascending.
    """
    S = prefix(x)
    for _ in range(steps):
        b = np.concatenate([[0], np.searchsorted(x, (c[1:] + c[:-1]) / 2, side="right"), [len(x)]])
        n = np.diff(b)
        c = np.where(n > 0, np.diff(S[b]) / np.maximum(n, 1), c)
    return c


def nearest(x: np.ndarray, c: np.ndarray) -> np.ndarray:
    """argmin of |x − c|, the lower index of a tie."""
    return np.argmin(np.abs(x.astype(np.float64)[..., None] - c.astype(np.float64)), -1)


def distortion(x: np.ndarray, c: np.ndarray, h: np.ndarray | float = 1.0) -> float:
    gap = x.astype(np.float64) - c.astype(np.float64)[nearest(x, c)]
    return float(np.sum(h * gap**2))
