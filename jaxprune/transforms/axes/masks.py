"""What is kept of an axis, and where a variable's positions lie on it.

mask(v) given, mask(a · b) = mask(a) ⊗ mask(b), mask(a + b) = mask(a) ‖ mask(b)

A variable that always comes with others (head dimensions with their head) may keep other positions at each of theirs, as
many everywhere: K(u, v) in place of mask(v). Its row of one position then stands for all where only sizes count.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune.transforms.axes.index import Axis, Sum, Var, settled, size, variables


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
Kept = Mapping[int, np.ndarray]
"""axis of an array -> the positions that stay: one row, or one at each kept position of other axes, of size 1 along those
where it does not matter (as `take_along_axis` has it)."""


def mask(e: Axis, keep: Keep) -> np.ndarray:
    """Which positions of an axis stay; at one position of what uneven variables come with."""
    e = settled(e)
    if isinstance(e, Var):
        there = keep.get(e)
        return np.ones(e.size, bool) if there is None else there.row if isinstance(there, Uneven) else there
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


def along(x: np.ndarray, k: int, rank: int) -> np.ndarray:
    """A row as an array of some rank, along one axis."""
    return x.reshape([-1 if i == k else 1 for i in range(rank)])


def kept_along(axes: Sequence[Axis], k: int, keep: Keep) -> np.ndarray:
    """The positions of an array's axis that stay, as in `Kept`."""
    e, rank = axes[k], len(axes)
    uneven = [v for v in dict.fromkeys(variables(e)) if isinstance(keep.get(v), Uneven)]
    there = along(mask(e, {v: m for v, m in keep.items() if v not in uneven}), k, rank)
    for v in uneven:
        over, table = keep[v]
        rows = [_carrier(axes, u, k, keep) for u in over]
        for at in (along(at, k, rank) for at in positions(e, v)):
            there = there & ((at < 0) | table[(*rows, at)])
    count = int(np.count_nonzero(there, axis=k).max())
    at = _shortest(np.argsort(~there, axis=k, kind="stable").take(range(count), axis=k), k)
    return at.reshape(-1) if at.size == count else at


def _shortest(at: np.ndarray, k: int) -> np.ndarray:
    """Positions along axis k, with size 1 along others where they are the same."""
    for j in range(at.ndim):
        if j != k and (at == at.take([0], axis=j)).all():
            at = at.take([0], axis=j)
    return at


def _carrier(axes: Sequence[Axis], u: Var, k: int, keep: Keep) -> np.ndarray:
    """u's position: at all positions of axis k if it lies there, or at the kept ones of the axis where it does."""
    j = next(j for j in (k, *range(len(axes))) if u in variables(axes[j]))
    found = where(axes[j], u)
    return along(found if j == k else found[mask(axes[j], keep)], j, len(axes))


def where(e: Axis, u: Var) -> np.ndarray:
    """The position of what others come with, which lies on an axis once."""
    return np.max(positions(e, u), axis=0)


def take(x: Any, kept: Kept, numpy: Any) -> Any:
    """What is kept of an array, by NumPy or its like."""
    for k in in_turn(kept):
        at = np.asarray(kept[k])
        x = numpy.take(x, at, axis=k) if at.ndim == 1 else numpy.take_along_axis(x, at, axis=k)
    return x


def in_turn(kept: Kept) -> list[int]:
    """The axes in an order in which they can be cut: an axis after those at whose kept positions its own differ.

    Raises:
      ValueError: there is none.
    """
    left, order = dict(kept), []
    while left:
        needs = lambda k: [j for j in left if j != k and np.ndim(kept[k]) > 1 and np.shape(kept[k])[j] > 1]
        k = next((k for k in left if not needs(k)), None)
        if k is None:
            raise ValueError(f"what is kept of axes {list(left)} depends on each other")
        order.append(k)
        del left[k]
    return order


def mesh(sizes: Sequence[int], kept: Kept) -> list[np.ndarray]:
    """For each axis, the old position of every element that is kept: `np.ix_`, where all rows are the same."""
    rank, whole = len(sizes), {k: np.arange(n) for k, n in enumerate(sizes)}
    return [
        along(np.asarray(at), k, rank) if np.ndim(at) == 1 else np.asarray(at) for k, at in (whole | {**kept}).items()
    ]


