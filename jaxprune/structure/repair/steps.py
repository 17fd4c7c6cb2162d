"""A walked function as one list of steps, for the large program and the small one at once.

Calls are inlined, and scans over stacked layers are unrolled, so each layer has steps of its own. A
value has a number; steps come in the order of the program, and a value depends on lower numbers
only. What is left out of the small program (a block, a turn of a scan) is not live: the large
program computes it, the small one passes it by.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from jaxprune.jaxprs.calls import INLINE, REMAT, scan_operands, scan_turns
from jaxprune.jaxprs.interpret import interpret
from jaxprune.structure.apply.narrow import Narrow
from jaxprune.structure.axes.rules.control_flow import layers
from jaxprune.structure.axes.rules.shapes import IDENTITY
from jaxprune.structure.axes.walk import Axes, Record, Walked

CALLS = INLINE | REMAT | {"custom_jvp_call"}

SAME = (IDENTITY - {"optimization_barrier"}) | {"convert_element_type", "reduce_precision"}
"""Equations whose result is their operand, in another dtype at most."""

RESHAPES = frozenset({"reshape", "squeeze", "expand_dims", "broadcast_in_dim"})
MOVES = SAME | RESHAPES | {"transpose"}

LARGE = 0
SMALL = 1


class Equation(NamedTuple):
    """An equation of the program; `stream` is the operand that it gives where its block is left
    out.
    """

    record: Record
    info: Any
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    live: bool
    stream: int | None

    def inputs(self, side: int) -> tuple[int, ...]:
        if side == LARGE:
            return self.ins
        if not self.live:
            return ()
        return self.ins if self.stream is None else (self.ins[self.stream],)

    @property
    def name(self) -> str:
        return self.record.eqn.primitive.name


class Slice(NamedTuple):
    """What one turn of a scan takes of an array: the positions in the large array and in the small
    one, if there.
    """

    ins: tuple[int, ...]
    outs: tuple[int, ...]
    at: tuple[int, int | None]

    name = "slice of a scan"

    @property
    def live(self) -> bool:
        return self.at[SMALL] is not None

    def inputs(self, side: int) -> tuple[int, ...]:
        return self.ins if self.at[side] is not None else ()


class Join(NamedTuple):
    """A value that is one thing in the large program and another in the small one: the carry behind
    a turn left out.
    """

    ins: tuple[int, int]
    outs: tuple[int, ...]

    name = "join"
    live = True

    def inputs(self, side: int) -> tuple[int, ...]:
        return (self.ins[side],)


class Stack(NamedTuple):
    """What the turns of a scan gave, one above the other."""

    parts: tuple[tuple[int, ...], tuple[int, ...]]
    outs: tuple[int, ...]
    empty: Any

    name = "stack"
    live = True

    def inputs(self, side: int) -> tuple[int, ...]:
        return self.parts[side]


Step = Equation | Slice | Join | Stack


class Steps(NamedTuple):
    """Both programs.

    Attributes:
      steps: in order.
      known: number -> (value, its axes), of constants and literals.
      outputs: numbers of the results; those of the inputs are 0, 1, ….
      maker: number -> the index of the step that makes it.
    """

    steps: list[Step]
    known: dict[int, tuple[Any, Axes]]
    outputs: list[int]
    maker: dict[int, int]


def unrolled(program: Walked, narrow: Narrow, num_params: int) -> Steps:
    """The steps of a program; a scan that takes slices of params is one over layers, and is
    unrolled.

    Args:
      program: of a whole function, or of the body of a scan.
      narrow: what the small program keeps.
      num_params: how many of its inputs, the first ones, are params.
    """
    build = _Build(narrow, num_params)
    inputs = [next(build.count) for _ in program.jaxpr.invars]
    outputs = build.inline(program, inputs, True)
    maker = {number: i for i, step in enumerate(build.steps) for number in step.outs}
    return Steps(build.steps, build.known, outputs, maker)


class _Build:
    """Numbers values and appends steps."""

    def __init__(self, narrow: Narrow, num_params: int):
        self.narrow = narrow
        self.params = set(range(num_params))  # and what they were only moved into
        self.count = itertools.count()
        self.steps: list[Step] = []
        self.known: dict[int, tuple[Any, Axes]] = {}

    def constant(self, value: Any, axes: Axes) -> int:
        number = next(self.count)
        self.known[number] = value, axes
        return number

    def inline(self, program: Walked, inputs: Sequence[int], live: bool) -> list[int]:
        live_records = set(map(id, self.narrow.live(program))) if live else set()

        def visit(r: Record, operands: list[Any]) -> list[int]:
            numbers = self._numbers(r.invars, operands, r.ins)
            return self.equation(r, numbers, id(r) in live_records, program.jaxpr.debug_info)

        consts = [
            self.constant(value, axes) for value, axes in zip(program.consts, program.const_axes)
        ]
        results = interpret(program.jaxpr, consts, inputs, visit, steps=program.records)
        return self._numbers(program.jaxpr.outvars, results, program.outs)

    def _numbers(
        self, variables: Sequence[Any], found: list[Any], axes: Sequence[Axes]
    ) -> list[int]:
        """Numbers of variables and of literals, whose values were found in their place."""
        return [
            self.constant(x, one) if isinstance(v, jex.Literal) else x
            for v, x, one in zip(variables, found, axes)
        ]

    def equation(self, r: Record, operands: list[int], live: bool, info: Any) -> list[int]:
        name = r.eqn.primitive.name
        if name in CALLS and r.extra:
            return self.inline(r.extra[0], operands, live)
        if (
            name == "scan"
            and r.extra
            and any(operands[k] in self.params for k in scan_operands(r.eqn)[2])
        ):
            return self.scan(r, operands, live)
        outs = [next(self.count) for _ in r.eqn.outvars]
        stream = self.narrow.stream(r)
        if name in MOVES and operands[0] in self.params:
            self.params.update(outs)
        self.steps.append(Equation(r, info, tuple(operands), tuple(outs), live, stream))
        return outs

    def scan(self, r: Record, operands: list[int], live: bool) -> list[int]:
        consts, carry, slices = ([operands[k] for k in part] for part in scan_operands(r.eqn))
        along = layers(r)
        turns = scan_turns(r.eqn)
        length = len(turns)
        stays = np.ones(length, bool) if along is None else np.asarray(self.narrow.mask(along))
        small_position = np.cumsum(stays) - 1
        results: list[list[int]] = []
        for t in turns:
            at = t, int(small_position[t]) if stays[t] and live else None
            parts = [self._append(Slice, (number,), at) for number in slices]
            outs = self.inline(r.extra[0], [*consts, *carry, *parts], live and bool(stays[t]))
            if live and not stays[t]:
                carry = [self._append(Join, pair) for pair in zip(outs[: len(carry)], carry)]
            else:
                carry = outs[: len(carry)]
            results.append(outs[len(carry) :])
        results = results[:: turns.step]
        stacked = []
        for k, v in enumerate(r.eqn.outvars[len(carry) :]):
            column = tuple(outs[k] for outs in results)
            kept = tuple(number for number, there in zip(column, stays) if there)
            stacked.append(next(self.count))
            self.steps.append(Stack((column, kept if live else ()), (stacked[-1],), v.aval))
        return [*carry, *stacked]

    def _append(self, kind: Any, ins: tuple[int, ...], *rest: Any) -> int:
        out = next(self.count)
        self.steps.append(kind(ins, (out,), *rest))
        if kind is Slice and ins[0] in self.params:
            self.params.add(out)
        return out


class Values:
    """The values of both programs over batches, computed when they are asked for.

    Attributes:
      memo: for each side, number -> a value a batch, or one for all batches where it depends on
        params alone.
    """

    def __init__(self, steps: Steps, narrow: Narrow, inputs: Sequence[tuple[list[Any], list[Any]]]):
        """`inputs`: for each input its values in the large and in the small program, a batch each
        or one for all.
        """
        self.program = steps
        self.narrows = Narrow({}), narrow
        self.batches = max((len(large) for large, _ in inputs), default=1)
        self.memo: tuple[dict[int, list[Any]], dict[int, list[Any]]] = ({}, {})
        for number, pair in enumerate(inputs):
            for side in (LARGE, SMALL):
                self.memo[side][number] = pair[side]
        for number, (value, axes) in steps.known.items():
            self.memo[LARGE][number] = [value]
            self.memo[SMALL][number] = [narrow.cut(value, axes)]

    def missing(self, number: int, side: int) -> list[int]:
        """Indices of the steps that have to run before this value is there, in order."""
        stack = [number]
        needed = set()
        while stack:
            n = stack.pop()
            if n in self.memo[side] or self.program.maker[n] in needed:
                continue
            i = self.program.maker[n]
            needed.add(i)
            stack.extend(self.program.steps[i].inputs(side))
        return sorted(needed)

    def compute(self, i: int, side: int) -> None:
        """Runs one step, whose operands are there."""
        step = self.program.steps[i]
        if not step.live and side == SMALL:
            return
        columns = [self.memo[side][n] for n in step.inputs(side)]
        count = self.batches if any(len(c) > 1 for c in columns) else 1
        rows = [[c[b] if len(c) > 1 else c[0] for c in columns] for b in range(count)]
        results = [self._run(step, side, row) for row in rows]
        for number, column in zip(step.outs, zip(*results)):
            self.memo[side][number] = list(column)

    def demand(self, number: int, side: int) -> list[Any]:
        """A value over batches, with all that it needs."""
        for i in self.missing(number, side):
            self.compute(i, side)
        return self.memo[side][number]

    def _run(self, step: Step, side: int, operands: list[Any]) -> Sequence[Any]:
        if isinstance(step, Slice):
            return [operands[0][step.at[side]]]
        if isinstance(step, Join):
            return operands
        if isinstance(step, Stack):
            empty = step.empty
            return [
                jnp.stack(operands) if operands else jnp.zeros((0, *empty.shape[1:]), empty.dtype)
            ]
        if side == SMALL and step.stream is not None:
            return operands
        return self.narrows[side].results(step.record, operands, step.info)

    def forget(self, number: int, side: int) -> None:
        """Drops what was computed from a value that has changed; the value itself stays."""
        stale = {number}
        for step in self.program.steps:
            if stale.intersection(step.inputs(side)):
                stale.update(step.outs)
        for n in stale - {number}:
            self.memo[side].pop(n, None)

    def shape(self, number: int, side: int) -> tuple[int, ...]:
        return np.shape(self.memo[side][number][0])


def consumers(program: Steps, side: int) -> dict[int, list[int]]:
    """number -> the indices of the steps that read it; −1 for an output of the function."""
    readers: dict[int, list[int]] = {}
    for i, step in enumerate(program.steps):
        for number in step.inputs(side):
            readers.setdefault(number, []).append(i)
    for number in program.outputs:
        readers.setdefault(number, []).append(-1)
    return readers


def last_reads(program: Steps) -> dict[int, list[int]]:
    """index of a step -> the values that nothing reads after it."""
    last: dict[int, int] = {}
    for i, step in enumerate(program.steps):
        for number in (*step.outs, *step.inputs(LARGE), *step.inputs(SMALL)):
            last[number] = i
    ends: dict[int, list[int]] = {}
    for number in set(last) - set(program.outputs):
        ends.setdefault(last[number], []).append(number)
    return ends


def depends_on_params_alone(program: Steps, fixed: set[int], num_inputs: int) -> set[int]:
    """The values that are the same for all examples; `fixed` are the inputs that are."""
    constant = fixed | set(program.known)
    for step in program.steps:
        if all(n in constant for n in step.inputs(LARGE)):
            constant.update(step.outs)
    return constant - (set(range(num_inputs)) - fixed)
