"""Rules of equations that call others. Extra: the inner programs that were walked, in the order of
`calls.bodies`.
"""

from typing import Any

import jax.numpy as jnp

from jaxprune.jaxprs.calls import (
    INLINE,
    REMAT,
    bodies,
    derivative_of,
    has_plain_derivative,
    scan_operands,
    while_operands,
)
from jaxprune.structure.axes.blocks import why_not_layers
from jaxprune.structure.axes.expressions import fresh, is_frozen


def call(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    [body] = bodies(eqn)
    inner = walk.program(body.jaxpr, body.consts, ins)
    return inner.outs, [inner]


def cond(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    inner = [walk.program(body.jaxpr, body.consts, ins[1:]) for body in bodies(eqn)]
    for other in inner[1:]:
        _tie(walk, eqn, inner[0].outs, other.outs)
    return inner[0].outs, inner


def scan(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    """What is carried keeps its axes from turn to turn; the axis that is run along is frozen, or
    one of layers.
    """
    [body] = bodies(eqn)
    consts, carry, slices = ([ins[k] for k in part] for part in scan_operands(eqn))
    turn = fresh(
        body.times,
        None if slices and _may_lose_turns(walk) else f"a scan runs along it: {walk.place(eqn)}",
    )
    for axes in slices:
        walk.unify(eqn, [turn], [axes[0]])
    inner = walk.program(body.jaxpr, body.consts, [*consts, *carry, *(axes[1:] for axes in slices)])
    _tie(walk, eqn, carry, inner.outs[: len(carry)])
    if not is_frozen(turn) and (why := why_not_layers(inner, len(consts), len(carry))):
        walk.freeze(eqn, [turn], why)
    if slices and walk.depth:
        walk.layers.append((turn, walk.place(eqn)))
    return [*carry, *([turn, *axes] for axes in inner.outs[len(carry) :])], [inner]


def _may_lose_turns(walk: Any) -> bool:
    """Asked for, and not inside a loop or a branch."""
    return walk.depth and all(eqn.primitive.name in INLINE | REMAT for eqn in walk.outer[:-1])


def layers(record: Any) -> Any:
    """The axis of layers that a record's scan runs along; None if it is no such scan."""
    if record.eqn.primitive.name != "scan" or record.extra is None:
        return None
    slices = scan_operands(record.eqn)[2]
    return record.ins[slices[0]][0] if slices else None


def while_(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    asked, turned = bodies(eqn)
    of_asked, of_turned, state = ([ins[k] for k in part] for part in while_operands(eqn))
    asks = walk.program(asked.jaxpr, asked.consts, [*of_asked, *state])
    turns = walk.program(turned.jaxpr, turned.consts, [*of_turned, *state])
    _tie(walk, eqn, state, turns.outs)
    return [list(axes) for axes in state], [asks, turns]


def custom_jvp(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    """Extra: [the function, the rule of its derivative (None inside such a rule), which tangents
    the rule leaves out].

    A rule often calls the function that it is of (relu's does), so the rules inside it are walked
    when they are needed (`Narrow`), for derivatives of a higher order.
    """
    floats = all(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.invars)
    if not floats or not has_plain_derivative(eqn):
        return walk.refuse(eqn, ins, "a custom derivative that is not of floats alone:")
    [body] = bodies(eqn)
    inner = walk.program(body.jaxpr, body.consts, ins)
    if not walk.derivatives:
        return inner.outs, [inner, None, ()]
    jaxpr, consts, zeros = derivative_of(eqn)
    walk.derivatives = False
    rule = walk.program(jaxpr, consts, [*ins, *ins])
    walk.derivatives = True
    there = [axes for axes, zero in zip(inner.outs, zeros) if not zero]
    _tie(walk, eqn, [*inner.outs, *there], rule.outs)
    return inner.outs, [inner, rule, tuple(zeros)]


def custom_vjp(walk: Any, eqn: Any, ins: list[Any]) -> tuple[list[Any], Any]:
    """Its backward pass is Python, which may keep anything of any size."""
    return walk.refuse(eqn, ins, "a custom backward pass cannot be cut:")


def _tie(walk: Any, eqn: Any, ones: list[Any], others: list[Any]) -> None:
    for one, other in zip(ones, others, strict=True):
        walk.unify(eqn, one, other)


RULES = {
    **dict.fromkeys(INLINE | REMAT, call),
    "cond": cond,
    "scan": scan,
    "while": while_,
    "custom_jvp_call": custom_jvp,
    "custom_vjp_call": custom_vjp,
    "custom_vjp_call_jaxpr": custom_vjp,
}