def assign(
    axes: Sequence[Axis], kept: Kept, keep: dict[Var, Any], carried: Callable[[Var], Sequence[Var]] = lambda v: ()
) -> None:
    """Writes into `keep` what the variables must keep for an array to keep exactly this.

    Args:
      axes: of the array.
      kept: of those that are cut.
      keep: what is known of variables; what follows is added.
      carried: a variable -> what it always comes with.

    Raises:
      ValueError: an axis is frozen, or no choice of the variables does it.
    """
    old = mesh([size(e) for e in axes], kept)
    for k, e in enumerate(axes):
        try:
            for v in dict.fromkeys(variables(e)):
                for told in _all_told(axes, k, v, old, carried) if k in kept else [np.ones(v.size, bool)]:
                    _agree(v, told, keep)
        except ValueError as error:
            raise ValueError(f"[{k}]: {error}") from None
    back = mesh([size(e) for e in axes], {k: kept_along(axes, k, keep) for k in kept})
    for k in kept:
        if not np.array_equal(back[k], _shortest(old[k], k)):
            wrong = f"its positions are {axes[k]!r}: cut whole rows and columns of that, not single ones"
            raise ValueError(f"[{k}]: {'it must keep the same everywhere' if np.ndim(kept[k]) > 1 else wrong}")


def _all_told(
    axes: Sequence[Axis], k: int, v: Var, old: list[np.ndarray], carried: Callable[[Var], Sequence[Var]]
) -> Iterator[np.ndarray | Uneven]:
    """What an axis that is cut says about v, for each place where v lies on it."""
    near = [j for j in range(len(axes)) if j == k or old[k].shape[j] > 1]
    over = [] if len(near) == 1 and _is_product(axes[k], old[k].reshape(-1)) else carried(v)
    rows = [(u, where(axes[j], u)[old[j]]) for u in over for j in near if u in variables(axes[j])]
    for at in positions(axes[k], v):
        yield _told(v, rows, at[old[k]])


def _is_product(e: Axis, at: np.ndarray) -> bool:
    """Whether the variables can keep what they must each by itself."""
    found: dict[Var, Any] = {}
    for v in variables(e):
        for where in positions(e, v):
            found[v] = found.get(v, False) | np.isin(np.arange(v.size), where[at])
    return np.array_equal(np.nonzero(mask(e, found))[0], at)


def _told(v: Var, rows: list[tuple[Var, np.ndarray]], at: np.ndarray) -> np.ndarray | Uneven:
    """What is kept of v, from its position and those of others at every element; of the others only those that matter."""
    over, table = [u for u, _ in rows], np.zeros([*(u.size for u, _ in rows), v.size], bool)
    index = np.broadcast_arrays(*(where for _, where in rows), at)
    table[tuple(i[index[-1] >= 0] for i in index)] = True
    for i in reversed(range(len(over))):
        union = table.any(i, keepdims=True)
        if np.array_equal(union & table.any(-1, keepdims=True), table):
            table = union.squeeze(i)
            del over[i]
    counts = np.count_nonzero(table, axis=-1)
    if len({*counts[counts > 0].tolist()}) > 1:
        raise ValueError(f"it keeps {counts.ravel()[:8].tolist()} of {v.size} positions: keep as many everywhere")
    return Uneven(tuple(over), table) if over else table


def _agree(v: Var, told: np.ndarray | Uneven, keep: dict[Var, Any]) -> None:
    if v.why and not (isinstance(told, np.ndarray) and told.all()):
        raise ValueError(f"it cannot be cut: {v.why}")
    known = keep.setdefault(v, told)
    same = type(known) is type(told) and (
        known.over == told.over and np.array_equal(known.mask, told.mask)
        if isinstance(told, Uneven)
        else np.array_equal(known, told)
    )
    if not same:
        raise ValueError("other arrays that are cut with it keep other positions")
