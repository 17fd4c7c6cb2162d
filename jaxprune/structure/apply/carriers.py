"""What a variable always comes with: v may keep other positions at each position of such a u
(`masks.Uneven`).

A smaller function only knows how many positions of v there are. Which they are says K(u, v), where
arrays are cut. That is right if no equation brings together what belongs to different positions of
u:

    every value that has v has u as well, once       so K says of each of its elements whether it is
                                                     kept
    every equation that runs over v runs over u once     so an element only meets those of its own
                                                         position of u
    u comes before v in a product                      so what is kept of u · v is a product again,
                                                       row by row

The body of a scan runs once for each position of the axis that the scan runs along: there all
values have that axis (scanned layers), but not constants and what is made by position, which are
the same every time.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jax.extend import core as jex

from jaxprune.jaxprs.calls import scan_operands
from jaxprune.structure.axes.expressions import Axis, Prod, Var, names, settled
from jaxprune.structure.axes.places import place
from jaxprune.structure.axes.rules.contractions import REDUCE
from jaxprune.structure.axes.rules.shapes import ELEMENTWISE, IDENTITY
from jaxprune.structure.axes.walk import Axes, Record, Walked

WHOLE = names("iota random_bits random_split")
"""What is made by position: whole, and then cut."""
POINTWISE = ELEMENTWISE | IDENTITY | {"broadcast_in_dim"}
MOVED = names(
    """
    transpose squeeze reshape tile concatenate split stack unstack slice dynamic_slice
    dynamic_update_slice bitcast_convert_type
    """
)
Span = tuple[int, int]


class Counts(NamedTuple):
    """How many positions along variables the elements of an axis, or of several, have.

    Attributes:
      each: variable -> the fewest and the most.
      beside: variable -> the same, of only those elements that have it.
    """

    each: dict[Var, Span]
    beside: dict[Var, dict[Var, Span]]


class Carriers:
    """Looks for them in walked programs.

    Attributes:
      found: variable -> what every value had it with so far.
      lost: variable -> where that became nothing.
    """

    def __init__(self, leaf_axes: Mapping[str, Axes], programs: Iterable[Walked]):
        self.found: dict[Var, list[Var]] = {}
        self.lost: dict[Var, str] = {}
        self._memory: dict[int, tuple[Axis, Counts]] = {}
        for path, axes in leaf_axes.items():
            self._see(axes, (), lambda path=path: path)
        for program in programs:
            self._run(program, (), ())

    def __call__(self, v: Var) -> list[Var]:
        """What v always comes with."""
        return self.found.get(v, [])

    def _run(self, program: Walked, turns: tuple[Var, ...], outer: tuple[Any, ...]) -> None:
        """`turns`: the axes that the scans around run along."""
        for axes in program.const_axes:
            self._see(axes, (), lambda: f"a constant of {place(*outer)}" if outer else "a constant")
        for r in program.records:

            def where(r=r):
                return place(r.eqn, *outer)

            for v, axes in zip(r.eqn.invars, r.ins):
                self._see(axes, () if isinstance(v, jex.Literal) else turns, where)
            for axes in r.outs:
                self._see(axes, () if r.eqn.primitive.name in WHOLE else turns, where)
            self._see(run_over(r), turns, where)
            for inner in inside(r):
                self._run(inner, turns + turned(r), (r.eqn, *outer))

    def _see(self, axes: Sequence[Axis], turns: tuple[Var, ...], where: Callable[[], str]) -> None:
        """Elements with these axes: what v has none of there, or several, it does not come with."""
        for v, beside in _side_by_side(
            [self._counts(e) for e in (*axes, *turns)], ordered=False
        ).beside.items():
            if v.why is None and v not in turns:
                once = [
                    u
                    for u in self.found.get(v, beside)
                    if beside.get(u) == (1, 1) and u is not v and u.size > 1
                ]
                if not once:
                    self.lost.setdefault(v, where())
                self.found[v] = once

    def _counts(self, e: Axis) -> Counts:
        if id(e) not in self._memory:
            self._memory[id(e)] = e, counted(settled(e))
        return self._memory[id(e)][1]


def counted(e: Axis) -> Counts:
    """Positions along variables that the elements of an axis have."""
    if isinstance(e, Var):
        return Counts({e: (1, 1)}, {e: {e: (1, 1)}})
    parts = [counted(settled(part)) for part in e.parts]
    if isinstance(e, Prod):
        return _side_by_side(parts, ordered=True)
    beside = {}
    for v in {v: None for part in parts for v in part.beside}:
        beside[v] = _either([part.beside[v] for part in parts if v in part.beside])
    return Counts(_either([part.each for part in parts]), beside)


def _either(spans: list[dict[Var, Span]]) -> dict[Var, Span]:
    """Of elements of one kind or another."""
    if len(spans) == 1:
        return spans[0]
    both = {u: [s.get(u, (0, 0)) for s in spans] for s in spans for u in s}
    return {
        u: (min(low for low, _ in found), max(high for _, high in found))
        for u, found in both.items()
    }


def _side_by_side(parts: list[Counts], ordered: bool) -> Counts:
    """Of elements that are made of one of each; where the order matters, what comes after v counts
    twice.
    """
    each = _sum([part.each for part in parts])
    beside = {}
    for i, part in enumerate(parts):
        after = [*(p.each for p in parts[i + 1 :])] if ordered else []
        others = [p.each for j, p in enumerate(parts) if j != i] + after
        made = {v: _sum([own, *others]) for v, own in part.beside.items() if v.why is None}
        beside |= {
            v: _either([beside[v], spans]) if v in beside else spans for v, spans in made.items()
        }
    return Counts(each, beside)


def _sum(spans: list[dict[Var, Span]]) -> dict[Var, Span]:
    total: dict[Var, Span] = {}
    for s in spans:
        for u, (low, high) in s.items():
            before = total.get(u, (0, 0))
            total[u] = before[0] + low, before[1] + high
    return total


def inside(r: Record) -> list[Walked]:
    """The programs that an equation calls."""
    return [w for w in r.extra if isinstance(w, Walked)] if isinstance(r.extra, list) else []


def turned(r: Record) -> tuple[Var, ...]:
    """The axis that a scan runs along."""
    if r.eqn.primitive.name != "scan":
        return ()
    leading = [settled(r.ins[k][0]) for k in scan_operands(r.eqn)[2]]
    return tuple(dict.fromkeys(e for e in leading if isinstance(e, Var)))


def run_over(r: Record) -> Axes:
    """The axes that an equation runs over; those along which it mixes come twice, and of an unknown
    one all do.
    """
    name = r.eqn.primitive.name.replace("-", "_")
    ins = r.ins
    outs = r.outs
    if name in POINTWISE | MOVED | WHOLE or inside(r):
        return []
    known = RUN_OVER.get(name)
    return known(r) if known else [e for axes in (*ins, *outs) for e in axes]


def _conv(r: Record) -> Axes:
    (x, kernel), dims = r.ins, r.eqn.params["dimension_numbers"]
    spatial = [x[k] for k in dims.lhs_spec[2:]] + [kernel[k] for k in dims.rhs_spec[2:]]
    return [*r.outs[0], kernel[dims.rhs_spec[1]], *spatial]


def _gather(r: Record) -> Axes:
    batch = r.eqn.params["dimension_numbers"].operand_batching_dims
    return [
        *r.outs[0],
        *(r.ins[0][k] for k, e in enumerate(r.extra) if isinstance(e, int) and k not in batch),
    ]


def _scatter(r: Record) -> Axes:
    window = r.eqn.params["dimension_numbers"].update_window_dims
    return [*r.ins[0], *(e for k, e in enumerate(r.ins[2]) if k not in window)]


def _pad(r: Record) -> Axes:
    return [*r.outs[0], *(e for e, around in zip(r.ins[0], r.extra) if around is None)]


def _window(r: Record) -> Axes:
    return [*r.ins[0], *(o for e, o in zip(r.ins[0], r.outs[0]) if o is not e)]


def _line(dimension: Callable[[Record], Iterable[int]]) -> Callable[[Record], Axes]:
    return lambda r: [*r.ins[0], *(r.outs[0][k] for k in dimension(r))]


RUN_OVER: dict[str, Callable[[Record], Axes]] = {
    **dict.fromkeys(REDUCE | {"reduce_sum"}, lambda r: r.ins[0]),
    **dict.fromkeys(
        names("cumsum cumprod cummax cummin cumlogsumexp"), _line(lambda r: [r.eqn.params["axis"]])
    ),
    **dict.fromkeys(names("reduce_window_sum reduce_window_max reduce_window_min"), _window),
    **dict.fromkeys(
        names("scatter scatter_add scatter_sub scatter_mul scatter_min scatter_max"), _scatter
    ),
    "sort": _line(lambda r: [r.eqn.params["dimension"]]),
    "rev": _line(lambda r: r.eqn.params["dimensions"]),
    "top_k": _line(lambda r: [r.eqn.params.get("axis", -1) % len(r.ins[0])]),
    "dot_general": lambda r: [*r.outs[0], *r.extra],
    "conv_general_dilated": _conv,
    "gather": _gather,
    "pad": _pad,
}
