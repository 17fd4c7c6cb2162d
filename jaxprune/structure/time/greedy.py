"""The order in which units go for the sake of time.

Time is not monotone in the width of a group, and what a width is worth depends on those of others.
So from the widths that are left by now, of all narrower widths of all groups that one comes next
which loses the least importance for the time that it saves:

    argmin over (group, width)   importance lost / seconds saved

after HALP (Shen et al. 2021, arXiv:2110.10811) and NetAdapt (Yang et al. 2018, arXiv:1804.03230).
Widths that save nothing are passed over. A block is a group of one unit, which may go.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jaxprune.structure.choose.budget import Step
from jaxprune.structure.time.latency import Model, Widths
from jaxprune.structure.time.progress import Tell


def candidates(size: int, low: int, high: int, round_to: int | None) -> list[int]:
    """Widths that a group may have beside its own: multiples of `round_to`, else 8 to 16 of 2ᵏ, and
    its most.
    """
    step = round_to or 1 << max(size.bit_length() - 4, 0)
    found = {n for n in range(step, size, step) if n >= low}
    return sorted(found if round_to or high == size else found | {high})


class Path:
    """Steps in order, made when they are needed.

    Args:
      model: of the program's time.
      ranks: of each group, the importance of its units.
      bounds: the least and the most units that each may keep.
      allowed: the widths below its own that each may have, see `candidates`.
      scales: sets of groups whose importance is on one scale: it and the time of each set count as
        shares of its whole. None: all are on one, as they are.
      tell: what is said while it is measured.

    Attributes:
      steps: those that are made by now; `budget.masks` says what they leave.
      seconds: of what is left after so many steps.
    """

    def __init__(
        self,
        model: Model,
        ranks: Sequence[np.ndarray],
        bounds: Sequence[tuple[int, int]],
        allowed: Sequence[Sequence[int]],
        scales: Sequence[Sequence[int]] | None,
        tell: Tell,
    ):
        self.steps: list[Step] = []
        self.seconds = [model.total(model.full)]
        self._model = model
        self._widths = list(model.full)
        self._tell = tell
        self._orders = [np.argsort(r, kind="stable") for r in ranks]
        self._lost = [np.concatenate([[0.0], np.cumsum(r[o])]) for r, o in zip(ranks, self._orders)]
        self._allowed = allowed
        self._weights = {g: self._scale(part, ranks) for part in scales or () for g in part}
        self._best: dict[int, tuple[float, int]] = {}
        for g, (_, high) in enumerate(bounds):
            if high < model.full[g] and (fit := [n for n in self._allowed[g] if n <= high]):
                self._take(g, fit[-1], -np.inf)

    def extend(self, enough: Callable[[int], bool]) -> int | None:
        """The first number of steps that is enough, or None if all are not."""
        m = 0
        while not enough(m):
            m += 1
            if m > len(self.steps) and not self._next():
                return None
        return m

    def _scale(self, part: Sequence[int], ranks: Sequence[np.ndarray]) -> float:
        seconds = sum(self._seconds(g, self._model.full) for g in part)
        return seconds / max(sum(float(np.abs(ranks[g]).sum()) for g in part), np.finfo(float).tiny)

    def _next(self) -> bool:
        stale = [g for g in range(len(self._widths)) if g not in self._best]
        self._model.measure(
            (i, at) for g in stale for at in self._narrower(g) for i in self._model.of[g]
        )
        self._best |= {g: self._choice(g) for g in stale}
        rank, g = min((best[0], g) for g, best in self._best.items())
        if rank == np.inf:
            return False
        now = tuple(self._widths)
        best = self._best[g][1]
        for at in reversed(
            [at for at in self._narrower(g) if at[g] >= best]
        ):  # on the way, for budgets that end there
            if self._seconds(g, at) < self._seconds(g, now):
                self._take(g, at[g], rank)
                now = at
        return True

    def _narrower(self, g: int) -> list[Widths]:
        some = [n for n in self._allowed[g] if n < self._widths[g]]
        return [tuple(n if i == g else w for i, w in enumerate(self._widths)) for n in some]

    def _choice(self, g: int) -> tuple[float, int]:
        """(importance lost for a second saved, width) of the best width of a group."""
        size = self._model.full[g]
        now = self._seconds(g, tuple(self._widths))
        best = np.inf, self._widths[g]
        for at in reversed(self._narrower(g)):
            saved = now - self._seconds(g, at)
            lost = self._weights.get(g, 1.0) * float(
                self._lost[g][size - at[g]] - self._lost[g][size - self._widths[g]]
            )
            if saved > 0 and lost / saved < best[0]:
                best = lost / saved, at[g]
        return best

    def _seconds(self, g: int, at: Widths) -> float:
        """Of all that depends on a group."""
        return sum(self._model.seconds(i, at) for i in self._model.of[g])

    def _take(self, g: int, width: int, rank: float) -> None:
        size = self._model.full[g]
        gone = self._orders[g][size - self._widths[g] : size - width]
        self.steps.append(Step(g, gone, rank))
        self._widths[g] = width
        touched = set(self._model.of[g])
        self._model.measure((i, tuple(self._widths)) for i in touched)
        self.seconds.append(self._model.total(tuple(self._widths)))
        left = self.seconds[-1] / self.seconds[0]
        self._tell(
            f"{len(self._model.timings.seconds)} times measured, {left:.0%} of the time left"
        )
        self._best = {h: b for h, b in self._best.items() if touched.isdisjoint(self._model.of[h])}
