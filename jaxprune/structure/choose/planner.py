"""Which units go: scores of weights become ranks of units, and the lowest go until the budget is
met.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

from jaxprune.core.leaves.paths import flatten_with_path, leaf_path
from jaxprune.core.trees.selection import no_match, selector
from jaxprune.core.where import is_float, leaf_slots, weights
from jaxprune.core.words import choice
from jaxprune.methods.scores import from_words
from jaxprune.structure.apply.narrow import Narrow
from jaxprune.structure.apply.plan import Plan
from jaxprune.structure.axes.expressions import Var
from jaxprune.structure.axes.groups import Group, Groups
from jaxprune.structure.axes.masks import kept_along
from jaxprune.structure.axes.traced import shapes_of
from jaxprune.structure.choose import budget, depth
from jaxprune.structure.choose import cut_cost as cost
from jaxprune.structure.choose.depth import Depth, values_of
from jaxprune.structure.choose.frozen import refuse_frozen
from jaxprune.structure.choose.importance import Normalize, Reduce, Scope, comparable
from jaxprune.structure.choose.mixing import Tried, best, counts, output_change
from jaxprune.structure.choose.near import NEAR, Fill, near_budget
from jaxprune.structure.choose.uneven import Ranked, ranked
from jaxprune.structure.time.greedy import Path, candidates
from jaxprune.structure.time.latency import Model
from jaxprune.structure.time.progress import progress
from jaxprune.structure.time.speed import Pace, Stopwatch, closed

FIRST = -1.0
"""The rank of units that hold NaN or Inf: below that of any other, and finite, for ranks are added
up."""


class Choice(NamedTuple):
    """How units are chosen; see `shrink`. `odd`: path -> where a leaf has NaN or Inf."""

    score: Any
    reduce: Reduce
    scope: Scope
    normalize: Normalize
    where: Any
    round_to: int | Literal["device"] | None
    keep: Mapping[str, budget.Limit]
    approximate: bool
    uneven: bool = False
    depth: Depth | None = None
    odd: Mapping[str, np.ndarray] = MappingProxyType({})

    @property
    def width(self) -> int:
        """What widths are multiples of."""
        return self.round_to if isinstance(self.round_to, int) else 1

    @property
    def paced(self) -> bool:
        """Whether widths are found by the device's times."""
        return self.round_to == "device"


class Cuts(NamedTuple):
    """What may be cut.

    Attributes:
      groups: of `axes`.
      units: of each group.
      ranks: of each group, the importance of its units, comparable with that of others.
      rounded: what the units of each group that stay are a multiple of.
      deep: of each group, whether it is a block or layers.
    """

    groups: list[Group]
    units: list[Ranked]
    ranks: list[np.ndarray]
    rounded: list[int]
    deep: list[bool]

    @property
    def variables(self) -> list[Var]:
        return [r.variable for r in self.units]

    def narrow(self, taken: Sequence[budget.Step]) -> Narrow:
        """What is left after some steps."""
        return Narrow(
            {
                r.variable: r.keep(kept)
                for r, kept in zip(self.units, budget.masks(self.groups, taken))
            }
        )

    def bounds(self, keep: Mapping[str, budget.Limit]) -> list[tuple[int, int]]:
        """The least and the most units that each group may keep."""
        return budget.limits(self.groups, keep, self.rounded)

    def scales(self) -> list[list[int]]:
        """The groups whose ranks are on one scale when they are not all: each width alone, all of
        depth together.
        """
        deep = [i for i, d in enumerate(self.deep) if d]
        return [*([i] for i, d in enumerate(self.deep) if not d), *([deep] if deep else [])]


class Planned(NamedTuple):
    """What was chosen.

    Attributes:
      plan: what is kept.
      pace: its time, where that was asked for.
      short: what kept it from coming near the budget; empty where it did.
      tried: the plans that were compared, where blocks and units share a budget.
    """

    plan: Plan
    pace: Pace | None = None
    short: str = ""
    tried: tuple[Tried, ...] = ()


