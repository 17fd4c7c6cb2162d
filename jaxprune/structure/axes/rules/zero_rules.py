"""What is known to be zero of an equation's result, given what is of its operands: one rule a
primitive.

Knowing v of a value means: an element is 0 if any of its positions along v is cut. Along two axes,
or as two factors of one, v gives an element several positions (h[:, None] − h[None, :]), so an
operand that lacks one of them tells nothing:

    first     the first operand                    v it has as often as the result (a broadcast adds
                                                   positions)
    every     all of some operands (x + y)         the same, of each
    sourced   any operand (x · y, dots)            v along each axis from an operand that knows it

A rule is (record, known of the operands) -> known of the first result.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jax.extend import core as jex

from jaxprune.structure.axes.expressions import Axis, Prod, Var, names, settled, variables
from jaxprune.structure.axes.rules.shapes import IDENTITY

Known = Any
"""A set of variables, or `EVERYWHERE` for a value that is 0 throughout."""
EVERYWHERE = "everywhere"
NOTHING: Known = frozenset()


def all_of(known: Iterable[Known]) -> Known:
    """Zero where all of these are; `EVERYWHERE` of none."""
    some = [k for k in known if k != EVERYWHERE]
    return frozenset.intersection(*some) if some else EVERYWHERE


def any_of(known: Iterable[Known]) -> Known:
    """Zero where any of these is."""
    known = list(known)
    return EVERYWHERE if EVERYWHERE in known else frozenset().union(*known)


def times(e: Axis, v: Var) -> int:
    """How many positions along v one position of an axis has: those of all factors, the most of a
    term.
    """
    e = settled(e)
    if isinstance(e, Var):
        return int(e is v)
    parts = [times(part, v) for part in e.parts]
    return sum(parts) if isinstance(e, Prod) else max(parts)


def held(known: Known, axes: Sequence[Axis], out: Sequence[Axis]) -> Known:
    """What an operand tells of a result with these axes."""
    if known == EVERYWHERE:
        return known

    def count(axes, v):
        return sum(times(e, v) for e in axes)

    return frozenset(v for v in known if count(axes, v) >= count(out, v))


def first(r: Any, known: list[Known]) -> Known:
    return held(known[0], r.ins[0], r.outs[0])


def every(r: Any, known: list[Known], operands: Iterable[int] | None = None) -> Known:
    chosen = range(len(known)) if operands is None else operands
    return all_of(held(known[i], r.ins[i], r.outs[0]) for i in chosen)


def sourced(r: Any, known: list[Known], sources: list[list[tuple[int, int]]]) -> Known:
    """`sources`: for each axis of the result, the (operand, axis) that it comes from."""
    if EVERYWHERE in known:
        return EVERYWHERE

    def told(v: Var, e: Axis, origins: list[tuple[int, int]]) -> bool:
        return any(v in known[i] and times(r.ins[i][k], v) >= times(e, v) for i, k in origins)

    pairs = list(zip(r.outs[0], sources, strict=True))
    return frozenset(
        v for v in any_of(known) if all(told(v, e, o) for e, o in pairs if v in variables(e))
    )


def mul(r: Any, known: list[Known]) -> Known:
    rank = len(r.outs[0])
    full = [i for i, axes in enumerate(r.ins) if len(axes) == rank]
    return sourced(r, known, [[(i, k) for i in full] for k in range(rank)])


def dot(r: Any, known: list[Known]) -> Known:
    (lc, rc), (lb, rb) = r.eqn.params["dimension_numbers"]

    def free(i, gone):
        return [[(i, k)] for k in range(len(r.ins[i])) if k not in gone]

    both = [[(0, a), (1, b)] for a, b in zip(lb, rb)]
    return sourced(r, known, both + free(0, (*lc, *lb)) + free(1, (*rc, *rb)))


def conv(r: Any, known: list[Known]) -> Known:
    dims = r.eqn.params["dimension_numbers"]
    origin = {dims.out_spec[0]: [(0, dims.lhs_spec[0])], dims.out_spec[1]: [(1, dims.rhs_spec[0])]}
    return sourced(r, known, [origin.get(k, []) for k in range(len(r.outs[0]))])


def div(r: Any, known: list[Known]) -> Known:
    """0 / y is 0, unless y is 0 there too."""
    top = first(r, known)
    return NOTHING if known[1] == EVERYWHERE else top if top == EVERYWHERE else top - known[1]


def bounds(r: Any, known: list[Known]) -> Known:
    """max(x, c) is 0 with x if c <= 0, min(x, c) if c >= 0; clamp(a, x, b) if a <= 0 <= b."""
    low = np.less_equal
    high = np.greater_equal
    tests = {"max": (low, low), "min": (high, high), "clamp": (low, None, high)}[
        r.eqn.primitive.name
    ]

    def harmless(v, test):
        return test and isinstance(v, jex.Literal) and bool(np.all(test(v.val, 0)))

    asked = [i for i, (v, test) in enumerate(zip(r.eqn.invars, tests)) if not harmless(v, test)]
    return every(r, known, asked or None)


def joined(r: Any, known: list[Known]) -> Known:
    """A concatenation or a padding: v is known unless some operand has it and is not."""
    found = {v for e in r.outs[0] for v in variables(e)}
    for k, (zero, axes) in enumerate(zip(known, r.ins)):
        filler = r.eqn.primitive.name == "pad" and k == 1
        if zero != EVERYWHERE:
            found -= (found if filler else {v for e in axes for v in variables(e)}) - zero
    return frozenset(found)


def gather(r: Any, known: list[Known]) -> Known:
    """What is out of bounds is filled; NaN spoils both functions alike."""
    fill = r.eqn.params["fill_value"]
    fills = (
        "FILL" in str(r.eqn.params["mode"])
        and fill is not None
        and not np.isnan(fill)
        and fill != 0
    )
    return NOTHING if fills else first(r, known)


def reduction(r: Any, known: list[Known]) -> Known:
    """Of nothing at all, a maximum is −∞."""
    return first(r, known) if all(r.eqn.invars[0].aval.shape) else NOTHING


FIRST = (IDENTITY - {"optimization_barrier", "device_put"}) | names(
    """
    neg sign floor ceil round expm1 log1p tanh sin tan asin atan sinh asinh atanh sqrt cbrt
    square abs erf erf_inv convert_element_type reduce_precision real imag conj broadcast_in_dim
    transpose reshape squeeze split slice tile rev dynamic_slice reduce_window_sum
    reduce_window_max reduce_window_min cumsum cumprod cummax cummin reduce_sum unstack
    """
)
RULES: dict[str, Callable[[Any, list[Known]], Known]] = {
    **dict.fromkeys(FIRST, first),
    **dict.fromkeys(names("add sub add_any or xor dynamic_update_slice stack"), every),
    **dict.fromkeys(names("mul and"), mul),
    **dict.fromkeys(names("div rem"), div),
    **dict.fromkeys(names("max min clamp"), bounds),
    **dict.fromkeys(names("concatenate pad"), joined),
    **dict.fromkeys(names("reduce_max reduce_min"), reduction),
    **dict.fromkeys(
        names("scatter scatter_add scatter_sub scatter_mul scatter_min scatter_max"),
        lambda r, known: every(r, known, (0, 2)),
    ),
    "dot_general": dot,
    "conv_general_dilated": conv,
    "gather": gather,
    "select_n": lambda r, known: every(r, known, range(1, len(known))),
    "integer_pow": lambda r, known: first(r, known) if r.eqn.params["y"] > 0 else NOTHING,
}
EACH = names("optimization_barrier device_put sort")
"""Results that are operands, one by one."""
