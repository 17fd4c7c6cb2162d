"""Bytes that a file needs for one array, from its counts: nothing is encoded.

Symbols are the integers less their smallest, b; the least of three codecs is taken, floats of 16 bits and more are raw:

    raw    the array
    bits   b, a width, and each symbol in ⌈log2(max + 1)⌉ bits
    rans   b, the lanes, the table of frequencies (deflated if that is shorter), and the stream: see `numerics.rans`

Small integers take 7 bits a byte. Headers and names of the leaves are not counted.
"""

import zlib

import numpy as np

from jaxprune.numerics import codes, rans
from jaxprune.report.pieces import Piece

MAX_WIDTH = 32  # of a packed symbol


def stored_bytes(piece: Piece) -> int:
    """Bytes of one array in a file: raw, packed or coded, whichever is least."""
    x = piece.symbols
    if not piece.coded or x.size == 0:
        return x.nbytes
    low, span = int(x.min()), int(x.max()) - int(x.min())
    if span >= 1 << MAX_WIDTH:
        return x.nbytes
    head = _varint(2 * abs(low) - (low < 0))
    sizes = [head + 1 + -(-x.size * span.bit_length() // 8), *([x.nbytes] if piece.raw else [])]
    if 0 < span < rans.TOTAL:
        count = counts(piece)
        least = codes.entropy_bits(count) / 8 + np.count_nonzero(count) // 4 + 8  # below any stream and its table
        sizes += [head + _coded(count)] if least < min(sizes) else []
    return min(sizes)


def counts(piece: Piece) -> np.ndarray:
    """How often each symbol occurs, from the least to the greatest; where they lie far apart, only of those that do."""
    x = piece.symbols.astype(np.int64)
    if x.size == 0:
        return np.zeros(1, np.int64)
    low = int(x.min())
    return np.bincount(x - low) if int(x.max()) - low < 1 << 16 else np.unique(x, return_counts=True)[1]


def _coded(count: np.ndarray) -> int:
    lanes = rans.lanes_for(int(count.sum()), codes.entropy_bits(count))
    stream = codes.rans_bits(count, lanes) - 16 * count.size
    return _varint(lanes) + _table(rans.normalise(count)) + round(stream / 8)


def _table(frequencies: np.ndarray) -> int:
    plain = b"".join(bytes([f & 127 | 128, f >> 7]) if f > 127 else bytes([f]) for f in map(int, frequencies))
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    small = len(deflate.compress(plain) + deflate.flush())
    return _varint(2 * len(frequencies) - 1) + min(small, len(plain))


def _varint(n: int) -> int:
    return max(1, -(-n.bit_length() // 7))
