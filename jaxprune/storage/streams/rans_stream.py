"""The codec `rans` after its base: lanes, the table of frequencies, then the stream of
`coding.lanes`.

    varint lanes
    varint 2 (k − 1) + d       k frequencies; d: whether the table is deflated
    k varints                  the frequency of each symbol, of 4,096 in all
    the stream

NumPy and the standard library only.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ...coding import lanes as lane_coder
from ...coding import rans
from ...coding.code_lengths import entropy_bits
from ..format.words import MAX_ALPHABET, FormatError
from .varints import Buffer, decode_varint, deflate, encode_varint, inflate_prefix

CHUNK = 1 << 16  # symbols counted at a time, of which `bincount` makes intp
LANE_BYTES = 4  # of a lane's state
FREQUENCY_BYTES = 2  # of a varint of at most 4,096


class RansStream(NamedTuple):
    """A stream that is not written yet, and about how many bytes it takes."""

    size: int
    write: Callable[[], bytes]


def plan(symbols: np.ndarray, num_values: int, max_bytes: int | None = None) -> RansStream | None:
    """The stream of symbols below `num_values`; None where its entropy alone takes `max_bytes`."""
    counts = count_symbols(symbols, num_values)
    entropy = entropy_bits(counts)
    least_table = np.count_nonzero(counts) // 4 + 8
    if max_bytes is not None and entropy / 8 + least_table >= max_bytes:
        return None
    frequencies = rans.normalise(counts)
    num_lanes = rans.lanes_for(symbols.size, entropy)
    head = encode_varint(num_lanes) + _write_table(frequencies)
    used = counts > 0
    symbol_bits = rans.BITS - np.log2(frequencies[used].astype(np.float64))
    information = float(counts[used] @ symbol_bits)
    # A lane's 32 bits start with 16 that hold nothing, and end with 8 on average that fill no word.
    coded = max(0.0, information - 8 * num_lanes)
    size = len(head) + LANE_BYTES * num_lanes + round(coded / 8)

    def write() -> bytes:
        return head + lane_coder.encode(symbols, frequencies, num_lanes)

    return RansStream(size, write)


def read_head(buffer: memoryview, num_symbols: int) -> tuple[int, np.ndarray, memoryview]:
    """(lanes, frequencies, the coder's stream)."""
    num_lanes, end = decode_varint(buffer, 0)
    frequencies, stream = _read_table(buffer[end:])
    if not 1 <= num_lanes <= num_symbols:
        raise FormatError(f"{num_lanes} lanes for {num_symbols} symbols")
    return num_lanes, frequencies, stream


def decode(
    stream: Buffer, num_symbols: int, frequencies: np.ndarray, num_lanes: int, words: np.ndarray
) -> np.ndarray:
    """The words of a stream: `words[symbol]` for each of its symbols."""
    try:
        return lane_coder.decode(stream, num_symbols, frequencies, num_lanes, words)
    except rans.StreamError as e:
        raise FormatError(str(e)) from None


def count_symbols(symbols: np.ndarray, num_values: int) -> np.ndarray:
    """How often each of the symbols 0, …, num_values − 1 occurs."""
    counts = np.zeros(num_values, np.intp)
    for start in range(0, symbols.size, CHUNK):
        counts += np.bincount(symbols[start : start + CHUNK], minlength=num_values)
    return counts


def _write_table(frequencies: np.ndarray) -> bytes:
    plain = b"".join(encode_varint(int(frequency)) for frequency in frequencies)
    deflated = deflate(plain)
    head = 2 * (len(frequencies) - 1)
    if len(deflated) < len(plain):
        return encode_varint(head + 1) + deflated
    return encode_varint(head) + plain


def _read_table(buffer: memoryview) -> tuple[np.ndarray, memoryview]:
    """(frequencies, the bytes after the table)."""
    head, end = decode_varint(buffer, 0)
    rest = buffer[end:]
    num_values = head // 2 + 1
    if num_values > MAX_ALPHABET:
        raise FormatError(f"a table of {num_values} symbols; at most {MAX_ALPHABET} are allowed")
    if not head & 1:
        frequencies, end = _read_frequencies(rest, num_values)
        return frequencies, rest[end:]
    plain, rest = inflate_prefix(rest, FREQUENCY_BYTES * num_values)
    frequencies, end = _read_frequencies(plain, num_values)
    if end != len(plain):
        raise FormatError("bytes are left over after the table")
    return frequencies, rest


def _read_frequencies(buffer: Buffer, num_values: int) -> tuple[np.ndarray, int]:
    frequencies = np.zeros(num_values, np.int64)
    end = 0
    for i in range(num_values):
        frequencies[i], end = decode_varint(buffer, end, FREQUENCY_BYTES)
    return frequencies, end
