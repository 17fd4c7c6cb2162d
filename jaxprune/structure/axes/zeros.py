"""When cutting is exact: which values are known to be zero wherever something was cut.

Put zeros into the parts of the params that a plan cuts. The small function computes the same as
this masked one if every sum over a cut axis only leaves out zeros. So each value carries the
variables v such that it is 0 at all cut positions of v, starting from the params and followed
through the equations:

    x · y, matrix products     where either is 0              x + y, max, select    where all are
    x / y, sin x, tanh x, …    where x is                     exp x, cos x, …       nowhere

A sum over v of something not known to be 0 there makes v approximate, and is named.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxprune.jaxprs.calls import scan_operands, while_operands
from jaxprune.jaxprs.interpret import interpret
from jaxprune.structure.axes.expressions import Var, variables
from jaxprune.structure.axes.places import place
from jaxprune.structure.axes.rules.zero_rules import (
    EACH,
    EVERYWHERE,
    NOTHING,
    RULES,
    Known,
    all_of,
    any_of,
)
from jaxprune.structure.axes.walk import Axes, Record, Walked


class Zeros:
    """Follows zeros through walked programs.

    Attributes:
      cut: the variables of which something is cut.
      summed: variables that are summed over somewhere.
      approximate: variable -> places where a sum leaves out what may not be zero.
    """

    def __init__(self, cut: Iterable[Var]):
        self.cut = frozenset(cut)
        self.summed: set[Var] = set()
        self.approximate: dict[Var, set[str]] = {}
        self._outer: list[Any] = []

    def of(self, axes: Axes) -> frozenset[Var]:
        """All that cutting puts zeros into, of an array that is cut."""
        return self.cut & {v for e in axes for v in variables(e)}

    def run(self, program: Walked, ins: list[Known]) -> list[Known]:
        """What is known of a program's results, given what is of its inputs."""
        return interpret(
            program.jaxpr,
            (),
            ins,
            self._visit,
            steps=program.records,
            literal=_of_literal,
            unknown=NOTHING,
        )

    def _visit(self, r: Record, known: list[Known]) -> list[Known]:
        self._outer.append(r.eqn)
        outs = self._outs(r, known)
        self._outer.pop()
        return list(map(self._here, outs, r.outs))

    def _here(self, known: Known, axes: Axes) -> Known:
        """Only variables that the value has: of another, "0 where it is cut" says nothing."""
        return known if known == EVERYWHERE else known & self.of(axes)

    def _outs(self, r: Record, known: list[Known]) -> list[Known]:
        name = r.eqn.primitive.name.replace("-", "_")
        if isinstance(r.extra, list) and r.extra and isinstance(r.extra[0], Walked):
            return self._call(r, known)
        self._sums(r, known)
        if name in EACH:
            return known
        return [RULES[name](r, known) if name in RULES else NOTHING] * len(r.outs)

    def _sums(self, r: Record, known: list[Known]) -> None:
        """Blames the equation, if it sums over a cut axis that is not known to be zero."""
        told = any_of(known)
        over = self.of(summed(r))
        self.summed |= over
        for v in NOTHING if told == EVERYWHERE else over - told:
            self.approximate.setdefault(v, set()).add(place(r.eqn, *reversed(self._outer)))

    def _call(self, r: Record, known: list[Known]) -> list[Known]:
        name = r.eqn.primitive.name
        inner = r.extra
        if name == "cond":
            return [all_of(outs) for outs in zip(*(self.run(w, known[1:]) for w in inner))]
        if name == "while":
            asked, turned, state = ([known[k] for k in part] for part in while_operands(r.eqn))
            state = self._settled(lambda s: self.run(inner[1], [*turned, *s]), state)
            self.run(inner[0], [*asked, *state])
            return state
        if name != "scan":
            return self.run(inner[0], known)
        consts, carry, slices = ([known[k] for k in part] for part in scan_operands(r.eqn))

        def turn(c):
            return self.run(inner[0], [*consts, *c, *slices])

        carry = self._settled(lambda c: turn(c)[: len(c)], carry)
        return [*carry, *turn(carry)[len(carry) :]]

    def _settled(self, turn: Any, known: list[Known]) -> list[Known]:
        """What stays known from turn to turn. A turn that knew too much blamed too little, so no
        blame is undone.
        """
        while (after := [all_of(pair) for pair in zip(known, turn(known))]) != known:
            known = after
        return known


def _of_literal(literal: Any) -> Known:
    return NOTHING if np.any(literal.val) else EVERYWHERE


def summed(r: Record) -> Axes:
    """The axes that an equation sums over."""
    if r.eqn.primitive.name in ("dot_general", "reduce_sum"):
        return r.extra
    return list(r.extra[1:]) if r.eqn.primitive.name == "conv_general_dilated" and r.extra else []
