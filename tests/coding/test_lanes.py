"""Streams in few lanes against those of arrays, which the textbook's are."""

import numpy as np
import pytest

from jaxprune.coding import lanes, rans


def some(n):
    rng = np.random.default_rng(n)
    symbols = np.minimum(rng.exponential(3, n), 40).astype(np.uint8)
    return symbols, rans.normalise(np.bincount(symbols, minlength=2))


@pytest.mark.parametrize("n", [1, 2, 7, 500, 4096, 4097, 9000])
@pytest.mark.parametrize("count", [1, 3, lanes.FEW, lanes.FEW + 1])
def test_the_same_bytes(n, count):
    symbols, freqs = some(n)
    stream = lanes.encode(symbols, freqs, count)
    assert stream == rans.encode(symbols, freqs, count)
    values = np.arange(41)[::-1] * 1000
    decoded = lanes.decode(stream, n, freqs, count, values)
    assert decoded.dtype == values.dtype and np.array_equal(decoded, values[symbols])
    assert np.array_equal(decoded, rans.decode(stream, n, freqs, count, values))


@pytest.mark.parametrize("count", [3, 40])
def test_columns_begin_with_lane_0(count):
    """A writer and a reader of columns are a coder of runs: those of 7, 3 and 1 symbols, from two
    tables.
    """
    symbols, freqs = some(400)
    other = freqs[::-1]
    columns = np.split(symbols.astype(np.intp), [7, 10, 11, 300])
    tables = [(np.cumsum(t) - t, t.astype(np.uint32)) for t in (freqs, other)]
    plain = rans.Stream(count, 400)
    column = lanes.writer(count, 400)
    for i, s in reversed(list(enumerate(columns))):
        start, f = tables[i % 2]
        column.push(f[s], start[s].astype(np.uint32))
        for j in reversed(range(0, s.size, count)):
            plain.push(f[s[j : j + count]], start[s[j : j + count]].astype(np.uint32))
    stream = column.octets()
    assert stream == plain.octets()
    slots = [rans.slots_of(t.astype(np.int64)) for t in (freqs, other)]
    reader = lanes.reader(stream, count, np.concatenate([pops for _, pops in slots]))
    for i, s in enumerate(columns):
        slot = np.full(s.size, i % 2 * 4096, np.intp)
        whole = s.size // count * count  # what is left of a run comes in two parts
        reader.pop(slot[:whole])
        reader.pop(slot[whole : whole + 1])
        reader.pop(slot[whole + 1 :], 1)
        assert np.array_equal(slots[i % 2][0][slot - i % 2 * 4096], s)
    reader.end()


@pytest.mark.parametrize("count", [1, 40])
def test_refusals(count):
    symbols, freqs = some(500)
    values = np.arange(freqs.size)
    stream = lanes.encode(symbols, freqs, count)
    off = freqs.copy()
    off[0] += 1
    for buffer, n, table, message in (
        (stream[:-2], 500, freqs, "truncated"),
        (stream[:-1], 500, freqs, "whole words"),
        (stream[: 4 * count - 2], 500, freqs, "states"),
        (stream + b"\0\0", 500, freqs, "1 words are left over"),
        (b"\xff\xff\0\0" + stream[4:], 500, freqs, "below"),
        (bytes([stream[0] ^ 1]) + stream[1:], 500, freqs, "damaged|truncated|left over"),
        (stream, 16384 * count + 1, freqs, "16384"),
        (stream, 500, off, "sum to 4096"),
    ):
        with pytest.raises(rans.StreamError, match=message):
            lanes.decode(buffer, n, table, count, values)
    with pytest.raises(ValueError, match="frequency 0"):
        lanes.encode(np.array([0, 2]), np.array([2048, 2048, 0], np.uint16), count)
