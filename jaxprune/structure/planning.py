"""Which units go: scores of weights become ranks of units, and the lowest go until the budget is met."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, get_args

import jax
import numpy as np

from jaxprune.core.where import Slot, Where, leaf_path, weights
from jaxprune.structure import budget, cost, depth
from jaxprune.structure.depth import Depth
from jaxprune.structure.importance import Normalize, Reduce, Scope, comparable
from jaxprune.structure.plan import Plan
from jaxprune.structure.uneven import Ranked, ranked
from jaxprune.transforms.axes.groups import Group, Groups, compiled
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
    depth: Depth | None = None


class Part(NamedTuple):
    """What may be cut: groups, their units, the ranks of these, and what each group is rounded to."""

    groups: list[Group]
    units: list[Ranked]
    ranks: list[np.ndarray]
    round_to: list[int]


def planned(found: Groups, tree: Any, wanted: Mapping[str, float], how: Choice, calls: Sequence[Any] = ()) -> Plan:
    """The plan that meets all budgets with the least important units gone.

    Args:
      found: of `axes`.
      tree: the params.
      wanted: budgets, by name.
      how: units are chosen.
      calls: (function, its arguments) of each, for the scores of blocks.

    Raises:
      ValueError: a budget, a rule or a score that `shrink` says is wrong.
    """
    for name, known in (("reduce", Reduce), ("scope", Scope), ("normalize", Normalize)):
        if getattr(how, name) not in get_args(known):
            raise ValueError(f"shrink({name}={getattr(how, name)!r}): {name} is one of {', '.join(get_args(known))}")
    if not isinstance(how.round_to, int) or how.round_to < 1:
        raise ValueError(f"shrink(round_to={how.round_to}): a number of units from 1 on")
    test = _test(how.where, tree)
    parts = [_deep(found, tree, how, test, calls)] if how.depth is not None else []
    if how.depth is None or not how.depth.only:
        parts.append(_wide(found, tree, how, test, bool(parts and parts[0].groups)))
    groups, units, ranks, rounded = (list(chain.from_iterable(part)) for part in zip(*parts))
    order = budget.steps(ranks, budget.limits(groups, how.keep, rounded), rounded)
    left = lambda m: zip(units, budget.masks(groups, order[:m]))
    narrow = lambda m: Narrow({r.variable: r.keep(kept) for r, kept in left(m)})
    must = sum(step.rank == -np.inf for step in order)
    costs = _costs(found, narrow, sum(g.size for g in groups), order)
    taken = max(budget.fewest(name, costs[name], value, must, len(order)) for name, value in wanted.items())
    return plan_of(found, narrow(taken))


def _wide(found: Groups, tree: Any, how: Choice, test: Callable[[str], bool] | None, others: bool) -> Part:
    """Units of widths; there may be none, if there is something else to cut."""
    wide = [i for i, g in enumerate(found.groups) if not g.layers]
    scores = _scores(tree, how.score)
    fit = [wide[i] for i in budget.chosen([found.groups[i] for i in wide], test, how.approximate, needed=not others)]
    fit = [i for i in fit if any(m.path in scores for m in found.groups[i].members)]
    if not fit and not others:
        raise ValueError(f"no weight that can be cut has a score; those that have one: {list(scores)[:5]}: give score=")
    groups, units = [found.groups[i] for i in fit], ranked(found, fit, scores, how.reduce, how.uneven)
    ranks = comparable(groups, [r.values for r in units], how.scope, how.normalize)
    return Part(groups, units, ranks, [how.round_to] * len(groups))


def _deep(found: Groups, tree: Any, how: Choice, test: Callable[[str], bool] | None, calls: Sequence[Any]) -> Part:
    """Blocks and layers."""
    there = depth.chosen(found, how.depth)
    there = [u for u in there if test is None or any(test(m.path) for m in u.group.members)]
    if not there:
        if how.depth.only:
            raise ValueError("where matches no block. jp.blocks(f, params, x) lists them")
        return Part([], [], [], [])
    made = depth.scored(found, there, how.depth, tree, calls)
    units = [Ranked(u.variable, values) for u, values in made]
    ranks = depth.ranks([r.values for r in units], how.scope)
    return Part([u.group for u, _ in made], units, ranks, [int(not u.block) for u, _ in made])


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
    lost = cost.unused(found, narrow)
    for path, leaf in found.leaf_axes.items():
        for k, e in enumerate(leaf if path not in lost else ()):
            if not narrow.mask(e).all():
                keep.setdefault(path, {})[k] = kept_along(leaf, k, narrow.keep)
    blocks = tuple(b.leaves for b in found.blocks if narrow.off(b.switch))
    dropped = {path: x.dtype for path, x in found.shapes.items() if path in lost}
    return Plan({path: x.shape for path, x in found.shapes.items()}, keep, blocks, dropped)


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
