"""The weights h of a distortion: what is no curvature is refused, and what says nothing changes
nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

W = jnp.asarray(np.random.default_rng(0).standard_normal((8, 8)), jnp.float32)
TREE = {"a": {"kernel": W}, "b": {"kernel": 2 * W + 1}}
METHODS = {
    "cluster": lambda curvature: jp.cluster(4, curvature=curvature),
    "cluster of the tree": lambda curvature: jp.cluster(4, scope="tree", curvature=curvature),
    "cluster tiles": lambda curvature: jp.cluster(2, scope=(4,), curvature=curvature),
    "factorize": lambda curvature: jp.factorize(rank=2, curvature=curvature),
}


def curvatures(fill):
    return jax.tree.map(lambda x: jnp.full(x.shape, fill, jnp.float32), TREE)


def dense(compression, tree=TREE):
    return jax.tree.map(np.asarray, jp.materialize(compression.init(tree)))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("fill", [0.0, 2.0**-120, 2.0**127])
def test_equal_curvatures_of_any_size_change_nothing(name, fill):
    want = dense(METHODS[name](curvatures(1.0)))
    got = dense(METHODS[name](curvatures(fill)))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    traced = jax.jit(lambda tree: jp.materialize(METHODS[name](curvatures(fill)).init(tree)))(TREE)
    assert all(np.isfinite(x).all() and np.any(x) for x in jax.tree.leaves(traced))


def test_a_dead_layer_keeps_its_weights():
    """Its Fisher information is 0 everywhere; in a shared codebook it then counts for nothing
    beside the others."""
    h = curvatures(1.0)
    h["a"]["kernel"] = jnp.zeros_like(W)
    alone = dense(jp.cluster(4, curvature=h))
    np.testing.assert_array_equal(alone["a"]["kernel"], dense(jp.cluster(4))["a"]["kernel"])
    shared = jp.cluster(4, scope="tree", curvature=h).init(TREE)
    only_b = jp.cluster(4).init(TREE["b"])["kernel"].codebook
    np.testing.assert_allclose(shared.codebook, only_b, rtol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_zero_curvatures_under_a_mask_alone(name):
    pruned = jp.prune(0.5).init(TREE)
    h = jax.tree.map(
        lambda code: jnp.where(code.mask, 0.0, 7.0),
        pruned,
        is_leaf=lambda x: isinstance(x, jp.Masked),
    )
    got = jp.materialize(METHODS[name](h).init(pruned))
    ones = jax.tree.map(
        lambda code: code.mask.astype(jnp.float32),
        pruned,
        is_leaf=lambda x: isinstance(x, jp.Masked),
    )
    want = jp.materialize(METHODS[name](ones).init(pruned))
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "wrong, said", [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (-1.0, "negative")]
)
def test_what_is_no_curvature_is_refused_with_path_and_count(name, wrong, said):
    h = curvatures(1.0)
    h["b"]["kernel"] = h["b"]["kernel"].at[1, 2:4].set(wrong)
    with pytest.raises(ValueError, match=rf"b/kernel.* has 2 {said}"):
        METHODS[name](h).init(TREE)
