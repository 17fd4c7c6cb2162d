"""Steps that come near a budget where units are few and large.

`budget.steps` ranks all steps, and the shortest prefix that is within the budget is taken. Where
its last step is large (half of the channels of a group norm, a head of two), it ends far below.
Then other choices are looked at:

    skip     the step that went too far is not taken, nor later ones of its group; the others go on
    undo     steps that were taken are taken back, the most important first, as long as the budget
             is met

Of all choices within `NEAR` of the budget the one that loses least importance is taken; if there is
none, the nearest.
"""

from collections.abc import Callable, Sequence

from jaxprune.structure.choose.budget import Step

NEAR = 0.02
"""The share of a budget that may stay unused."""
TRIED = 24
"""Groups whose last step is skipped; the largest steps first."""

Fill = Callable[[Sequence[Step]], float]
"""Steps that are taken -> the cost of what is left over the budget, of the budget that is fullest:
1 is just within."""


def near_budget(order: Sequence[Step], taken: int, must: int, fill: Fill) -> list[Step]:
    """The steps to take, in order.

    Args:
      order: all steps, ranked.
      taken: the smallest number of them that is within the budget.
      must: how many are taken in any case.
      fill: how full the budget is.
    """
    greedy = list(order[:taken])
    if taken <= must or fill(greedy) >= 1 - NEAR:
        return greedy
    choices = [greedy, *_skipping(order, taken, must, fill)]
    choices = [_undone(choice, must, fill) for choice in choices]
    fills = [fill(choice) for choice in choices]
    enough = min(max(fills), 1 - NEAR)
    near = [choice for choice, full in zip(choices, fills) if full >= enough]
    return min(near, key=_lost)


def _skipping(order: Sequence[Step], taken: int, must: int, fill: Fill) -> list[list[Step]]:
    """Choices in which one group, and then each that went too far as well, stops before its last
    step.
    """
    last = {step.group: i for i, step in enumerate(order[:taken]) if i >= must}
    saved = {g: fill([*order[:i], *order[i + 1 : taken]]) for g, i in last.items()}
    largest = sorted(last, key=lambda g: -saved[g])[:TRIED]
    choices = []
    for group in largest:
        start = [*order[: last[group]], *order[last[group] + 1 : taken]]
        blocked = {group}
        while True:
            choice = _continued(start, order[taken:], blocked, fill)
            if choice is None:
                break
            choices.append(choice)
            if fill(choice) >= 1 - NEAR or len(choice) <= must:
                break
            blocked.add(choice[-1].group)
            start = choice[:-1]
    return choices


def _continued(
    start: list[Step], rest: Sequence[Step], blocked: set[int], fill: Fill
) -> list[Step] | None:
    """The fewest further steps, of groups that are not blocked, that are within the budget; None if
    all are not.
    """
    done = {id(step) for step in start}
    rest = [step for step in rest if step.group not in blocked and id(step) not in done]
    if fill([*start, *rest]) > 1:
        return None
    low = 0
    high = len(rest)
    while low < high:
        middle = (low + high) // 2
        if fill([*start, *rest[:middle]]) <= 1:
            high = middle
        else:
            low = middle + 1
    return [*start, *rest[:low]]


def _undone(choice: list[Step], must: int, fill: Fill) -> list[Step]:
    """The choice without the most important steps that the budget can do without."""
    fixed = {id(step) for step in choice[:must]}
    while True:
        last = {step.group: step for step in choice if id(step) not in fixed}
        for step in sorted(last.values(), key=lambda step: -step.rank * len(step.positions)):
            without = [other for other in choice if other is not step]
            if fill(without) <= 1:
                choice = without
                break
        else:
            return choice


def _lost(choice: Sequence[Step]) -> float:
    """The importance of all that goes; of what must go in any case there is no saying."""
    return sum(step.rank * len(step.positions) for step in choice if step.rank > -float("inf"))