def planned(
    found: Groups,
    tree: Any,
    wanted: Mapping[str, float],
    how: Choice,
    watch: Stopwatch | None,
    calls: Sequence[Any] = (),
) -> Planned:
    """The plan that meets all budgets with the least important units gone.

    Args:
      found: of `axes`.
      tree: the params.
      wanted: budgets, by name.
      how: units are chosen.
      watch: measures time, if that is asked for.
      calls: (function, its arguments) of each, for the scores of blocks.

    Raises:
      ValueError: a budget, a rule or a score that `shrink` says is wrong.
    """
    _refuse(wanted, how)
    cuts = _cuts(found, tree, how, calls)
    if watch is not None and ("latency" in wanted or how.paced):
        return _paced(found, cuts, wanted, how, watch)
    order = budget.steps(cuts.ranks, cuts.bounds(how.keep), cuts.rounded)
    fill = _fill(found, cuts, wanted)
    if any(cuts.deep) and not all(cuts.deep):
        taken, must, tried = _mixed(
            found, cuts, order, wanted, how, values_of(tree, calls[0][1]), tree
        )
    else:
        must = _must(order)
        tried = ()
        taken = near_budget(order, _taken(found, cuts, order, wanted), must, fill)
    return Planned(plan_of(found, cuts.narrow(taken)), None, _short(cuts, taken, must, fill), tried)


def _mixed(
    found: Groups,
    cuts: Cuts,
    order: Sequence[budget.Step],
    wanted: Mapping[str, float],
    how: Choice,
    values: list[Any],
    tree: Any,
) -> tuple[Sequence[budget.Step], int, tuple[Tried, ...]]:
    """The steps that are taken, how many of them must be, and what was compared; see `mixing`.

    Raises:
      ValueError: no plan meets the budget.
    """
    assert how.depth is not None
    fill = _fill(found, cuts, wanted)
    forced = [step for step in order if step.rank == -np.inf]
    free = [step for step in order if step.rank != -np.inf]
    deep = [step for step in free if cuts.deep[step.group]]
    wide = [step for step in free if not cuts.deep[step.group]]
    losses = (
        how.scope == "global" and how.normalize == "none"
    )  # then what blocks and units cost is the same kind
    plans = []
    for k in [] if losses else counts(len(deep)):
        steps = [*forced, *deep[:k], *wide]
        try:
            taken = _taken(found, cuts, steps, wanted, len(forced))
        except ValueError:
            continue  # so few blocks and all units are not enough
        count = min(k, taken - len(forced))
        must = len(forced) + count
        plans.append((count, near_budget(steps, max(taken, must), must, fill), must))
        if count < k:
            break  # blocks alone are enough
    if not plans:  # with losses: the user's ranking is taken as it is
        taken = near_budget(order, _taken(found, cuts, order, wanted), len(forced), fill)
        plans.append((sum(cuts.deep[step.group] for step in taken), taken, len(forced)))
    if len(plans) < 2:
        [(_, steps, must)] = plans
        return steps, must, ()

    def plan_after(steps: Sequence[budget.Step]) -> tuple[Plan, Narrow]:
        narrow = cuts.narrow(steps)
        return plan_of(found, narrow), narrow

    change = output_change(found, tree, values, how.depth.repaired)
    chosen, tried = best([(count, steps) for count, steps, _ in plans], plan_after, change)
    return plans[chosen][1], plans[chosen][2], tried


def _paced(
    found: Groups, cuts: Cuts, wanted: Mapping[str, float], how: Choice, watch: Stopwatch
) -> Planned:
    """`planned`, with widths and an order that suit the device."""
    others = {name: value for name, value in wanted.items() if name != "latency"}
    measured = None
    width = how.round_to if isinstance(how.round_to, int) else None
    with progress() as tell:
        whole, timings = watch.whole()
        model = Model(
            found.programs[0], [r.variable for r in cuts.units], cuts.ranks, timings, whole
        )
        scales = None if how.scope == "global" and how.normalize == "none" else cuts.scales()
        bounds = cuts.bounds(how.keep)
        sizes = [(g.size, deep) for g, deep in zip(cuts.groups, cuts.deep)]
        widths = [
            range(low, n) if d else candidates(n, low, high, width)
            for (n, d), (low, high) in zip(sizes, bounds)
        ]
        path = Path(model, cuts.ranks, bounds, widths, scales, tell)

        def plan(num_steps: int) -> Any:
            return plan_of(found, cuts.narrow(path.steps[:num_steps]))

        fill = _fill(found, cuts, others)
        path.extend(lambda m: fill(path.steps[:m]) <= 1)
        taken = _taken(found, cuts, path.steps, others)
        if "latency" in wanted:
            race = watch.race()
            taken, measured = closed(wanted["latency"], path, taken, lambda m: race(plan(m)))
    return Planned(
        plan(taken), Pace(measured, (path.seconds[0], path.seconds[taken]), model.timings)
    )


