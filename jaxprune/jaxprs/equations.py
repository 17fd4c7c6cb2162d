"""A function as a flat list of equations: calls (jit, remat, custom derivatives) are replaced by
their bodies.

Values are numbered. Loops and branches (scan, while, cond) stay single equations, whose bodies
nobody here looks into. JAX 0.10 has open and closed jaxprs, 0.12 one class for both; `open_jaxpr`
is where they meet.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
from jax.extend import core as jex

from jaxprune.jaxprs.interpret import interpret

CALLS = frozenset(
    {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}
    | {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
)


class Equation(NamedTuple):
    """outputs = primitive(inputs), by the numbers of the values."""

    primitive: Any
    params: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Program(NamedTuple):
    """A function's equations in order.

    Attributes:
      inputs: numbers of the flat arguments.
      outputs: numbers of the flat results.
      equations: what is computed.
      constants: values that are known, by number.
      shapes: shape and dtype of every value, by number.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    equations: list[Equation]
    constants: dict[int, Any]
    shapes: dict[int, Any]


def of_arrays(
    f: Callable[..., Any], args: tuple[Any, ...], kw: dict[str, Any]
) -> tuple[Callable[..., Any], list[Any]]:
    """A function of the arrays among f's arguments alone, and these arrays; all else is given to f
    as it is.

    The arguments are put together where the function runs, inside of a trace: an NNX variable among
    them can be set.
    """
    leaves, tree = jax.tree.flatten((args, kw))
    arrays = [x for x in leaves if hasattr(x, "dtype")]

    def g(*arrays: Any) -> Any:
        rest = iter(arrays)
        args, kw = jax.tree.unflatten(
            tree, [next(rest) if hasattr(x, "dtype") else x for x in leaves]
        )
        return f(*args, **kw)

    return g, arrays


def open_jaxpr(jaxpr: Any) -> tuple[Any, list[Any]]:
    """A jaxpr and its constants, in JAX 0.10 and 0.12."""
    return getattr(jaxpr, "jaxpr", jaxpr), list(getattr(jaxpr, "consts", ()))


def program(f: Callable[..., Any], *args: Any) -> Program:
    """The program of f(*args), every call inlined."""
    top, consts = open_jaxpr(jax.make_jaxpr(f)(*args))
    found = Program((), (), [], {}, {})
    count = iter(range(1 << 62))

    def known(value: Any) -> int:
        number = next(count)
        found.constants[number] = value
        return number

    def inline(jaxpr: Any, consts: list[Any], inputs: list[int]) -> list[int]:
        return interpret(
            jaxpr,
            list(map(known, consts)),
            inputs,
            visit,
            literal=lambda literal: known(literal.val),
        )

    def visit(eqn: Any, operands: list[int]) -> list[int]:
        bodies = [x for x in eqn.params.values() if isinstance(x, jex.Jaxpr | jex.ClosedJaxpr)]
        if eqn.primitive.name in CALLS and len(bodies) == 1:
            outs = inline(*open_jaxpr(bodies[0]), operands)
        else:
            outs = [next(count) for _ in eqn.outvars]
            found.equations.append(
                Equation(eqn.primitive, eqn.params, tuple(operands), tuple(outs))
            )
        found.shapes.update({number: v.aval for v, number in zip(eqn.outvars, outs)})
        return outs

    inputs = [next(count) for _ in top.invars]
    found.shapes.update({i: v.aval for v, i in zip(top.invars, inputs)})
    return found._replace(inputs=tuple(inputs), outputs=tuple(inline(top, consts, inputs)))


def evaluate(equations: Iterable[Equation], values: dict[int, Any]) -> dict[int, Any]:
    """The values, and those of the equations, which come in order."""
    values = dict(values)
    for eqn in equations:
        out = eqn.primitive.bind(*(values[i] for i in eqn.inputs), **eqn.params)
        values.update(zip(eqn.outputs, out if eqn.primitive.multiple_results else [out]))
    return values


def run_equations(
    eqns: list[Any], env: dict[Any, Any], info: Any, wanted: set[Any] | None = None
) -> dict[Any, Any]:
    """What a run of equations makes, evaluated as one jaxpr: contexts, names and custom derivatives
    stay theirs.

    Args:
      eqns: the equations.
      env: values of what they take.
      info: the debug info of their jaxpr.
      wanted: the results that are asked for; by default all. What is not asked for is let go on the
        way.
    """
    made = dict.fromkeys(v for e in eqns for v in e.outvars)
    used = dict.fromkeys(
        v for e in eqns for v in e.invars if not isinstance(v, jex.Literal) and v not in made
    )
    give = [v for v in made if type(v).__name__ != "DropVar" and (wanted is None or v in wanted)]
    effects = set().union(*(e.effects for e in eqns))
    inner = jex.Jaxpr((), list(used), give, eqns, effects, info.with_unknown_names())
    outs = jex.jaxpr_as_fun(jex.ClosedJaxpr(inner, ()))(*(env[v] for v in used))
    return dict(zip(give, outs))
