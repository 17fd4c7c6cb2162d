"""Automatic structural pruning of any JAX function: units that matter least go, and the arrays
shrink.

    groups = coupled_axes(f, params, x)                 what must be cut together, read off the
                                                        jaxpr
    values = importance(score, groups)          one number a unit
    plan   = the least important units until the budget is met
    g      = f on what is left                  g(cut(params), x) = f(params with zeros, x)

After DepGraph (Fang et al. 2023, arXiv:2301.12900), whose graph is of modules and treats unknown
operators as elementwise; here it is of every equation, and an unknown one freezes what it touches.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from jaxprune.core.arguments import positive, whole
from jaxprune.core.guesses import refuse_no_tree
from jaxprune.structure.apply.check import Found, checked, rounding, worst
from jaxprune.structure.apply.fold import folded
from jaxprune.structure.apply.narrow import Narrow
from jaxprune.structure.apply.plan import Plan
from jaxprune.structure.apply.rebuilt import agreement
from jaxprune.structure.apply.small_function import bypassed, kept, narrowed
from jaxprune.structure.axes.groups import Groups, coupled_axes, pairs, replaces
from jaxprune.structure.axes.odd_calls import refuse_odd_call
from jaxprune.structure.axes.traced import shapes_of
from jaxprune.structure.choose import cut_cost as cost
from jaxprune.structure.choose.budget import Limit
from jaxprune.structure.choose.depth import Depth
from jaxprune.structure.choose.importance import Normalize, Reduce, Scope
from jaxprune.structure.choose.planner import Choice, odd_weights, planned
from jaxprune.structure.choose.uneven import told
from jaxprune.structure.report import Report, differences
from jaxprune.structure.time.speed import Stopwatch
from jaxprune.structure.time.timings import Timings


class Thin(NamedTuple):
    """A function made smaller.

    Attributes:
      apply: (params, *args) -> what f returns, on the smaller params; pure.
      params: the smaller params.
      plan: what was kept; `plan.cut`, `plan.expand`, `plan.mask`, `plan.save`.
      report: what it was and what it is; print it.
    """

    apply: Callable[..., Any]
    params: Any
    plan: Plan
    report: Report

    def cut(self, tree: Any) -> Any:
        """`plan.cut`: any tree named as the params are, made smaller."""
        return self.plan.cut(tree)

    def expand(self, tree: Any) -> Any:
        """`plan.expand`: smaller params in their old shapes, zeros where something was cut."""
        return self.plan.expand(tree)

    def of(self, g: Callable[..., Any], state: str | None = None) -> Callable[..., Any]:
        """Another function that shares the params (a training step's, a decoder's), on the smaller
        ones.
        """
        return narrowed(g, self.plan, state)

    @property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """path -> the smaller shape, of the leaves that were cut: what a module must be rebuilt
        with.
        """
        return {
            path: shape for path in self.plan.keep if (shape := self.plan.small(path)) is not None
        }

    def agrees(self, rebuilt: Callable[..., Any], *args: Any, own: Any = None) -> float:
        """Whether a module built anew with `widths` computes what `apply` does: its largest
        relative difference.

        Args:
          rebuilt: (params, *args) -> outputs.
          args: examples.
          own: the params that it would make itself, or their shapes (`jax.eval_shape` of its init),
            to be compared.

        Raises:
          ValueError: it does not: params of other shapes, or the first equation that differs (a
            norm's divisor, 1/√(head size), the members of a group).
        """
        return agreement(self.apply, rebuilt, self.params, args, own, self.report.rounding)


def shrink(
    f: Any,
    tree: Any,
    /,
    *args: Any,
    flops: float | None = None,
    params: float | None = None,
    bytes: float | None = None,
    ratio: float | None = None,
    latency: float | None = None,
    plan: Plan | None = None,
    score: Any = None,
    reduce: Reduce = "l2",
    scope: Scope = "global",
    normalize: Normalize = "mean",
    where: Any = None,
    round_to: int | Literal["device"] | None = None,
    keep: Mapping[str, Limit] | None = None,
    approximate: bool | Literal["fold", "mean"] = False,
    uneven: bool = False,
    state: str | None = None,
    timings: Timings | None = None,
    depth: bool | Depth = False,
    tolerance: float | None = None,
    **kw: Any,
) -> Thin:
    """f and its params, made smaller until a budget is met.

    Args:
      f: a pure function f(params, *args), or several that share the params, as in
        `jp.coupled_axes`; the first is the one that is returned and costed, and all are checked.
      tree: its params, concrete arrays.
      args: examples of its further arguments; the result is checked on them.
      flops, params, bytes: what may be left, as a fraction of the whole: operations of one call of
        f, numbers in the params, their bytes. Of several the strictest counts.
      latency: what may be left of the time of one call of f under `jax.jit` on `args`, here and
        now: the smaller function is timed in turns with f until it meets this (see
          `structure/speed.py`). What saves most time for the
        importance that it costs goes first, by a table of measured times. Time it on a quiet
        machine.
      ratio: the share of units that may be left: channels, hidden units, heads × dimensions, as one
        counts them by hand on the axes that can be cut.
      plan: instead of a budget, a plan that was made before.
      score: of single weights: a tree like the params (None where a leaf does not count), a
        function making one, or the name of one that needs nothing else ("magnitude", "lamp",
        "fpgm"); by default the magnitude of `jp.where.weights`. Groups without any scored weight
        are not cut.
      reduce: of the scores of a unit's weights: "l2", "l1", "mean", "max".
      scope: what units are ranked with: "global", "group", "isomorphic".
      normalize: what a unit's number is divided by before that: "mean" or "max" of its group,
        "lamp", "none".
      where: which groups: those with a leaf that this regular expression for whole paths, rule of
        `jp.where` or tree of booleans selects.
      round_to: groups keep a multiple of it. "device": widths that save time on this device, found
        as for `latency`, and so is the default with `latency`, where a number says which widths are
        tried; 1 is that of other budgets.
      keep: path pattern -> the least to keep, or (least, most): units as ints, shares as floats.
      approximate: allow groups for which sums would leave out what is not zero (the report names
        them). "fold" also adds what removed units send out when their own weights are 0 (a sigmoid
        1/2) to the biases that follow, "mean" what they send out on the examples on average.
      uneven: let units differ where a group always comes with another axis: each head keeps head
        dimensions of its own, each scanned layer or expert hidden units of its own, as many
        everywhere.
      state: outputs that are new values of params, as in `jp.coupled_axes`.
      depth: also leave out residual blocks and layers that a scan runs over (`jp.residual_blocks`
        lists them): as many as change the outputs least on `args` at this budget after a refit,
          none if widths alone are best; a `jp.Depth` says
        otherwise. The result is then checked against f whose streams pass them by, and leaves of
        the params that nothing uses any more are None. With `latency=` blocks often keep much more
        than widths alone.
      timings: what was measured before, for `latency` and for `round_to="device"`:
        `thin.report.timings` of another call, or `jp.Timings.load`. What it lacks is measured, by
        its clock.
      tolerance: the largest relative difference that the self-check allows; by default what
        rounding explains (1e-4, 0.1 where f computes in half precision, 1e-9 in float64). A larger
        one is looked at again in float64, where 1e-7 is allowed, before shrink refuses: rounding
        grows in a recurrence.
      kw: given to f with the arguments (`train=False`), and to be given to `apply` as well.

    Returns:
      A `Thin`.

    Raises:
      ValueError: no budget, or one that cannot be met (the nearest that can is named); a `where` or
        `keep` that matches nothing; a plan of another model; traced params; a result that differs
        from f with zeros in place of what was cut, though the plan is exact.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> f = lambda p, x: jax.nn.relu(x @ p["w"] + p["b"]) @ p["v"]
      >>> p = {"w": jnp.diag(jnp.arange(1.0, 5)), "b": jnp.zeros(4), "v": jnp.ones((4, 2))}
      >>> thin = jp.shrink(f, p, jnp.ones((1, 4)), flops=0.5)
      >>> print(thin.params["w"].T, thin.apply(thin.params, jnp.ones((1, 4))))
      [[0. 0. 3. 0.]
       [0. 0. 0. 4.]] [[7. 7.]]
    """
    refuse_odd_call("shrink", [g for g, _ in pairs(f, args)], tree)
    refuse_no_tree(tree)
    if tolerance is not None and positive("shrink(tolerance={})", tolerance) >= 1:
        raise ValueError(f"shrink(tolerance={tolerance!r}): a relative difference, in (0, 1)")
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(tree)):
        raise ValueError(
            "shrink chooses shapes by values: call it outside of jit, on concrete params"
        )
    budgets = {"flops": flops, "params": params, "bytes": bytes, "ratio": ratio, "latency": latency}
    wanted = {name: value for name, value in budgets.items() if value is not None}
    if (plan is None) == (not wanted):
        names = ", ".join(f"{name}=" for name in budgets)
        others = f"; {', '.join(kw)} is given to f" if kw else ""
        raise ValueError(
            f"shrink: give a budget ({names}: fractions of the whole) or a plan={others}"
        )
    shapes = [
        path
        for path, x in zip(shapes_of(tree), jax.tree.leaves(tree))
        if isinstance(x, jax.ShapeDtypeStruct)
    ]
    if shapes:
        raise ValueError(
            f"shrink: {shapes[0]} is a shape, and units are ranked by values: give arrays as params"
        )
    if timings is not None and (plan is not None or (latency is None and round_to != "device")):
        raise ValueError('timings= is for latency= or round_to="device", and there is neither')
    if plan is not None and not isinstance(plan, Plan):
        raise ValueError(f"plan={plan!r}: give a Plan; jp.Plan.load reads one from a file")
    calls = pairs(f, args)
    first = calls[0][0]
    if kw:
        calls = [(functools.partial(g, **kw), given) for g, given in calls]
    found = coupled_axes(calls, tree, state=state, depth=bool(depth) or plan is not None)
    states = [
        state if any(replaces(path, state) for path in t.paths) else None for t in found.traced
    ]
    pace = None
    short = ""
    odd = odd_weights(tree)
    tried = ()
    if plan is None:
        round_to = _multiple(round_to)
        deep = Depth() if depth is True else depth or None
        limits = dict(keep or {})
        how = Choice(
            score,
            reduce,
            scope,
            normalize,
            where,
            round_to,
            limits,
            bool(approximate),
            uneven,
            deep,
            odd,
        )
        (g, given), watched = calls[0], (timings or Timings()).here()
        watch = Stopwatch(g, lambda plan: narrowed(g, plan, states[0]), tree, tuple(given), watched)
        plan, pace, short, tried = planned(found, tree, wanted, how, watch, calls)
    plan.check()
    narrow = Narrow(kept(found.leaf_axes, found.programs, plan))
    folds = None
    passed = plan.blocks or any(
        g.layers and narrow.size(v) < g.size for g, v in zip(found.groups, found.variables)
    )
    small = [narrowed(g, plan, one) for (g, _), one in zip(calls, states)]
    whole = [bypassed(g, plan, one) if passed else g for (g, _), one in zip(calls, states)]
    if isinstance(approximate, str):
        if passed:
            raise ValueError(
                f"approximate={approximate!r} with depth: leave out blocks first, then shrink what "
                f"is left"
            )
        tree, folds = folded(found, narrow, plan, tree, calls[0][1], approximate, small[0])
    allowed = rounding(found.programs) if tolerance is None else tolerance
    inexact = any(
        g.approximate and narrow.size(v) < g.size for g, v in zip(found.groups, found.variables)
    )
    accepted = (
        np.inf if inexact else allowed
    )  # of what is not exact the error is reported, and not judged
    checks = worst(
        checked(g, thin, plan, tree, given, accepted)
        for g, thin, (_, given) in zip(whole, small, calls)
    )
    report = _report(found, plan, narrow, checks, allowed)
    nonfinite = {
        path: (int(at.sum()), int(plan.cut_here(path, at).sum())) for path, at in odd.items()
    }
    report = report._replace(
        uneven=told(found, narrow.keep) if uneven else {},
        folds=folds,
        pace=pace,
        short=short,
        odd=nonfinite,
        tried=tried,
    )
    report.raise_if_wrong(bool(approximate))
    apply = narrowed(first, plan, states[0]) if kw else small[0]
    return Thin(apply, plan.cut(tree), plan, report)


def _multiple(round_to: Any) -> Any:
    """What widths are a multiple of: None, a word, or a number."""
    if isinstance(round_to, str) and round_to != "device":
        raise ValueError(f"shrink(round_to={round_to!r}): give a whole number, as 8, or 'device'")
    if round_to == "device":
        return round_to
    return None if round_to is None else whole("shrink(round_to={})", round_to)


def _report(found: Groups, plan: Plan, narrow: Narrow, checks: Found, allowed: float) -> Report:
    whole = Narrow({})
    dtypes = {path: x.dtype for path, x in found.shapes.items()}

    def both(count):
        return (count(whole), count(narrow))

    left = [int(np.count_nonzero(narrow.mask(v))) for v in found.variables]
    cut = [(g, n) for g, n in zip(found.groups, left) if n < g.size]
    return Report(
        leaves=differences(dict(plan.shapes), {path: plan.small(path) for path in plan.shapes}),
        groups=tuple(cut),
        blocks=tuple(b for b in found.blocks if narrow.off(b.switch)),
        flops=both(lambda n: cost.flops(found.programs[0], n)),
        params=both(lambda n: cost.elements(found, n)),
        bytes=both(lambda n: cost.octets(found, n, dtypes)),
        approximate={g.name: g.approximate for g, _ in cut if g.approximate},
        frozen=found.frozen,
        unknown=tuple(found.unknown),
        error=checks.error,
        finite=checks.finite,
        allowed=allowed,
        float64=checks.float64,
    )
