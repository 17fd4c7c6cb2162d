"""A walked program run on smaller arrays: the equations of the large one, bound anew with the sizes
that are left.

Blocks that are left out give their stream; what only they used is dead code, and is neither run nor
counted.
"""

import types
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core as jex

from jaxprune.jaxprs.calls import ENTERED, enter
from jaxprune.jaxprs.equations import run_equations
from jaxprune.jaxprs.interpret import interpret, last_uses
from jaxprune.structure.apply.assign import assign
from jaxprune.structure.apply.carriers import POINTWISE, WHOLE, inside
from jaxprune.structure.axes.blocks import Switch
from jaxprune.structure.axes.expressions import Axis, fresh, size, variables
from jaxprune.structure.axes.flat import is_inline
from jaxprune.structure.axes.masks import Keep, Uneven, kept_along, mask
from jaxprune.structure.axes.places import place
from jaxprune.structure.axes.rules.control_flow import custom_jvp, layers
from jaxprune.structure.axes.selection import take
from jaxprune.structure.axes.walk import Axes, Record, Walk, Walked


class Narrow:
    """Runs walked programs where of some variables only a part is kept."""

    def __init__(self, keep: Keep):
        self.keep = keep
        self._masks: dict[int, tuple[np.ndarray, Axis]] = {}
        self._live: dict[int, tuple[Walked, set[int], list[bool]]] = {}
        self._ends: dict[int, tuple[Walked, dict[int, list[Any]]]] = {}

    def mask(self, e: Axis) -> np.ndarray:
        """Which positions of an axis stay (see `mask`); remembered by the expression, which is kept
        alive.
        """
        if id(e) not in self._masks:
            self._masks[id(e)] = mask(e, self.keep), e
        return self._masks[id(e)][0]

    def size(self, e: Axis) -> int:
        return int(np.count_nonzero(self.mask(e)))

    def shape(self, axes: Axes) -> tuple[int, ...]:
        return tuple(map(self.size, axes))

    def cut(self, x: Any, axes: Axes) -> Any:
        """What is kept of an array of the large program."""
        kept = {
            k: kept_along(axes, k, self.keep) for k, e in enumerate(axes) if self.size(e) != size(e)
        }
        if not kept:
            return x
        known = not isinstance(x, Tracer) and not jnp.issubdtype(x.dtype, jax.dtypes.extended)
        return take(np.asarray(x) if known else x, kept, np if known else jnp)

    def off(self, v: Axis) -> bool:
        """Whether nothing is left of a variable: the block that it switches is left out."""
        return self.size(v) == 0

    def lost(self, program: Walked) -> set[int]:
        """Which results of a whole function go with the blocks that are left out."""
        return {k for b in program.blocks if self.off(b.switch) for k in b.outs}

    def live(self, program: Walked) -> list[Record]:
        """The equations that some result needs, in order."""
        if id(program) not in self._live:
            if not any(self.off(b.switch) for b in program.blocks):
                return program.records
            self.needs(program)
        return [program.records[i] for i in sorted(self._live[id(program)][1])]

    def needs(self, program: Walked, wanted: list[bool] | None = None) -> list[bool]:
        """Which inputs the wanted results need; of a whole function all are that do not go with its
        blocks.
        """
        if wanted is None and id(program) in self._live:
            return self._live[id(program)][2]
        lost = self.lost(program)
        wanted = [k not in lost for k in range(len(program.outs))] if wanted is None else wanted
        needed = {
            v
            for v, asked in zip(program.jaxpr.outvars, wanted)
            if asked and not isinstance(v, jex.Literal)
        }
        live = set()
        for i, r in reversed(list(enumerate(program.records))):
            outs = [v in needed for v in r.eqn.outvars]
            if any(outs):
                live.add(i)
                taken = zip(r.eqn.invars, self._taken(r, outs))
                needed |= {v for v, asked in taken if asked and not isinstance(v, jex.Literal)}
        ins = [v in needed for v in program.jaxpr.invars]
        self._live[id(program)] = program, live, ins
        return ins

    def _taken(self, r: Record, outs: list[bool]) -> list[bool]:
        """Which operands an equation needs."""
        if (stream := self.stream(r)) is not None:
            return [k == stream for k in range(len(r.ins))]
        return self.needs(r.extra[0], outs) if is_inline(r) else [True] * len(r.ins)

    def stream(self, r: Record) -> int | None:
        """The operand that an addition gives, if its block is left out."""
        return (
            r.extra.stream if isinstance(r.extra, Switch) and self.off(r.extra.variable) else None
        )

    def turns(self, r: Record, times: int) -> int:
        """How often the body of an equation is run."""
        along = layers(r)
        return times if along is None else self.size(along)

    def run(self, program: Walked, args: list[Any]) -> list[Any]:
        """The results of a program, from inputs that are cut; None in place of those that are
        lost.
        """
        consts = [self.cut(x, axes) for x, axes in zip(program.consts, program.const_axes)]

        def visit(r: Record, operands: list[Any]) -> list[Any]:
            values = self._cut_literals(r.invars, operands, r.ins)
            return self.results(r, values, program.jaxpr.debug_info)

        live = self.live(program)
        ends = self._last_uses(program)  # outside of jit nothing else lets an activation go
        results = interpret(program.jaxpr, consts, args, visit, steps=live, unknown=None, ends=ends)
        results = self._cut_literals(program.jaxpr.outvars, results, program.outs)
        lost = self.lost(program)
        return [None if k in lost else x for k, x in enumerate(results)]

    def _cut_literals(
        self, variables: Sequence[Any], values: list[Any], axes: Sequence[Axes]
    ) -> list[Any]:
        """Values, of which those of literals are as in the large program, cut as the others are."""
        return [
            self.cut(x, one) if isinstance(v, jex.Literal) else x
            for v, x, one in zip(variables, values, axes)
        ]

    def _last_uses(self, program: Walked) -> dict[int, list[Any]]:
        """Number of a live equation -> the values that nothing reads after it; remembered."""
        if id(program) not in self._ends:
            ends = last_uses(self.live(program), program.jaxpr.outvars)
            self._ends[id(program)] = program, ends
        return self._ends[id(program)][1]

    def results(self, r: Record, values: list[Any], info: Any) -> Any:
        """What one equation makes of values that are cut; `info` is the debug info of its jaxpr."""
        name = r.eqn.primitive.name
        if (stream := self.stream(r)) is not None:
            return [values[stream]]
        if name == "custom_jvp_call" and r.extra is not None:
            return self._custom_jvp(r, values)
        if (name in ENTERED or name == "while") and r.extra is not None:
            inner = {id(w.jaxpr): w for w in r.extra}
            return enter(
                r.eqn,
                values,
                lambda body, args, _: (self.run(inner[id(body.jaxpr)], args), None),
                None,
            )[0]
        if name.startswith("custom_"):
            given = {v: x for v, x in zip(r.eqn.invars, values) if not isinstance(v, jex.Literal)}
            made = run_equations([r.eqn], given, info)
            return [made.get(v) for v in r.eqn.outvars]  # nothing of it is cut
        with r.eqn.ctx.manager:
            if name == "iota" and self.shape(r.outs[0]) != r.eqn.outvars[0].aval.shape:
                return [self.cut(_iota(**r.eqn.params), r.outs[0])]
            if name in WHOLE:
                return [self.cut(r.eqn.primitive.bind(*values, **r.eqn.params), r.outs[0])]
            out = r.eqn.primitive.bind(*values, **self.params(r))
        return out if r.eqn.primitive.multiple_results else [out]

    def _custom_jvp(self, r: Record, values: list[Any]) -> Any:
        inner, rule, _ = r.extra

        def derivative(primals: Any, tangents: Any) -> Any:
            narrow, program, zeros = (
                (self, rule, r.extra[2]) if rule is not None else self._derivative(r)
            )
            found = narrow.run(program, [*primals, *tangents])
            outs = found[: len(zeros)]
            moved = iter(found[len(zeros) :])
            return tuple(outs), tuple(
                jnp.zeros_like(y) if zero else next(moved) for y, zero in zip(outs, zeros)
            )

        f = jax.custom_jvp(lambda *args: tuple(self.run(inner, list(args))))
        f.defjvp(derivative)
        return f(*values)

    def _derivative(self, r: Record) -> tuple["Narrow", Walked, tuple[bool, ...]]:
        """The rule of a custom derivative inside another's: walked now, on axes of its own, cut as
        r's are.

        Raises:
          ValueError: the rule does not allow what the plan cuts.
        """
        axes = [[fresh(size(e)) for e in one] for one in r.ins]
        outs, (_, rule, zeros) = custom_jvp(Walk(), r.eqn, axes)
        keep: dict[Any, Any] = {}
        met = {v for one in (*r.ins, *r.outs) for e in one for v in variables(e)}
        try:
            for ours, new in zip((*r.ins, *r.outs), (*axes, *outs)):
                kept = {
                    k: np.nonzero(self.mask(e))[0]
                    for k, e in enumerate(ours)
                    if self.size(e) != size(e)
                }
                assign(new, kept, keep)
            if any(isinstance(self.keep.get(v), Uneven) for v in met) and not _pointwise(rule):
                raise ValueError(
                    "it is not elementwise, and heads, layers or experts keep other positions each"
                )
        except ValueError as error:
            raise ValueError(
                f"a derivative of this order cannot be cut: {place(r.eqn)}: {error}"
            ) from None
        return Narrow(keep), rule, zeros

    def params(self, r: Record) -> dict[str, Any]:
        """An equation's parameters, with the sizes that are left."""
        p = dict(r.eqn.params)
        name = r.eqn.primitive.name
        changes = CHANGES.get(name)
        return p | (changes(self, r, p) if changes else {})

    def equation(self, r: Record) -> Any:
        """What looks like the narrow equation to whoever reads shapes and parameters only."""

        def seen(v, axes):
            return types.SimpleNamespace(
                aval=types.SimpleNamespace(shape=self.shape(axes), dtype=v.aval.dtype)
            )

        return types.SimpleNamespace(
            primitive=r.eqn.primitive,
            params=self.params(r),
            invars=[seen(v, axes) for v, axes in zip(r.eqn.invars, r.ins)],
            outvars=[seen(v, axes) for v, axes in zip(r.eqn.outvars, r.outs)],
        )


