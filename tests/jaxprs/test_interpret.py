"""The one interpreter: the order of visits, literals, what is unknown, and when values are let
go.
"""

import pathlib
import re
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.jaxprs.equations import open_jaxpr
from jaxprune.jaxprs.interpret import equations, interpret, last_uses

SOURCES = pathlib.Path(__file__).parents[2] / "jaxprune"
CONTROL_FLOW = (
    "cond_nconsts body_nconsts num_consts num_carry branches cond_jaxpr body_jaxpr jvp_jaxpr_fun "
    "ft_in reverse"
)


def f(x, y):
    z = jnp.sin(x) * y
    return z + 1.0, x


def bind(eqn, operands):
    out = eqn.primitive.bind(*operands, **eqn.params)
    return out if eqn.primitive.multiple_results else [out]


def traced(*args):
    return open_jaxpr(jax.make_jaxpr(f)(*args))


def test_binding_every_equation_is_the_function():
    args = jnp.arange(3.0), jnp.ones(3)
    jaxpr, consts = traced(*args)
    for got, want in zip(interpret(jaxpr, consts, args, bind), f(*args), strict=True):
        np.testing.assert_array_equal(got, want)


def test_any_kind_of_value_is_carried():
    jaxpr, _ = traced(1.0, 2.0)

    def depth(eqn, operands):
        return [1 + max(operands)]

    assert interpret(jaxpr, [], [0, 5], depth, literal=lambda literal: 0) == [7, 0]


def test_a_variable_that_nothing_made_is_an_error_or_unknown():
    jaxpr, _ = traced(1.0, 2.0)
    steps = equations(jaxpr)[1:]  # without the sine
    with pytest.raises(KeyError):
        interpret(
            jaxpr,
            [],
            [0, 5],
            lambda eqn, operands: [max(operands)],
            steps=steps,
            literal=lambda literal: 0,
        )

    def known(eqn, operands):
        return [None if None in operands else max(operands)]

    assert interpret(
        jaxpr, [], [0, 5], known, steps=steps, literal=lambda literal: 0, unknown=None
    ) == [None, 0]


def test_values_are_let_go_after_their_last_use():
    """Of the sine, the product and the sum only the results are alive at the end."""

    class Value:
        pass

    alive = weakref.WeakSet()
    counts = []

    def visit(eqn, operands):
        operands.clear()
        counts.append(len(alive))
        made = Value()
        alive.add(made)
        return [made]

    jaxpr, _ = traced(1.0, 2.0)
    steps = equations(jaxpr)
    assert [eqn.primitive.name for eqn in steps] == ["sin", "mul", "add"]
    interpret(jaxpr, [], [None, None], visit, ends=last_uses(steps, jaxpr.outvars))
    assert counts == [0, 1, 1]
    counts.clear()
    interpret(jaxpr, [], [None, None], visit)
    assert counts == [0, 1, 2]


def test_there_is_one_loop_over_equations_and_one_reader_of_control_flow():
    loops = {
        path.name for path in SOURCES.rglob("*.py") if re.search(r"\.eqns\b", path.read_text())
    }
    assert loops == {"interpret.py"}
    names = "|".join(CONTROL_FLOW.split())
    reads = {
        p.name
        for p in SOURCES.rglob("*.py")
        if re.search(rf"""(params|\bp)\[["']({names})["']\]""", p.read_text())
    }
    assert reads == {"calls.py"}
