"""What variables must keep for arrays to keep exactly this: `masks` read backwards."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxprune.structure.axes.expressions import Axis, Var, size, variables
from jaxprune.structure.axes.masks import Uneven, kept_along, mask, positions, where
from jaxprune.structure.axes.selection import Kept, mesh, shortest


def assign(
    axes: Sequence[Axis],
    kept: Kept,
    keep: dict[Var, Any],
    carried: Callable[[Var], Sequence[Var]] = lambda v: (),
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
                for told in (
                    _all_told(axes, k, v, old, carried) if k in kept else [np.ones(v.size, bool)]
                ):
                    _agree(v, told, keep)
        except ValueError as error:
            raise ValueError(f"[{k}]: {error}") from None
    back = mesh([size(e) for e in axes], {k: kept_along(axes, k, keep) for k in kept})
    for k in kept:
        if not np.array_equal(back[k], shortest(old[k], k)):
            wrong = (
                f"its positions are {axes[k]!r}: cut whole rows and columns of that, not single "
                f"ones"
            )
            raise ValueError(
                f"[{k}]: {'it must keep the same everywhere' if np.ndim(kept[k]) > 1 else wrong}"
            )


def _all_told(
    axes: Sequence[Axis],
    k: int,
    v: Var,
    old: list[np.ndarray],
    carried: Callable[[Var], Sequence[Var]],
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
        for there in positions(e, v):
            found[v] = found.get(v, False) | np.isin(np.arange(v.size), there[at])
    return np.array_equal(np.nonzero(mask(e, found))[0], at)


def _told(v: Var, rows: list[tuple[Var, np.ndarray]], at: np.ndarray) -> np.ndarray | Uneven:
    """What is kept of v, by its position and those of others at every element; along others only if
    that matters.
    """
    over = [u for u, _ in rows]
    table = np.zeros([*(u.size for u, _ in rows), v.size], bool)
    index = np.broadcast_arrays(*(there for _, there in rows), at)
    table[tuple(i[index[-1] >= 0] for i in index)] = True
    for i in reversed(range(len(over))):
        union = np.any(table, axis=(i,), keepdims=True)
        if np.array_equal(union & np.any(table, axis=(-1,), keepdims=True), table):
            table = np.take(union, 0, axis=i)
            del over[i]
    counts = np.count_nonzero(table, axis=-1)
    if len({*counts[counts > 0].tolist()}) > 1:
        raise ValueError(
            f"it keeps {counts.ravel()[:8].tolist()} of {v.size} positions: keep as many everywhere"
        )
    return Uneven(tuple(over), table) if over else table


def _agree(v: Var, told: np.ndarray | Uneven, keep: dict[Var, Any]) -> None:
    def parts(one):
        return one if isinstance(one, Uneven) else Uneven((), one)

    (over, table), known = parts(told), parts(keep.setdefault(v, told))
    if v.why and not table.all():
        raise ValueError(f"it cannot be cut: {v.why}")
    if over != known.over or not np.array_equal(table, known.mask):
        raise ValueError("other arrays that are cut with it keep other positions")
