"""How much each position of a group matters: one number from the scores of all weights that go with it.

    l2   √Σ s²        l1   Σ|s|        mean   Σ|s| / n        max   max |s|

Any score of single weights becomes one of units: |w| gives group L2 or L1 (DepGraph, Fang et al. 2023,
arXiv:2301.12900), w·g Taylor, w²F Fisher and OBD; one that is not None for the scales of batch norms only gives network
slimming (Liu et al. 2017, arXiv:1708.06519).

Units of different groups are made comparable by what they are ranked with:

    global       all groups together, each unit over the mean of its group
    absolute     all groups together, as they are: for scores that estimate the loss (Taylor, Fisher)
    group        each group by itself: all lose the same share
    isomorphic   groups with equal members together: such a class loses the same share (Fang et al. 2024,
                 arXiv:2407.04616)
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from jaxprune.transforms.axes.groups import Group, Member

Reduce = Literal["l2", "l1", "mean", "max"]
Scope = Literal["global", "absolute", "group", "isomorphic"]


def importance(group: Group, scores: Mapping[str, Any], reduce: Reduce = "l2") -> np.ndarray:
    """One number a position, float64.

    Args:
      group: of `axes`.
      scores: path -> one number a weight; leaves that are missing or None do not count.
      reduce: "l2", "l1", "mean" or "max".

    Returns:
      [size]; zeros if none of its leaves has a score.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> from jaxprune.structure.importance import importance
      >>> params = {"w": jnp.array([[1.0, 3.0], [2.0, 4.0]]), "v": jnp.array([[2.0], [0.0]])}
      >>> [group] = jp.axes(lambda p, x: x @ p["w"] @ p["v"], params, jnp.ones((1, 2))).groups
      >>> print(importance(group, params))         # √(1 + 4 + 4), √(9 + 16)
      [3. 5.]
    """
    total, count = np.zeros(group.size), np.zeros(group.size)
    for member in group.members:
        s = scores.get(member.path)
        if s is None:
            continue
        start, step = _REDUCES[reduce]
        sizes = np.abs(np.asarray(s)).astype(np.float64)
        flat = np.moveaxis(sizes, member.axis, 0).reshape(sizes.shape[member.axis], -1)
        values, n = start(flat), flat.shape[1]
        for at in member.maps:
            step.at(total, at[at >= 0], values[at >= 0])
            np.add.at(count, at[at >= 0], n)
    if reduce == "mean":
        return total / np.maximum(count, 1)
    return np.sqrt(total) if reduce == "l2" else total


_REDUCES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Any]] = {
    "l2": (lambda flat: np.square(flat).sum(1), np.add),
    "l1": (lambda flat: flat.sum(1), np.add),
    "mean": (lambda flat: flat.sum(1), np.add),
    "max": (lambda flat: flat.max(1, initial=0.0), np.maximum),
}


def comparable(groups: list[Group], values: list[np.ndarray], scope: Scope) -> list[np.ndarray]:
    """The values as numbers that may be ranked over all groups.

    Args:
      groups: of `axes`.
      values: of `importance`, one array a group.
      scope: what a unit is ranked with.

    Returns:
      An array a group, in the order of its values.
    """
    if scope == "absolute":
        return values
    if scope == "global":
        return [v / max(float(v.mean()), np.finfo(float).tiny) for v in values]
    kinds = [i if scope == "group" else kind(g) for i, g in enumerate(groups)]
    ranks: list[np.ndarray] = [np.zeros(0)] * len(groups)
    for one in dict.fromkeys(kinds):
        members = [i for i, k in enumerate(kinds) if k == one]
        together = np.concatenate([values[i] for i in members])
        rank = np.empty(len(together))
        rank[np.argsort(together, kind="stable")] = (np.arange(len(together)) + 0.5) / len(together)
        for i, part in zip(members, np.split(rank, np.cumsum([len(values[i]) for i in members])[:-1])):
            ranks[i] = part
    return ranks


def kind(group: Group) -> tuple[Any, ...]:
    """What isomorphic groups have in common: their members' last names, axes and how often the group lies on them."""
    last: Callable[[Member], str] = lambda m: m.path.rsplit("/", 1)[-1]
    return tuple(sorted((last(m), m.axis, len(m.maps)) for m in group.members))
