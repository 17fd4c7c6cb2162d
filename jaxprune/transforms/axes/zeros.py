"""When cutting is exact: which values are known to be zero wherever something was cut.

Put zeros into the parts of the params that a plan cuts. The small function computes the same as this masked one if
every sum over a cut axis only leaves out zeros. So each value carries the variables v such that it is 0 at all cut
positions of v, starting from the params and followed through the equations:

    x · y, matrix products     where either is 0              x + y, max, select    where all are
    x / y, sin x, tanh x, …    where x is                     exp x, cos x, …       nowhere

A sum over v of something not known to be 0 there makes v approximate, and is named.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from jax.extend import core as jex

from jaxprune.transforms.axes.index import Var, names, variables
from jaxprune.transforms.axes.places import place
from jaxprune.transforms.axes.shapes import IDENTITY
from jaxprune.transforms.axes.walk import Axes, Record, Walked
from jaxprune.transforms.calls import scan_operands

Known = Any
"""A set of variables, or `EVERYWHERE` for a value that is 0 throughout."""
EVERYWHERE = "everywhere"

PRODUCTS = names("mul and dot_general conv_general_dilated")
ALL_OPERANDS = names("add sub add_any or xor dynamic_update_slice")
FIRST_OPERAND = IDENTITY | names(
    """div rem neg sign floor ceil round expm1 log1p tanh sin tan asin atan sinh asinh atanh sqrt cbrt square abs erf
    erf_inv convert_element_type reduce_precision real imag conj broadcast_in_dim transpose reshape squeeze split slice
    tile rev gather dynamic_slice reduce_window_sum reduce_window_max reduce_window_min cumsum cumprod cummax cummin
    reduce_sum reduce_max reduce_min reduce_prod"""
)


def _either(known: Iterable[Known]) -> Known:
    """Zero where any of these is."""
    known = list(known)
    return EVERYWHERE if EVERYWHERE in known else frozenset().union(*known)


def _all(known: Iterable[Known]) -> Known:
    """Zero where all of these are."""
    some = [k for k in known if k != EVERYWHERE]
    return frozenset.intersection(*some) if some else EVERYWHERE


class Zeros:
    """Follows zeros through walked programs.

    Attributes:
      cut: the variables of which something is cut.
      approximate: variable -> places where a sum leaves out what may not be zero.
    """

    def __init__(self, cut: Iterable[Var]):
        self.cut = frozenset(cut)
        self.approximate: dict[Var, set[str]] = {}
        self._outer: list[Any] = []

    def of(self, axes: Axes) -> frozenset[Var]:
        """All that cutting puts zeros into, of an array that is cut."""
        return self.cut & {v for e in axes for v in variables(e)}

    def run(self, program: Walked, ins: list[Known]) -> list[Known]:
        """What is known of a program's results, given what is of its inputs."""
        env = dict(zip(program.jaxpr.invars, ins))
        for r in program.records:
            self._outer.append(r.eqn)
            outs = self._outs(r, [self._read(v, env) for v in r.eqn.invars])
            self._outer.pop()
            env.update(zip(r.eqn.outvars, map(self._here, outs, r.outs)))
        return [self._read(v, env) for v in program.jaxpr.outvars]

    def _read(self, v: Any, env: dict[Any, Known]) -> Known:
        if isinstance(v, jex.Literal):
            return frozenset() if np.any(v.val) else EVERYWHERE
        return env.get(v, frozenset())

    def _here(self, known: Known, axes: Axes) -> Known:
        """Only variables that the value has: of another, "0 where it is cut" says nothing."""
        return known if known == EVERYWHERE else known & self.of(axes)

    def _outs(self, r: Record, known: list[Known]) -> list[Known]:
        name, n = r.eqn.primitive.name.replace("-", "_"), len(r.outs)
        if isinstance(r.extra, list) and r.extra and isinstance(r.extra[0], Walked):
            return self._call(r, known)
        if name in _SPECIAL:
            return _SPECIAL[name](self, r, known)
        if name in PRODUCTS:
            self._sums(r, _either(known))
            return [_either(known)]
        if name in ALL_OPERANDS:
            return [_all(known)]
        if name in FIRST_OPERAND:
            self._sums(r, known[0])
            return known[:n] if name in IDENTITY else [known[0]] * n
        return [frozenset()] * n

    def _sums(self, r: Record, known: Known) -> None:
        """Blames the equation, if it sums over a cut axis that is not known to be zero."""
        axes: Axes = r.extra if r.eqn.primitive.name in ("dot_general", "reduce_sum") else []
        if r.eqn.primitive.name == "conv_general_dilated" and r.extra:
            axes = list(r.extra[1:])
        for v in frozenset() if known == EVERYWHERE else self.of(axes) - known:
            self.approximate.setdefault(v, set()).add(place(r.eqn, *reversed(self._outer)))

    def _call(self, r: Record, known: list[Known]) -> list[Known]:
        name, inner = r.eqn.primitive.name, r.extra
        if name == "cond":
            return [_all(outs) for outs in zip(*(self.run(w, known[1:]) for w in inner))]
        if name == "while":
            c, n = r.eqn.params["cond_nconsts"], r.eqn.params["body_nconsts"]
            state = self._settled(lambda s: self.run(inner[1], [*known[c : c + n], *s]), known[c + n :])
            self.run(inner[0], [*known[:c], *state])
            return state
        if name != "scan":
            return self.run(inner[0], known)
        consts, carry, slices = ([known[k] for k in part] for part in scan_operands(r.eqn))
        turn = lambda c: self.run(inner[0], [*consts, *c, *slices])
        carry = self._settled(lambda c: turn(c)[: len(c)], carry)
        return [*carry, *turn(carry)[len(carry) :]]

    def _settled(self, turn: Any, known: list[Known]) -> list[Known]:
        """What stays known from turn to turn. A turn that knew too much blamed too little, so no blame is undone."""
        while (after := [_all(pair) for pair in zip(known, turn(known))]) != known:
            known = after
        return known


