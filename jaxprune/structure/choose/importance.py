"""How much each position of a group matters: one number from the scores of all weights that go with
it.

    l2   √Σ s²        l1   Σ|s|        mean   Σ|s| / n        max   max |s|

Any score of single weights becomes one of units: |w| gives group L2 or L1 (DepGraph, Fang et al.
2023, arXiv:2301.12900), w·g Taylor, w²F Fisher and OBD; one that is not None for the scales of
batch norms only gives network slimming (Liu et al. 2017, arXiv:1708.06519).

Numbers of different groups are brought to one scale by what each is divided by:

    mean   the mean of its group        max    the largest        none   nothing
    lamp   v² over the sum of all v² of its group that are at least as large (Lee et al. 2021,
           arXiv:2010.07611)

and are then ranked:

    global       all groups together
    group        each group by itself: all lose the same share
    isomorphic   groups with equal members together: such a class loses the same share (Fang et al.
                 2024,
                 arXiv:2407.04616)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxprune.structure.axes.groups import Group
from jaxprune.structure.axes.selection import along

Reduce = Literal["l2", "l1", "mean", "max"]
Scope = Literal["global", "group", "isomorphic"]
Normalize = Literal["mean", "max", "lamp", "none"]


class Beside(NamedTuple):
    """Variables that a group always comes with.

    Attributes:
      sizes: of them.
      places: path of a leaf -> their positions, arrays that broadcast over the leaf.
    """

    sizes: tuple[int, ...]
    places: Mapping[str, Sequence[np.ndarray]]


def importance(
    group: Group, scores: Mapping[str, Any], reduce: Reduce = "l2", beside: Beside | None = None
) -> np.ndarray:
    """One number a position, float64.

    Args:
      group: of `axes`.
      scores: path -> one number a weight; leaves that are missing or None do not count.
      reduce: "l2", "l1", "mean" or "max".
      beside: one number for each position of these too.

    Returns:
      [*sizes of beside, size]; zeros if none of its leaves has a score.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> from jaxprune.structure.choose.importance import importance
      >>> params = {"w": jnp.array([[1.0, 3.0], [2.0, 4.0]]), "v": jnp.array([[2.0], [0.0]])}
      >>> [group] = jp.coupled_axes(lambda p, x: x @ p["w"] @ p["v"], params,
      ...     jnp.ones((1, 2))).groups
      >>> print(importance(group, params))         # √(1 + 4 + 4), √(9 + 16)
      [3. 5.]
    """
    shape = (*(beside.sizes if beside else ()), group.size)
    total = np.zeros(shape)
    count = np.zeros(shape)
    for member in group.members:
        s = scores.get(member.path)
        if s is None:
            continue
        start, step = _REDUCES[reduce]
        sizes = np.abs(np.asarray(s)).astype(np.float64)
        places = beside.places[member.path] if beside else ()
        rest = tuple(
            k
            for k in range(sizes.ndim)
            if k != member.axis and all(at.shape[k] == 1 for at in places)
        )
        values = start(sizes, rest)
        n = math.prod(sizes.shape[k] for k in rest)
        for at in member.maps:
            index = np.broadcast_arrays(*places, along(at, member.axis, sizes.ndim))
            there = index[-1] >= 0
            step.at(total, tuple(i[there] for i in index), values[there])
            np.add.at(count, tuple(i[there] for i in index), n)
    if reduce == "mean":
        return total / np.maximum(count, 1)
    return np.sqrt(total) if reduce == "l2" else total


_REDUCES: dict[str, tuple[Callable[[np.ndarray, tuple[int, ...]], np.ndarray], Any]] = {
    "l2": (lambda s, rest: np.square(s).sum(rest, keepdims=True), np.add),
    "l1": (lambda s, rest: s.sum(rest, keepdims=True), np.add),
    "mean": (lambda s, rest: s.sum(rest, keepdims=True), np.add),
    "max": (lambda s, rest: s.max(rest, keepdims=True, initial=0.0), np.maximum),
}


def comparable(
    groups: list[Group], values: list[np.ndarray], scope: Scope, normalize: Normalize = "mean"
) -> list[np.ndarray]:
    """The values as numbers that may be ranked over all groups.

    Args:
      groups: of `axes`.
      values: of `importance`, one array a group.
      scope: what a unit is ranked with.
      normalize: how the values of a group are scaled before that.

    Returns:
      An array a group, in the order of its values.
    """
    values = [_SCALES[normalize](v) for v in values]
    if scope == "global":
        return values
    kinds = [i if scope == "group" else kind(g) for i, g in enumerate(groups)]
    ranks: list[np.ndarray] = [np.zeros(0)] * len(groups)
    for one in dict.fromkeys(kinds):
        members = [i for i, k in enumerate(kinds) if k == one]
        together = np.concatenate([values[i] for i in members])
        rank = np.empty(len(together))
        rank[np.argsort(together, kind="stable")] = (np.arange(len(together)) + 0.5) / len(together)
        for i, part in zip(
            members, np.split(rank, np.cumsum([len(values[i]) for i in members])[:-1])
        ):
            ranks[i] = part
    return ranks


def _lamp(v: np.ndarray) -> np.ndarray:
    order = np.argsort(v, kind="stable")
    found = np.zeros(len(v))
    square = v[order] ** 2
    found[order] = square / np.maximum(np.cumsum(square[::-1])[::-1], np.finfo(float).tiny)
    return found


_SCALES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda v: v / max(float(v.mean()), np.finfo(float).tiny),
    "max": lambda v: v / max(float(v.max()), np.finfo(float).tiny),
    "lamp": _lamp,
    "none": lambda v: v,
}


def kind(group: Group) -> tuple[Any, ...]:
    """What isomorphic groups have in common: their members' last names, axes and how often the
    group lies on them.
    """

    def last(m):
        return m.path.rsplit("/", 1)[-1]

    return tuple(sorted((last(m), m.axis, len(m.maps)) for m in group.members))
