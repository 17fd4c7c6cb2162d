"""Packed codes come back, for every width, length, batch and back end."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprune.numerics.packing import pack, unpack


def codes_of(bits, shape, signed, seed=0):
    low = -(1 << (bits - 1)) if signed else 0
    values = np.random.default_rng(seed).integers(low, low + (1 << bits), shape)
    return values.astype(np.int8 if signed else np.uint8)


@pytest.mark.parametrize("bits", range(1, 8))
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("length", [0, 1, 9])
def test_round_trip(bits, signed, length):
    codes = codes_of(bits, (2, 3, length), signed)
    host = pack(codes, bits, np)
    words = pack(jnp.asarray(codes), bits)
    assert words.dtype == jnp.uint8 and words.shape == (2, 3, bits, -(-length // 8))
    np.testing.assert_array_equal(words, host)
    for back in (unpack(words, length, signed), unpack(host, length, signed, np)):
        assert back.dtype == codes.dtype
        np.testing.assert_array_equal(back, codes)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 7), st.integers(0, 40), st.booleans(), st.integers(0, 99))
def test_planes_hold_the_bits(bits, length, signed, seed):
    codes = codes_of(bits, length, signed, seed)
    words = pack(codes, bits, np)
    for b in range(bits):
        for i in range(length):
            assert words[b, i // 8] >> (i % 8) & 1 == int(codes[i]) >> b & 1
    np.testing.assert_array_equal(unpack(words, length, signed, np), codes)


def test_transforms():
    codes = jnp.asarray(codes_of(5, (4, 6, 11), True))
    words = jax.jit(jax.vmap(lambda c: pack(c, 5)))(codes)
    np.testing.assert_array_equal(words, pack(codes, 5))
    np.testing.assert_array_equal(jax.jit(jax.vmap(lambda w: unpack(w, 11, True)))(words), codes)
    assert jax.eval_shape(lambda c: pack(c, 5), codes).shape == (4, 6, 5, 2)


def test_errors():
    for bits in (0, 8):
        with pytest.raises(ValueError, match=f"bits={bits}"):
            pack(jnp.zeros(3, jnp.uint8), bits)
    with pytest.raises(ValueError, match="length=17"):
        unpack(jnp.zeros((3, 2), jnp.uint8), 17, False)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("x", None), P(None, "x")])
def test_sharded(kind, spec):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    codes = jnp.asarray(codes_of(3, (16, 64), False))
    with jax.set_mesh(mesh):
        put = jax.device_put(codes, NamedSharding(mesh, spec))
        there = jax.jit(lambda c: pack(c, 3))
        back = jax.jit(lambda w: unpack(w, 64, False))
        words = there(put)
        np.testing.assert_array_equal(words, pack(codes, 3))
        np.testing.assert_array_equal(back(words), codes)
        for f, x in ((there, put), (back, words)):
            assert "all-gather" not in f.lower(x).compile().as_text()