def _bounds(zeros: Zeros, r: Record, known: list[Known]) -> list[Known]:
    """max(x, c) is 0 with x if c <= 0, min(x, c) if c >= 0; clamp(a, x, b) if a <= 0 <= b."""
    low, high = np.less_equal, np.greater_equal
    tests = {"max": (low, low), "min": (high, high), "clamp": (low, None, high)}[r.eqn.primitive.name]
    harmless = lambda v, test: test and isinstance(v, jex.Literal) and bool(np.all(test(v.val, 0)))
    return [_all(k for k, v, test in zip(known, r.eqn.invars, tests) if not harmless(v, test))]


def _joined(zeros: Zeros, r: Record, known: list[Known]) -> list[Known]:
    """A concatenation or a padding: v is known unless some operand has it and is not."""
    found = zeros.of(r.outs[0])
    for k, (zero, axes) in enumerate(zip(known, r.ins)):
        filler = r.eqn.primitive.name == "pad" and k == 1
        if zero != EVERYWHERE:
            found -= (found if filler else zeros.of(axes)) - zero
    return [found]


def _scattered(zeros: Zeros, r: Record, known: list[Known]) -> list[Known]:
    return [_all([known[0], known[2]])]


_SPECIAL = {
    **dict.fromkeys(names("max min clamp"), _bounds),
    **dict.fromkeys(names("concatenate pad"), _joined),
    **dict.fromkeys(names("scatter scatter_add scatter_sub scatter_mul scatter_min scatter_max"), _scattered),
    "select_n": lambda zeros, r, known: [_all(known[1:])],
    "sort": lambda zeros, r, known: known,
    "integer_pow": lambda zeros, r, known: [known[0] if r.eqn.params["y"] > 0 else frozenset()],
}
