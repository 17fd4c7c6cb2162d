"""Units that differ: each head keeps dimensions of its own, each layer or expert channels, as many
everywhere.

A group v that always comes with u (`structure.apply.carriers`) has an importance s(u, v). At each
position of u its positions are ranked among themselves; the t-th step takes the t-th least of each
u, and its rank is their mean

    s̄(t) = mean_u s(u, v_t(u)),    s(u, v_1(u)) <= s(u, v_2(u)) <= …

so a step is one unit less everywhere, arrays stay rectangular, and budgets are met as they are by
even groups. Weights that are kept sum to at least what they do when all must keep the same: min
over one choice for each u, not one for all.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxprune.structure.apply.carriers import Carriers
from jaxprune.structure.axes.expressions import Var, variables
from jaxprune.structure.axes.groups import Groups
from jaxprune.structure.axes.masks import Uneven, where
from jaxprune.structure.axes.selection import along
from jaxprune.structure.choose.importance import Beside, Reduce, importance


class Ranked(NamedTuple):
    """The units of a group, the least important first wherever they may differ.

    Attributes:
      variable: of the group.
      values: [size], their importance.
      over: what the group comes with; empty for one that is cut evenly, whose units stay in their
        order.
      order: [*sizes of over, size], which position is a unit's at each position of those.
      odd: [size], whether a unit holds NaN or Inf anywhere.
    """

    variable: Var
    values: np.ndarray
    over: tuple[Var, ...] = ()
    order: np.ndarray | None = None
    odd: np.ndarray | bool = False

    def keep(self, units: np.ndarray) -> np.ndarray | Uneven:
        """What is kept of the variable, if this is of its units."""
        if self.order is None:
            return units
        there = np.zeros(self.order.shape, bool)
        np.put_along_axis(there, self.order, np.broadcast_to(units, there.shape), -1)
        return Uneven(self.over, there)


def ranked(
    found: Groups,
    which: Sequence[int],
    scores: Mapping[str, Any],
    reduce: Reduce,
    uneven: bool,
    odd_weights: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> list[Ranked]:
    """Units of some groups, in the order of `which`.

    Args:
      found: of `axes`.
      which: numbers of groups.
      scores: path -> one number a weight.
      reduce: as in `importance`.
      uneven: whether units may differ.
      odd_weights: path -> where a leaf has NaN or Inf; units that hold one come first.
    """
    over = carried(Carriers(found.leaf_axes, found.programs), found.variables) if uneven else {}
    return [
        _ranked(found, i, over.get(found.variables[i], ()), scores, reduce, odd_weights)
        for i in which
    ]


def _ranked(
    found: Groups,
    i: int,
    over: tuple[Var, ...],
    scores: Mapping[str, Any],
    reduce: Reduce,
    odd_weights: Mapping[str, np.ndarray],
) -> Ranked:
    group = found.groups[i]
    v = found.variables[i]
    beside = None
    if over:
        places = {m.path: _places(found.leaf_axes[m.path], over) for m in group.members}
        beside = Beside(tuple(u.size for u in over), places)
    values = importance(group, scores, reduce, beside)
    odd = np.zeros(values.shape, bool)
    if any(m.path in odd_weights for m in group.members):
        odd = importance(group, odd_weights, "max", beside) > 0
    if not over:
        return Ranked(v, values, odd=odd)
    order = np.argsort(np.where(odd, -1, values), axis=-1, kind="stable")
    means = np.take_along_axis(values, order, -1).reshape(-1, v.size).mean(0)
    odd_somewhere = np.asarray(np.take_along_axis(odd, order, -1).reshape(-1, v.size).any(0))
    return Ranked(v, means, over, order, odd_somewhere)


def _places(axes: Any, over: tuple[Var, ...]) -> list[np.ndarray]:
    found = []
    for u in over:
        j = next(j for j, e in enumerate(axes) if u in variables(e))
        found.append(along(where(axes[j], u), j, len(axes)))
    return found


def carried(carriers: Carriers, groups: Sequence[Var]) -> dict[Var, tuple[Var, ...]]:
    """What each group may differ along. What others differ along is cut evenly itself: the smaller
    of two is.
    """
    over: dict[Var, tuple[Var, ...]] = {}
    even: set[Var] = set()
    for v in sorted(groups, key=lambda v: -v.size):
        found = tuple(u for u in carriers(v) if u not in over)
        if found and v not in even:
            over[v] = found
            even.update(found)
    return over


def told(found: Groups, keep: Mapping[Var, Any]) -> dict[str, str]:
    """What the units of each group differ along, or why they do not; by the group's name."""
    carriers = Carriers(found.leaf_axes, found.programs)
    names = _names(found)
    over = carried(carriers, found.variables)
    lines = {}
    for group, v in zip(found.groups, found.variables):
        chosen = keep[v].over if isinstance(keep.get(v), Uneven) else over.get(v)
        if chosen:
            lines[group.name] = f"differs along {', '.join(names.get(u, '?') for u in chosen)}"
        else:
            missing = carriers.lost.get(v)
            why = (
                f"what it comes with elsewhere is missing in {missing}"
                if missing
                else "others differ along it"
            )
            lines[group.name] = f"is the same everywhere: {why}"
    return lines


def _names(found: Groups) -> dict[Var, str]:
    """The first axis of a leaf that each variable lies on."""
    names: dict[Var, str] = {}
    for path, axes in found.leaf_axes.items():
        for k, e in enumerate(axes):
            for v in variables(e):
                names.setdefault(v, f"{path}[{k}]")
    return names
