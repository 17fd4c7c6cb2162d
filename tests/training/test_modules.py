"""Gradient transformations pass over what is no array: the activation of an Equinox module, texts,
numbers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp

MODULE = eqx.nn.MLP(4, 2, 8, 1, activation=jax.nn.gelu, key=jax.random.key(0))
X = jnp.ones((3, 4))
ARRAYS, STATIC = eqx.partition(MODULE, eqx.is_array)


def loss(module):
    return jnp.mean(jax.vmap(module)(X) ** 2)


GROUPS = jp.coupled_axes(
    lambda arrays, x: jax.vmap(eqx.combine(arrays, STATIC))(x), ARRAYS, X
).groups
TRANSFORMS = {
    "project": jp.project(jp.prune(0.5)),
    "project on other steps": jp.project(jp.prune(0.5), every=2),
    "attract": jp.attract(jp.prune(0.5), 0.1),
    "keep_pruned": jp.keep_pruned(),
    "group_penalty": jp.group_penalty(GROUPS, 0.1),
    "rate_penalty": jp.rate_penalty(1e-4),
    "floats_only": jp.floats_only(optax.sgd(0.1)),
    "chain": optax.chain(jp.attract(jp.prune(0.5), 0.1), optax.sgd(0.1), jp.project(jp.prune(0.5))),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_module_with_an_activation_trains_as_its_arrays_do(name):
    transform = TRANSFORMS[name]
    gradient = eqx.filter_grad(loss)(MODULE)  # None in the place of the activation
    state = transform.init(MODULE if name != "chain" else ARRAYS)
    updates, state = eqx.filter_jit(transform.update)(gradient, state, MODULE)
    assert updates.activation is None
    trained = eqx.apply_updates(MODULE, updates)
    assert trained.activation is MODULE.activation
    expected, _ = transform.update(gradient, transform.init(ARRAYS), ARRAYS)
    for x, y in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "name", [name for name in TRANSFORMS if name not in ("chain", "floats_only")]
)
def test_updates_that_hold_functions_and_texts_come_back_with_them(name):
    params = {"module": MODULE, "name": "a layer", "steps": 3, "act": jax.nn.relu, "none": None}
    zeros = jax.tree.map(lambda x: jnp.zeros_like(x) if eqx.is_array(x) else x, params)
    transform = TRANSFORMS[name]
    if name == "group_penalty":
        transform = jp.group_penalty([g._replace(members=()) for g in GROUPS], 0.1)
    updates, _ = transform.update(zeros, transform.init(params), params)
    assert updates["name"] == "a layer" and updates["steps"] == 3 and updates["act"] is jax.nn.relu
    assert updates["none"] is None and updates["module"].activation is MODULE.activation


def test_a_module_goes_straight_through():
    seen = jp.straight_through(jp.quantize(bits=4))(MODULE)
    assert seen.activation is MODULE.activation
    assert jax.tree.leaves(
        eqx.filter_grad(lambda m: loss(jp.straight_through(jp.quantize(bits=4))(m)))(MODULE)
    )


def test_projected_weights_are_those_of_the_code():
    transform = optax.chain(optax.sgd(0.1), jp.project(jp.prune(0.5)))
    updates, _ = transform.update(eqx.filter_grad(loss)(MODULE), transform.init(ARRAYS), MODULE)
    trained = eqx.apply_updates(MODULE, updates)
    assert int((trained.layers[0].weight == 0).sum()) == 16
