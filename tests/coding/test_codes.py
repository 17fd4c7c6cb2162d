"""Closed-form sizes against streams and against a walk through the weights."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jaxprune.coding import code_lengths as codes
from jaxprune.coding import rans
from tests.reference import deep_compression as ref

quick = settings(deadline=None, max_examples=60, derandomize=True)


def test_entropy_and_fixed():
    assert codes.entropy_bits([]) == codes.entropy_bits([0, 7]) == 0
    assert codes.entropy_bits([1, 1, 1, 1]) == 8
    assert codes.entropy_bits([3, 1]) == pytest.approx(3 * np.log2(4 / 3) + 2)
    assert [codes.bits_for(k) for k in (0, 1, 2, 3, 4, 5, 64, 65)] == [0, 0, 1, 2, 2, 3, 6, 7]
    assert codes.fixed_bits(10, 33) == 60


@pytest.mark.parametrize("n", [0, 1, 100, 3000, 10**5, 10**6])
@pytest.mark.parametrize("k", [1, 2, 16, 300])
@pytest.mark.parametrize("skew", [0.03, 3.0])
def test_rans_bits_predicts_the_stream(n, k, skew):
    p = np.random.default_rng(k).dirichlet(np.full(k, skew))
    symbols = np.random.default_rng(n).choice(k, n, p=p)
    counts = np.bincount(symbols, minlength=k)
    freqs = rans.normalise(counts)
    lanes = rans.lanes_for(n, codes.entropy_bits(counts))
    real = 8 * (2 * freqs.size + len(rans.encode(symbols, freqs, lanes)))
    assert abs(codes.rans_bits(counts, lanes) - real) <= max(64, 0.01 * real)
    assert codes.rans_bits(counts) == pytest.approx(real, rel=0.01, abs=64)


@quick
@given(st.lists(st.integers(0, 50), max_size=40))
def test_huffman(counts):
    lengths = codes.huffman_lengths(counts)
    used = np.array(counts, int) > 0
    assert np.all(lengths[~used] == 0) and np.all(lengths[used] > 0)
    if used.sum() > 1:
        assert sum(2.0 ** -lengths[used]) == 1  # a full prefix code
    symbols = np.repeat(np.arange(len(counts)), counts)
    assert codes.huffman_bits(counts) == ref.huffman_total(symbols.tolist())
    entropy = codes.entropy_bits(counts)
    assert entropy - 1e-9 <= codes.huffman_bits(counts) <= entropy + sum(counts)


def test_huffman_of_a_thin_tree():
    assert codes.huffman_lengths([1, 1, 2, 4, 8, 16]).tolist() == [5, 5, 4, 3, 2, 1]
    fibonacci = [1, 1]
    while len(fibonacci) < 60:
        fibonacci.append(sum(fibonacci[-2:]))
    assert codes.huffman_lengths(fibonacci).max() == 59


@quick
@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5))
def test_gaps_equal_the_walk(mask, width):
    got = codes.gap_code(mask, width)
    walk = ref.entries(mask, width)
    assert got.entries == len(walk) and got.fillers == sum(filler for *_, filler in walk)
    assert got.symbols.tolist() == [gap - 1 for _, gap, _ in walk]
    assert got.filler.tolist() == [filler for *_, filler in walk]
    positions = np.cumsum(got.symbols + 1) - 1  # a decoder
    assert positions[~got.filler].tolist() == np.flatnonzero(mask).tolist()


@quick
@given(st.integers(0, 999), st.integers(1, 9), st.sampled_from([0.02, 0.3, 1.0]), st.integers(1, 6))
def test_deep_compression_equals_the_walk(seed, k, density, width):
    draw = np.random.default_rng(seed)
    mask = draw.random((20, 15)) < density
    indices = draw.integers(0, k, (20, 15))
    got = codes.deep_compression_bits(mask, indices, k, gap_width=width)
    value_bits = int(np.ceil(np.log2(k + 1)))
    assert got.value_bits == value_bits
    assert (got.fixed, got.huffman) == ref.sizes(
        mask.ravel(), indices.ravel(), k, value_bits, width
    )
    best = codes.deep_compression_bits(mask, indices, k)
    every = [codes.deep_compression_bits(mask, indices, k, gap_width=w).fixed for w in range(1, 17)]
    assert best.fixed == min(every) and best.gap_width == every.index(best.fixed) + 1


def test_deep_compression_without_pruning():
    indices = np.array([0, 1, 2, 3, 0, 0])
    got = codes.deep_compression_bits(None, indices, 4)
    assert got == (6 * 2 + 128, 3 * 1 + 2 + 3 + 3 + 128, 128, 2, 0, 6, 0)


def test_lenet_300_100_as_published():
    """ip1 of LeNet-300-100: 8% of 235,200 weights, 6-bit values and 5-bit gaps are 3.1% of
    float32.
    """
    draw = np.random.default_rng(0)
    n = 784 * 300
    got = codes.deep_compression_bits(
        draw.random(n) < 0.08, draw.integers(0, 63, n), 63, gap_width=5
    )
    assert got.value_bits == 6 and got.fixed / (32 * n) == pytest.approx(0.031, abs=0.002)


def test_errors():
    with pytest.raises(ValueError, match="width=0"):
        codes.gap_code([True], 0)
    with pytest.raises(ValueError, match="value_bits=2 cannot hold 5 codes"):
        codes.deep_compression_bits([True], [0], 4, value_bits=2)
    with pytest.raises(ValueError, match="one shape"):
        codes.deep_compression_bits([True], [0, 1], 4)
