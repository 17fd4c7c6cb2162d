"""The self-check of `shrink`: what is rounding, what is wrong, and functions that must not be
closed over arguments.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

import jaxprune as jp
from jaxprune.jaxprs.float64 import in_float64
from jaxprune.structure.apply.check import FLOAT64_TOLERANCE, checked

RNG = np.random.default_rng(11)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def chaotic(p, x):
    """A recurrence in which rounding grows some ten thousand times; its carry starts as float32,
    whatever x is.
    """

    def step(h, _):
        return (jnp.tanh(x.astype(jnp.float32) @ p["wi"] + h @ p["wh"]), None)

    zeros = jnp.zeros((len(x), p["wh"].shape[0]), jnp.float32)
    return jax.lax.scan(step, zeros, None, length=60)[0] @ p["out"]


CHAOTIC = {"wi": draw(8, 256), "wh": 4 * draw(256, 256) / 256**0.5, "out": draw(256, 4)}
X = draw(4, 8)


@pytest.fixture(scope="module")
def chaotic_thin():
    return jp.shrink(chaotic, CHAOTIC, X, ratio=0.6)


def test_a_recurrence_in_which_rounding_grows_is_checked_in_float64(chaotic_thin):
    report = chaotic_thin.report
    assert report.error > report.allowed and report.float64 < 1e-9
    assert "in float64" in str(report)
    assert not jax.config.read("jax_enable_x64") and jnp.ones(1).dtype == jnp.float32


def test_a_rebuilt_recurrence_may_differ_by_the_same_rounding(chaotic_thin):
    def again(p, x):
        return chaotic({**p, "wi": p["wi"] * 1.0}, x)

    assert chaotic_thin.agrees(again, X) <= chaotic_thin.report.rounding


def test_a_wrong_cut_of_such_a_recurrence_is_caught(chaotic_thin):
    def off_by_little(p, x):
        return chaotic_thin.apply(p, x) * (1 + 1e-5)

    plan = chaotic_thin.plan
    right = checked(chaotic, chaotic_thin.apply, plan, CHAOTIC, (X,), 1e-4)
    wrong = checked(chaotic, off_by_little, plan, CHAOTIC, (X,), 1e-4)
    assert right.float64 < FLOAT64_TOLERANCE < wrong.float64
    with pytest.raises(ValueError, match=r"1.0e-05 in float64.*tolerance="):
        chaotic_thin.report._replace(float64=wrong.float64).raise_if_wrong(False)


def test_what_cannot_be_computed_in_float64_is_refused(chaotic_thin):
    report = chaotic_thin.report._replace(float64=np.inf)
    with pytest.raises(ValueError, match="float64 cannot be computed"):
        report.raise_if_wrong(False)


def test_tolerance_is_the_users(chaotic_thin):
    rough = jp.shrink(chaotic, CHAOTIC, X, plan=chaotic_thin.plan, tolerance=0.9)
    assert rough.report.allowed == 0.9 and rough.report.float64 is None
    for wrong in (0.0, 1.0, -1, float("nan")):
        with pytest.raises(
            ValueError, match=r"tolerance=.*(one positive, finite number|in \(0, 1\))"
        ):
            jp.shrink(chaotic, CHAOTIC, X, ratio=0.6, tolerance=wrong)


def fill(x):
    return jax.lax.while_loop(
        lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] * jnp.float32(1.5)), (0, x)
    )[1]


WIDENED = {
    "casts": lambda x: jax.nn.softmax(x.astype(jnp.bfloat16)).astype(jnp.float32),
    "random numbers": lambda x: x + jax.random.normal(jax.random.key(1), x.shape),
    "scatter": lambda x: jnp.zeros(3).at[jnp.array([0, 1])].add(x[0, :2]),
    "windows": lambda x: (
        jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2), (1, 2), "VALID"),
        jnp.sort(x),
    ),
    "a custom reduction": lambda x: jax.lax.reduce(x, 0.0, lambda a, b: a + b * 1, (0,)),
    "loops and branches": lambda x: jax.lax.cond(x.sum() > 0, fill, lambda x: x - 1.0, x),
    "custom derivatives": lambda x: jax.nn.relu(jax.nn.silu(x)) + optimal(x),
    "remat": jax.checkpoint(lambda x: jnp.tanh(x @ x.T)),
    "a random key": lambda x: jax.random.key_data(jax.random.key(3)),
    "integers and complex numbers": lambda x: (jnp.argmax(x, -1), jnp.fft.fft(x)),
    "a carry of fixed dtype": lambda x: jax.lax.scan(
        lambda c, r: (c + r, c), jnp.zeros(8, jnp.float32), x
    ),
}


@jax.custom_vjp
def optimal(x):
    return jnp.sign(x) * x


optimal.defvjp(lambda x: (optimal(x), None), lambda _, g: (g,))


@pytest.mark.parametrize("name", WIDENED)
def test_functions_are_computed_in_float64_whatever_they_cast_to(name):
    f = WIDENED[name]
    for a, b in zip(jax.tree.leaves(f(X)), jax.tree.leaves(in_float64(f)(X)), strict=True):
        assert a.shape == b.shape
        if jnp.issubdtype(a.dtype, jnp.inexact):
            assert b.dtype in (jnp.float64, jnp.complex128)
            assert_allclose(a, b, rtol=0.02 if name == "casts" else 1e-4, atol=1e-5)
        else:
            assert (np.asarray(a) == np.asarray(b)).all() and a.dtype == b.dtype


def test_rounding_is_gone_in_float64():
    def f(x):
        return (x + jnp.float32(1e-12)).astype(jnp.float32) - x

    assert f(jnp.ones(())) == 0
    assert_allclose(in_float64(f)(jnp.ones(())), 1e-12, rtol=1e-3)


class Cache(nnx.Variable):
    pass


class Counting(nnx.Module):
    def __init__(self):
        self.up = nnx.Linear(8, 16, rngs=nnx.Rngs(0))
        self.down = nnx.Linear(16, 2, rngs=nnx.Rngs(1))
        self.calls = Cache(jnp.zeros(()))
        self.seen = Cache(jnp.zeros(8))

    def __call__(self, x):
        self.calls[...] = self.calls[...] + 1
        self.seen[...] = self.seen[...] + x[0]
        return self.down(nnx.relu(self.up(x + self.seen[...])))


def test_arguments_may_be_nnx_variables_that_the_function_sets():
    graph, params, cache = nnx.split(Counting(), nnx.Param, Cache)

    def f(params, cache, x):
        model = nnx.merge(graph, params, cache)
        y = model(x)
        return y, nnx.state(model, Cache)

    thin = jp.shrink(f, params, cache, X, ratio=0.5)
    y, after = thin.apply(thin.params, cache, X)
    want, _ = f(thin.plan.mask(params), cache, X)
    assert_allclose(y, want, rtol=1e-5, atol=1e-6)
    assert float(jax.tree.leaves(after["calls"])[0]) == 1 and thin.params["up"]["kernel"].shape == (
        8,
        8,
    )
