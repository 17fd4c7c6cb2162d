"""What is kept of an axis, and where a variable's positions lie on it.

mask(v) given, mask(a · b) = mask(a) ⊗ mask(b), mask(a + b) = mask(a) ‖ mask(b)
"""

import math
from collections.abc import Mapping

import numpy as np

from jaxprune.transforms.axes.index import Axis, Prod, Sum, Var, reason, settled, size, variables

Keep = Mapping[Var, np.ndarray]
"""A boolean for each position of the variables that are cut."""


def mask(e: Axis, keep: Keep) -> np.ndarray:
    """Which positions of an axis stay."""
    e = settled(e)
    if isinstance(e, Var):
        return keep[e] if e in keep else np.ones(e.size, bool)
    if isinstance(e, Sum):
        return np.concatenate([mask(t, keep) for t in e.parts])
    found = np.ones(1, bool)
    for f in e.parts:
        found = np.logical_and.outer(found, mask(f, keep)).reshape(-1)
    return found


def positions(e: Axis, v: Var) -> list[np.ndarray]:
    """For each place of v in the expression: v's position at every position of the axis, −1 where v has no part."""
    e = settled(e)
    if isinstance(e, Var):
        return [np.arange(e.size)] if e is v else []
    found = []
    if isinstance(e, Sum):
        before, n = 0, size(e)
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


def assign(e: Axis, kept: np.ndarray, keep: dict[Var, np.ndarray]) -> None:
    """Writes into `keep` what its variables must keep for the axis to keep exactly this.

    Raises:
      ValueError: the axis is frozen, or no choice of the variables does it.
    """
    e = settled(e)
    if isinstance(e, Var):
        if e.why and not kept.all():
            raise ValueError(f"it cannot be cut: {e.why}")
        if e in keep and not np.array_equal(keep[e], kept):
            raise ValueError("other arrays that are cut with it keep other positions")
        keep[e] = kept
    elif isinstance(e, Sum):
        before = 0
        for term in e.parts:
            assign(term, kept[before : before + size(term)], keep)
            before += size(term)
    else:
        _assign_product(e, kept, keep)


def _assign_product(e: Prod, kept: np.ndarray, keep: dict[Var, np.ndarray]) -> None:
    grid = kept.reshape([size(f) for f in e.parts])
    for i, factor in enumerate(e.parts):
        assign(factor, np.asarray(np.any(grid, axis=tuple(j for j in range(grid.ndim) if j != i))), keep)
    if not np.array_equal(mask(e, keep), kept):
        raise ValueError(f"its positions are {e!r}: cut whole rows and columns of that, not single ones")


def why_not(e: Axis) -> str | None:
    """The reason, if some of the axis cannot be cut."""
    return reason(e) if any(v.why for v in variables(e)) else None