def _refuse(wanted: Mapping[str, float], how: Choice) -> None:
    for name, known in (("reduce", Reduce), ("scope", Scope), ("normalize", Normalize)):
        choice(f"shrink({name}={{}})", getattr(how, name), get_args(known))
    for name, value in wanted.items():
        budget.refuse_no_fraction(name, value)


def _cuts(found: Groups, tree: Any, how: Choice, calls: Sequence[Any]) -> Cuts:
    test = _test(how.where, tree)
    parts = [_deep(found, tree, how, test, calls)] if how.depth is not None else []
    if how.depth is None or not how.depth.only:
        parts.append(_wide(found, tree, how, test, bool(parts and parts[0].groups)))
    return Cuts(*(list(chain.from_iterable(part)) for part in zip(*parts)))


def _wide(
    found: Groups, tree: Any, how: Choice, test: Callable[[str], bool] | None, others: bool
) -> Cuts:
    """Units of widths; there may be none, if there is something else to cut."""
    wide = [i for i, g in enumerate(found.groups) if not g.layers]
    scores = _scores(tree, how.score)
    if not others:
        refuse_frozen(found, [found.groups[i] for i in wide], test)
    fit = [
        wide[i]
        for i in budget.chosen(
            [found.groups[i] for i in wide], test, how.approximate, needed=not others
        )
    ]
    fit = [i for i in fit if any(m.path in scores for m in found.groups[i].members)]
    if not fit and not others:
        raise ValueError(
            f"no weight that can be cut has a score; those that have one: {list(scores)[:5]}: give "
            f"score="
        )
    groups = [found.groups[i] for i in fit]
    units = ranked(found, fit, scores, how.reduce, how.uneven, how.odd)
    ranks = comparable(groups, [r.values for r in units], how.scope, how.normalize)
    ranks = [np.where(r.odd, FIRST, rank) for r, rank in zip(units, ranks)]
    return Cuts(groups, units, ranks, [how.width] * len(groups), [False] * len(groups))


def _deep(
    found: Groups, tree: Any, how: Choice, test: Callable[[str], bool] | None, calls: Sequence[Any]
) -> Cuts:
    """Blocks and layers."""
    assert how.depth is not None
    there = depth.chosen(found, how.depth)
    there = [u for u in there if test is None or any(test(m.path) for m in u.group.members)]
    if not there:
        if how.depth.only:
            raise ValueError("where matches no block. jp.residual_blocks(f, params, x) lists them")
        return Cuts([], [], [], [], [])
    made = depth.scored(found, there, how.depth, tree, calls)
    units = [Ranked(u.variable, values) for u, values in made]
    ranks = depth.ranks([r.values for r in units], how.scope, how.normalize)
    return Cuts(
        [u.group for u, _ in made],
        units,
        ranks,
        [int(not u.block) for u, _ in made],
        [True] * len(made),
    )


def _must(order: Sequence[budget.Step]) -> int:
    """How many steps are taken in any case; they come first."""
    return sum(step.rank == -np.inf for step in order)


def _taken(
    found: Groups,
    cuts: Cuts,
    order: Sequence[budget.Step],
    wanted: Mapping[str, float],
    must: int | None = None,
) -> int:
    """The smallest number of steps that meets all budgets, and takes those that must be."""
    must = _must(order) if must is None else must
    costs = _costs(found, cuts)
    counts = [must]
    for name, value in wanted.items():

        def after(m, cost=costs[name]):
            return cost(order[:m])

        counts.append(budget.fewest(name, after, value, must, len(order)))
    return max(counts)


