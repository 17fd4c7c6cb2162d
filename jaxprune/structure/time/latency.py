"""Seconds of a program by the widths of its groups, read off a table.

    seconds(widths) = Σ times · table[equation at widths]  +  rate · Σ times · bytes(other equations
    at widths)

Matrix products and convolutions are looked up among measured times. All else moves data, and takes
what is left of the measured time of the whole program, in proportion to the bytes. The body of a
scan runs as often as it says, that of a while once, and each branch of a cond is as likely as the
others. A block that is left out takes its equations along; a scan over layers runs as often as it
has layers.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune.jaxprs.calls import Body, bodies
from jaxprune.jaxprs.equation_flops import COSTS, OPAQUE, plain
from jaxprune.jaxprs.interpret import equations as equations_of
from jaxprune.structure.apply.narrow import Narrow
from jaxprune.structure.axes.expressions import Var, settled, variables
from jaxprune.structure.axes.flat import is_inline
from jaxprune.structure.axes.rules.control_flow import layers
from jaxprune.structure.axes.walk import Axes, Record, Walked, axes_of
from jaxprune.structure.time.timings import Call, Timings, equation

MEASURED = frozenset({"dot_general", "conv_general_dilated"})
FREE = frozenset({"reshape", "squeeze", "expand_dims", "broadcast_in_dim", "iota", "stop_gradient"})
"""What moves nothing: a view, or made where it is used."""

Widths = tuple[int, ...]
"""How many units each group keeps."""
Numbers = Mapping[Var, int]
"""Of groups, by their variables."""
Scales = tuple[int, ...]
"""Numbers of groups that are blocks or layers."""


class Term(NamedTuple):
    """What takes time.

    Attributes:
      groups: numbers of the groups that it depends on.
      scales: those of blocks and layers among them, as many of whose parts as are left it runs.
      times: how often it runs; for an array, times the bytes of an element.
      record: an equation that is measured; None for an array that is moved.
      axes: of the array.
    """

    groups: tuple[int, ...]
    scales: tuple[int, ...]
    times: float
    record: Record | None
    axes: Axes


class Model:
    """Seconds of a walked program at any widths.

    Args:
      program: walked.
      groups: its variables that may be cut.
      ranks: of each group, a number a unit: those with the lowest are not kept.
      timings: what is measured already.
      whole: seconds of the program as it is.

    Attributes:
      timings: what is measured by now.
      full: the widths of the whole.
      of: by group, the numbers of the terms that depend on it.
    """

    def __init__(
        self,
        program: Walked,
        groups: Sequence[Var],
        ranks: Sequence[np.ndarray],
        timings: Timings,
        whole: float,
    ):
        self.timings = timings
        self.full = tuple(len(r) for r in ranks)
        self._groups = groups
        self._orders = [np.argsort(r, kind="stable") for r in ranks]
        self._terms = list(terms(program, groups))
        self._found: dict[tuple[int, Widths], float | str] = {}
        self.of = [
            [i for i, t in enumerate(self._terms) if g in t.groups] for g in range(len(groups))
        ]
        self._rate, every = 1.0, range(len(self._terms))
        self.measure((i, self.full) for i in every)
        known, moved = (
            sum(
                self.seconds(i, self.full)
                for i in every
                if (self._terms[i].record is None) == arrays
            )
            for arrays in (False, True)
        )
        self._rate = max(whole - known, 0.0) / max(moved, 1.0)

    def total(self, widths: Widths) -> float:
        """Seconds of all."""
        return sum(self.seconds(i, widths) for i in range(len(self._terms)))

    def seconds(self, i: int, widths: Widths) -> float:
        """Of a term, at widths that are measured."""
        term = self._terms[i]
        key = self._key(i, widths)
        times = self._times(i, widths)
        if not times:
            return 0.0
        if term.record is not None:
            return times * self.timings.seconds[str(self._found[key])]
        if key not in self._found:
            self._found[key] = float(np.prod(self._narrow(i, widths).shape(term.axes)))
        return self._rate * times * float(self._found[key])

    def measure(self, wanted: Iterable[tuple[int, Widths]]) -> None:
        """Terms at widths: what of it is not in the table is measured."""
        calls: dict[str, Call] = {}
        for i, widths in wanted:
            record = self._terms[i].record
            key = self._key(i, widths)
            if record is not None and key not in self._found and self._times(i, widths):
                name, call = equation(self._narrow(i, widths).equation(record))
                self._found[key] = name
                calls[name] = call
        self.timings = self.timings.extended(calls)

    def _times(self, i: int, widths: Widths) -> float:
        return self._terms[i].times * math.prod(
            widths[g] / self.full[g] for g in self._terms[i].scales
        )

    def _key(self, i: int, widths: Widths) -> tuple[int, Widths]:
        return i, tuple(widths[g] for g in self._terms[i].groups)

    def _narrow(self, i: int, widths: Widths) -> Narrow:
        return Narrow({self._groups[g]: self._mask(g, widths[g]) for g in self._terms[i].groups})

    def _mask(self, g: int, width: int) -> np.ndarray:
        kept = np.zeros(self.full[g], bool)
        kept[self._orders[g][self.full[g] - width :]] = True
        return kept


def terms(program: Walked, groups: Sequence[Var]) -> Iterator[Term]:
    """Equations that are measured, and the arrays of all others; those of one shape at all widths
    together.
    """
    numbers = {v: i for i, v in enumerate(groups)}
    arrays: dict[Any, tuple[float, Axes]] = {}
    for r, times, scales in equations(program, numbers, blocks_of(program, numbers)):
        name = plain(r.eqn.primitive.name)
        both = [*zip(r.eqn.invars, r.ins), *zip(r.eqn.outvars, r.outs)]
        if name in MEASURED:
            yield Term(_touched((axes for _, axes in both), numbers, scales), scales, times, r, [])
        for v, axes in both if name not in MEASURED | FREE else []:
            key = *(id(settled(e)) for e in axes), scales
            arrays[key] = arrays.get(key, (0.0, axes))[0] + times * v.aval.dtype.itemsize, axes
    for (*_, scales), (weight, axes) in arrays.items():
        yield Term(_touched([axes], numbers, scales), scales, weight, None, axes)


def _touched(arrays: Iterable[Axes], numbers: Numbers, others: Scales = ()) -> tuple[int, ...]:
    return tuple(
        sorted(
            {numbers[v] for axes in arrays for e in axes for v in variables(e) if v in numbers}
            | {*others}
        )
    )


def blocks_of(program: Walked, numbers: Numbers) -> dict[int, Scales]:
    """By the id of a record, the numbers of the blocks without any of which it is not run."""
    found: dict[int, Scales] = {}
    for v in (settled(b.switch) for b in program.blocks):
        for r in _idle(program, Narrow({v: np.zeros(1, bool)})) if v in numbers else ():
            found[id(r)] = (*found.get(id(r), ()), numbers[v])
    return found


def _idle(program: Walked, narrow: Narrow) -> Iterator[Record]:
    live = set(map(id, narrow.live(program)))
    for r in program.records:
        if id(r) not in live or narrow.stream(r) is not None:
            yield r
        elif is_inline(r):
            yield from _idle(r.extra[0], narrow)


def equations(
    program: Walked,
    numbers: Numbers,
    blocks: dict[int, Scales],
    times: float = 1.0,
    scales: Scales = (),
) -> Iterator[tuple[Record, float, Scales]]:
    """Those that call no others, how often they run, and the blocks and layers that they are of."""
    for r in program.records:
        name = plain(r.eqn.primitive.name)
        mine = (*scales, *blocks.get(id(r), ()))
        inside = [] if name in COSTS or name in OPAQUE else bodies(r.eqn)
        if not inside:
            yield r, times, mine
        share = 1 / len(inside) if name == "cond" else 1.0
        along = layers(r)
        mine = mine if along is None else (*mine, *_touched([[along]], numbers))
        for body, inner in zip(inside, r.extra or map(_uncut, inside)):
            yield from equations(inner, numbers, blocks, times * share * body.times, mine)


def _uncut(body: Body) -> Walked:
    """A body of which nothing is cut, as if it had been walked."""

    def axes(some):
        return [axes_of(v) for v in some]

    records = [Record(e, axes(e.invars), axes(e.outvars), None) for e in equations_of(body.jaxpr)]
    return Walked(body.jaxpr, body.consts, [], [], [], records)
