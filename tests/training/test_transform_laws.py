"""The laws of an optax transform, for every row of the table. A new transform joins by one line
there."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from tests.helpers import avals, bits, compiled_once, normal, same
from tests.transforms_table import TRANSFORMS, params_of


@pytest.fixture(autouse=True)
def standard_promotion():
    """What optax's adamw asks for, and what JAX does by default."""
    with jax.numpy_dtype_promotion("standard"):
        yield


every_transform = pytest.mark.parametrize("row", TRANSFORMS, ids=lambda row: row.name)
WHERES = {
    "text": "(.*/)?kernel",
    "rule": jp.where.path("(.*/)?kernel"),
    "tree": {"up": {"kernel": True, "bias": False}, "down": {"kernel": True}},
    "function": jp.where.path("(.*/)?kernel").__call__,
}


def grads_of(params, seed=40):
    return jax.tree.map(lambda x: normal(x.shape, seed, x.dtype), params)


@every_transform
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda d: d.__name__)
def test_updates_keep_structure_shapes_and_dtypes(row, dtype):
    params = params_of(dtype)
    tx = row.make(None)
    updates, state = tx.update(grads_of(params), tx.init(params), params)
    assert avals(updates)[0] == avals(params)[0]
    assert [a[:2] for a in avals(updates)[1]] == [a[:2] for a in avals(params)[1]]
    again = tx.update(grads_of(params, 41), state, params)[1]
    assert avals(again) == avals(state)


@every_transform
def test_jit_equals_eager_and_compiles_once(row):
    params = params_of()
    tx = row.make(None)
    run = compiled_once(jax.jit(tx.update))
    state = eager_state = tx.init(params)
    for step in range(3):
        updates, state = run(grads_of(params, step), state, params)
        eager_updates, eager_state = tx.update(grads_of(params, step), eager_state, params)
        same(updates, eager_updates, exact=False)
        same(state, eager_state, exact=False)


@every_transform
def test_steps_run_in_a_scan(row):
    params = params_of()
    chain = (
        optax.chain(optax.sgd(0.1), row.make(None))
        if row.last
        else optax.chain(row.make(None), optax.sgd(0.1))
    )

    def step(carry, _):
        params, state = carry
        updates, state = chain.update(grads_of(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    carry = params, chain.init(params)
    scanned, _ = jax.lax.scan(step, carry, length=3)
    for _ in range(3):
        carry, _ = step(carry, None)
    same(scanned[0], carry[0], exact=False)


@every_transform
def test_what_is_no_array_passes_through(row):
    if row.name == "floats_only":
        pytest.skip("adamw looks at every leaf")
    params = {**params_of(), "activation": jax.nn.relu}
    updates = {**grads_of(params_of()), "activation": None}
    tx = row.make(None)
    new, _ = tx.update(updates, tx.init(params), params)
    assert new["activation"] is None


@every_transform
def test_an_update_without_params_says_how_to_give_them(row):
    params = params_of()
    tx = row.make(None)
    with pytest.raises(ValueError, match="params"):
        tx.update(grads_of(params), tx.init(params))


@pytest.mark.parametrize("row", [r for r in TRANSFORMS if r.holds_zeros], ids=lambda r: r.name)
def test_pruned_weights_stay_plus_zero(row):
    params = params_of()
    chain = optax.chain(optax.adamw(0.1), row.make(None))
    state = chain.init(params)
    new = params
    for step in range(3):
        updates, state = chain.update(grads_of(params, step), state, new)
        new = optax.apply_updates(new, updates)
    for name in ("up", "down"):
        pruned = np.asarray(params[name]["kernel"]) == 0
        assert np.all(bits(np.asarray(new[name]["kernel"])[pruned]) == 0)


@pytest.mark.parametrize("row", [r for r in TRANSFORMS if r.takes_where], ids=lambda r: r.name)
@pytest.mark.parametrize("form", WHERES)
def test_every_form_of_where_means_the_same(row, form):
    params = params_of()
    want, _ = row.make(WHERES["rule"]).update(
        grads_of(params), row.make(WHERES["rule"]).init(params), params
    )
    tx = row.make(WHERES[form])
    same(tx.update(grads_of(params), tx.init(params), params)[0], want)


@pytest.mark.parametrize("row", [r for r in TRANSFORMS if r.takes_where], ids=lambda r: r.name)
def test_a_where_that_matches_nothing_lists_the_nearest_paths(row):
    params = params_of()
    tx = row.make("up/kernl")
    with pytest.raises(ValueError, match=r"matches nothing.*Nearest: up/kernel"):
        tx.update(grads_of(params), tx.init(params), params)


@every_transform
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda k: k.name)
def test_sharded_equals_unsharded(row, kind):
    params = params_of()
    tx = row.make(None)
    alone, _ = jax.jit(tx.update)(grads_of(params), tx.init(params), params)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    with jax.set_mesh(mesh):

        def spread(tree):
            return jax.tree.map(
                lambda x: jax.device_put(x, NamedSharding(mesh, P("x") if x.ndim else P())), tree
            )

        sharded = spread(params)
        updates, _ = jax.jit(tx.update)(spread(grads_of(params)), tx.init(sharded), sharded)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(updates)):
        np.testing.assert_allclose(np.asarray(b), np.asarray(a), rtol=1e-5, atol=1e-6)