def _pointwise(program: Walked) -> bool:
    """Whether positions do not matter in a program."""
    pure = all(bool(inside(r)) or r.eqn.primitive.name in POINTWISE for r in program.records)
    return (
        pure
        and not program.consts
        and all(_pointwise(w) for r in program.records for w in inside(r))
    )


def _iota(*, shape: tuple[int, ...], dimension: int, dtype: Any, **rest: Any) -> np.ndarray:
    along = np.arange(shape[dimension]).astype(dtype)
    return np.broadcast_to(
        along.reshape([-1 if k == dimension else 1 for k in range(len(shape))]), shape
    )


def _sliced(narrow: Narrow, r: Record, p: dict[str, Any]) -> dict[str, Any]:
    low = list(p["start_indices"])
    high = list(p["limit_indices"])
    strides = list(p["strides"] or [1] * len(low))
    for k, (e, o) in enumerate(zip(r.ins[0], r.outs[0])):
        if narrow.size(e) != size(e):
            before = int(np.count_nonzero(narrow.mask(e)[: low[k]])) if strides[k] == 1 else low[k]
            low[k] = before
            high[k] = before + (narrow.size(o) - 1) * strides[k] + 1 if narrow.size(o) else before
    return {"start_indices": tuple(low), "limit_indices": tuple(high), "strides": tuple(strides)}


