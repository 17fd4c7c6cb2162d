"""The penalty on what goes together, against its definition; and units do go under it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

import jaxprune as jp

RNG = np.random.default_rng(0)
PARAMS = {
    "a": {"kernel": jnp.asarray(RNG.normal(size=(4, 6)), jnp.float32), "bias": jnp.ones(6)},
    "b": {"kernel": jnp.asarray(RNG.normal(size=(12, 3)), jnp.float32)},
}
X = jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32)


def f(p, x):
    """A unit of a lies twice on the inputs of b."""
    y = jnp.tanh(x @ p["a"]["kernel"] + p["a"]["bias"])
    return jnp.concatenate([y, y**2], 1) @ p["b"]["kernel"]


GROUPS = jp.coupled_axes(f, PARAMS, X).groups


def norms(p):
    """Of each unit: a column of a, two rows of b; biases do not count."""
    a = p["a"]["kernel"]
    b = p["b"]["kernel"]
    return jnp.sqrt((a**2).sum(0) + (b[:6] ** 2).sum(1) + (b[6:] ** 2).sum(1))


def lasso(p):
    return norms(p).sum()


def sparse(p):
    size = jax.lax.stop_gradient(norms(p))
    steep = 2 ** (4 * (size.max() - size) / (size.max() - size.min()))
    return 0.5 * (steep * norms(p) ** 2).sum()


@pytest.mark.parametrize("kind, penalty", [("lasso", lasso), ("sparse", sparse)])
def test_what_is_added_is_the_gradient_of_the_penalty(kind, penalty):
    tx = jp.group_penalty(GROUPS, lambda t: 0.5 + t.astype(jnp.float32), kind=kind)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, state = jax.jit(tx.update)(zeros, tx.init(PARAMS), PARAMS)
    expected = jax.grad(penalty)(PARAMS)
    for a, b in zip(jax.tree.leaves(updates), jax.tree.leaves(expected)):
        assert_allclose(a, 0.5 * b, rtol=1e-5, atol=1e-6)
    updates, _ = tx.update(zeros, state, PARAMS)
    assert_allclose(updates["b"]["kernel"], 1.5 * expected["b"]["kernel"], rtol=1e-5, atol=1e-6)


def test_units_of_nothing_and_equal_units_have_finite_gradients():
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    for kind in ("lasso", "sparse"):
        tx = jp.group_penalty(GROUPS, 1.0, kind=kind)
        updates, _ = tx.update(zero, tx.init(zero), zero)
        assert all(np.all(np.asarray(u) == 0) for u in jax.tree.leaves(updates))


@pytest.mark.parametrize("kind, strength", [("lasso", 0.1), ("sparse", 0.03)])
def test_a_network_trained_with_it_loses_less_when_it_is_cut(kind, strength):
    target = f(PARAMS, X)

    def loss(f):
        return lambda p: jnp.square(f(p, X) - target).mean()

    wide = {"a": {"kernel": jnp.tile(PARAMS["a"]["kernel"], (1, 2)), "bias": jnp.ones(12)}}
    wide["b"] = {
        "kernel": jnp.asarray(np.random.default_rng(1).normal(size=(24, 3)), jnp.float32) / 3
    }
    groups = jp.coupled_axes(f, wide, X).groups

    def lost(penalty):
        p = wide
        tx = optax.chain(penalty, optax.sgd(0.05))
        state = tx.init(p)
        grad = jax.grad(loss(f))

        @jax.jit
        def step(p, state):
            updates, state = tx.update(grad(p), state, p)
            return optax.apply_updates(p, updates), state

        for _ in range(600):
            p, state = step(p, state)
        thin = jp.shrink(f, p, X, ratio=0.5)
        return float(loss(thin.apply)(thin.params))

    assert lost(jp.group_penalty(groups, strength, kind=kind)) < 0.5 * lost(optax.identity())


def test_bad_input():
    with pytest.raises(ValueError, match="there are none"):
        jp.group_penalty((), 1.0)
    with pytest.raises(ValueError, match="choose one of"):
        jp.group_penalty(GROUPS, 1.0, kind="ridge")
    with pytest.raises(ValueError, match="strength=-1"):
        jp.group_penalty(GROUPS, -1.0)
    tx = jp.group_penalty(GROUPS, 1.0)
    with pytest.raises(ValueError, match="needs the params"):
        tx.update(PARAMS, tx.init(PARAMS))
    with pytest.raises(ValueError, match="matches nothing"):
        jp.group_penalty(GROUPS, 1.0, where=jp.where.path("u")).update(
            PARAMS, tx.init(PARAMS), PARAMS
        )
