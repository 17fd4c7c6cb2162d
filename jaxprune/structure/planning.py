"""Which units go: scores of weights become ranks of units, and the lowest go until the budget is met."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

import jax
import numpy as np

from jaxprune.core.where import Slot, Where, leaf_path, weights
from jaxprune.structure import budget, cost
from jaxprune.structure.importance import Normalize, Reduce, Scope, comparable
from jaxprune.structure.plan import Plan
from jaxprune.structure.uneven import ranked
from jaxprune.transforms.axes.groups import Groups, compiled
from jaxprune.transforms.axes.masks import kept_along
from jaxprune.transforms.axes.narrow import Narrow
from jaxprune.transforms.axes.traced import shapes_of


class Choice(NamedTuple):
    """How units are chosen; see `shrink`."""

    score: Any
    reduce: Reduce
    scope: Scope
    normalize: Normalize
    where: Any
    round_to: int
    keep: Mapping[str, budget.Limit]
    approximate: bool
    uneven: bool = False


def planned(found: Groups, tree: Any, wanted: Mapping[str, float], how: Choice) -> Plan:
    """The plan that meets all budgets with the least important units gone.

    Raises:
      ValueError: a budget, a rule or a score that `shrink` says is wrong.
    """
    for name, known in (("reduce", Reduce), ("scope", Scope), ("normalize", Normalize)):
        if getattr(how, name) not in get_args(known):
            raise ValueError(f"shrink({name}={getattr(how, name)!r}): {name} is one of {', '.join(get_args(known))}")
    if not isinstance(how.round_to, int) or how.round_to < 1:
        raise ValueError(f"shrink(round_to={how.round_to}): a number of units from 1 on")
    fit = budget.chosen(found.groups, _test(how.where, tree), how.approximate)
    scores = _scores(tree, how.score)
    fit = [i for i in fit if any(m.path in scores for m in found.groups[i].members)]
    if not fit:
        raise ValueError(f"no weight that can be cut has a score; those that have one: {list(scores)[:5]}: give score=")
    groups = [found.groups[i] for i in fit]
    units = ranked(found, fit, scores, how.reduce, how.uneven)
    ranks = comparable(groups, [r.values for r in units], how.scope, how.normalize)
    order = budget.steps(ranks, budget.limits(groups, how.keep, how.round_to), how.round_to)
    left = lambda m: zip(units, budget.masks(groups, order[:m]))
    narrow = lambda m: Narrow({r.variable: r.keep(kept) for r, kept in left(m)})
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
            if not narrow.mask(e).all():
                keep.setdefault(path, {})[k] = kept_along(leaf, k, narrow.keep)
    return Plan({path: x.shape for path, x in found.shapes.items()}, keep)


def _test(where: Any, tree: Any) -> Callable[[str], bool] | None:
    if where is None:
        return None
    if isinstance(where, str):
        test = compiled("where", where)
        return lambda path: test.fullmatch(path) is not None
    if not isinstance(where, Where):
        raise ValueError(f"where={where!r}: give a rule of jp.where, or a regular expression for whole paths")
    flat = dict(zip(shapes_of(tree), jax.tree.leaves(tree)))
    hits = {path for path, x in flat.items() if where.test(Slot(path, x))}
    return lambda path: path in hits


def _scores(tree: Any, score: Any) -> dict[str, Any]:
    """path -> scores of its weights; None where a leaf does not count."""
    flat = dict(zip(shapes_of(tree), jax.tree.leaves(tree)))
    if score is None:
        chosen = {path: x for path, x in flat.items() if weights.test(Slot(path, x))}
        return {path: np.abs(np.asarray(x)).astype(np.float32) for path, x in chosen.items()}
    made = jax.tree_util.tree_flatten_with_path(score(tree) if callable(score) else score)[0]
    given = {leaf_path(keys): s for keys, s in made}
    odd = [path for path in given if path not in flat]
    if odd or not given:
        raise ValueError(f"score has {odd[:3] or 'nothing'}, and the params {list(flat)[:5]}: name them alike")
    for path, s in given.items():
        if np.shape(s) != np.shape(flat[path]):
            raise ValueError(f"score of {path} is {np.shape(s)}, and the leaf {np.shape(flat[path])}")
        if not np.isfinite(np.asarray(s)).all():
            raise ValueError(f"score of {path} has NaN or Inf")
    return given
