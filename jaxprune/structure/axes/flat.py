"""A walked program as one list: the equations of what jit and remat call stand in place of the
call.

Values are numbered in the order in which they are made, so a value depends on lower numbers only.
"""

import itertools
from typing import Any, NamedTuple

from jaxprune.jaxprs.calls import INLINE, REMAT
from jaxprune.jaxprs.interpret import interpret


class Node(NamedTuple):
    """An equation: values out of values.

    Attributes:
      records, index: its record is records[index].
      ins, outs: numbers of what it takes and makes.
      outer: the calls that it is inside of, the nearest first.
    """

    records: list[Any]
    index: int
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    outer: tuple[Any, ...]

    @property
    def record(self) -> Any:
        return self.records[self.index]

    @property
    def name(self) -> str:
        return self.record.eqn.primitive.name


class Flat(NamedTuple):
    """A program's equations in order.

    Attributes:
      nodes: the equations; scans, conds and custom derivatives are one each.
      known: number -> value, of constants and literals.
      outputs: numbers of the results. Those of the inputs are 0, 1, ….
      maker: number of a result of an equation -> the equation.
    """

    nodes: list[Node]
    known: dict[int, Any]
    outputs: list[int]
    maker: dict[int, Node]


def flat(program: Any) -> Flat:
    """The list of a `Walked` program."""
    count = itertools.count()
    nodes = []
    known = {}

    def constant(value: Any) -> int:
        known[number := next(count)] = value
        return number

    def inline(p: Any, ins: list[int], outer: tuple[Any, ...]) -> list[int]:
        index = itertools.count()

        def visit(r: Any, operands: list[int]) -> list[int]:
            i = next(index)
            if is_inline(r):
                return inline(r.extra[0], operands, (r.eqn, *outer))
            made = [next(count) for _ in r.outvars]
            nodes.append(Node(p.records, i, tuple(operands), tuple(made), outer))
            return made

        consts = [constant(value) for value in p.consts]
        return interpret(
            p.jaxpr,
            consts,
            ins,
            visit,
            steps=p.records,
            literal=lambda literal: constant(literal.val),
        )

    outputs = inline(program, [next(count) for _ in program.jaxpr.invars], ())
    return Flat(nodes, known, outputs, {o: node for node in nodes for o in node.outs})


def is_inline(record: Any) -> bool:
    """Whether it only calls: what it calls runs once, where the call stands."""
    return record.eqn.primitive.name in INLINE | REMAT
