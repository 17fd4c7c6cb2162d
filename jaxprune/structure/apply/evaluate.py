"""A walked program evaluated equation by equation on concrete arrays, knowing which weight each
element is.

Loops are unrolled and branches taken, so whoever asks sees every value. An array that params were
only moved into (transposed, reshaped, broadcast, sliced by a scan) has a source: the leaf, and the
index in it of every element. It is found by moving an array of indices alike.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from jaxprune.jaxprs.calls import INLINE, REMAT, scan_operands, scan_turns, while_operands
from jaxprune.jaxprs.equations import run_equations
from jaxprune.jaxprs.interpret import interpret, last_uses
from jaxprune.structure.axes.expressions import names
from jaxprune.structure.axes.rules.shapes import IDENTITY
from jaxprune.structure.axes.walk import Record, Walked

SAME = (IDENTITY - {"optimization_barrier", "device_put"}) | {"convert_element_type"}
MOVES = SAME | names("transpose reshape squeeze broadcast_in_dim slice split tile rev")


class Source(NamedTuple):
    """Where the elements of an array come from: a leaf, and the index of each in the flat leaf."""

    path: str
    at: np.ndarray


class Value(NamedTuple):
    """An array.

    Attributes:
      x: its numbers.
      source: of its elements, if they are weights as they are.
      gap: what whoever evaluates wants to carry along, shaped like x, or None for zeros.
    """

    x: Any
    source: Source | None = None
    gap: Any = None

    def __getitem__(self, i: int) -> "Value":
        source = self.source and Source(self.source.path, self.source.at[i])
        return Value(self.x[i], source, None if self.gap is None else self.gap[i])


class Evaluation:
    """Runs walked programs; `equation` may be overridden to look at what is computed, or to compute
    something else.
    """

    def run(self, program: Walked, ins: Sequence[Value]) -> list[Value]:
        """The results of a program."""
        consts = [Value(x) for x in program.consts]
        ends = last_uses(program.records, program.jaxpr.outvars)
        return interpret(
            program.jaxpr,
            consts,
            ins,
            self._visit,
            steps=program.records,
            literal=lambda v: Value(v.val),
            ends=ends,
        )

    def _visit(self, r: Record, ins: list[Value]) -> list[Value]:
        calls_another = (
            isinstance(r.extra, list) and bool(r.extra) and isinstance(r.extra[0], Walked)
        )
        return self._call(r, ins) if calls_another else self.equation(r, ins)

    def equation(self, r: Record, ins: list[Value]) -> list[Value]:
        """The results of an equation that calls no other."""
        outs = bind(r, [v.x for v in ins])
        return [Value(x, source) for x, source in zip(outs, sources(r, ins, len(outs)))]

    def _call(self, r: Record, ins: list[Value]) -> list[Value]:
        name = r.eqn.primitive.name
        inner = r.extra
        if name == "cond":
            return self.run(inner[int(np.clip(ins[0].x, 0, len(inner) - 1))], ins[1:])
        if name == "while":
            asked, turned, state = ([ins[k] for k in part] for part in while_operands(r.eqn))
            while self.run(inner[0], [*asked, *state])[0].x:
                state = self.run(inner[1], [*turned, *state])
            return state
        if name == "scan":
            return self._scan(r, ins)
        assert name in INLINE | REMAT or name == "custom_jvp_call", name
        return self.run(inner[0], ins)

    def _scan(self, r: Record, ins: list[Value]) -> list[Value]:
        consts, carry, slices = ([ins[k] for k in part] for part in scan_operands(r.eqn))
        made: list[list[Value]] = []
        turns = scan_turns(r.eqn)
        for t in turns:
            outs = self.run(r.extra[0], [*consts, *carry, *(v[t] for v in slices)])
            carry = outs[: len(carry)]
            made.append(outs[len(carry) :])
        made = made[:: turns.step]
        empty = [Value(jnp.zeros(v.aval.shape, v.aval.dtype)) for v in r.eqn.outvars[len(carry) :]]
        return [*carry, *(map(stacked, zip(*made)) if made else empty)]


def stacked(values: Sequence[Value]) -> Value:
    """Values along a new leading axis."""
    gaps = [v.gap for v in values]
    some = any(gap is not None for gap in gaps)
    whole = [jnp.zeros_like(v.x) if gap is None else gap for v, gap in zip(values, gaps)]
    known = [v.source for v in values if v.source is not None]
    one = len(known) == len(values) and len({s.path for s in known}) == 1
    source = Source(known[0].path, np.stack([s.at for s in known])) if one else None
    return Value(
        jnp.stack([jnp.asarray(v.x) for v in values]), source, jnp.stack(whole) if some else None
    )


def bind(r: Record, values: Sequence[Any], **changes: Any) -> list[Any]:
    """The results of a record's equation on other operands of the same shapes."""
    if r.eqn.primitive.name.startswith("custom_"):
        given = {v: x for v, x in zip(r.eqn.invars, values) if not isinstance(v, jex.Literal)}
        made = run_equations([r.eqn], given, None)
        return [made.get(v) for v in r.eqn.outvars]
    with r.eqn.ctx.manager:
        out = r.eqn.primitive.bind(*values, **{**r.eqn.params, **changes})
    return list(out) if r.eqn.primitive.multiple_results else [out]


def sources(r: Record, ins: Sequence[Value], n: int) -> list[Source | None]:
    """Of the results of an equation."""
    name = r.eqn.primitive.name
    if name not in MOVES or ins[0].source is None:
        return [None] * n
    path, at = ins[0].source
    if name in SAME:
        return [Source(path, at)]
    return [Source(path, np.asarray(moved)) for moved in bind(r, [jnp.asarray(at)])]


def given(params: Any, paths: Sequence[str], args: Any) -> list[Value]:
    """What a walked function takes: leaves of the params, which are their own source, and the
    arrays among args.
    """
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(params)]
    known = [
        Value(x, Source(p, np.arange(x.size, dtype=np.int32).reshape(x.shape)))
        for p, x in zip(paths, leaves)
    ]
    return [*known, *(Value(x) for x in jax.tree.leaves(args) if hasattr(x, "dtype"))]
