"""The laws of a compression, for every method of the table. A new method joins by one line
there."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.helpers import avals, bits, compiled_once, distortion, is_code, model, normal, same
from tests.methods_table import METHODS

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
traced_methods = pytest.mark.parametrize(
    "method", [m for m in METHODS if m.traced], ids=lambda m: m.name
)


@every_method
@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__
)
def test_stands_for_an_array_of_the_same_shape_and_dtype(method, dtype):
    params = model(dtype)
    tree = method.compression.init(params)
    dense = jp.materialize(tree)
    assert avals(dense)[0] == avals(params)[0]
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(dense)):
        assert x.shape == y.shape and x.dtype == y.dtype
    for code, x in zip(jax.tree.leaves(tree, is_leaf=is_code), jax.tree.leaves(params)):
        assert code.shape == x.shape and code.dtype == x.dtype
    assert any(map(is_code, jax.tree.leaves(tree, is_leaf=is_code)))
    for untouched in ("embed", "steps"):
        assert tree[untouched] is params[untouched] or tree[untouched] == params[untouched]


@pytest.mark.parametrize("method", [m for m in METHODS if m.projects], ids=lambda m: m.name)
def test_encoding_twice_is_encoding_once(method):
    once = jp.materialize(method.compression.init(model()))
    twice = jp.materialize(method.compression.init(once))
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(twice)):
        np.testing.assert_allclose(
            np.asarray(a),
            np.asarray(b),
            rtol=3e-7 if not method.inexact else 2e-5,
            atol=1e-6 if method.inexact else 0,
        )


@traced_methods
def test_update_keeps_the_structure_and_never_recompiles(method):
    c = method.compression
    tree = c.init(model())
    update = compiled_once(jax.jit(lambda t, step: c.update(t, step=step)))
    new = tree
    for step in range(3):
        new = update(new, jnp.int32(step))
        assert avals(new) == avals(tree)
    scanned, _ = jax.lax.scan(
        lambda t, step: (c.update(t, step=step), None), tree, jnp.arange(3, dtype=jnp.int32)
    )
    same(scanned, new)


def test_a_compilation_is_noticed():
    x, y, run = jnp.ones(7), jnp.ones(9), compiled_once(jax.jit(lambda x: x * 3.25))
    run(x), run(x)
    with pytest.raises(AssertionError, match="1 programs"):
        run(y)


@every_method
def test_more_budget_never_distorts_more(method):
    params = model()
    losses = [distortion(params, method.at(b).init(params)) for b in method.budgets]
    for less, more in itertools.pairwise(losses):
        assert more <= less * (1 + 1e-6)
    if method.full is not None:
        lossless = distortion(params, method.at(method.full).init(params))
        assert lossless <= 1e-10 * sum(
            float(jnp.sum(x.astype(jnp.float32) ** 2)) for x in jax.tree.leaves(params)
        )


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m.name.startswith("prune")], ids=lambda m: m.name
)
def test_masks_nest_as_sparsity_grows(method):
    masks = [jp.materialize(method.at(b).init(model())) for b in method.budgets]
    for small, large in itertools.pairwise(masks):
        for a, b in zip(jax.tree.leaves(small), jax.tree.leaves(large)):
            assert not np.any((np.asarray(a) != 0) & (np.asarray(b) == 0))


@traced_methods
def test_a_batch_of_codes_is_the_codes_of_a_batch(method):
    def init(x):
        return method.compression.init({"kernel": x})

    batch = normal((3, 16, 24), 5)
    together = jp.materialize(jax.vmap(init)(batch))["kernel"]
    for i in range(3):
        alone = jp.materialize(jax.jit(init)(batch[i]))["kernel"]
        np.testing.assert_allclose(
            np.asarray(together[i]),
            np.asarray(alone),
            rtol=2e-6,
            atol=2e-6 if method.inexact else 0,
        )


@traced_methods
def test_eval_shape_and_jit_agree_with_init(method):
    params = model()
    here = method.compression.init(params)
    abstract = jax.eval_shape(method.compression.init, params)
    assert avals(abstract)[0] == avals(here)[0]
    assert [a[:2] for a in avals(abstract)[1]] == [a[:2] for a in avals(here)[1]]
    same(jax.jit(method.compression.init)(params), here, exact=False)


@every_method
def test_a_chain_is_associative_and_identity_is_its_unit(method):
    params = model()
    p = jp.prune(0.3)
    m = method.compression
    i = jp.identity
    if method.name.startswith(("prune", "every")):
        p = jp.prune(0.1)
    left = jp.chain(jp.chain(p, m), i).init(params)
    right = jp.chain(p, jp.chain(i, m)).init(params)
    same(left, right)
    same(jp.chain(i, m).init(params), m.init(params))


@every_method
def test_pruned_weights_stay_exactly_zero_through_later_stages(method):
    params = model()
    masks = jp.prune(0.5).init(params)
    later = jp.chain(jp.prune(0.5), method.compression).init(params)
    for name in ("conv", "dense"):
        gone = ~np.asarray(masks[name]["kernel"].mask)
        after = np.asarray(jp.materialize(later)[name]["kernel"])[gone]
        assert after.size and np.all(bits(after) == 0), "a pruned weight is +0.0"


@every_method
def test_gradients_of_the_code_are_those_of_finite_differences(method):
    tree = method.compression.init(model())
    free, fixed = jp.partition(tree)
    target = model(seed=100)

    def loss(free):
        dense = jp.partition(jp.materialize(jp.combine(free, fixed)))[0]
        gaps = jax.tree.map(lambda a, b: jnp.sum(a * b), dense, jp.partition(target)[0])
        return sum(jax.tree.leaves(gaps))

    grads = jax.grad(loss)(free)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(grads))
    direction = jax.tree.map(lambda x: normal(x.shape, 9, x.dtype), free)
    along = sum(
        float(jnp.sum(g * d)) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction))
    )

    # Weights are products of at most three factors, so these differences are exact however large
    # the step is.
    def at(s):
        return float(loss(jax.tree.map(lambda x, d: x + s * d, free, direction)))

    step = 0.5
    slope = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)
    assert slope == pytest.approx(along, rel=1e-4, abs=1e-3)


@traced_methods
def test_no_value_hides_in_static_fields(method):
    """Two trees of one shape give one treedef: a jitted function compiles once for both."""
    a, b = (method.compression.init(model(seed=s)) for s in (0, 50))
    assert jax.tree.structure(a) == jax.tree.structure(b)
