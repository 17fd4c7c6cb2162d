"""Whether LZMA, which is slow (megabytes a second), is worth a try on an array.

Rows that are copies, weights that were quantised and made dense again with a scale for each row,
tables that are
tiled: planes and entropy coders see only how often a word occurs, and LZMA finds the words again. A
sample decides. NumPy and the standard library only.
"""

import numpy as np

from .lzma_stream import DICTIONARY, quick_size

PROMISE = 0.97  # of the other codecs' size, that a sample has to be under
SAMPLE = 1 << 17  # bytes that are tried, of a large array
MIN_SAMPLE = 1 << 15  # and of a small one
MAX_DISTINCT = 0.75  # share of distinct words in the sample, or LZMA has nothing to find
WINDOW_BITS = 64  # −log2 of the chance that two windows of independent words are alike
MIN_WINDOW = 4  # words
STRIDE = 1 << 10  # words between the windows that are remembered
REGIONS = 64  # of STRIDE words each, whose windows are looked up
HASH_BASE = 0x9FB21C651E98DF25  # of the hash of a window: odd, and nothing else matters
HASHED_WORDS = 1 << 17  # that are hashed at a time
SPANS = 8  # stretches of a large array that are looked at
SAMPLED_WORDS = 1 << 16  # words by which the length of a window is chosen


def promises_gain(words: np.ndarray, other_size: int, *, discrete: bool) -> bool:
    """Whether LZMA may beat `other_size` bytes. Of integers, which entropy coders know well, only
    copies promise it.
    """
    return has_copies(words) or (not discrete and sample_gains(words, other_size))


def sample_gains(words: np.ndarray, other_size: int) -> bool:
    """Whether a quick LZMA makes two pieces of an array smaller than their part of the size."""
    sample_bytes = int(np.clip(words.nbytes // 4, MIN_SAMPLE, SAMPLE))
    length = sample_bytes // (2 * words.itemsize)
    middle = words.size // 2
    pieces = [words[:length], words[middle : middle + length]]
    if all(np.unique(piece).size > MAX_DISTINCT * piece.size for piece in pieces):
        return False
    compressed_ratio = sum(map(quick_size, pieces)) / sum(piece.nbytes for piece in pieces)
    return compressed_ratio < PROMISE * other_size / words.nbytes


def has_copies(words: np.ndarray) -> bool:
    """Whether windows of words occur again, no further away than LZMA's dictionary reaches."""
    span = DICTIONARY // words.itemsize
    starts = range(0, words.size, span)
    every_nth = -(-len(starts) // SPANS)
    chosen = starts[::every_nth]
    num_regions = max(REGIONS // len(chosen), REGIONS // SPANS)
    return any(_span_has_copies(words[start : start + span], num_regions) for start in chosen)


def _span_has_copies(words: np.ndarray, num_regions: int) -> bool:
    """Whether windows of a stretch occur again in it.

    Every STRIDE-th window is remembered, and all windows of some regions are looked up, so that a
    copy is seen at whatever distance it starts. Windows of one word repeated, of which other codecs
    make little, do not count.
    """
    length = _window_length(words)
    if words.size < 4 * max(length, STRIDE):
        return False
    remembered = np.arange(0, words.size - length + 1, STRIDE)
    known, times = np.unique(_hash_windows(words, remembered, length, 1)[0], return_counts=True)
    regions = np.linspace(0, words.size - length - STRIDE, num_regions, dtype=np.int64)
    hashes, varied = _hash_windows(words, regions, length, STRIDE)
    place = np.minimum(np.searchsorted(known, hashes), known.size - 1)
    is_remembered = (regions[:, None] + np.arange(STRIDE)) % STRIDE == 0
    # A remembered window finds itself once.
    elsewhere = (known[place] == hashes) & (times[place] > is_remembered)
    return int(np.count_nonzero(np.any(elsewhere & varied, 1))) >= 2


def _window_length(words: np.ndarray) -> int:
    """How long windows must be for chance not to make two alike, by how often two words of a sample
    are.
    """
    sample = words[:: max(1, words.size // SAMPLED_WORDS)]
    _, times = np.unique(sample, return_counts=True)
    word_bits = -np.log2(np.sum((times / times.sum()) ** 2))
    return int(np.clip(np.ceil(WINDOW_BITS / max(word_bits, 1e-3)), MIN_WINDOW, STRIDE))


def _hash_windows(
    words: np.ndarray, starts: np.ndarray, length: int, num_windows: int
) -> tuple[np.ndarray, np.ndarray]:
    """`_hash_chunk` of some starts at a time."""
    step = max(1, HASHED_WORDS // (num_windows + length))
    hashes = []
    varied = []
    for i in range(0, starts.size, step):
        chunk_hashes, chunk_varied = _hash_chunk(words, starts[i : i + step], length, num_windows)
        hashes.append(chunk_hashes)
        varied.append(chunk_varied)
    return np.concatenate(hashes), np.concatenate(varied)


def _hash_chunk(
    words: np.ndarray, starts: np.ndarray, length: int, num_windows: int
) -> tuple[np.ndarray, np.ndarray]:
    """A hash of each of `num_windows` windows from each start on, and whether a window has
    different words.

    The hash is Σ_j f(word_j) B^j modulo 2^64. Windows that overlap share a running sum; the factor
    B^i of the i-th is divided out, which an odd B allows.
    """
    stretch = num_windows + length - 1
    stretches = np.lib.stride_tricks.sliding_window_view(words, stretch)[starts]
    mixed = stretches.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    mixed ^= mixed >> np.uint64(32)
    sums = np.cumsum(mixed * _powers(HASH_BASE, stretch), 1, dtype=np.uint64)
    sums_before = np.pad(sums, ((0, 0), (1, 0)))[:, :num_windows]
    inverse_powers = _powers(pow(HASH_BASE, -1, 1 << 64), num_windows)
    hashes = (sums[:, length - 1 :] - sums_before) * inverse_powers
    changes = np.cumsum(np.diff(stretches, axis=1, prepend=stretches[:, :1]) != 0, 1)
    return hashes, changes[:, length - 1 :] > changes[:, :num_windows]


def _powers(base: int, count: int) -> np.ndarray:
    """base^0 … base^(count − 1), modulo 2^64."""
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)