def _padded(narrow: Narrow, r: Record, p: dict[str, Any]) -> dict[str, Any]:
    around = zip(p["padding_config"], r.extra)
    return {
        "padding_config": tuple(
            c if x is None else (narrow.size(x[0]), narrow.size(x[1]), 0) for c, x in around
        )
    }


def _gathered(narrow: Narrow, r: Record, p: dict[str, Any]) -> dict[str, Any]:
    return {"slice_sizes": tuple(e if isinstance(e, int) else narrow.size(e) for e in r.extra)}


CHANGES = {
    "broadcast_in_dim": lambda narrow, r, p: {"shape": narrow.shape(r.outs[0])},
    "reshape": lambda narrow, r, p: {"new_sizes": narrow.shape(r.outs[0])},
    "tile": lambda narrow, r, p: {"reps": narrow.shape(r.extra)},
    "split": lambda narrow, r, p: {"sizes": tuple(narrow.size(axes[p["axis"]]) for axes in r.outs)},
    "conv_general_dilated": lambda narrow, r, p: (
        {}
        if r.extra is None or r.extra[0] is None
        else {"feature_group_count": narrow.size(r.extra[0])}
    ),
    "dynamic_slice": lambda narrow, r, p: {"slice_sizes": narrow.shape(r.outs[0])},
    "slice": _sliced,
    "pad": _padded,
    "gather": _gathered,
}
