"""A jaxpr walked once: an expression for every axis of every value, unified as its equations ask.

A primitive without a rule freezes every axis it touches, and says so; nothing is guessed.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core as jex

from jaxprune.jaxprs.interpret import interpret
from jaxprune.structure.axes.blocks import Block
from jaxprune.structure.axes.expressions import Axis, freeze, fresh, size, unify
from jaxprune.structure.axes.places import place
from jaxprune.structure.axes.rules import contractions, shapes
from jaxprune.structure.axes.rules import control_flow as control
from jaxprune.structure.axes.rules import gathers as indexing

Axes = list[Axis]
"""The axes of one value."""

RULES = {**shapes.RULES, **contractions.RULES, **indexing.RULES, **control.RULES}


class Record(NamedTuple):
    """An equation, and the axes of what it takes and makes.

    Attributes:
      eqn: as JAX has it.
      ins, outs: axes of each operand and result.
      extra: what its rule wants to remember: an inner program, contracted axes.
    """

    eqn: Any
    ins: list[Axes]
    outs: list[Axes]
    extra: Any

    @property
    def invars(self) -> list[Any]:
        return self.eqn.invars

    @property
    def outvars(self) -> list[Any]:
        return self.eqn.outvars


class Walked(NamedTuple):
    """A jaxpr that was walked.

    Attributes:
      jaxpr: as JAX has it.
      consts: values of its constants.
      const_axes, ins, outs: axes of its constants, inputs and results.
      records: of its equations, in order.
      blocks: that can be left out, of a whole function that was asked for them.
    """

    jaxpr: Any
    consts: list[Any]
    const_axes: list[Axes]
    ins: list[Axes]
    outs: list[Axes]
    records: list[Record]
    blocks: tuple[Block, ...] = ()


class Walk:
    """Walks jaxprs; the rules call back to walk what an equation calls.

    Attributes:
      unknown: places of primitives without a rule.
      outer: the equations that are being walked, from the outside in.
      derivatives: whether rules of custom derivatives are walked too (they call the function that
        they are of).
      depth: whether scans over layers may lose some, and blocks are looked for.
      layers: (axis that is run along, place) of scans, those that may not among them.
    """

    def __init__(self, depth: bool = False) -> None:
        self.depth = depth
        self.layers: list[tuple[Axis, str]] = []
        self.unknown: dict[str, int] = {}
        self.derivatives = True
        self.outer: list[Any] = []

    def program(self, jaxpr: Any, consts: list[Any], ins: list[Axes]) -> Walked:
        """Axes of everything in an open jaxpr, given those of its inputs."""
        const_axes = [axes_of(v) for v in jaxpr.constvars]
        records: list[Record] = []

        def visit(eqn: Any, operands: list[Axes]) -> list[Axes]:
            outs, extra = self.equation(eqn, operands)
            records.append(Record(eqn, operands, outs, extra))
            return outs

        outs = interpret(jaxpr, const_axes, ins, visit, literal=axes_of)
        return Walked(jaxpr, list(consts), const_axes, list(ins), outs, records)

    def equation(self, eqn: Any, ins: list[Axes]) -> tuple[list[Axes], Any]:
        """Axes of an equation's results."""
        rule = RULES.get(eqn.primitive.name.replace("-", "_"))
        self.outer.append(eqn)
        outs, extra = rule(self, eqn, ins) if rule else self.refuse(eqn, ins)
        self.outer.pop()
        made = [tuple(map(size, axes)) for axes in outs]
        assert made == [tuple(v.aval.shape) for v in eqn.outvars], (eqn, made)
        return outs, extra

    def refuse(
        self, eqn: Any, ins: list[Axes], why: str = "there is no rule for"
    ) -> tuple[list[Axes], Any]:
        """Freezes whatever the equation touches."""
        name = f"{why} {self.place(eqn)}"
        self.unknown[name] = self.unknown.get(name, 0) + 1
        for e in (e for axes in ins for e in axes):
            freeze(e, name)
        return [[fresh(n, name) for n in v.aval.shape] for v in eqn.outvars], None

    def place(self, eqn: Any) -> str:
        """Where an equation was written, or what calls it."""
        return place(eqn, *reversed(self.outer))

    def freeze(self, eqn: Any, axes: Iterable[Axis], note: str) -> None:
        """Freezes some axes; the reason names the equation."""
        why = f"{note}: {self.place(eqn)}"
        for e in axes:
            freeze(e, why)

    def unify(self, eqn: Any, one: Axes, other: Axes) -> None:
        """Ties the axes of two values of one shape."""
        for a, b in zip(one, other, strict=True):
            unify(a, b, f"the parts do not line up: {self.place(eqn)}")


def axes_of(v: Any) -> Axes:
    """New axes for a variable or a literal."""
    return [fresh(n) for n in (np.shape(v.val) if isinstance(v, jex.Literal) else v.aval.shape)]
