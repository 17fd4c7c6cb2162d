"""The laws of an allocation, for every row of the table. A new allocation joins by one line
there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from tests.allocations_table import ALLOCATIONS
from tests.helpers import compiled_once, normal

every_allocation = pytest.mark.parametrize("row", ALLOCATIONS, ids=lambda row: row.name)
SPARSITIES = (0.0, 0.3, 0.7, 0.95)


def params_of(dtype=jnp.float32):
    return {
        "conv": {"kernel": normal((3, 3, 8, 16), 0, dtype)},
        "dense": {"kernel": 3 * normal((16, 24), 1, dtype)},
        "thin": {"kernel": normal((4, 8), 2, dtype) / 2},
    }


def counts_of(row, params, sparsity):
    return jax.tree.leaves(row.allocate(params, None, sparsity))


@every_allocation
@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda d: d.__name__)
def test_counts_are_integers_of_the_total_that_was_asked(row, sparsity, dtype):
    params = params_of(dtype)
    sizes = [x.size for x in jax.tree.leaves(params)]
    counts = counts_of(row, params, sparsity)
    assert all(type(count) is int and 0 <= count <= n for count, n in zip(counts, sizes))
    if row.total_exact:
        assert sum(counts) == round(sparsity * sum(sizes))
    else:
        assert counts == [round(sparsity * n) for n in sizes]


@every_allocation
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_counts_equal_the_formula_written_out(row, sparsity):
    params = params_of()
    want = row.reference([np.asarray(x, np.float64) for x in jax.tree.leaves(params)], sparsity)
    np.testing.assert_allclose(counts_of(row, params, sparsity), want, atol=1)


@every_allocation
def test_a_traced_sparsity_gives_the_same_and_compiles_once(row):
    params = params_of()
    run = compiled_once(jax.jit(lambda params, s: row.allocate(params, None, s)))
    for sparsity in SPARSITIES:
        counts = jax.tree.leaves(run(params, jnp.float32(sparsity)))
        assert all(count.dtype == jnp.int32 for count in counts)
        np.testing.assert_allclose(counts, counts_of(row, params, sparsity), atol=1)


@every_allocation
def test_a_batch_of_sparsities_is_one_program(row):
    params = params_of()
    levels = jnp.array(SPARSITIES)
    batch = jax.vmap(lambda s: row.allocate(params, None, s))(levels)
    for i, sparsity in enumerate(SPARSITIES):
        alone = counts_of(row, params, sparsity)
        np.testing.assert_allclose([c[i] for c in jax.tree.leaves(batch)], alone, atol=1)


@every_allocation
def test_scores_of_units_are_ranked_in_place_of_weights(row):
    params = params_of()
    scores = jax.tree.map(jnp.abs, params)
    assert row.allocate(params, scores, 0.6) == row.allocate(params, None, 0.6)


@every_allocation
def test_pruning_removes_what_was_allocated(row):
    params = params_of()
    counts = counts_of(row, params, 0.6)
    by_name = jp.prune(0.6, allocate=row.name).init(params)
    by_counts = jp.prune(0.6, allocate=row.allocate(params, None, 0.6)).init(params)
    for name, count in zip(params, counts):
        mask = by_name[name]["kernel"].mask
        assert int(mask.size - mask.sum()) == count
        np.testing.assert_array_equal(mask, by_counts[name]["kernel"].mask)


@every_allocation
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda k: k.name)
def test_sharded_equals_unsharded(row, kind):
    params = {"a": normal((16, 24), 1), "b": normal((32, 8), 2)}
    alone = row.allocate(params, None, 0.6)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        sharded = jax.tree.map(
            lambda x: jax.device_put(x, NamedSharding(mesh, P("x", None))), params
        )
        counts = jax.jit(lambda params: row.allocate(params, None, jnp.float32(0.6)))(sharded)
    np.testing.assert_allclose(jax.tree.leaves(counts), jax.tree.leaves(alone), atol=1)


def test_the_words_name_the_rows_of_the_table():
    assert set(jp.allocate.BY_WORD) == {row.name for row in ALLOCATIONS}
