"""What goes with a removed unit, and what stays: biases of all shapes, batch norms behind, zeros
that are held."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.helpers import normal

CHANNELS = jp.prune(0.5, pattern=jp.patterns.channel(-1))
TREES = {
    "dense": {"d": {"kernel": normal((8, 6), 1), "bias": jnp.ones(6)}},
    "convolution": {"c": {"kernel": normal((3, 3, 2, 6), 1), "bias": jnp.ones(6)}},
    "haiku": {"linear": {"w": normal((8, 6), 1), "b": jnp.ones(6)}},
}


@pytest.mark.parametrize("name", TREES)
def test_a_bias_goes_with_its_unit_and_stays_gone(name):
    tree = CHANNELS.init(TREES[name])
    dense = jp.materialize(tree)
    ((kernel, bias),) = [
        (m.get("kernel", m.get("w")), m.get("bias", m.get("b"))) for m in dense.values()
    ]
    gone = np.all(np.asarray(kernel) == 0, tuple(range(kernel.ndim - 1)))
    np.testing.assert_array_equal(np.asarray(bias) == 0, gone)
    assert gone.sum() == 3
    masks = jax.tree.map(
        lambda c: c.mask, tree, is_leaf=lambda x: isinstance(x, jp.CompressedArray)
    )
    for hold in (jp.keep_pruned(), jp.keep_pruned(masks)):
        optimizer = optax.chain(optax.sgd(0.1), hold)
        updates, _ = optimizer.update(
            jax.tree.map(jnp.ones_like, dense), optimizer.init(dense), dense
        )
        after = jax.tree.leaves(optax.apply_updates(dense, updates))
        for x, y in zip(jax.tree.leaves(dense), after):
            np.testing.assert_array_equal(np.asarray(x) == 0, np.asarray(y) == 0)


def test_a_bias_that_is_zero_by_initialisation_is_free():
    params = {"d": {"kernel": normal((8, 6), 1), "bias": jnp.array([0.0, 1, 0, 1, 1, 1])}}
    hold = jp.keep_pruned()
    updates, _ = hold.update(jax.tree.map(jnp.ones_like, params), hold.init(params), params)
    assert np.all(np.asarray(updates["d"]["bias"]) == 1)


def test_biases_of_stacks_and_of_equinox():
    stacked = {"kernel": normal((3, 6, 4), 1), "bias": jnp.ones((3, 4))}
    tree = jp.over(0, CHANNELS).init(stacked)
    kernel = jp.materialize(tree)["kernel"]
    bias = jp.materialize(tree)["bias"]
    np.testing.assert_array_equal(np.asarray(bias) == 0, np.all(np.asarray(kernel) == 0, 1))
    rising = jp.over(0, jp.prune(lambda step: 0.25 + 0.25 * step, pattern=jp.patterns.channel(-1)))
    later = rising.update(rising.init(stacked, step=0), step=1)
    assert int(jnp.sum(later["bias"].mask)) == 6
    convolution = eqx.nn.Conv2d(3, 4, 3, key=jax.random.key(0))
    pruned = jp.prune(0.5, pattern=jp.patterns.channel(0)).init(convolution)
    gone = np.all(np.asarray(jp.materialize(pruned).weight) == 0, (1, 2, 3))
    np.testing.assert_array_equal(np.asarray(jp.materialize(pruned).bias)[:, 0, 0] == 0, gone)


def test_inputs_of_a_transposed_convolution_leave_its_bias_alone():
    f = hk.without_apply_rng(hk.transform(lambda x: hk.Conv2DTranspose(3, 3)(x)))
    params = {"conv2_d_transpose": {"w": normal((3, 3, 3, 3), 2), "b": jnp.array([1.0, 2.0, 3.0])}}
    for axis in (-1, -2):
        dense = jp.materialize(jp.prune(0.34, pattern=jp.patterns.channel(axis)).init(params))
        out = f.apply(dense, normal((1, 4, 4, 3), 3))
        dead = np.all(np.abs(np.asarray(out)) < 1e-9, (0, 1, 2))
        np.testing.assert_array_equal(dead, np.asarray(dense["conv2_d_transpose"]["b"]) == 0)
        assert dead.sum() == (axis == -2)


def norm(n):
    return {"scale": jnp.ones(n), "bias": jnp.ones(n)}


def test_the_batch_norm_behind_goes_along_only_where_it_is_plain():
    conv = {"kernel": normal((1, 1, 3, 6), 1)}
    square = {"kernel": normal((1, 1, 6, 6), 2)}
    plain = CHANNELS.init({"Conv_0": conv, "BatchNorm_0": norm(6)})
    gone = np.all(np.asarray(jp.materialize(plain)["Conv_0"]["kernel"]) == 0, (0, 1, 2))
    for name in ("scale", "bias"):
        np.testing.assert_array_equal(
            np.asarray(jp.materialize(plain)["BatchNorm_0"][name]) == 0, gone
        )
    unclear = {
        "two convolutions": {"Conv_0": conv, "Conv_1": conv, "BatchNorm_0": norm(6)},
        "before or behind": {"Conv_0": square, "BatchNorm_0": norm(6)},
        "two norms": {"Conv_0": conv, "BatchNorm_0": norm(6), "BatchNorm_1": norm(6)},
        "a layer norm": {"Dense_0": {"kernel": normal((3, 6), 1)}, "LayerNorm_0": norm(6)},
        "another width": {"Conv_0": conv, "BatchNorm_0": norm(5)},
    }
    for tree in unclear.values():
        after = jp.materialize(CHANNELS.init(tree))
        for module in after.values():
            assert "scale" not in module or bool(jnp.all(module["scale"] == 1))
