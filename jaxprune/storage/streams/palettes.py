"""The few different words of a block, and the place of each word among them. NumPy only."""

import numpy as np

MAX_PALETTE = 4096
MAX_PALETTE_16 = 256  # of words of 16 bits, whose indices must be bytes to be shorter
WORDS_PER_ENTRY = 8  # a palette has at most an eighth as many entries as there are words
ROUNDS = 4  # of adding the words that a sample lacks
TABLE_BITS = 22  # of the table that finds a word's place in a palette
MULTIPLIERS = 256  # that are tried before a palette is given up


def find_palette(words: np.ndarray, sampled: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(the different words, the place of each word among them), if they are few enough to pay.

    Args:
      words: unsigned integers of 16 bits or more.
      sampled: the different words of a sample, sorted; each round adds those that were missing.
    """
    limit = MAX_PALETTE if words.itemsize > 2 else MAX_PALETTE_16
    max_size = min(limit, words.size // WORDS_PER_ENTRY)
    palette = sampled
    for _ in range(ROUNDS):
        if palette.size > max_size:
            return None
        indices = _look_up(words, palette)
        if indices is None:
            return None
        missing = palette[indices] != words
        if not missing.any():
            return palette, indices
        palette = np.union1d(palette, words[missing])
    return None


def _look_up(words: np.ndarray, palette: np.ndarray) -> np.ndarray | None:
    """The place of each word in a palette, anything for a word that it lacks; None if no table
    tells its words apart.

    A table at the top bits of word · multiplier is five times faster than a binary search.
    """
    dtype = words.dtype.type
    word_bits = 8 * words.itemsize
    shift = dtype(max(0, word_bits - TABLE_BITS))
    random = np.random.Generator(np.random.Philox(0))
    for _ in range(MULTIPLIERS):
        odd = int(random.integers(0, 2**63)) * 2 + 1
        multiplier = dtype(odd & (1 << word_bits) - 1)
        keys = palette * multiplier >> shift
        if np.unique(keys).size == palette.size:
            table = np.zeros(1 << min(TABLE_BITS, word_bits), np.uint16)
            table[keys] = np.arange(palette.size)
            return table[words * multiplier >> shift]
    return None
