"""Lloyd's algorithm on cells, with swaps: from k levels to k better ones.

Neighbours meet half way, each level moves to the mean of its cells; both are differences of prefix
sums, O(k). Until no border moves; in a histogram, by no more than a cell, or a thousandth of a
cluster. Lloyd alone is easily stuck: a swap splits the cluster that gains most and merges the two
neighbours that are cheapest to merge, as long as that pays.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from .cells import Cells, sums, xp_of
from .points import MOST
from .windows import centres, cumsum, loop

EIGHTHS = np.arange(1, 8, dtype=np.int32)[
    :, None
]  # where a cluster's bins are cut on trial, and at its mean


def _between(values: Any, middle: Any) -> Callable:
    """(b₀, b₁) -> [Σ row[b₀:b₁] for each row of values], from sums that start at the middle and run
    outwards.

    What lies at the ends, an outlier, then costs no digits of the sums before it.
    """
    xp = xp_of(values)
    right = xp.arange(values.shape[1]) >= middle
    halves = xp.stack([xp.where(right, values, 0.0), xp.where(right, 0.0, values)[:, ::-1]])
    out, back = cumsum(halves)
    signed = xp.pad(out, ((0, 0), (1, 0))) - xp.pad(back[:, ::-1], ((0, 0), (0, 1)))
    return lambda b0, b1: [row[b1] - row[b0] for row in signed]


def lloyd(cells: Cells, c: Any, iterations: int, swaps: bool) -> Any:
    """The borders b_0 = 0 … b_k = m of the clusters that levels c come to."""
    mass, mean, index = cells
    xp = xp_of(mass)
    k = c.size
    m = mass.size
    between = _between(xp.stack([mass, mass * mean]), index(xp.zeros((), mean.dtype)))

    def before(x: Any) -> Any:
        """The number of cells up to x. The bin of x knows; no search."""
        i = index(x.astype(mean.dtype))
        return i + (mean[i] <= x).astype(np.int32)

    def ends(c: Any) -> Any:
        return xp.concatenate(
            [xp.zeros(1, np.int32), before(0.5 * (c[:-1] + c[1:])), xp.full(1, m, np.int32)]
        )

    def means(b0: Any, b1: Any, default: Any) -> Any:
        h, hv = between(b0, b1)
        return h, xp.where(h > 0, hv / xp.where(h > 0, h, 1.0), default)

    def step(carry: Any) -> Any:
        t, c, b, _ = carry
        h, c = means(b[:-1], b[1:], c)
        if swaps:
            eighths = b[:-1] + (b[1:] - b[:-1]) * EIGHTHS // 8
            cut = xp.concatenate([xp.clip(before(c), b[:-1], b[1:])[None], eighths])
            c = _swap(h, c, means(b[:-1], cut, c), means(cut, b[1:], c))
        new = ends(c)
        return t + 1, c, new, xp.any(abs(new - b) > still)

    # A cell of a histogram is little; a point is a whole weight, and rounding must not decide where
    # the end is.
    still = max(1, m // (1024 * k)) if m > MOST else 0
    limit = iterations + k if swaps else iterations
    _, _, b, _ = loop(lambda carry: (carry[0] < limit) & carry[3], step, (0, c, ends(c), True), xp)
    return b


def _swap(h: Any, c: Any, left: tuple[Any, Any], right: tuple[Any, Any]) -> Any:
    """Split the cluster j that gains most, then merge the neighbours i, i+1 that are cheapest to
    merge, if it pays.

    To part masses H, H' at a distance d saves  H H' / (H + H') d²  (Ward 1963), and to merge them
    costs as much. left, right: the masses and means of the two sides of each cluster, (cuts, k),
    for the few cuts that are tried.
    """
    xp = xp_of(c)
    k = c.size
    gain = _ward(left, right).reshape(-1)
    best = xp.argmax(gain)  # of all cuts of all clusters
    j = best % k
    level = xp.arange(k + 1)

    def split(old: Any, low: Any, high: Any) -> Any:
        old = old[xp.clip(xp.where(level > j, level - 1, level), 0, k - 1)]
        return xp.where(
            level == j, low.reshape(-1)[best], xp.where(level == j + 1, high.reshape(-1)[best], old)
        )

    H, C = (split(*parts) for parts in zip((h, c), left, right))
    cost = xp.where(level[:-1] == j, np.inf, _ward((H[:-1], C[:-1]), (H[1:], C[1:])))
    i = xp.argmin(cost)
    level = level[:-1]
    both = xp.where(H[i] + H[i + 1] > 0, H[i] + H[i + 1], 1.0)
    merged = C[i] + (C[i + 1] - C[i]) * (H[i + 1] / both)
    merged = xp.where(level == i, merged, xp.where(level < i, C[:-1], C[1:]))
    return xp.where(gain[best] > 1.01 * cost[i], merged, c)  # 1%: not to and fro on rounding


def _ward(p: tuple[Any, Any], q: tuple[Any, Any]) -> Any:
    (h0, c0), (h1, c1) = p, q
    xp = xp_of(c0)
    return h0 * h1 / xp.where(h0 + h1 > 0, h0 + h1, 1.0) * (c1 - c0) ** 2


def nearest_borders(cells: Cells, c: Any) -> Any:
    """The borders b_0 = 0 … b_k = m of the points that are nearest to each level."""
    mass, mean, index = cells
    xp = xp_of(mass)
    half = (c[:-1] + (c[1:] - c[:-1]) * 0.5).astype(mean.dtype)
    i = index(half)
    inner = i + (mean[i] <= half).astype(np.int32)
    return xp.concatenate([xp.zeros(1, np.int32), inner, xp.full(1, mass.size, np.int32)])


def levels_of(mass: Any, mean: Any, b: Any, zero: Any) -> Any:
    """The exact means of the clusters, and 0 of the one with the point `zero`; an empty one repeats
    its neighbour.
    """
    xp = xp_of(mass)
    k = b.size - 1
    a, c = centres(mass, mean, b)
    h = sums(a, mass, k)
    c = xp.where((b[:-1] <= zero) & (zero < b[1:]), 0.0, c)
    last = xp.where(h > 0, xp.arange(k), 0)
    last = lax.cummax(last) if xp is jnp else np.maximum.accumulate(last)
    return c[xp.maximum(last, xp.argmax(h > 0))]
