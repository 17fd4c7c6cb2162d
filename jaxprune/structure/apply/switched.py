"""A walked function whose blocks and layers are switched by values: computed all, and used where
they are on.

    y = on ? s + b(s) : s                h ← onᵢ ? h + b(h, θᵢ) : h

Nothing is cut, so this says what a function without them computes, by other means than `narrow`.
One compilation serves every choice. It also sees how much each of them changes the stream: Block
Influence (ShortGPT, Men et al. 2024, arXiv:2403.03853), 1 − cos of what goes in and what comes out,
over the last axis, in the mean of all positions.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.extend import core as jex

from jaxprune.jaxprs.calls import bodies, enter, scan_operands
from jaxprune.jaxprs.equations import run_equations
from jaxprune.structure.axes.blocks import Switch
from jaxprune.structure.axes.expressions import Axis, is_frozen, settled
from jaxprune.structure.axes.flat import flat
from jaxprune.structure.axes.rules.control_flow import layers

On = Callable[[Axis], Array]
"""A boolean for each position of a variable."""


def switched(program: Any, values: list[Any], on: On) -> tuple[list[Any], list[tuple[Axis, Array]]]:
    """The results of a walked function, and for each block and each scan over layers how much it
    changes the stream.

    Args:
      program: `Walked`, of a whole function.
      values: of its inputs, not cut.
      on: of the switch of a block [1], of the axis of layers [length].

    Returns:
      (results, [(switch, a number), (axis of layers, a number a layer)]).
    """
    code = flat(program)
    changes = []
    env = dict(enumerate(values)) | code.known
    for node in code.nodes:
        r = node.record
        taken = [env[i] for i in node.ins]
        along = layers(r)
        if along is not None and not is_frozen(along):
            outs, change = _scan(r, taken, on(along))
            changes.append((along, change))
        else:
            outs = _equation(r.eqn, taken, program.jaxpr.debug_info)
        if isinstance(r.extra, Switch):
            stream = taken[r.extra.stream]
            v = settled(r.extra.variable)
            changes.append((v, influence(stream, outs[0])))
            outs = [jnp.where(on(v)[0], outs[0], stream)]
        env.update(zip(node.outs, outs))
    return [env[o] for o in code.outputs], changes


def _equation(eqn: Any, values: list[Any], info: Any) -> list[Any]:
    given = {v: x for v, x in zip(eqn.invars, values) if not isinstance(v, jex.Literal)}
    made = run_equations([eqn], given, info)
    return [made.get(v) for v in eqn.outvars]


def _scan(r: Any, values: list[Any], on: Array) -> tuple[list[Any], Array]:
    """A scan whose carry passes by the layers that are off."""
    consts, carry, _ = scan_operands(r.eqn)
    [body] = bodies(r.eqn)
    part = slice(len(consts), len(consts) + len(carry))

    def turn(_: Any, values: list[Any], now: Any) -> tuple[list[Any], Any]:
        outs = jex.jaxpr_as_fun(jex.ClosedJaxpr(body.jaxpr, body.consts))(*values)
        before = values[part]
        after = outs[: len(carry)]
        seen = [
            influence(a, b)
            for a, b in zip(before, after)
            if jnp.ndim(a) and jnp.issubdtype(a.dtype, jnp.floating)
        ]
        kept = [a if a is b else jnp.where(now, b, a) for a, b in zip(before, after)]
        return [*kept, *outs[len(carry) :]], sum(seen, jnp.zeros((), jnp.float32))

    return enter(r.eqn, values, turn, on)


def influence(before: Array, after: Array) -> Array:
    """1 − cos over the last axis, in the mean; 0 of what stays 0, 1 of what becomes 0 or was."""
    a, b = (jnp.atleast_1d(x).astype(jnp.float32) for x in (before, after))

    def dot(x, y):
        return (x * y).sum(-1)

    both = jnp.sqrt(dot(a, a)) * jnp.sqrt(dot(b, b))
    cosine = jnp.where(
        both > 0, dot(a, b) / jnp.where(both > 0, both, 1), (a == b).all(-1).astype(jnp.float32)
    )
    return 1 - cosine.mean()
