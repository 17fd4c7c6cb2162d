"""Which units go, so that what is left costs no more than a budget.

Units are cut in steps: the least important ones of a group first, as many at once as `round_to`
asks. All steps of all groups are ranked together, and the first m are taken: the smallest m whose
cost fits is found by bisection.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune.core.words import compiled, nearest
from jaxprune.structure.axes.groups import Group

Limit = int | float | tuple[float | int | None, float | int | None]


class Step(NamedTuple):
    """Units of one group that go at once.

    Attributes:
      group: its number.
      positions: of the units.
      rank: the higher, the later; −∞ for those that must go.
    """

    group: int
    positions: np.ndarray
    rank: float


def limits(
    groups: Sequence[Group], keep: Mapping[str, Limit], round_to: Sequence[int]
) -> list[tuple[int, int]]:
    """The least and the most units that each group may keep.

    Args:
      groups: that may be cut.
      keep: a regular expression for whole paths of leaves -> the least to keep, or (least, most);
        as a number of units (int) or a share of them (float). A group obeys all that match any of
        its leaves.
      round_to: of each, the least, where there are as many; 0: it may go whole.

    Raises:
      ValueError: a pattern that matches no group, a limit that is none.
    """
    low = [min(g.size, n) for g, n in zip(groups, round_to)]
    high = [g.size for g in groups]
    paths = [{m.path for m in g.members} for g in groups]
    for pattern, limit in keep.items():
        test = compiled("keep", pattern)
        hits = [i for i, names in enumerate(paths) if any(map(test.fullmatch, names))]
        if not hits:
            near = nearest(pattern, set().union(*paths))
            raise ValueError(
                f"keep={pattern!r} matches no leaf that can be cut. The nearest: {near}"
            )
        least, most = limit if isinstance(limit, tuple) else (limit, None)
        for i in hits:
            low[i] = max(low[i], _units(pattern, least, groups[i].size, 1))
            high[i] = min(high[i], _units(pattern, most, groups[i].size, groups[i].size))
            if low[i] > high[i]:
                raise ValueError(
                    f"keep={pattern!r}: {groups[i].name} keeps {low[i]} at least and {high[i]} at "
                    f"most"
                )
    return list(zip(low, high))


def _units(pattern: str, limit: float | None, size: int, default: int) -> int:
    if limit is None:
        return default
    units = limit if isinstance(limit, int) else int(np.ceil(limit * size))
    if not 1 <= units <= size and not (isinstance(limit, int) and units > size):
        raise ValueError(
            f"keep={{{pattern!r}: {limit}}}: a number of units from 1 on, or a share in (0, 1]"
        )
    return min(units, size)


def steps(
    ranks: Sequence[np.ndarray], bounds: Sequence[tuple[int, int]], round_to: Sequence[int]
) -> list[Step]:
    """All steps in the order in which they are taken.

    A group of 20 that is rounded to 8 goes to 16 first and to 8 then. The rank of a step is the
    mean of its units', and no less than that of the step before it.
    """
    found = []
    for i, (rank, (low, high), n) in enumerate(
        zip(ranks, bounds, np.maximum(round_to, 1).tolist())
    ):
        order = np.argsort(rank, kind="stable")
        kept = len(rank)
        last = -np.inf
        while (after := (kept - 1) // n * n) >= low:
            positions = order[len(rank) - kept : len(rank) - after]
            last = -np.inf if kept > high else max(last, float(rank[positions].mean()))
            found.append(Step(i, positions, last))
            kept = after
    return sorted(found, key=lambda step: step.rank)  # stable: of one group, in order


def masks(groups: Sequence[Group], taken: Sequence[Step]) -> list[np.ndarray]:
    """What each group keeps."""
    kept = [np.ones(g.size, bool) for g in groups]
    for step in taken:
        kept[step.group][step.positions] = False
    return kept


def refuse_no_fraction(name: str, budget: Any) -> None:
    """A budget is one."""
    is_number = np.ndim(budget) == 0 and np.issubdtype(np.asarray(budget).dtype, np.number)
    if not is_number or not 0 < budget <= 1:
        percent = (
            f": {name}={budget / 100:g} is {budget:g} percent"
            if is_number and 1 < budget <= 100
            else ""
        )
        raise ValueError(
            f"{name}={budget!r}: a budget is a fraction of the whole, in (0, 1]{percent}"
        )


def fewest(name: str, cost: Callable[[int], float], budget: float, must: int, most: int) -> int:
    """The smallest number of steps whose cost is at most the budget, a fraction of the whole's.

    Args:
      name: of the budget, for the error.
      cost: number of steps -> cost of what is left; it never rises.
      budget: a fraction of cost(0).
      must: steps that are taken in any case.
      most: all steps.

    Raises:
      ValueError: it cannot be met; the least that can is named.
    """
    whole = cost(0)
    if cost(most) > budget * whole:
        raise ValueError(
            f"{name}={budget} cannot be met: with all that can be cut, {cost(most) / whole:.4f} "
            f"are left. Nearest: {name}={cost(most) / whole:.4f}, or allow more (approximate=True, "
            "where=, keep=, round_to=)"
        )
    low = must
    high = most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) <= budget * whole else (middle + 1, high)
    return low


def chosen(
    groups: Sequence[Group], where: Any, approximate: bool, needed: bool = True
) -> list[int]:
    """Numbers of the groups that may be cut.

    Raises:
      ValueError: there are none, though some are needed; the reasons are listed.
    """
    hits = [
        i for i, g in enumerate(groups) if where is None or any(where(m.path) for m in g.members)
    ]
    if not hits and needed:
        raise ValueError(f"where matches no group. There are {[g.name for g in groups][:20]}")
    fit = [i for i in hits if approximate or not groups[i].approximate]
    if not fit and needed:
        reasons = sorted({groups[i].approximate[0] for i in hits})
        raise ValueError(
            f"cutting would not be exact ({'; '.join(reasons[:5])}): give approximate=True to "
            f"allow it"
        )
    return fit
