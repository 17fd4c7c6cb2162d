"""Slots, rules and combinators: which leaf gets what, and what is said when nothing does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.core.trees.walk import slots
from tests.helpers import model, normal, same

w = jp.where


def selected(rule, tree):
    flags = rule(tree)
    return {
        jax.tree_util.keystr(k, simple=True, separator="/")
        for k, v in jax.tree_util.tree_flatten_with_path(flags)[0]
        if v
    }


def test_rules_and_their_algebra():
    tree = model()
    kernels = {"conv/kernel", "dense/kernel"}
    assert selected(w.weights, tree) == kernels == selected(w.path(r"(.*/)?kernel"), tree)
    assert selected(w.ndim(2), tree) == {"dense/kernel", "embed/embedding"}
    assert selected(w.ndim(min=3) | w.size(40), tree) == {"conv/kernel", "embed/embedding"}
    assert selected(w.weights & ~w.path("conv/.*") & w.dtype(jnp.float32), tree) == {"dense/kernel"}
    assert selected(w.size(min=300) & w.weights, tree) == kernels


def test_the_default_leaves_stacked_biases_norms_and_embeddings_alone():
    names = ["bias", "b", "scale", "embedding", "mean", "var"]
    tree = {name: jnp.ones((4, 4)) for name in names} | {
        "kernel": jnp.ones((4, 4)),
        "v": jnp.ones(4),
    }
    assert selected(w.weights, tree) == {"kernel"}


def test_a_where_may_be_a_tree_or_a_function_making_one():
    tree = model()
    flags = jax.tree.map(lambda x: False, tree) | {"embed": {"embedding": True}}
    for where in (flags, lambda t: jax.tree.map(lambda x: x.shape == (10, 4), t)):
        out = jp.prune(0.5, where=where).init(tree)
        assert isinstance(out["embed"]["embedding"], jp.Masked) and not isinstance(
            out["dense"]["kernel"], jp.Masked
        )


def test_a_path_names_the_leaf_through_codes_and_nnx():
    from flax import nnx

    state = nnx.state(nnx.Linear(8, 6, rngs=nnx.Rngs(0)), nnx.Param)
    c = jp.chain(jp.prune(0.5), jp.cluster(4), jp.at(w.field("codebook"), jp.quantize(bits=8)))
    tree = c.init({"net": state})
    paths = {s.path for s in slots(tree)}
    assert paths == {"net/kernel", "net/bias"}
    named = jp.prune(0.5, where=w.path("net/kernel")).init({"net": state})

    def is_masked(x):
        return isinstance(x, jp.Masked)

    assert list(map(is_masked, jax.tree.leaves(named, is_leaf=is_masked))) == [False, True]


def test_a_slash_inside_a_key_is_escaped():
    tree = {"mlp/linear": {"w": jnp.ones((4, 4))}, "mlp": {"linear": {"w": jnp.ones((4, 4))}}}
    out = jp.prune(0.5, where=w.path(r"mlp/linear/w")).init(tree)
    assert isinstance(out["mlp"]["linear"]["w"], jp.Masked) and not isinstance(
        out["mlp/linear"]["w"], jp.Masked
    )
    out = jp.prune(0.5, where=w.path(r"mlp\\/linear/w")).init(tree)
    assert isinstance(out["mlp/linear"]["w"], jp.Masked)


def test_fields_that_are_not_weights_must_be_named():
    tree = jp.cluster(4).init({"kernel": normal((8, 8))})
    touched = jp.quantize(bits=8, where=w.field("codebook")).init(tree)
    assert (
        isinstance(touched["kernel"].codebook, jp.Quantized)
        and touched["kernel"].indices is tree["kernel"].indices
    )
    with pytest.raises(ValueError, match="kernel is Clustered"):
        jp.quantize(bits=8, where=w.path("kernel")).init(tree)


@pytest.mark.parametrize(
    "call",
    [
        lambda: w.ndim(),
        lambda: w.ndim(2, min=1),
        lambda: w.size(),
        lambda: jp.every(0, jp.identity),
    ],
)
def test_malformed_rules_are_refused(call):
    with pytest.raises(ValueError, match=r"takes|at least 1"):
        call()


def test_every_and_between_choose_their_steps():
    count = jp.Compression(
        lambda p, **_: p, lambda t, *, step, **_: jax.tree.map(lambda x: x + 1, t)
    )

    def update(c, step):
        return int(c.update(jnp.array(0), step=jnp.int32(step)))

    assert [update(jp.every(3, count), s) for s in range(7)] == [1, 0, 0, 1, 0, 0, 1]
    assert [update(jp.between(2, 4, count), s) for s in range(6)] == [0, 0, 1, 1, 1, 0]
    assert update(jp.freeze(count), 0) == 0


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_over_compresses_each_slice_by_itself(axis):
    layers = [normal((8, 6), s) for s in range(3)]
    stacked = {"kernel": jnp.stack(layers, axis)}
    for c in (jp.prune(0.5), jp.chain(jp.prune(0.5), jp.quantize(bits=4)), jp.cluster(4)):
        whole = jp.over(axis, c).init(stacked)
        for i, layer in enumerate(layers):
            alone = jp.materialize(jax.jit(c.init)({"kernel": layer}))["kernel"]
            np.testing.assert_allclose(
                jnp.take(jp.materialize(whole)["kernel"], i, axis), alone, rtol=1e-6
            )
    c = jp.over(axis, jp.prune(jp.schedules.cubic(0.75, 0, 4)))
    tree = c.init(stacked)
    out = jp.materialize(c.update(tree, step=4))["kernel"]
    assert jnp.sum(out != 0) == 3 * 12


def test_partition_and_combine_are_inverse_and_float8_codes_are_not_trained():
    tree = {
        "a": jp.quantize(kind="float8_e4m3").init(normal((4, 4))),
        "b": jp.prune(0.5).init(normal((4, 4))),
    }
    free, fixed = jp.partition(tree)
    assert free["a"].q.shape == () and free["a"].scale.shape == (1, 4) and fixed["b"].values is None
    same(jp.combine(free, fixed), tree)


def test_value_and_grad_gives_the_dense_gradient_on_request():
    tree = {"kernel": jp.prune(0.5).init(normal((4, 4))), "steps": jnp.array(3)}
    x = normal((2, 4), 1)

    def loss(p, x):
        return (jnp.sum((x @ p["kernel"]) ** 2), p["steps"])

    (value, aux), code, dense = jp.value_and_grad(loss, has_aux=True, dense=True)(tree, x)
    params = jp.materialize(tree)
    want = jax.grad(lambda k: jnp.sum((x @ k) ** 2))(params["kernel"])
    np.testing.assert_allclose(dense["kernel"], want, rtol=1e-6)
    np.testing.assert_array_equal(
        code["kernel"].values, np.where(tree["kernel"].mask, dense["kernel"], 0)
    )
    assert aux == 3 and value > 0


def test_a_missing_extra_says_which():
    with pytest.raises(ValueError, match=r"saliency needs grads: give it"):
        jp.prune(0.5, score=jp.scores.saliency).init(model())
