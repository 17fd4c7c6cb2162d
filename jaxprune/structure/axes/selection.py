"""What is kept of an array: positions along its axes, in rows that may differ.

kept[k]                          x becomes
[m]                              take(x, kept[k], k)
[.., n, .., m, .., 1, ..]        take_along_axis(x, kept[k], k): other positions at each of n that
                                 another axis keeps
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Kept = Mapping[int, np.ndarray]
"""axis -> positions that stay, in order: one row; or of the array's rank, 1 along axes where it
does not matter."""


def along(x: np.ndarray, k: int, rank: int) -> np.ndarray:
    """A row as an array of some rank, along one axis."""
    return x.reshape([-1 if i == k else 1 for i in range(rank)])


def shortest(at: np.ndarray, k: int) -> np.ndarray:
    """Positions along axis k, with size 1 along others where they are the same."""
    for j in range(at.ndim):
        if j != k and (at == at.take([0], axis=j)).all():
            at = at.take([0], axis=j)
    return at


def take(x: Any, kept: Kept, numpy: Any) -> Any:
    """What is kept of an array, by NumPy or its like."""
    for k in in_turn(kept):
        at = np.asarray(kept[k])
        x = numpy.take(x, at, axis=k) if at.ndim == 1 else numpy.take_along_axis(x, at, axis=k)
    return x


def in_turn(kept: Kept) -> list[int]:
    """The axes in an order in which they can be cut: an axis after those at whose kept positions
    its own differ.

    Raises:
      ValueError: there is none.
    """
    left = dict(kept)
    order = []
    while left:

        def needs(k):
            return [j for j in left if j != k and np.ndim(kept[k]) > 1 and np.shape(kept[k])[j] > 1]

        k = next((k for k in left if not needs(k)), None)
        if k is None:
            raise ValueError(f"what is kept of axes {list(left)} depends on each other")
        order.append(k)
        del left[k]
    return order


def mesh(sizes: Sequence[int], kept: Kept) -> list[np.ndarray]:
    """For each axis, the old position of every element that is kept: `np.ix_`, where all rows are
    the same.
    """
    rank = len(sizes)
    whole = {k: np.arange(n) for k, n in enumerate(sizes)}
    return [
        along(np.asarray(at), k, rank) if np.ndim(at) == 1 else np.asarray(at)
        for k, at in (whole | {**kept}).items()
    ]
