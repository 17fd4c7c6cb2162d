"""Integers of which a few are far from the others, or that take few values of a wide range: the
frequent words by rANS, the others by themselves.

    varint length, a deflated list of k varints: the first word, zigzagged, and the differences of
    the sorted words varint length, a rans stream of the symbols, u8 codec, a stream of the escaped
    words

The i-th of the listed words is the symbol i; any other is the symbol k, and comes in the last
stream, in order. One outlier so costs its own bits, and not a wider alphabet for all. NumPy and the
standard library only.
"""

import zlib
from typing import NamedTuple

import numpy as np

from ...coding import code_lengths as codes
from ..format.words import MAX_ALPHABET, FormatError
from .integers import Buffer, inflated, leb, unzigzag, varint, zigzag

MOST_RANGE = 1 << 20  # of words whose frequencies are counted
LEAST_COUNTS = (1, 2, 3, 5, 9, 17)  # how often a word may have to occur to be listed
DELTA_BYTES = 5  # of a varint of the list


class Listed(NamedTuple):
    """The words that are symbols, in order, and about how many bits symbols, list and escaped words
    take.
    """

    words: np.ndarray
    bits: float


def listed(counts: np.ndarray, base: int) -> Listed | None:
    """The list that takes the fewest bits.

    Args:
      counts: how often base, base + 1, … occur; one of them is positive at least.
      base: the smallest word.

    Returns:
      None where no list of fewer than 4,096 words helps: all words are rare.

    Example:
      >>> import numpy as np
      >>> listed(np.array([5, 9, 5] + 5000 * [0] + [1]), 7).words.tolist()
      [7, 8, 9, 5010]
    """
    total = int(counts.sum())
    each = max(1, int(counts.size - 1).bit_length())
    best = None
    for least in LEAST_COUNTS:
        places = np.flatnonzero(counts >= least)
        if not 0 < places.size < MAX_ALPHABET:
            continue
        escaped = total - int(counts[places].sum())
        bits = (
            codes.entropy_bits(np.append(counts[places], escaped))
            + escaped * each
            + 12 * places.size
        )
        if best is None or bits < best.bits:
            best = Listed(places + base, bits)
    return best


def split(words: np.ndarray, listed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the symbols, uint16; the escaped words)."""
    base = int(listed[0])
    top = int(listed[-1])
    symbol_of = np.full(top - base + 1, listed.size, np.uint16)
    symbol_of[listed - base] = np.arange(listed.size)
    inside = (words >= base) & (words <= top)
    symbols = np.full(words.size, listed.size, np.uint16)
    symbols[inside] = symbol_of[words[inside].astype(np.int64) - base]
    return symbols, words[symbols == listed.size]


def write_list(listed: np.ndarray) -> bytes:
    """The list of sorted words."""
    first = int(listed[0])
    plain = leb(zigzag(first)) + b"".join(leb(int(step)) for step in np.diff(listed))
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    small = deflate.compress(plain) + deflate.flush()
    return leb(len(small)) + small


def read_list(buffer: Buffer, low: int, high: int) -> tuple[np.ndarray, Buffer]:
    """The list of words from `low` to `high`, int64, and what follows it.

    Raises:
      FormatError: no list, or one that is empty, too long, not in order, or beyond the range.
    """
    length, at = varint(buffer, 0)
    plain = inflated(memoryview(buffer)[at : at + length], DELTA_BYTES * MAX_ALPHABET)
    words: list[int] = []
    place = 0
    while place < len(plain):
        number, place = varint(plain, place)
        if words and not number:
            raise FormatError("a word is listed twice")
        words.append(words[-1] + number if words else unzigzag(number))
        if not low <= words[-1] <= high or len(words) >= MAX_ALPHABET:
            raise FormatError(
                f"the word {words[-1]}, number {len(words)} of a list, is out of range"
            )
    if not words:
        raise FormatError("a list without words")
    return np.array(words, np.int64), buffer[at + length :]
