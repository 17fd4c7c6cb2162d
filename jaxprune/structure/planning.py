"""Which units go: scores of weights become ranks of units, and the lowest go until the budget is met."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.core.where import Slot, Where, weights
from jaxprune.structure import budget, cost
from jaxprune.structure.importance import Reduce, Scope, comparable, importance
from jaxprune.structure.plan import Plan
from jaxprune.transforms.axes.groups import Groups
from jaxprune.transforms.axes.narrow import Narrow
from jaxprune.transforms.axes.traced import shapes_of


class Choice(NamedTuple):
    """How units are chosen; see `shrink`."""

    score: Any
    reduce: Reduce
    scope: Scope
    where: Any
    round_to: int
    keep: Mapping[str, budget.Limit]
    approximate: bool


def planned(found: Groups, tree: Any, wanted: Mapping[str, float], how: Choice) -> Plan:
    """The plan that meets all budgets with the least important units gone.

    Raises:
      ValueError: a budget, a rule or a score that `shrink` says is wrong.
    """
    if how.reduce not in ("l2", "l1", "mean", "max") or how.scope not in ("global", "group", "isomorphic"):
        known = "reduce is l2, l1, mean or max; scope is global, group or isomorphic"
        raise ValueError(f"shrink(reduce={how.reduce!r}, scope={how.scope!r}): {known}")
    if how.round_to < 1:
        raise ValueError(f"shrink(round_to={how.round_to}): a number of units from 1 on")
    fit = budget.chosen(found.groups, _test(how.where, tree), how.approximate)
    groups, scores = [found.groups[i] for i in fit], _scores(tree, how.score)
    ranks = comparable(groups, [importance(g, scores, how.reduce) for g in groups], how.scope)
    order = budget.steps(ranks, budget.limits(groups, how.keep, how.round_to), how.round_to)
    variables = [found.variables[i] for i in fit]
    narrow = lambda m: Narrow(dict(zip(variables, budget.masks(groups, order[:m]))))
    must = sum(step.rank == -np.inf for step in order)
    costs = _costs(found, narrow, sum(g.size for g in groups), order)
    taken = max(budget.fewest(name, costs[name], value, must, len(order)) for name, value in wanted.items())
    return plan_of(found, narrow(taken))


def _costs(found: Groups, narrow: Any, units: int, order: list[budget.Step]) -> dict[str, Callable[[int], float]]:
    """Of what is left after so many steps, by the name of the budget."""
    dtypes = {path: x.dtype for path, x in found.shapes.items()}
    return {
        "flops": lambda m: cost.flops(found.programs[0], narrow(m)),
        "params": lambda m: cost.elements(found, narrow(m)),
        "bytes": lambda m: cost.octets(found, narrow(m), dtypes),
        "ratio": lambda m: units - sum(len(step.positions) for step in order[:m]),
    }


def plan_of(found: Groups, narrow: Narrow) -> Plan:
    """What is kept of every leaf, when this is kept of the variables."""
    keep: dict[str, dict[int, np.ndarray]] = {}
    for path, leaf in found.leaf_axes.items():
        for k, e in enumerate(leaf):
            there = narrow.mask(e)
            if not there.all():
                keep.setdefault(path, {})[k] = np.nonzero(there)[0]
    return Plan({path: x.shape for path, x in found.shapes.items()}, keep)


def _test(where: Any, tree: Any) -> Callable[[str], bool] | None:
    if where is None:
        return None
    if isinstance(where, str):
        return lambda path: re.fullmatch(where, path) is not None
    if not isinstance(where, Where):
        raise ValueError(f"where={where!r}: give a rule of jp.where, or a regular expression for whole paths")
    flat = dict(zip(shapes_of(tree), jax.tree.leaves(tree)))
    hits = {path for path, x in flat.items() if where.test(Slot(path, x))}
    return lambda path: path in hits


def _scores(tree: Any, score: Any) -> dict[str, Any]:
    """path -> scores of its weights; None where a leaf does not count."""
    flat = dict(zip(shapes_of(tree), jax.tree.leaves(tree)))
    if score is None:
        return {path: np.abs(np.asarray(x, np.float32)) for path, x in flat.items() if weights.test(Slot(path, x))}
    made = score(tree) if callable(score) else score
    leaves = jax.tree.leaves(made, is_leaf=lambda x: x is None)
    if len(leaves) != len(flat):
        raise ValueError(f"score has {len(leaves)} leaves, and the params {len(flat)}: give one (or None) for each")
    for (path, x), s in zip(flat.items(), leaves):
        if s is not None and np.shape(s) != np.shape(x):
            raise ValueError(f"score of {path} is {np.shape(s)}, and the leaf {np.shape(x)}")
        if s is not None and not np.isfinite(np.asarray(s, np.float32)).all():
            raise ValueError(f"score of {path} has NaN or Inf")
    return dict(zip(flat, leaves))
