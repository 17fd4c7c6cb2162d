"""What is computed by blocks on the host is, bit for bit, what the compiled functions give."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.numerics import affine, select, streamed
from jaxprune.numerics.clusters import kmeans

DTYPES = ["float32", "float16", "bfloat16"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(streamed, "CHUNK", 100)


def weights(shape, dtype="float32", seed=0):
    """Normal weights with ties, both zeros, and values that are not finite."""
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    x.reshape(-1)[::7] = 0.5
    x.reshape(-1)[3:9] = [0.0, -0.0, np.nan, np.inf, -np.inf, -0.5]
    return x.astype(jnp.dtype(dtype))


_largest = jax.jit(functools.partial(select.keep_largest, magnitude=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_keep_largest(dtype):
    x = weights((37, 21), dtype)
    size = np.abs(x.astype(np.float32))
    below = int(np.sum((size < 0.5) | np.isnan(size)))  # at 0.5 are ties, across blocks
    for remove in (-1, 0, 1, 2, 3, below, below + 1, below + 60, x.size - 2, x.size, x.size + 5):
        mask = streamed.keep_largest(x, remove)
        assert mask.dtype == bool and mask.sum() == x.size - min(max(remove, 0), x.size)
        assert np.array_equal(mask, _largest(x, remove)), remove


def test_keep_largest_of_equals_keeps_the_first():
    assert (
        streamed.keep_largest(np.ones(450, np.float32), 201).tolist()
        == [True] * 249 + [False] * 201
    )


@pytest.mark.parametrize("k", [1, 2, 16, 300])
def test_assign(k):
    x = weights((40, 31))
    codebook = np.sort(np.random.default_rng(1).standard_normal(k).astype(np.float32))
    codebook[k // 2 :][:2] = codebook[k // 2]  # an entry twice
    halves = (0.5 * codebook[:-1] + 0.5 * codebook[1:])[:300]
    x.reshape(-1)[50 : 50 + halves.size] = halves
    found = kmeans.assign(x, codebook)
    assert found.dtype == (np.uint8 if k <= 256 else np.uint16)
    assert np.array_equal(found, jax.jit(kmeans.assign)(x, codebook))


_codes = jax.jit(affine.quantize_symmetric, static_argnames="bits")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [3, 8, 12])
@pytest.mark.parametrize(
    "shape, axis", [((45, 11), (-1,)), ((45, 11), ()), ((7, 5, 6, 3), (-1, -2)), ((203,), (-1,))]
)
def test_scales_and_codes(shape, axis, bits, dtype):
    x = weights(shape, dtype)
    mask = np.random.default_rng(2).random(shape) < 0.7
    for where in (None, mask, jnp.asarray(mask)):
        scale = affine.symmetric_scale(x, bits, axis, None, where)
        expected = affine.symmetric_scale(jnp.asarray(x), bits, axis, None, where)
        assert scale.dtype == expected.dtype and np.array_equal(scale, expected)
        q = affine.symmetric_codes(x, scale, bits)
        assert q.dtype == (np.int8 if bits <= 8 else np.int16) and np.array_equal(
            q, _codes(x, scale, bits=bits)
        )


def test_other_scales_are_compiled():
    """Of rows and of groups, and with noise: the same codes, by the way that takes them."""
    x = weights((40, 12))
    for axis, group in (((-2,), None), ((-1,), 8)):
        scale = affine.symmetric_scale(x, 8, axis, group)
        assert np.array_equal(scale, affine.symmetric_scale(jnp.asarray(x), 8, axis, group))
        assert np.array_equal(affine.symmetric_codes(x, scale, 8), _codes(x, scale, bits=8))
    u = jnp.full(x.shape, 0.75)
    scale = affine.symmetric_scale(x, 8)
    assert np.array_equal(affine.symmetric_codes(x, scale, 8, u), _codes(x, scale, bits=8, u=u))


def test_what_is_taken():
    assert streamed.takes(np.ones(3, np.float32)) and streamed.takes(np.ones(3, jnp.bfloat16))
    assert (
        not streamed.takes(np.ones(3))
        and not streamed.takes(jnp.ones(3))
        and not streamed.takes(1.0)
    )
    x = streamed.empty((3, 5), np.float32)
    assert x.shape == (3, 5) and x.ctypes.data % 64 == 0 and streamed.empty((), "int8").shape == ()
