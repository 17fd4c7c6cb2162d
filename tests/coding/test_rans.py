"""rANS against the textbook coder, its optimal tables, and streams that mean harm."""

import random
import subprocess
import sys
import time

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jaxprune.coding import rans
from tests.reference import rans as ref

quick = settings(deadline=None, max_examples=40, derandomize=True)


def some(n, k, seed=0):
    """n symbols of a skewed alphabet of k."""
    p = np.random.default_rng(seed).dirichlet(np.full(k, 0.3))
    return np.random.default_rng(seed + 1).choice(k, n, p=p)


def table(symbols, k):
    return rans.normalise(np.bincount(symbols, minlength=k))


@quick
@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 40), st.integers(0, 999))
def test_stream_equals_the_textbook(n, k, lanes, seed):
    symbols = some(n, k, seed)
    freqs = table(symbols, k)
    stream = rans.encode(symbols, freqs, lanes)
    assert stream == ref.interleaved(symbols.tolist(), freqs.tolist(), lanes)
    np.testing.assert_array_equal(rans.decode(stream, n, freqs, lanes), symbols)
    if lanes == 1:
        x, words = ref.encode(symbols.tolist(), freqs.tolist())
        assert ref.decode(x, words, n, freqs.tolist()) == symbols.tolist()
        assert len(stream) == 4 + 2 * len(words)


@pytest.mark.parametrize("k", [1, 2, 256, 257, 4096])
def test_alphabets(k):
    symbols = np.concatenate([np.arange(k), some(5000, k)])
    freqs = table(symbols, k)
    stream = rans.encode(symbols, freqs, 3)
    decoded = rans.decode(stream, symbols.size, freqs, 3)
    assert decoded.dtype == (np.uint8 if k <= 256 else np.uint16)
    np.testing.assert_array_equal(decoded, symbols)
    cost = ref.cost(np.bincount(symbols), freqs.tolist())
    assert abs(8 * len(stream) - 32 * 3 - cost) <= 16 * 3


def test_one_symbol_takes_no_bits():
    stream = rans.encode(np.full(50_000, 3), [0, 0, 0, 4096], 4)
    assert len(stream) == 16
    assert np.all(rans.decode(stream, 50_000, [0, 0, 0, 4096], 4) == 3)


def test_symbols_come_from_any_integer_array():
    for symbols in (
        some(60, 5).astype(np.int64).reshape(3, 20),
        some(60, 5).astype(np.uint8),
        some(60, 2) > 0,
    ):
        freqs = table(symbols.ravel().astype(int), 5)
        assert np.array_equal(
            rans.decode(rans.encode(symbols, freqs, 2), 60, freqs, 2), symbols.ravel()
        )


# --- tables ---


@quick
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=300))
def test_normalise_sums_and_keeps_the_present(counts):
    freqs = rans.normalise(counts)
    assert freqs.dtype == np.uint16 and freqs.sum() == 4096
    if any(counts):
        assert all((f > 0) == (c > 0) for f, c in zip(freqs.tolist(), counts))
    assert np.array_equal(freqs, rans.normalise(counts))


@pytest.mark.parametrize(
    "counts", [[5, 3, 0, 1], [1000, 1, 1], [7, 7, 7], [1, 2, 3, 4], [90, 9, 1, 0]]
)
def test_normalise_is_optimal(counts, monkeypatch):
    monkeypatch.setattr(rans, "TOTAL", 13)

    def ref_cost(f):
        return -sum(c * np.log2(x) for c, x in zip(counts, f) if c)

    best = min(map(ref_cost, ref.best_tables(counts, 13)))
    assert ref_cost(rans.normalise(counts).tolist()) == pytest.approx(best)


def test_normalise_edges():
    assert rans.normalise([]).tolist() == [4096] and rans.normalise([0, 0]).tolist() == [4096, 0]
    assert rans.normalise(np.full(4096, 9)).tolist() == [1] * 4096
    for bad in ([1, -1], np.ones(4097)):
        with pytest.raises(ValueError, match="at most 4096"):
            rans.normalise(bad)


