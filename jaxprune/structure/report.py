"""What a function was and what it is, after `shrink`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxprune.structure.apply.check import FLOAT64_TOLERANCE
from jaxprune.structure.apply.fold import Folds
from jaxprune.structure.axes.blocks import Block
from jaxprune.structure.axes.groups import Group
from jaxprune.structure.choose.mixing import Tried
from jaxprune.structure.time.speed import Pace, Seconds
from jaxprune.structure.time.timings import Timings


class Report(NamedTuple):
    """Numbers of the whole and of what is left.

    Attributes:
      leaves: (path, shape before, shape after) of the leaves that were cut; None of those that are
        gone.
      groups: (group, how many units are kept) of the groups that were cut.
      blocks: that were left out.
      flops, params, bytes: (before, after).
      approximate: groups that were cut though sums leave out what may not be zero: name -> places.
      frozen: "path[axis]" -> why it could not be cut.
      unknown: places of primitives without a rule, which froze what they touch.
      error: of the self-check: largest difference to f with zeros in place of what was cut,
        relative.
      finite: whether f with zeros is finite wherever the smaller function is.
      allowed: the largest that rounding explains, or `tolerance=`.
      float64: the error of the self-check in float64, where `error` is larger than allowed;
        otherwise None.
      uneven: if that was asked for: group -> what its units differ along, or why they do not.
      folds: what was folded into biases, with `approximate="fold"` or "mean".
      short: why the budget is not used up, where units are few and large.
      odd: path -> how many weights were NaN or Inf, before and after; units that hold one go first.
      tried: where blocks and units shared a budget: how many blocks and layers the plans left out
        that were compared, and how much each changed the outputs.
      pace: of the time, where `latency=` or widths for the device were asked for.
    """

    leaves: tuple[tuple[str, tuple[int, ...], tuple[int, ...] | None], ...]
    groups: tuple[tuple[Group, int], ...]
    blocks: tuple[Block, ...]
    flops: tuple[int, int]
    params: tuple[int, int]
    bytes: tuple[int, int]
    approximate: dict[str, tuple[str, ...]]
    frozen: dict[str, str]
    unknown: tuple[str, ...]
    error: float
    finite: bool
    allowed: float
    float64: float | None = None
    uneven: Mapping[str, str] = MappingProxyType({})
    folds: Folds | None = None
    pace: Pace | None = None
    short: str = ""
    odd: Mapping[str, tuple[int, int]] = MappingProxyType({})
    tried: tuple[Tried, ...] = ()

    @property
    def latency(self) -> Seconds | None:
        """Seconds (before, after) of a call, measured in turns; None where `latency=` was not asked
        for.
        """
        return self.pace and self.pace.measured

    @property
    def timings(self) -> Timings | None:
        """The table of what was measured, to be saved or given to the next `jp.shrink`."""
        return self.pace and self.pace.timings

    @property
    def agrees(self) -> bool:
        """Whether the self-check held, in the precision of f or in float64."""
        return self.error <= self.allowed or (
            self.float64 is not None and self.float64 <= FLOAT64_TOLERANCE
        )

    @property
    def rounding(self) -> float:
        """The largest difference that rounding makes in this function: more than allowed where
        float64 said so.
        """
        return (
            max(self.allowed, 4 * self.error)
            if self.float64 is not None and self.agrees
            else self.allowed
        )

    def _in_float64(self) -> str:
        if self.float64 is None:
            return ""
        return (
            f", and by {self.float64:.1e} in float64"
            if self.float64 < np.inf
            else ", and float64 cannot be computed"
        )

    def raise_if_wrong(self, approximate: bool) -> None:
        """A plan that is exact must compute the same; that f divides 0 by 0 where g does not, must
        be allowed.
        """
        names = [*(b.leaves[0] for b in self.blocks), *(g.name for g, _ in self.groups)][:10]
        if not self.finite and not approximate:
            raise ValueError(
                "with zeros in place of what was cut f is not finite (0 / 0, log 0), and the "
                f"smaller function is: give approximate=True to allow that. Groups cut: {names}"
            )
        if not self.approximate and not self.agrees:
            take = f"; tolerance={2 * self.error:.1e} would take it" if 2 * self.error < 1 else ""
            raise ValueError(
                "the smaller function differs from f with zeros in place of what was cut, by "
                f"{self.error:.1e} of the largest output where {self.allowed:.0e} is "
                f"rounding{self._in_float64()}. Either f is not pure, or this is a defect of "
                f"jaxprune: please report it with f{take}. Groups cut: {names}"
            )
        if (
            self.folds is not None
            and self.folds.exact
            and not (self.folds.error or 0) <= self.allowed
        ):
            raise ValueError(
                f"the smaller function differs from f with constants in place of what was cut, by "
                f"{self.folds.error:.1e}, though all were folded: please report it with f. Groups "
                f"cut: {names}"
            )

    def __str__(self) -> str:
        def shape(s):
            return "gone" if s is None else "×".join(map(str, s))

        wide = max([4, *(len(path) for path, *_ in self.leaves)])
        lines = [f"{path:<{wide}}  {shape(a):>16} -> {shape(b)}" for path, a, b in self.leaves]
        lines += [
            f"left out: the block of {', '.join(b.leaves[:3])}: {b.place}" for b in self.blocks
        ]
        lines += [
            f"left out: {g.size - n} of {g.size} layers: {g.layers}"
            for g, n in self.groups
            if g.layers
        ]
        lines += [_line(name, *getattr(self, name)) for name in ("flops", "params", "bytes")]
        lines += [self.short] if self.short else []
        lines += [
            f"NaN or Inf in {path}: {before} before, {after} left"
            for path, (before, after) in self.odd.items()
        ]
        if self.pace:
            seen = {"measured": self.pace.measured, "predicted": self.pace.predicted}
            lines += [
                f"{name:<9} {_seconds(*seconds)}" for name, seconds in seen.items() if seconds
            ]
        if self.tried:
            told = ", ".join(f"{one.deep} -> {one.change:.3g}" for one in self.tried)
            lines.append(
                f"compared by the change of the outputs, blocks and layers left out -> change: "
                f"{told}"
            )
        if (
            self.pace
            and self.pace.measured
            and not self.blocks
            and not any(g.layers for g, _ in self.groups)
        ):
            lines.append(
                "hint: blocks often save more time than widths: where f has residual blocks, "
                "compare with depth=True"
            )
        kind = "approximate" if self.approximate else "exact"
        by = f"{self.error:.1e}{self._in_float64()}"
        lines.append(
            f"{kind}: differs from f with zeros in place of what was cut by {by}, relative"
        )
        lines += [f"  {name} {what}" for name, what in self.uneven.items()]
        lines += [
            f"  approximate: {name}: {'; '.join(places)}"
            for name, places in self.approximate.items()
        ]
        lines += [f"  not looked into: {name}" for name in self.unknown]
        lines += [] if self.folds is None else [str(self.folds)]
        return "\n".join(lines)


def _line(name: str, before: int, after: int) -> str:
    return f"{name:<6} {before:>16,} -> {after:>14,}  ({before / max(after, 1):.2f}x fewer)"


def _seconds(before: float, after: float) -> str:
    return f"{1e3 * before:>10.3f} ms -> {1e3 * after:>11.3f} ms  ({before / after:.2f}x faster)"


def differences(before: dict[str, Any], after: dict[str, Any]) -> tuple[tuple[str, Any, Any], ...]:
    """(path, before, after) where they differ."""
    return tuple(
        (path, before[path], after[path]) for path in before if before[path] != after[path]
    )
