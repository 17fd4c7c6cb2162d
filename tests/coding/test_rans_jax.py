"""The decoder in JAX against NumPy's: the same symbols, and the same streams refused."""

import random

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from jaxprune.coding import rans, rans_jax
from tests.coding.test_rans import some, table
from tests.helpers import nothing_compiled

quick = settings(deadline=None, max_examples=25, derandomize=True)


def coded(n, k, lanes, seed=0):
    symbols = some(n, k, seed)
    freqs = table(symbols, k)
    return symbols, freqs, rans.encode(symbols, freqs, lanes)


def check(n, k, lanes, seed=0):
    symbols, freqs, stream = coded(n, k, lanes, seed)
    decoded = rans_jax.decode(stream, n, freqs, lanes)
    theirs = rans.decode(stream, n, freqs, lanes)
    assert isinstance(decoded, jax.Array) and decoded.dtype == theirs.dtype
    np.testing.assert_array_equal(decoded, symbols)


@quick
@given(st.integers(0, 400), st.integers(1, 40), st.integers(1, 70), st.integers(0, 999))
def test_equals_numpy(n, k, lanes, seed):
    check(n, k, lanes, seed)


@pytest.mark.parametrize("n", [0, 1, 31, 1023, 1024, 1025, 2048, 5000])
def test_partial_steps(n):
    check(n, 9, 1024)


@pytest.mark.parametrize("lanes", [1, 31, 32, 33, 64, 1000])
def test_groups_of_lanes(lanes):
    check(4321, 25, lanes)


@pytest.mark.parametrize("k", [1, 2, 256, 257, 4096])
def test_alphabets(k):
    check(9000, k, 50)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint32, np.float32, jnp.bfloat16])
def test_values(dtype):
    symbols, freqs, stream = coded(3000, 20, 77)
    values = np.arange(20)[::-1].astype(dtype) * np.array(3, dtype)
    decoded = rans_jax.decode(stream, 3000, freqs, 77, values)
    assert decoded.dtype == dtype
    np.testing.assert_array_equal(decoded, values[symbols])
    np.testing.assert_array_equal(rans.decode(stream, 3000, freqs, 77, values), values[symbols])


def test_one_symbol_takes_no_bits():
    stream = rans.encode(np.full(50_000, 3), [0, 0, 0, 4096], 4)
    decoded = rans_jax.decode(stream, 50_000, [0, 0, 0, 4096], 4, np.array([5, 6, 7, -8], np.int8))
    assert (
        decoded.dtype == np.int8
        and decoded.shape == (50_000,)
        and (np.asarray(decoded) == -8).all()
    )
    with pytest.raises(rans.StreamError, match="left over"):
        rans_jax.decode(stream + b"\0\0", 50_000, [0, 0, 0, 4096], 4)


def test_compiles_once_for_streams_of_one_size():
    _, freqs, stream = coded(3001, 6, 40)
    rans_jax.decode(stream, 3001, freqs, 40)
    with nothing_compiled():
        rans_jax.decode(stream, 3001, freqs, 40)


def test_refuses_what_numpy_refuses():
    _, freqs, stream = coded(500, 7, 4)
    for buffer, n, f, lanes, message in (
        (b"", 500, freqs, 4, "0 bytes"),
        (stream[:-1], 500, freqs, 4, "whole words"),
        (stream[:-2], 500, freqs, 4, "truncated"),
        (stream[:16], 500, freqs, 4, "truncated"),
        (bytes(stream) + b"\0\0", 500, freqs, 4, "left over"),
        (stream, 0, freqs, 4, "left over"),
        (b"\0\0\1\0" * 3 + b"\1\0\1\0", 0, freqs, 4, "initial state"),
        (b"\xff\xff\0\0" + bytes(stream[4:]), 500, freqs, 4, "below"),
        (stream, 4 * 16384 + 1, freqs, 4, "16384"),
        (stream, 500, freqs, 0, "lane"),
        (stream, 500, [4096, 1], 4, "sum"),
    ):
        with pytest.raises(rans.StreamError, match=message):
            rans_jax.decode(buffer, n, f, lanes)


def test_mutations_end_as_in_numpy():
    _, freqs, stream = coded(400, 9, 33)
    draw = random.Random(0)
    caught = 0
    for _ in range(100):
        damaged = bytearray(stream)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        try:
            theirs = rans.decode(bytes(damaged), 400, freqs, 33)
        except rans.StreamError:
            caught += 1
            with pytest.raises(rans.StreamError):
                rans_jax.decode(bytes(damaged), 400, freqs, 33)
        else:
            np.testing.assert_array_equal(rans_jax.decode(bytes(damaged), 400, freqs, 33), theirs)
    assert caught > 90
