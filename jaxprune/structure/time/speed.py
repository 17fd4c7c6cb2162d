"""How long the small function takes beside the large one, and a budget of that which is met as
measured.

What a table predicts is not what a compiled program takes: it fuses, and overlaps. So the loop is
closed: the function that the prediction chooses is compiled and timed in turns with the large one,
and the target of the prediction is moved along the line through what was predicted and measured
(the secant), until the measured ratio is within the budget.
"""

import hashlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.jaxprs.equations import of_arrays
from jaxprune.structure.apply.check import concrete, numbers_as_arrays
from jaxprune.structure.apply.plan import Plan
from jaxprune.structure.time.greedy import Path
from jaxprune.structure.time.timings import Call, Timings

TRIES = 6
# shares of the budget: what is aimed at, and what is near enough not to try less
AIM = 0.98
NEAR = 0.95

Seconds = tuple[float, float]
"""Before and after."""

Point = tuple[float, float]
"""What is predicted to be left, and what is as measured."""


class Pace(NamedTuple):
    """What is known of the time.

    Attributes:
      measured: seconds of the whole and of what is left, where a latency was asked for.
      predicted: seconds, by the table.
      timings: the table.
    """

    measured: Seconds | None
    predicted: Seconds
    timings: Timings


class Stopwatch(NamedTuple):
    """Times a function and what plans make of it.

    Attributes:
      f: the function.
      small: plan -> the smaller function.
      params: of f, concrete.
      args: further arguments of both.
      timings: a table; its clock is used.
    """

    f: Callable[..., Any]
    small: Callable[[Plan], Callable[..., Any]]
    params: Any
    args: tuple[Any, ...]
    timings: Timings

    def whole(self) -> tuple[float, Timings]:
        """Seconds of f, and the table with them."""
        call = called(self.f, self.params, self.args)
        text = re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(call.f)(*call.args)))
        name = f"program {hashlib.sha256(text.encode()).hexdigest()[:16]}"
        timings = self.timings.extended({name: call})
        return timings.seconds[name], timings

    def race(self) -> Callable[[Plan], Seconds]:
        """plan -> median seconds of f, and those times the median ratio of the rounds; f is
        compiled once.
        """
        dense = called(self.f, self.params, self.args)

        def timed(plan: Plan) -> Seconds:
            thin = called(self.small(plan), plan.cut(self.params), self.args)
            times = self.timings.clock([dense, thin])
            before = float(np.median(times[:, 0]))
            return before, before * float(np.median(times[:, 1] / times[:, 0]))

        return timed


def called(f: Callable[..., Any], params: Any, args: tuple[Any, ...]) -> Call:
    """f(params, *args) compiled, with what is no array among its arguments fixed."""
    g, arrays = of_arrays(f, (numbers_as_arrays(params), *jax.tree.map(concrete, args)), {})
    return Call(jax.jit(g), tuple(arrays))


def closed(
    budget: float, path: Path, least: int, timed: Callable[[int], Seconds]
) -> tuple[int, Seconds]:
    """How many steps of a path it takes until the measured time is within a budget.

    Args:
      budget: a fraction of the time of the whole.
      path: of steps, with the time that is predicted after each.
      least: steps that are taken in any case.
      timed: number of steps -> seconds before and after, measured.

    Returns:
      The number of steps, and the seconds.

    Raises:
      ValueError: all steps are not enough; the nearest that can be reached is named.
    """
    fails = least - 1
    target = budget
    over = (1.0, 1.0)
    met: tuple[int, Seconds] | None = None
    under: Point | None = None
    for _ in range(TRIES):
        m = path.extend(lambda m: m > fails and path.seconds[m] <= target * path.seconds[0])  # noqa: B023
        m = min(len(path.steps) if m is None else m, met[0] - 1 if met else len(path.steps))
        if m <= fails:
            break
        before, after = timed(m)
        last = over
        point = (path.seconds[m] / path.seconds[0], after / before)
        if after <= budget * before:
            met = (m, (before, after))
            under = point
        else:
            fails = m
            over = point
        if met and (met[0] == fails + 1 or met[1][1] >= NEAR * budget * met[1][0]):
            break
        target = (
            _between(budget, over, under)
            if under
            else min(_between(budget, last, over), over[0] * budget / over[1])
        )
    return met or _all(budget, path, timed)


def _between(budget: float, one: Point, other: Point) -> float:
    """What to predict, for a little less than the budget to be measured, on the line through two
    points.
    """
    (p, r), (q, s) = one, other
    return p + (q - p) * (AIM * budget - r) / (s - r) if s != r else q


def _all(budget: float, path: Path, timed: Callable[[int], Seconds]) -> tuple[int, Seconds]:
    path.extend(lambda m: False)
    before, after = timed(len(path.steps))
    if after > budget * before:
        raise ValueError(
            f"latency={budget} cannot be met: with all that saves time gone, {after / before:.4f} "
            f"of it are left. Nearest: latency={after / before:.4f}, or allow more "
            "(approximate=True, where=, keep=, round_to=)"
        )
    return len(path.steps), (before, after)