def _costs(found: Groups, cuts: Cuts) -> dict[str, Callable[[Sequence[budget.Step]], float]]:
    """Of what is left after some steps, by the name of the budget."""
    dtypes = {path: x.dtype for path, x in found.shapes.items()}
    counted = functools.cache(lambda: cost.counted_together(found, cuts.variables, cuts.deep))
    return {
        "flops": lambda steps: cost.flops(found.programs[0], cuts.narrow(steps)),
        "params": lambda steps: cost.elements(found, cuts.narrow(steps)),
        "bytes": lambda steps: cost.octets(found, cuts.narrow(steps), dtypes),
        "ratio": lambda steps: cost.units(counted(), cuts.narrow(steps)),
    }


def _fill(found: Groups, cuts: Cuts, wanted: Mapping[str, float]) -> Fill:
    """Steps -> the cost of what is left over the budget, of the budget that is fullest."""
    costs = _costs(found, cuts)
    limits = {name: fraction * costs[name](()) for name, fraction in wanted.items()}

    def fill(steps: Sequence[budget.Step]) -> float:
        return max((costs[name](steps) / limit for name, limit in limits.items()), default=0.0)

    return fill


def _short(cuts: Cuts, taken: Sequence[budget.Step], must: int, fill: Fill) -> str:
    """Why the budget is not used up: the smallest step back, which would be more than it allows."""
    full = fill(taken)
    last = {step.group: step for step in taken[must:]}
    if full >= 1 - NEAR or not last:
        return ""
    back = {g: fill([other for other in taken if other is not step]) for g, step in last.items()}
    group = min(back, key=back.__getitem__)
    count = len(last[group].positions)
    size = cuts.groups[group].size
    return (
        f"{full:.1%} of the budget is used: the smallest step back, {count} of the {size} units of "
        f"{cuts.groups[group].name}, would make it {back[group]:.1%}"
    )


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
    test = selector(where, tree)
    hits = {slot.path for slot in leaf_slots(tree)[0] if test(slot)}
    if not hits:
        raise no_match(where, tree)
    return lambda path: path in hits


def odd_weights(tree: Any) -> dict[str, np.ndarray]:
    """path -> where a leaf has NaN or Inf; only of leaves that do."""
    floats = {
        path: np.asarray(x)
        for path, x in zip(shapes_of(tree), jax.tree.leaves(tree))
        if is_float(x)
    }
    finite = {path: np.isfinite(x) for path, x in floats.items()}
    return {path: ~ok for path, ok in finite.items() if not ok.all()}


def _magnitude(x: np.ndarray) -> np.ndarray:
    """|w|, 0 for NaN and Inf: a unit that has one goes first, and must not decide what others are
    divided by.
    """
    size = np.abs(x).astype(np.float32)
    return np.where(np.isfinite(size), size, 0)


NEEDS = {"random": "key=jax.random.key(0)", "saliency": "grads=grads", "movement": "grads=grads"}


def _made(score: Any, tree: Any) -> Any:
    """The tree of scores that a word, a function or the tree itself stands for."""
    if isinstance(score, str) and score in NEEDS:
        raise ValueError(
            f"shrink(score={score!r}) needs more than the params: give "
            f"score=jp.scores.{score}(params, {NEEDS[score]})"
        )
    score = from_words("shrink", score)
    return score(tree) if callable(score) else score


def _scores(tree: Any, score: Any) -> dict[str, Any]:
    """path -> scores of its weights; None where a leaf does not count."""
    flat = dict(zip(shapes_of(tree), jax.tree.leaves(tree)))
    if score is None:
        chosen = [slot for slot in leaf_slots(tree)[0] if weights.test(slot)]
        return {slot.path: _magnitude(np.asarray(slot.value)) for slot in chosen}
    made = flatten_with_path(_made(score, tree))[0]
    given = {leaf_path(keys): s for keys, s in made}
    odd = [path for path in given if path not in flat]
    if odd or not given:
        raise ValueError(
            f"score has {odd[:3] or 'nothing'}, and the params {list(flat)[:5]}: name them alike"
        )
    for path, s in given.items():
        if np.shape(s) != np.shape(flat[path]):
            raise ValueError(
                f"score of {path} is {np.shape(s)}, and the leaf {np.shape(flat[path])}"
            )
        odd_scores = np.argwhere(~np.isfinite(np.asarray(s)))
        if len(odd_scores):
            raise ValueError(
                f"score of {path} has NaN or Inf: {len(odd_scores)} of {np.size(s)}, the first at "
                f"{odd_scores[0].tolist()}: give finite ones, or None where a leaf does not count"
            )
    return given
