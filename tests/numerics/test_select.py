"""Exact selection: every engine against a sort, to the bit, on one device and on eight."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxprune.numerics import patterns, placement, select
from tests.helpers import compiled_once

from ..reference import select as slow

FEW = settings(max_examples=30, deadline=None)
VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, -2.5, 1e-40, -1e-40, np.inf, -np.inf, np.nan])
ARRAYS = hnp.arrays(np.float32, (4, 6), elements=VALUES)
ENGINES = [True, False]  # radix, bisection


@partial(jax.jit, static_argnums=(0, 3))
def kept(chunked, x, remove, magnitude):
    return select._keep(chunked, [x], remove, magnitude)


@partial(jax.jit, static_argnums=(0, 3))
def rank(chunked, xs, k, magnitude):
    return select._kth(chunked, xs, k, magnitude)


@partial(jax.jit, static_argnums=(0, 3))
def shares(chunked, xs, remove, magnitude):
    return select._split(chunked, xs, remove, magnitude)


def with_ties(shape, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    x = (rng.integers(-6, 7, shape) / 4).astype(np.float32)
    flat = x.reshape(-1)
    flat[rng.choice(flat.size, 8, replace=False)] = [
        np.nan,
        -np.nan,
        np.inf,
        -np.inf,
        0.0,
        -0.0,
        3e-39,
        -3e-39,
    ]
    return jnp.asarray(x).astype(dtype)


@FEW
@given(ARRAYS, st.integers(-1, 26), st.booleans())
def test_host_and_compiled_masks_equal_a_sort(x, remove, magnitude):
    want = slow.keep_largest(x, remove, magnitude)
    np.testing.assert_array_equal(
        select.keep_largest(jnp.asarray(x), remove, magnitude=magnitude), want
    )
    for chunked in ENGINES:
        np.testing.assert_array_equal(kept(chunked, x, remove, magnitude), want)


@FEW
@given(ARRAYS)
def test_keys_order_as_floats_do(x):
    for magnitude in (False, True):
        key = np.asarray(select.order_key(jnp.asarray(x), magnitude)).reshape(-1)
        v = np.abs(x.reshape(-1)) if magnitude else x.reshape(-1)
        assert (key[np.isnan(v)] == 0).all() and (key[~np.isnan(v)] > 0).all()
        a, b = np.meshgrid(*[np.flatnonzero(~np.isnan(v))] * 2)
        np.testing.assert_array_equal(key[a] < key[b], v[a] < v[b])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("chunked", ENGINES)
def test_engines_agree_over_chunks_and_dtypes(dtype, chunked, monkeypatch):
    monkeypatch.setattr(placement, "CHUNK", 100)  # several chunks and a rest
    x = with_ties((7, 43), dtype)
    magnitude = dtype != jnp.float16
    engine = jax.jit(lambda x, r: select._keep(chunked, [x], r, magnitude))
    for remove in (0, 1, 2, 57, 150, 300, 301, 400):
        host = select.keep_largest(x, remove, magnitude=magnitude)
        np.testing.assert_array_equal(
            host, slow.keep_largest(np.asarray(x, np.float32), remove, magnitude)
        )
        np.testing.assert_array_equal(engine(x, remove), host)


@pytest.mark.parametrize("chunked", ENGINES)
def test_rank_counts_over_several_arrays(chunked):
    xs = [with_ties((5, 8)), with_ties((16,), seed=1), with_ties((3, 2, 4), seed=2)]
    keys = np.sort(np.concatenate([np.asarray(select.order_key(x)).reshape(-1) for x in xs]))
    for k in (0, 1, 2, 40, 79):
        for got in (rank(chunked, xs, k, False), select.kth(xs, k)):
            assert got[1].shape == () and got[1].dtype == jnp.int32 and got[0].dtype == jnp.uint32
            assert [int(v) for v in got] == [
                keys[k],
                (keys < keys[k]).sum(),
                (keys == keys[k]).sum(),
            ]
    assert [int(v) for v in rank(chunked, xs, 80, False)] == [2**32 - 1, 80, 0]


@pytest.mark.parametrize("remove", [0, 1, 13, 40, 79, 80, 99])
def test_split_global_is_the_global_mask(remove):
    xs = [with_ties((5, 8)), with_ties((16,), seed=1), with_ties((3, 2, 4), seed=2)]
    for magnitude in (False, True):
        want = slow.split_global(xs, remove, magnitude)
        assert [int(c) for c in select.split_global(xs, remove, magnitude=magnitude)] == want
        for chunked in ENGINES:
            assert [int(c) for c in shares(chunked, xs, remove, magnitude)] == want
    assert sum(want) == min(remove, 80)


@pytest.mark.parametrize("chunked", ENGINES)
def test_traced_and_batched_counts(chunked):
    x = with_ties((6, 10))
    removes = jnp.arange(0, 61, 7)
    masks = jax.vmap(lambda r: kept(chunked, x, r, True))(removes)
    for mask, r in zip(masks, removes):
        np.testing.assert_array_equal(mask, slow.keep_largest(x, int(r), True))
    masks = jax.vmap(lambda x: kept(chunked, x, 20, True))(jnp.stack([x, -2 * x]))
    np.testing.assert_array_equal(masks[0], masks[1])


def test_abstract_scan_and_small_shapes():
    x = with_ties((6, 10))
    out = jax.eval_shape(lambda x: select.keep_largest(x, 3), x)
    assert (out.shape, out.dtype) == ((6, 10), jnp.bool_)
    _, masks = jax.lax.scan(lambda c, r: (c, select.keep_largest(x, r)), 0, jnp.arange(3))
    assert masks.sum((1, 2)).tolist() == [60, 59, 58]
    for y in (jnp.float32(2.0), jnp.zeros((0, 3)), jnp.ones(1)):
        for chunked in ENGINES:
            assert (
                kept(chunked, y, 0, False).tolist()
                == select.keep_largest(y, 0).tolist()
                == jnp.ones_like(y).tolist()
            )
            assert not kept(chunked, y, 1, False).any() and not select.keep_largest(y, 1).any()


def test_double_precision_keys():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).integers(-9, 10, 60) * 1e-12 + 1.0)
        for chunked in ENGINES:
            for remove in (0, 7, 31, 60):
                np.testing.assert_array_equal(
                    kept(chunked, x, remove, False), slow.keep_largest(x, remove)
                )
        assert select.order_key(x).dtype == jnp.uint64


def test_no_floats_no_order():
    with pytest.raises(TypeError, match="int32"):
        select.keep_largest(jnp.arange(3), 1)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("magnitude", [False, True])
def test_n_m_equals_a_sort(axis, magnitude):
    x = with_ties((8, 12))
    for n, m in ((0, 4), (1, 4), (2, 4), (4, 4), (1, 2)):
        want = slow.n_m(x, n, m, axis, magnitude)
        np.testing.assert_array_equal(patterns.n_m(x, n, m, axis, magnitude=magnitude), want)
        np.testing.assert_array_equal(patterns._n_m_compiled(x, n, m, axis % 2, magnitude), want)
    with pytest.raises(ValueError, match="divides"):
        patterns.n_m(x, 2, 5, axis)


def test_blocks_and_units_pool_and_spread():
    x = jnp.arange(48, dtype=jnp.bfloat16).reshape(2, 4, 6)
    pooled = patterns.pool_blocks(x, (2, 3))
    assert pooled.dtype == jnp.float32
    np.testing.assert_array_equal(
        pooled, np.asarray(x, np.float32).reshape(2, 2, 2, 2, 3).sum((2, 4))
    )
    np.testing.assert_array_equal(patterns.spread_blocks(pooled, (2, 3))[:, ::2, ::3], pooled)
    assert patterns.spread_blocks(pooled > 0, (2, 3)).shape == x.shape
    np.testing.assert_array_equal(patterns.pool_units(x, 1), np.asarray(x, np.float32).sum((0, 2)))
    units = patterns.spread_units(jnp.arange(4), -2, x.shape)
    assert units.shape == x.shape and units[1, :, 5].tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="tile"):
        patterns.pool_blocks(x, (3, 3))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [("a", "b"), (None, "a"), (("a", "b"), None)])
def test_sharded_arrays_stay_where_they_are(kind, spec):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind,) * 2)
    x = with_ties((64, 32))
    where = NamedSharding(mesh, PartitionSpec(*spec))
    with jax.set_mesh(mesh):
        y = jax.device_put(x, where)
        verbs = [
            lambda x: select.keep_largest(x, 700, magnitude=True),
            lambda x: patterns.n_m(x, 2, 4, 0),
            lambda x: patterns.spread_blocks(
                patterns.pool_blocks(jnp.nan_to_num(x, posinf=9, neginf=-9), (2, 2)) > 0, (2, 2)
            ),
        ]
        for verb in verbs:
            compiled = jax.jit(verb).lower(y).compile()
            assert "all-gather" not in compiled.as_text()
            assert compiled(y).sharding.is_equivalent_to(where, 2)
            np.testing.assert_array_equal(compiled(y), verb(x))
        assert select.keep_largest(y, 700).sharding.is_equivalent_to(where, 2)
        counts = jax.jit(lambda xs: select.split_global(xs, 700))([y, y])
        assert [int(c) for c in counts] == slow.split_global([x, x], 700)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_selection_flattens_nothing(kind):
    mesh = jax.make_mesh((8,), ("a",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        x = jax.device_put(with_ties((64, 32)), NamedSharding(mesh, PartitionSpec("a")))
        text = jax.jit(lambda x, r: select.keep_largest(x, r)).lower(x, 3).as_text()
    assert "reshape" not in text and "sort" not in text and "scatter" not in text


def test_counts_do_not_recompile():
    f = compiled_once(jax.jit(lambda x, r: select.keep_largest(x, r)))
    for r in range(5):
        f(with_ties((6, 10)), r)


def test_host_path_compiles_nothing(caplog):
    x = jnp.asarray(np.asarray(with_ties((11, 14))))
    with jax.log_compiles(True):
        (
            select.keep_largest(x, 20),
            select.kth(x, 3),
            select.split_global([x, x], 9),
            patterns.n_m(x, 1, 2, 1),
        )
    assert not [r for r in caplog.records if "ompil" in r.getMessage()]


def test_the_host_joins_no_leaves(monkeypatch):
    rng = np.random.default_rng(1)
    xs = [jnp.asarray(rng.integers(-9, 10, n), jnp.float32) for n in (100, 1, 37)]
    flat = [v for x in xs for v in np.abs(np.asarray(x)).tolist()]
    monkeypatch.setattr(np, "concatenate", lambda *_: pytest.fail("the leaves were joined"))
    for k in (0, 5, 70, 137):
        _, below, equal = select.kth(xs, k, magnitude=True)
        want = sorted(flat)[k]
        assert int(below) == sum(v < want for v in flat) and int(equal) == sum(
            v == want for v in flat
        )
