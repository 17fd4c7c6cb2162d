"""Quantisation against the per-weight reference, and the laws: projection, masks, transforms,
sharding.
"""

from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprune.numerics import affine as A
from jaxprune.numerics import grids as G
from tests.reference import affine as ref

SHAPES = [((12, 5), (-1,), None), ((12, 5), (), 4), ((12,), (-1,), None)]
SHAPES += [
    ((12,), (), 6),
    ((3, 3, 4, 5), (-1,), None),
    ((3, 3, 4, 5), (-1,), 2),
    ((3, 4, 6), (-3, -1), 2),
    ((), (), None),
]


def normal(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def kinds():
    """Every kind as (w, axis, group, where) -> the decoded array, its codes and its scale."""

    def symmetric(bits, w, axis, group, where):
        s = A.symmetric_scale(w, bits, axis, group, where)
        q = A.quantize_symmetric(w, s, bits)
        return A.dequantize(q, s), q, s

    def affine(bits, w, axis, group, where):
        s, z = A.affine_params(w, bits, axis, group, where)
        q = A.quantize_affine(w, s, z, bits)
        return A.dequantize(q, s, z), q, s

    def float8(name, w, axis, group, where):
        s = A.absmax_scale(w, G.FLOAT8[name], axis, group, where)
        q = G.quantize_float8(w, s, name)
        return A.dequantize(q, s), q, s

    def nf4(w, axis, group, where):
        s = A.absmax_scale(w, 1.0, axis, group, where)
        q = G.quantize_grid(w, s, G.NF4)
        return A.dequantize(q, s, grid=G.NF4), q, s

    def few(f, w, axis, group, where):
        q, s = f(w, axis, where, group)
        return A.dequantize(q, s), q, s

    table = {f"symmetric{b}": partial(symmetric, b) for b in (4, 16)}
    table |= {f"affine{b}": partial(affine, b) for b in (4, 16)}
    table |= {name: partial(float8, name) for name in G.FLOAT8}
    table |= {"nf4": nf4, "binary": partial(few, G.binary), "ternary": partial(few, G.ternary)}
    return table


KINDS = kinds()


@partial(jax.jit, static_argnums=(1, 2, 4))
def encode(w, axis, group, where=None, kinds=tuple(KINDS)):
    """Each kind's (decoded, codes, scale): one program, for compiling takes most of the time."""
    return {name: KINDS[name](w, axis, group, where) for name in kinds}


def same(a, b):
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


# --- against the reference ---


@pytest.mark.parametrize(("shape", "axis", "group"), SHAPES)
def test_equals_the_reference(shape, axis, group):
    w = normal(shape)
    kinds = ("symmetric4", "affine4", "nf4", "binary", "ternary")
    got = {
        name: tuple(map(np.asarray, x)) for name, x in encode(w, axis, group, None, kinds).items()
    }
    check = partial(np.testing.assert_allclose, rtol=1e-6)

    def entry(f):
        return ref.per_entry(f, w, axis, group)

    def weight(f, *scales):
        return ref.per_weight(f, w, *scales, axis=axis, group=group)

    _, q, s = got["symmetric4"]
    check(s, entry(ref.symmetric_scale(4)))
    check(q, weight(ref.symmetric(4), s))
    _, q, s = got["affine4"]
    check(s, entry(ref.affine_scale(4)))
    check(q, weight(ref.affine(4), s, entry(ref.zero_point(4))))
    _, q, s = got["nf4"]
    check(q, weight(ref.nearest(G.NF4), s))
    decoded, signs, alpha = got["binary"]
    check(alpha, entry(ref.alpha))
    check(signs, w >= 0)
    check(decoded, weight(lambda x, a: a if x >= 0 else -a, alpha))
    decoded, _, alpha = got["ternary"]
    check(alpha, entry(ref.ternary_alpha))
    check(decoded, weight(ref.ternary, alpha, 0.7 * entry(ref.alpha)))


def test_half_to_even_and_saturation():
    w = jnp.array([0.5, 1.5, 2.5, -0.5, -2.5, 9.0, -9.0, jnp.inf, -jnp.inf, jnp.nan])
    q = A.quantize_symmetric(w, jnp.ones(1), 4)
    assert q.tolist() == [0, 2, 2, 0, -2, 7, -7, 7, -7, 0] and q.dtype == jnp.int8
    assert A.quantize_symmetric(w, jnp.ones(1), 9).dtype == jnp.int16
    assert A.quantize_symmetric(jnp.array([1e20, -1e20]), jnp.ones(1), 32).tolist() == [
        2**31 - 128,
        128 - 2**31,
    ]


def test_float8_saturates():
    w = jnp.array([500.0, -1e9, jnp.nan, 0.1])
    q = G.quantize_float8(w, jnp.ones(1), jnp.float8_e4m3fn).astype(jnp.float32)
    assert q.tolist() == [448.0, -448.0, 0.0, 0.1015625]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_dtypes(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        real = jnp.float64 if dtype == jnp.float64 else jnp.float32
        for kind, (decoded, _, s) in jax.eval_shape(
            lambda w: encode(w, (-1,), 4), jax.ShapeDtypeStruct((8, 4), dtype)
        ).items():
            assert decoded.dtype == s.dtype == real, kind
    w = jnp.asarray(normal((8, 4)), jnp.bfloat16)
    assert same(A.absmax_scale(w, 7.0), A.absmax_scale(w.astype(jnp.float32), 7.0))
    half = jax.eval_shape(A.dequantize, jnp.zeros((3, 2), jnp.int8), jnp.ones((1, 2), jnp.float16))
    assert half.dtype == jnp.float32
    assert jax.eval_shape(lambda w: A.affine_params(w, 9), w)[1].dtype == jnp.int32


# --- laws ---

weights = st.lists(st.floats(-100, 100, width=32), min_size=12, max_size=12)
mess = st.sampled_from(["", "zero", "empty", "tie", "tiny"])


@pytest.mark.slow
@settings(deadline=None, max_examples=40, derandomize=True)
@given(weights, mess, st.sampled_from([((-1,), None), ((), 3)]))
def test_projection(values, mess, how):
    w = np.array(values, np.float32).reshape(6, 2)
    if mess == "zero":
        w[0] = 0
    if mess == "empty":
        w[:, 0] = 0
    if mess == "tie":
        w[:, 0] = np.array([-0.5, 254.5, 0, 3, 7, 1]) * 0.1
    if mess == "tiny":
        w *= np.float32(1e-40)
    first = encode(w, *how)
    for kind, (once, q, s) in first.items():
        again, q2, s2 = encode(once, *how)[kind]
        assert same(q, q2), (kind, q, q2)
        ulps = np.abs(np.asarray(s).view(np.int32) - np.asarray(s2).view(np.int32)).max()
        assert ulps <= (2 if kind.startswith("affine") else 1), kind
        assert np.all(np.isfinite(again)), kind
        assert kind == "binary" or np.all(np.asarray(once)[w == 0] == 0), kind


def test_affine_projection_at_every_tie():
    for bits in (4, 16):
        top = 2**bits - 1
        kind = f"affine{bits}"
        low = np.arange(300, dtype=np.float32) % top + np.float32(0.5)
        once, q, _ = encode(
            np.stack([-low, top - low]) * np.float32(0.37), (-1,), None, None, (kind,)
        )[kind]
        assert same(q, encode(once, (-1,), None, None, (kind,))[kind][1])
        assert np.all(q[0] == 0) and np.all(q[1] == top)


def test_pruned_weights_have_no_influence():
    w = normal((12, 4))
    where = normal((12, 4), 1) > 0
    where[:, 3] = False  # a channel with no weight left
    junk = np.resize(np.array([np.nan, np.inf, 1e9], np.float32), w.shape)
    clean = encode(w, (-1,), 4, where)
    dirty = encode(np.where(where, w, junk), (-1,), 4, where)
    for kind in KINDS:
        a = clean[kind]
        b = dirty[kind]
        assert same(a[2], b[2]), kind
        assert same(np.asarray(a[1])[where], np.asarray(b[1])[where]) and np.all(
            np.isfinite(a[0])
        ), kind


@pytest.mark.slow
def test_transforms():
    def f(w):
        return encode(w, (-1,), 4)

    w = jnp.asarray(normal((3, 12, 4)))
    one = f(w[0])
    batch = jax.vmap(f)(w)
    few = ("symmetric4", "affine4")
    _, sequence = jax.lax.scan(lambda c, x: (c, encode(x, (-1,), 4, None, few)), 0, w)
    with jax.disable_jit():
        eager = encode(w[0], (-1,), 4, None, few)
    abstract = jax.eval_shape(f, w[0])
    for kind in KINDS:
        for x, b, a in zip(one[kind], batch[kind], abstract[kind]):
            assert same(x, b[0]) and (x.shape, x.dtype) == (a.shape, a.dtype), kind
    for kind in few:
        for x, s, e in zip(one[kind], sequence[kind], eager[kind]):
            assert same(x, s[0]) and same(x, e), kind
    few = ("symmetric4", "affine4", "nf4", "binary")

    def loss(w):
        return sum(jnp.sum(once**2) for once, _, _ in encode(w, (-1,), 4, None, few).values())

    assert np.all(np.isfinite(jax.grad(loss)(w[0].at[:, 1].set(0))))


def test_dequantize_batches_over_leading_axes():
    q = jnp.asarray(np.random.default_rng(0).integers(0, 16, (3, 12, 4)), jnp.uint8)
    s = jnp.asarray(normal((3, 4, 4)))
    z = q[:, ::3]
    for grid in (None, G.NF4):
        assert same(
            A.dequantize(q, s, z, grid),
            jax.vmap(lambda q, s, z, g=grid: A.dequantize(q, s, z, g))(q, s, z),
        )


def test_gradient_of_dequantize_is_the_code():
    q = jnp.array([[1, -2], [3, 0]], jnp.int8)
    s = jnp.array([[0.5, 2.0]])
    assert jax.grad(lambda s: A.dequantize(q, s).sum())(s).tolist() == [[4.0, -2.0]]


@pytest.mark.parametrize(("bits", "group"), [(2, None), (4, 16)])
def test_mse_is_never_worse_and_is_the_best_of_its_ratios(bits, group):
    w = normal((64, 6)) ** 3
    where = normal((64, 6), 1) > -1
    w[~where] = np.nan
    options = bits, (-1,), group, where

    @jax.jit
    def errors(w):
        def error(decoded):
            return A.reduce_over(jnp.sum, jnp.where(where, decoded - w, 0) ** 2, (-1,), group)

        def symmetric(s):
            return error(A.dequantize(A.quantize_symmetric(w, s, bits), s))

        def affine(s, z):
            return error(A.dequantize(A.quantize_affine(w, s, z, bits), s, z))

        s = A.symmetric_scale(w, *options)
        best = A.symmetric_scale(w, *options, "mse")
        scan = jax.lax.map(
            lambda r: symmetric(s * r), jnp.arange(1, 65, dtype=jnp.float32) / 64
        ).min(0)
        pair = A.affine_params(w, *options)
        best_pair = A.affine_params(w, *options, "mse")
        return (symmetric(s), symmetric(best), scan), (affine(*pair), affine(*best_pair))

    symmetric, affine = errors(w)
    np.testing.assert_allclose(symmetric[1], symmetric[2], rtol=1e-5)
    for plain, best in (symmetric[:2], affine):
        assert np.all(best <= plain * (1 + 1e-6)) and best.sum() < 0.99 * plain.sum()


def test_stochastic_rounding_is_unbiased_and_keeps_zero():
    w = jnp.full((20000,), 0.3).at[:100].set(0.0)
    u = jax.random.uniform(jax.random.key(0), w.shape)
    q = A.quantize_symmetric(w, jnp.ones(1), 8, u)
    assert (
        set(np.unique(q)) == {0, 1}
        and abs(float(q[100:].mean()) - 0.3) < 0.015
        and not q[:100].any()
    )
    q = A.quantize_affine(w, jnp.ones(1), jnp.array([3], jnp.uint8), 4, u)
    assert set(np.unique(q)) == {3, 4} and np.all(q[:100] == 3)


def test_fixed_point():
    w = jnp.array([0.1, -0.55, 1.26, 0.0])
    assert (
        A.bits_needed(w, 100.0) == 8
        and A.bits_needed(w, 101.0) == 8
        and A.bits_needed(jnp.zeros(3), 9.0) == 1
    )
    assert (
        A.bits_needed(jnp.array([1.27]), 100.0) == 8
        and A.bits_needed(jnp.array([1.28]), 100.0) == 9
    )
    assert A.fixed_point(w, 100.0).tolist() == [10, -55, 126, 0]
    assert A.fixed_point(w, 100.0, bits=6, clip=True).tolist() == [10, -31, 31, 0]
    assert jax.jit(lambda w: A.fixed_point(w, 100.0, bits=6))(w).tolist() == [10, -31, 31, 0]
    kept = jnp.array([True, True, False, True])
    assert A.fixed_point(w.at[2].set(1e6), 100.0, bits=7, where=kept).tolist() == [10, -55, 63, 0]
    with pytest.raises(ValueError, match="needs 8 bits, not 6"):
        A.fixed_point(w, 100.0, bits=6)
    with pytest.raises(ValueError, match="give bits="):
        jax.jit(lambda w: A.fixed_point(w, 100.0))(w)


def test_expand_and_errors():
    s = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    assert A.expand(s, (4, 2)).tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
    assert A.expand(s, (2, 4)).tolist() == [[1, 1, 2, 2], [3, 3, 4, 4]]
    assert A.expand(jnp.ones((1, 1)), (0, 3)).shape == (0, 3)
    for bad in ((4,), (3, 2), (1, 2)):
        with pytest.raises(ValueError, match="each size divide"):
            A.expand(s, bad)
    w = jnp.ones((6, 4))
    for kw in ({"group": 4}, {"group": 0}, {"axis": (-2,), "group": 3}):
        with pytest.raises(ValueError, match=r"\(6, 4\)"):
            A.symmetric_scale(w, 8, **kw)
    for kw in ({"axis": (1,)}, {"axis": (-3,)}):
        with pytest.raises(ValueError, match="give axes"):
            A.symmetric_scale(w, 8, **kw)
    for f in (lambda: A.symmetric_scale(w, 1), lambda: A.affine_params(w, 17)):
        with pytest.raises(ValueError, match="bits="):
            f()
    for once, _, _ in encode(jnp.zeros((0, 4)), (-1,), None).values():
        assert once.shape == (0, 4)


@pytest.mark.parametrize("kind_of_mesh", [AxisType.Auto, AxisType.Explicit])
def test_sharded(kind_of_mesh):
    group = 4
    w = normal((32, 8))
    where = normal((32, 8), 1) > 0
    expected = encode(w, (-1,), group, where)
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind_of_mesh,) * 2)
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, P("x", "y"))
        args = jax.device_put(w, sharding), (-1,), group, jax.device_put(where, sharding)
        compiled = encode.lower(*args).compile()
        assert "all-gather" not in compiled.as_text()
        got = compiled(args[0], args[3])
    for kind in KINDS:
        assert got[kind][1].sharding.is_equivalent_to(sharding, 2)
        exact = kind not in ("binary", "ternary")  # a mean's order of summation follows the shards
        for x, y in zip(got[kind], expected[kind]):
            x = np.asarray(x).astype(np.float32)
            y = np.asarray(y).astype(np.float32)
            np.testing.assert_allclose(x, y, rtol=0 if exact else 1e-6)


def test_groups_longer_than_a_shard():
    w = normal((32, 8))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        got = encode(
            jax.device_put(w, NamedSharding(mesh, P("x", None))), (-1,), 16, None, ("symmetric4",)
        )
    for x, y in zip(got["symmetric4"], encode(w, (-1,), 16, None, ("symmetric4",))["symmetric4"]):
        assert same(x, y)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape, axis",
    [((70, 6), (-1,)), ((70, 6), ()), ((70,), ()), ((50, 3, 4), (-2,)), ((60, 4), (-2,))],
)
def test_the_scale_of_a_large_array_is_found_by_rows(shape, axis, monkeypatch):
    draw = np.random.default_rng(1)
    w = jnp.asarray(draw.normal(size=shape), jnp.float32)
    where = jnp.asarray(draw.random(shape) > 0.3)
    whole = [A.absmax_scale(w, 127, axis, None, mask) for mask in (None, where)]
    monkeypatch.setattr(A, "HOST", 1)
    monkeypatch.setattr(A, "CHUNK", 24)  # some rows, and a rest
    jax.clear_caches()
    for mask, want in zip((None, where), whole):
        np.testing.assert_array_equal(A.absmax_scale(w, 127, axis, None, mask), want)
    jax.clear_caches()
