"""The codec `escape`: integers of which a few lie far from the others, or that take few values of a
wide range.

    varint length, a deflated list of k varints: the first word, zigzagged, and the steps between
    the sorted words varint length, a rans stream of the symbols, u8 codec, a stream of the escaped
    words

The i-th of the listed words is the symbol i; any other is the symbol k, and comes in the last
stream, in order. So an outlier costs its own bits, and not a wider alphabet for all. NumPy and the
standard library only.
"""

from typing import NamedTuple

import numpy as np

from ...coding.code_lengths import entropy_bits
from ..format.words import MAX_ALPHABET, FormatError
from .varints import Buffer, decode_varint, deflate, encode_varint, inflate, unzigzag, zigzag

MIN_RANGE = 1 << 8  # of words from which escapes are tried
MAX_RANGE = 1 << 20  # of words whose frequencies are counted
MIN_COUNTS = (1, 2, 3, 5, 9, 17)  # how often a word may have to occur to be listed
ENTRY_BITS = 12  # about, of a listed word and its frequency
STEP_BYTES = 5  # at most, of a varint of the list


class WordList(NamedTuple):
    """The words that are symbols, in order, and about how many bits all streams take with them."""

    words: np.ndarray
    bits: float


def choose_words(counts: np.ndarray, base: int) -> WordList | None:
    """The list of words that takes the fewest bits.

    Args:
      counts: how often base, base + 1, … occur; at least one is positive.
      base: the smallest word.

    Returns:
      None where no list of fewer than 4,096 words helps: all words are rare.

    Example:
      >>> import numpy as np
      >>> choose_words(np.array([5, 9, 5] + 5000 * [0] + [1]), 7).words.tolist()
      [7, 8, 9, 5010]
    """
    total = int(counts.sum())
    escaped_word_bits = max(1, int(counts.size - 1).bit_length())
    best = None
    for min_count in MIN_COUNTS:
        places = np.flatnonzero(counts >= min_count)
        if not 0 < places.size < MAX_ALPHABET:
            continue
        num_escaped = total - int(counts[places].sum())
        symbol_bits = entropy_bits(np.append(counts[places], num_escaped))
        bits = symbol_bits + num_escaped * escaped_word_bits + ENTRY_BITS * places.size
        if best is None or bits < best.bits:
            best = WordList(places + base, bits)
    return best


def split_words(words: np.ndarray, listed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the symbols, uint16; the escaped words)."""
    base = int(listed[0])
    last = int(listed[-1])
    symbol_of = np.full(last - base + 1, listed.size, np.uint16)
    symbol_of[listed - base] = np.arange(listed.size)
    inside = (words >= base) & (words <= last)
    symbols = np.full(words.size, listed.size, np.uint16)
    symbols[inside] = symbol_of[words[inside].astype(np.int64) - base]
    return symbols, words[symbols == listed.size]


def write_list(listed: np.ndarray) -> bytes:
    """The list of sorted words."""
    first = encode_varint(zigzag(int(listed[0])))
    steps = b"".join(encode_varint(int(step)) for step in np.diff(listed))
    deflated = deflate(first + steps)
    return encode_varint(len(deflated)) + deflated


def read_list(buffer: Buffer, low: int, high: int) -> tuple[np.ndarray, Buffer]:
    """The list of words from `low` to `high`, int64, and what follows it.

    Raises:
      FormatError: no list, or one that is empty, too long, not in order, or beyond the range.
    """
    length, start = decode_varint(buffer, 0)
    end = start + length
    plain = inflate(memoryview(buffer)[start:end], STEP_BYTES * MAX_ALPHABET)
    words: list[int] = []
    position = 0
    while position < len(plain):
        number, position = decode_varint(plain, position)
        if words and number == 0:
            raise FormatError("a word is listed twice")
        words.append(words[-1] + number if words else unzigzag(number))
        if not low <= words[-1] <= high or len(words) >= MAX_ALPHABET:
            number = len(words)
            raise FormatError(f"the word {words[-1]}, number {number} of a list, is out of range")
    if not words:
        raise FormatError("a list without words")
    return np.array(words, np.int64), buffer[end:]
