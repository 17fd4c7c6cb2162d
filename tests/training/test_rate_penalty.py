import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.training.rate_penalty import odds, slope
from tests.helpers import compiled_once

EPS = 0.02
BITS = 6.0


def reference(w, width=EPS, bits=BITS):
    """λ = 1, one weight at a time."""
    rows, columns = w.reshape(-1, w.shape[-1]).shape
    there = np.abs(w.reshape(rows, columns)) / (np.abs(w.reshape(rows, columns)) + width)
    out = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            row = (there[i].sum() + 0.3) / (columns + 1)
            column = (there[:, j].sum() + 0.3) / (rows + 1)
            p = min(max(row * column / ((there.sum() + 1) / there.size), 1e-5), 0.9)
            x = w.reshape(rows, columns)[i, j]
            out[i, j] = np.sign(x) * (np.log2((1 - p) / p) + bits) / ((abs(x) + width) * np.log(2))
    return out.reshape(w.shape)


@pytest.mark.parametrize("shape", [(5, 7), (3, 2, 4, 6), (9,)])
def test_the_slope_is_that_of_the_formula(shape):
    w = np.random.default_rng(0).normal(size=shape).astype(np.float32) * 0.1
    w.ravel()[::3] = 0
    np.testing.assert_allclose(slope(jnp.asarray(w), EPS, BITS), reference(w), rtol=2e-5)


def test_the_slope_is_the_gradient_of_the_rate():
    w = 0.1 * jax.random.normal(jax.random.key(0), (6, 5))
    price = odds(jnp.abs(w) / (jnp.abs(w) + EPS)) + BITS

    def rate(w):
        return jnp.sum(price * jnp.log2(1 + jnp.abs(w) / EPS))

    np.testing.assert_allclose(slope(w, EPS, BITS), jax.grad(rate)(w), rtol=1e-5)


def test_weights_in_thin_rows_and_columns_are_dear():
    w = jnp.zeros((8, 8)).at[0, :].set(1.0).at[7, 7].set(1.0)
    found = slope(w, EPS, BITS)
    assert found[7, 7] > found[0, 0] > 0
    assert float(found[7, 7]) > float(found[0, 7])  # the fuller column is the cheaper one


def test_it_adds_to_the_gradient_of_chosen_leaves_alone():
    params = {"kernel": jnp.full((4, 3), 0.5), "bias": jnp.ones(3), "step": jnp.arange(2)}
    tx = jp.rate_penalty(0.1)
    grads = jax.tree.map(jnp.zeros_like, params)
    added, state = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(added["kernel"], 0.1 * slope(params["kernel"], EPS, BITS), rtol=1e-6)
    assert not added["bias"].any() and not added["step"].any() and int(state.count) == 1
    both = jp.rate_penalty(0.1, where=jp.where.path("bias|kernel"))
    assert both.update(grads, both.init(params), params)[0]["bias"].all()


def test_codes_are_left_alone():
    params = {
        "a": jp.prune(0.5).init({"a": jnp.arange(1.0, 9).reshape(2, 4)})["a"],
        "b": {"kernel": jnp.ones((2, 2))},
    }
    grads = jax.tree.map(jnp.zeros_like, params)
    added = jp.rate_penalty(1.0).update(grads, jp.rate_penalty(1.0).init(params), params)[0]
    assert not np.any(added["a"].values) and np.all(added["b"]["kernel"] > 0)


def test_a_schedule_is_followed_under_jit_without_compiling_again():
    w = jnp.full((3, 3), 0.3)
    tx = jp.rate_penalty(optax.linear_schedule(0.0, 1.0, 2))
    step = compiled_once(jax.jit(lambda s: tx.update(jnp.zeros_like(w), s, w)))
    first, state = step(tx.init(w))
    second, state = step(state)
    third, _ = step(state)
    assert not first.any()
    np.testing.assert_allclose(second, third / 2, rtol=1e-6)


def test_a_smaller_dtype_is_kept():
    w = jnp.full((3, 3), 0.3, jnp.bfloat16)
    tx = jp.rate_penalty(0.1)
    assert tx.update(jnp.zeros_like(w), tx.init(w), w)[0].dtype == jnp.bfloat16


def test_training_with_it_drives_useless_weights_below_the_width():
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(256, 16)), jnp.float32)
    truth = np.zeros((16, 4), np.float32)
    truth[:3, :2] = 2 + np.abs(draw.normal(size=(3, 2)))
    y = x @ truth + draw.normal(size=(256, 4)).astype(np.float32)
    w = jnp.asarray(draw.normal(size=(16, 4)) * 0.3, jnp.float32)

    def loss(w):
        return jnp.mean((x @ w - y) ** 2)

    def trained(strength):
        tx = optax.chain(
            jp.rate_penalty(optax.linear_schedule(0.0, strength, 300)), optax.adam(1e-2)
        )

        def step(_, carry):
            updates, state = tx.update(jax.grad(loss)(carry[0]), carry[1], carry[0])
            return optax.apply_updates(carry[0], updates), state

        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer steps
            return jax.lax.fori_loop(0, 600, step, (w, tx.init(w)))[0]

    free, paid = (np.asarray(trained(s)) for s in (0.0, 1e-3))
    np.testing.assert_array_equal(np.abs(paid) > EPS, truth != 0)
    assert np.count_nonzero(np.abs(free) > EPS) > 40


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: jp.rate_penalty(-1.0), "strength=.*number >= 0"),
        (lambda: jp.rate_penalty(float("nan")), "strength=.*number >= 0"),
        (lambda: jp.rate_penalty(1.0, width=0.0), "width=0.0"),
        (lambda: jp.rate_penalty(1.0, where=jp.where.path("x")).init({"w": jnp.ones((2, 2))}), "w"),
        (
            lambda: jp.rate_penalty(1.0).update(
                jnp.ones(2), jp.rate_penalty(1.0).init(jnp.ones(2))
            ),
            "needs the params",
        ),
    ],
)
def test_bad_inputs(make, words):
    with pytest.raises(ValueError, match=words):
        make()
