"""What an equation calls: the one place that reads control flow, in the parameters of JAX 0.10 and
of 0.12.

bodies   the jaxprs inside an equation, how often each runs, and which outer values its inputs are
enter    the equation run anew, its body evaluated by someone else who may bring values in and out
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend import core as jex

from jaxprune.jaxprs.equations import open_jaxpr

JAXPRS = (jex.Jaxpr, jex.ClosedJaxpr)
INLINE = frozenset({"jit", "pjit", "closed_call", "core_call"})
REMAT = frozenset({"checkpoint", "remat", "remat2"})
ENTERED = INLINE | REMAT | {"scan", "cond"}

Run = Callable[[Any, list[Any], Any], tuple[list[Any], Any]]


class Body(NamedTuple):
    """A jaxpr inside an equation.

    Attributes:
      jaxpr: the inner jaxpr.
      consts: values of its constants.
      times: how often it runs.
      operands: the outer variables that its inputs are, None for what changes from turn to turn.
    """

    jaxpr: Any
    consts: list[Any]
    times: int
    operands: list[Any]


def bodies(eqn: Any) -> list[Body]:
    """What an equation calls; nothing for one that only computes."""
    p = eqn.params
    name = eqn.primitive.name
    args = list(eqn.invars)
    if name == "scan":
        consts, carry, slices = _scan_parts(p, args)
        return [_body(p["jaxpr"], p["length"], consts + [None] * len(carry) + slices)]
    if name == "while":
        c = p["cond_nconsts"]
        b = p["body_nconsts"]
        state = [None] * (len(args) - c - b)
        return [
            _body(p["cond_jaxpr"], 1, args[:c] + state),
            _body(p["body_jaxpr"], 1, args[c : c + b] + state),
        ]
    if name == "cond":
        return [_body(j, 1, args[1:]) for j in p["branches"]]
    if name == "custom_linear_solve":  # the others of its four jaxprs run in transformations only
        return [_body(p["jaxprs"].solve, 1, [])]
    inside = [
        x
        for v in p.values()
        for x in (v if isinstance(v, tuple | list) else (v,))
        if isinstance(x, JAXPRS)
    ]
    return [_body(j, _shards(p), args) for j in inside]


def enter(eqn: Any, values: list[Any], run: Run, given: Any) -> tuple[list[Any], Any]:
    """The results of an equation whose bodies are evaluated by `run`, and what `run` brought out of
    them.

    Args:
      eqn: a jit, a remat, a scan, a cond, or a while loop (which brings nothing out, and takes
        nothing in).
      values: of its inputs.
      run: (body, inputs, given) -> (outputs, brought); `brought` has the same structure in all
        branches of a cond.
      given: a tree for `run`; a scan slices it along the leading axis, and stacks what is brought
        there.

    Raises:
      ValueError: an equation that cannot be entered: a custom derivative, a callback.
    """
    name = eqn.primitive.name
    inside = bodies(eqn)
    if name in INLINE:
        return run(inside[0], values, given)
    if name in REMAT:
        again = jax.checkpoint(
            lambda values, given: run(inside[0], values, given),
            prevent_cse=eqn.params["prevent_cse"],
            policy=eqn.params["policy"],
        )
        return again(values, given)
    if name == "scan":
        return _scan(eqn, values, run, inside[0], given)
    if name == "cond":
        arms = [lambda v, g, b=b: run(b, list(v), g) for b in inside]
        return lax.switch(values[0], arms, values[1:], given)
    if name == "while":
        asked, turned, start = ([values[k] for k in part] for part in while_operands(eqn))

        def ask(state):
            return run(inside[0], [*asked, *state], None)[0][0]

        def turn(state):
            return list(run(inside[1], [*turned, *state], None)[0])

        return lax.while_loop(ask, turn, start), None
    raise ValueError(f"{name!r} cannot be entered: only jit, remat, scan, cond and while can")


def scan_operands(eqn: Any) -> tuple[list[int], list[int], list[int]]:
    """The numbers of a scan's operands that are constants, carries and slices."""
    return _scan_parts(eqn.params, list(range(len(eqn.invars))))


def scan_turns(eqn: Any) -> range:
    """The turns of a scan in the order in which they are run: its step is −1 for one that runs from
    the end.
    """
    turns = range(eqn.params["length"])
    return turns[::-1] if eqn.params["reverse"] else turns


def while_operands(eqn: Any) -> tuple[list[int], list[int], list[int]]:
    """The numbers of a while loop's operands: constants of its condition, of its body, and the
    state.
    """
    numbers = list(range(len(eqn.invars)))
    c = eqn.params["cond_nconsts"]
    n = c + eqn.params["body_nconsts"]
    return numbers[:c], numbers[c:n], numbers[n:]


def has_plain_derivative(eqn: Any) -> bool:
    """Whether the rule of a custom_jvp takes all operands and their tangents, and nothing else."""
    return not eqn.params["num_consts"] and not eqn.params["symbolic_zeros"]


def derivative_of(eqn: Any) -> tuple[Any, list[Any], list[bool]]:
    """The rule of a custom_jvp: its jaxpr, its constants, and which tangents of the results it
    leaves out as zeros.
    """
    return eqn.params["jvp_jaxpr_fun"].call_wrapped(*[False] * len(eqn.invars))


def _scan(eqn: Any, values: list[Any], run: Run, body: Body, given: Any) -> tuple[list[Any], Any]:
    p = eqn.params
    consts, carry, slices = _scan_parts(p, values)

    def turn(carry: list[Any], now: Any) -> Any:
        outs, brought = run(body, [*consts, *carry, *now[0]], now[1])
        return list(outs[: len(carry)]), (list(outs[len(carry) :]), brought)

    again = {k: p[k] for k in ("length", "reverse", "unroll")}
    again["length"] = slices[0].shape[0] if slices else p["length"]  # of fewer layers, fewer turns
    last, (ys, brought) = lax.scan(turn, carry, (slices, given), **again)
    return [*last, *ys], brought


def _scan_parts(p: dict[str, Any], args: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Constants, carries and slices among the operands of a scan."""
    if "ft_in" in p:
        consts, carry, slices = (list(x) for x in p["ft_in"].update(args).unpack())
        return consts, carry, slices
    c = p["num_consts"]
    k = p["num_consts"] + p["num_carry"]
    return list(args[:c]), list(args[c:k]), list(args[k:])


def _body(jaxpr: Any, times: int, operands: list[Any]) -> Body:
    return Body(*open_jaxpr(jaxpr), times, operands)


def _shards(p: dict[str, Any]) -> int:
    """How many devices run the body of a `shard_map`; 1 for other calls."""
    axes = p.get("newly_manual_axes", p.get("manual_axes", ()))
    return math.prod(p["mesh"].shape[a] for a in axes) if axes else 1