def test_lanes_for():
    assert rans.lanes_for(0, 0) == rans.lanes_for(10, 60) == 1
    for n, bits in ((10**4, 3e4), (10**6, 4e6), (10**7, 4e7), (10**8, 0)):
        lanes = rans.lanes_for(n, bits)
        assert -(-n // lanes) <= rans.MAX_STEPS and (
            32 * lanes <= 0.005 * bits or n > (lanes - 1) * rans.MAX_STEPS
        )
    assert rans.lanes_for(10**7, 4e7) == 6250


# --- errors ---


def test_encode_refuses():
    for symbols, freqs, lanes, message in (
        ([0, 2], [2048, 2048], 1, "from 0 to 1"),
        ([0, -1], [2048, 2048], 1, "from 0 to 1"),
        ([0.5], [4096], 1, "integers"),
        ([1], [4096, 0], 1, "frequency 0"),
        ([0], [4000], 1, "sum to 4096"),
        ([0], [4096], 0, "at least 1 lane"),
        (np.zeros(16385, int), [4096], 1, "16384"),
    ):
        with pytest.raises(ValueError, match=message):
            rans.encode(symbols, freqs, lanes)


def test_decode_refuses():
    symbols = some(500, 7)
    freqs = table(symbols, 7)
    stream = rans.encode(symbols, freqs, 4)
    for buffer, n, f, lanes, message in (
        (b"", 500, freqs, 4, "0 bytes"),
        (stream[:-1], 500, freqs, 4, "whole words"),
        (stream[:-2], 500, freqs, 4, "truncated"),
        (stream[:16], 500, freqs, 4, "truncated"),
        (stream + b"\0\0", 500, freqs, 4, "left over"),
        (stream, 0, freqs, 4, "left over"),
        (b"\xff\xff\0\0" + stream[4:], 500, freqs, 4, "below"),
        (b"\0\0\1\0" * 3 + b"\1\0\1\0", 0, freqs, 4, "initial state"),
        (b"\1\0\1\0", 100, [4096], 1, "initial state"),
        (stream, -1, freqs, 4, "symbols"),
        (stream, 500, freqs, 0, "lane"),
        (stream, 4 * 16384 + 1, freqs, 4, "16384"),
        (stream, 500, freqs, 10**9, "states"),
        (stream, 500, [4096, 1], 4, "sum"),
        (stream, 500, [5000, -904], 4, ">= 0"),
        (stream, 500, [0.5, 4095.5], 4, "integers"),
        (stream, 500, [], 4, "vector"),
        (stream, 500, np.zeros((2, 2), int), 4, "vector"),
        (stream, 500, np.zeros(70_000, int), 4, "vector"),
    ):
        with pytest.raises(rans.StreamError, match=message):
            rans.decode(buffer, n, f, lanes)


def test_mutations_end_quickly_in_an_error_or_in_symbols():
    symbols = some(400, 9)
    draw = random.Random(0)
    freqs = table(symbols, 9)
    stream = rans.encode(symbols, freqs, 3)
    caught = 0
    begin = time.process_time()
    for _ in range(300):
        damaged = bytearray(stream)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        try:
            assert rans.decode(bytes(damaged), 400, freqs, 3).max() < 9
        except rans.StreamError:
            caught += 1
    assert caught > 290 and time.process_time() - begin < 10


def test_reading_needs_numpy_only():
    code = (
        "import sys, types, pathlib; sys.modules['jax'] = None; root = pathlib.Path(sys.argv[1])\n"
        "for name, path in (('jaxprune', root), ('jaxprune.coding', root / 'coding')):\n"
        "    sys.modules[name] = types.ModuleType(name); sys.modules[name].__path__ = [str(path)]\n"
        "from jaxprune.coding import code_lengths, rans\n"
        "assert rans.decode(rans.encode([0, 1, 0], [4000, 96], 1), 3, [4000, 96], 1).tolist() == "
        "[0, 1, 0]\n"
        "assert not [m for m in sys.modules if m.startswith(('jaxlib', 'optax', 'flax'))]"
    )
    root = rans.__file__.rsplit("/", 2)[0]
    subprocess.run([sys.executable, "-c", code, root], check=True)


def test_speed_is_linear_and_not_absurd():
    symbols = some(10**6, 30)
    freqs = table(symbols, 30)
    begin = time.process_time()
    assert np.array_equal(
        rans.decode(rans.encode(symbols, freqs, 16384), symbols.size, freqs, 16384), symbols
    )
    assert time.process_time() - begin < 2  # 0.03 s on a quiet core
