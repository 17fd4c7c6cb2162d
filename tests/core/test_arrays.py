"""The types by hand: Δ, its gradient as the papers state it, and the bits of the fixed-length
code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.helpers import bits, normal

U8 = jnp.uint8


def gradient(tree, upstream):
    def loss(w):
        return jnp.sum(w * upstream)

    return jp.value_and_grad(loss)(tree)[1]


def test_masked_gradient_is_masked():
    mask = normal((4, 5), 1) > 0
    up = normal((4, 5), 2)
    grads = gradient(jp.Masked(normal((4, 5)), mask), up)
    np.testing.assert_array_equal(grads.values, np.where(mask, up, 0))


def test_what_lies_under_a_mask_is_not_part_of_the_code():
    mask = jnp.array([True, False, False])
    tree = jp.Masked(jnp.array([-1.0, jnp.nan, -5.0]), mask)
    out = np.asarray(jp.materialize(tree))
    assert out[0] == -1 and np.all(bits(out[1:]) == 0)
    assert np.all(np.isfinite(gradient(tree, jnp.ones(3)).values))


def test_clustered_gradient_is_summed_over_the_cluster():
    index = jnp.array([[0, 2], [2, 1]], U8)
    up = jnp.array([[1.0, 2.0], [4.0, 8.0]])
    tree = jp.Clustered(jnp.array([5.0, 6.0, 7.0]), index)
    assert jp.materialize(tree).tolist() == [[5.0, 7.0], [7.0, 6.0]]
    assert gradient(tree, up).codebook.tolist() == [1.0, 8.0, 6.0]


def test_low_rank_gradient_is_that_of_the_factors():
    u = normal((4, 2))
    v = normal((2, 5), 1)
    up = normal((4, 5), 2)
    grads = gradient(jp.LowRank(u, v), up)
    np.testing.assert_allclose(grads.u, np.asarray(up) @ np.asarray(v).T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grads.v, np.asarray(u).T @ np.asarray(up), rtol=1e-5, atol=1e-6)


def test_shared_is_prototypes_times_a_sparse_matrix():
    p = normal((4, 2))
    a = jnp.array([1, 0, 1], U8)
    s = jnp.array([2.0, 3.0, -1.0])
    dense = np.zeros((2, 3), np.float32)
    dense[np.asarray(a), np.arange(3)] = s
    tree = jp.Shared(p, a, s, -1)
    up = normal((4, 3), 2)
    np.testing.assert_allclose(jp.materialize(tree), np.asarray(p) @ dense, rtol=1e-6)
    grads = gradient(tree, up)
    np.testing.assert_allclose(grads.prototypes, np.asarray(up) @ dense.T, rtol=1e-5)
    np.testing.assert_allclose(
        grads.scale, np.sum(np.asarray(up) * np.asarray(p)[:, np.asarray(a)], 0), rtol=1e-5
    )
    filters = jp.Shared(normal((3, 3, 2, 2)), a, s, -1)
    np.testing.assert_allclose(
        jp.materialize(filters)[..., 1], 3.0 * filters.prototypes[..., 0], rtol=1e-6
    )
    inputs = jp.Shared(normal((2, 5)), a, s, -2)
    np.testing.assert_allclose(jp.materialize(inputs)[2], -1.0 * inputs.prototypes[1], rtol=1e-6)


def test_quantized_gradient_of_the_scale_sums_over_its_run():
    q = jnp.array([[1, -2], [3, 4]], jnp.int8)
    up = jnp.array([[1.0, 10.0], [100.0, 1000.0]])
    tree = jp.Quantized(q, jnp.array([[0.5, 2.0]]), None, 8, jnp.dtype("float32"))
    assert jp.materialize(tree).tolist() == [[0.5, -4.0], [1.5, 8.0]]
    assert gradient(tree, up).scale.tolist() == [[301.0, 3980.0]]
    shifted = jp.Quantized(
        q.astype(U8), jnp.array([[0.5, 2.0]]), jnp.array([[1, 3]], U8), 8, jnp.dtype("float32")
    )
    assert jp.materialize(shifted)[0, 0] == 0.0 and jp.materialize(shifted)[1, 1] == 2.0


def test_tucker_rebuilds_each_place_of_the_window():
    core = normal((3, 2, 2, 4))
    u = normal((5, 2), 1)
    v = normal((4, 6), 2)
    out = jp.materialize(jp.Tucker(core, u, v))
    np.testing.assert_allclose(out, np.einsum("ia,xyab,bo->xyio", u, core, v), rtol=2e-5, atol=1e-5)
    batch = jax.vmap(lambda c: jp.Tucker(c, u, v))(jnp.stack([core, 2 * core]))
    np.testing.assert_allclose(
        jp.materialize(jax.tree.map(jnp.asarray, _with_batched(batch, u, v)))[1], 2 * out, rtol=2e-5
    )


def _with_batched(tree, u, v):
    return jp.Tucker(tree.core, jnp.stack([u, u]), jnp.stack([v, v]))


CLOSED_FORMS = {
    "plain": (normal((3, 4)), 12 * 32),
    "bfloat16": (normal((3, 4), dtype=jnp.bfloat16), 12 * 16),
    "masked": (jp.Masked(normal((3, 4)), jnp.zeros((3, 4), bool).at[0].set(True)), 12 + 4 * 32),
    "clustered": (jp.Clustered(normal(5), jnp.zeros((3, 4), U8)), 12 * 3 + 5 * 32),
    "one value": (jp.Clustered(normal(1), jnp.zeros((3, 4), U8)), 32),
    "masked clustered": (
        jp.Masked(
            jp.Clustered(normal(4), jnp.zeros((3, 4), U8)), jnp.zeros((3, 4), bool).at[1].set(True)
        ),
        12 + 4 * 2 + 4 * 32,
    ),
    "int8": (jp.quantize(bits=8).init(normal((3, 4))), 12 * 8 + 4 * 32),
    "int3": (jp.quantize(bits=3).init(normal((3, 4))), 12 * 3 + 4 * 32),
    "int12": (jp.quantize(bits=12, axis=None).init(normal((3, 4))), 12 * 12 + 32),
    "affine": (jp.quantize(bits=4, kind="affine").init(normal((3, 4))), 12 * 4 + 4 * (32 + 32)),
    "groups": (jp.quantize(bits=4, group=2).init(normal((6, 4))), 24 * 4 + 12 * 32),
    "nf4": (jp.quantize(kind="nf4").init(normal((3, 4))), 12 * 4 + 4 * 32),
    "binary": (jp.quantize(bits=1).init(normal((3, 4))), 12 + 4 * 32),
    "low rank": (jp.LowRank(normal((3, 1)), normal((1, 4))), 7 * 32),
    "shared": (jp.Shared(normal((3, 2)), jnp.zeros(4, U8), normal(4), -1), 6 * 32 + 4 * 1 + 4 * 32),
    "two planes": (jp.Packed(jnp.zeros((5, 2, 1), U8), 7), 5 * 7 * 2),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_nbits_is_the_closed_form(name):
    tree, want = CLOSED_FORMS[name]
    found = jp.nbits(tree)
    assert found == want and isinstance(found, int)
    assert float(jax.jit(jp.nbits)(tree)) == want


def test_codes_live_in_any_pytree():
    from typing import NamedTuple

    import equinox as eqx
    from flax import nnx
    from flax.core import freeze

    class Pair(NamedTuple):
        kernel: object
        rest: object

    w = normal((8, 8))
    mlp = eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(0))
    trees = [
        {"a": {"kernel": w}},
        freeze({"a": {"kernel": w}}),
        [w, (w, None)],
        Pair(w, {"kernel": w}),
        {"mlp/~/linear_0": {"w": w, "b": jnp.zeros(8)}},  # Haiku's
        w,
        eqx.filter(mlp, eqx.is_array),
        nnx.state(nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.Param),
    ]
    c = jp.chain(jp.prune(0.5), jp.quantize(bits=4))
    for tree in trees:
        small = c.init(tree)
        assert any(
            isinstance(x, jp.Masked)
            for x in jax.tree.leaves(small, is_leaf=lambda x: isinstance(x, jp.Masked))
        )
        assert jax.tree.structure(jp.materialize(small)) == jax.tree.structure(tree)
        again = jax.jit(lambda t: t)(small)
        assert jax.tree.structure(again) == jax.tree.structure(small)
    model = eqx.combine(jp.materialize(c.init(trees[6])), mlp)
    assert model(jnp.ones(4)).shape == (3,)


def test_codes_pass_through_transforms():
    tree = {"kernel": jp.chain(jp.prune(0.5), jp.cluster(4)).init(normal((8, 8)))}
    x = normal((3, 8), 5)

    def f(t, x):
        return x @ jp.materialize(t)["kernel"]

    want = f(tree, x)
    np.testing.assert_allclose(jax.jit(f)(tree, x), want, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(f, (None, 0))(tree, x), want, rtol=1e-5, atol=1e-6)
    carried, _ = jax.lax.scan(lambda t, _: (t, None), tree, None, length=3)
    np.testing.assert_allclose(f(carried, x), want, rtol=1e-6)
    chosen = jax.lax.cond(True, lambda t: t, lambda t: t, tree)
    np.testing.assert_allclose(f(chosen, x), want, rtol=1e-6)
    moved = jax.device_put(tree, jax.devices()[3])
    assert moved["kernel"].mask.devices() == {jax.devices()[3]}


@pytest.mark.filterwarnings("ignore")
def test_codes_come_back_from_orbax(tmp_path):
    import orbax.checkpoint as ocp

    tree = jp.chain(jp.prune(0.5), jp.cluster(4)).init({"kernel": normal((8, 8))})
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "c", tree)
        saver.wait_until_finished()
        back = saver.restore(tmp_path / "c", jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    np.testing.assert_array_equal(jp.materialize(back)["kernel"], jp.materialize(tree)["kernel"])
