"""What is kept of an axis, and where a variable's positions lie on it.

mask(v) given, mask(a · b) = mask(a) ⊗ mask(b), mask(a + b) = mask(a) ‖ mask(b)

A variable v that always comes with others, u (head dimensions with their head), may keep other
positions at each of theirs, as many everywhere: K(u, v) in place of mask(v). One row of it stands
for all where only sizes count.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxprune.structure.axes.expressions import Axis, Sum, Var, settled, size, variables
from jaxprune.structure.axes.selection import along, shortest


class Uneven(NamedTuple):
    """What is kept of a variable at each position of others, as much everywhere.

    Attributes:
      over: the others.
      mask: [*sizes of over, size of the variable], bool; empty where nothing of `over` is kept.
    """

    over: tuple[Var, ...]
    mask: np.ndarray

    @property
    def row(self) -> np.ndarray:
        """What is kept at one of them."""
        rows = self.mask.reshape(-1, self.mask.shape[-1])
        return rows[np.argmax(rows.any(1))]


Keep = Mapping[Var, np.ndarray | Uneven]
"""A boolean for each position of the variables that are cut."""


def mask(e: Axis, keep: Keep) -> np.ndarray:
    """Which positions of an axis stay; at one position of what uneven variables come with."""
    e = settled(e)
    if isinstance(e, Var):
        there = keep.get(e)
        return (
            np.ones(e.size, bool)
            if there is None
            else there.row
            if isinstance(there, Uneven)
            else there
        )
    if isinstance(e, Sum):
        return np.concatenate([mask(t, keep) for t in e.parts])
    found = np.ones(1, bool)
    for f in e.parts:
        found = np.logical_and.outer(found, mask(f, keep)).reshape(-1)
    return found


def positions(e: Axis, v: Var) -> list[np.ndarray]:
    """For each place of v in the expression: v's position at every position of the axis, −1 where v
    has no part.
    """
    e = settled(e)
    if isinstance(e, Var):
        return [np.arange(e.size)] if e is v else []
    found = []
    if isinstance(e, Sum):
        before = 0
        n = size(e)
        for term in e.parts:
            for inner in positions(term, v):
                found.append(np.pad(inner, (before, n - before - len(inner)), constant_values=-1))
            before += size(term)
        return found
    sizes = [size(f) for f in e.parts]
    for i, factor in enumerate(e.parts):
        for inner in positions(factor, v):
            found.append(np.tile(np.repeat(inner, math.prod(sizes[i + 1 :])), math.prod(sizes[:i])))
    return found


def kept_along(axes: Sequence[Axis], k: int, keep: Keep) -> np.ndarray:
    """The positions of an array's axis that stay, as in `Kept`."""
    e = axes[k]
    rank = len(axes)
    uneven = [v for v in dict.fromkeys(variables(e)) if isinstance(keep.get(v), Uneven)]
    there = along(mask(e, {v: m for v, m in keep.items() if v not in uneven}), k, rank)
    for v in uneven:
        over, table = keep[v]
        rows = [_carrier(axes, u, k, keep) for u in over]
        for at in (along(at, k, rank) for at in positions(e, v)):
            there = there & ((at < 0) | table[(*rows, at)])
    count = int(np.count_nonzero(there, axis=k).max())
    at = shortest(np.argsort(~there, axis=k, kind="stable").take(range(count), axis=k), k)
    return at.reshape(-1) if at.size == count else at


def _carrier(axes: Sequence[Axis], u: Var, k: int, keep: Keep) -> np.ndarray:
    """u's position: at all positions of axis k if it lies there, or at the kept ones of the axis
    where it does.
    """
    j = next(j for j in (k, *range(len(axes))) if u in variables(axes[j]))
    found = where(axes[j], u)
    return along(found if j == k else found[mask(axes[j], keep)], j, len(axes))


def where(e: Axis, u: Var) -> np.ndarray:
    """The position of what others come with, which lies on an axis once."""
    return np.max(positions(e, u), axis=0)
