"""Weights as points on a line, sorted: the exact counterpart of the histogram in `cells`, of small
arrays.

Equal weights are one point of their joint mass. More than MOST distinct weights on the host are put
together, runs of neighbours with equal shares of  Σ (h gap²)^(1/3)  each: Panter and Dite (1951)
put the levels of the best quantiser so, whatever k is, and a cluster of k gets some MOST / k points
of about equal size.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from .cells import Cells, sums, xp_of

MOST = 1 << 14
BLOCK = 256  # `windows.cumsum` takes a multiple


def points_on_host(x: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(distinct values, their masses) of flat arrays, float64, without what has no mass."""
    x = x[h > 0].astype(np.float64)
    h = h[h > 0]
    if h.size and h.min() == h.max():
        values, counts = np.unique(x, return_counts=True)
        return values, counts * float(h[0])
    values, inverse = np.unique(x, return_inverse=True)
    return values, np.bincount(inverse, h.astype(np.float64), values.size)


def points_compiled(x: Any, h: Any) -> tuple[Any, Any]:
    """The same under trace, padded to x's length: points of mass 0 follow, at the largest value."""
    order = jnp.argsort(jnp.where(h > 0, x, jnp.inf))
    x = x[order]
    h = h[order]
    x = jnp.where(h > 0, x, jnp.max(jnp.where(h > 0, x, -jnp.inf)))
    new = jnp.concatenate([jnp.zeros(1, bool), x[1:] > x[:-1]])
    number = jnp.cumsum(new).astype(jnp.int32)
    mass = sums(number, h, x.size)
    values = jnp.full(x.size, x[-1]).at[number].set(x)
    return values, mass


def spread(values: Any, mass: Any) -> Any:
    """Σ (h gap²)^(1/3) up to each point, from 0."""
    xp = xp_of(values)
    gap = values[1:] - values[:-1]
    between = (0.5 * (mass[1:] + mass[:-1])) ** (1 / 3) * gap ** (2 / 3)
    return xp.concatenate([xp.zeros(1, values.dtype), xp.cumsum(between)])


def merged(values: np.ndarray, mass: np.ndarray, most: int = MOST) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` points: the means of runs of neighbours. A zero stays a point of its own."""
    if values.size <= most:
        return values, mass
    along = spread(values, mass)
    cell = np.minimum(along * ((most - 2) / along[-1]), most - 3).astype(np.int64)
    cell += (values == 0).astype(np.int64) + 2 * (values > 0)
    _, first = np.unique(cell, return_index=True)
    total = np.add.reduceat(mass, first)
    offset = np.add.reduceat(
        mass * (values - np.repeat(values[first], np.diff(np.append(first, values.size)))), first
    )
    return values[first] + offset / total, total


def as_cells(values: Any, mass: Any) -> Cells:
    """Points as cells, padded with some of mass 0."""
    xp = xp_of(values)
    room = -values.size % BLOCK
    values = xp.pad(values, (0, room), mode="edge")
    mass = xp.pad(mass, (0, room))

    def index(x: Any) -> Any:
        return xp.maximum(xp.searchsorted(values, x, side="right") - 1, 0).astype(np.int32)

    return Cells(mass, values, index)
