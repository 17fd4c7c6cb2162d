"""What repeats itself, in few bytes: the codec `lzma`, raw LZMA2 of the words, and when to try it.

Rows that are copies, weights that were quantised and made dense again with a scale for each row,
tables that are tiled: planes and entropy coders see no more than how often a word occurs, and LZMA
finds the words again. It is slow (megabytes a second), so it is tried only where a sample promises
a gain, and taken only where it gains 7%. NumPy and the standard library only.
"""

import lzma

import numpy as np

from ..format.words import FormatError
from .integers import Buffer

DICTIONARY = 1 << 24  # bytes back to which LZMA finds words again
LZMA = {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": DICTIONARY, "lc": 1, "lp": 2, "pb": 2}
QUICK = {**LZMA, "preset": 0, "dict_size": 1 << 16}  # to try on a sample: 16 MB/s
PIECE = 1 << 20  # bytes that LZMA gets or gives at a time
GAIN = 0.93  # of the other codecs' size, from which LZMA's slowness is worth it
PROMISE = 0.97  # of the other codecs' size a byte, that a sample has to be under
# bytes that are tried, of large arrays and of small ones
SAMPLE = 1 << 17
LEAST_SAMPLE = 1 << 15
MOST_DIFFERENT = (
    0.75  # share of the sample that different words may be, or LZMA has nothing to find
)
SMALL = 1 << 8  # bytes of an array that need no better codec
WINDOW_BITS = 64  # −log2 of the chance that two windows of independent words are alike
STRIDE = 1 << 10  # words between the windows that are remembered
REGIONS = 64  # of STRIDE words each, whose windows are looked up
BASE = 0x9FB21C651E98DF25  # of the hash of a window: odd, and nothing else matters
AT_ONCE = 1 << 17  # words that are hashed at a time
SPANS = 8  # stretches of a large array that are looked at
SAMPLED_WORDS = 1 << 16  # words by which the length of a window is chosen


# --- writing
# ---------------------------------------------------------------------------------------


def encode(words: np.ndarray, size: int) -> list[bytes] | None:
    """The stream of some words, in pieces; None if it does not gain on `size` bytes, those of
    another codec.
    """
    most = GAIN * size
    coder = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=[LZMA])
    pieces: list[bytes] = []
    length = 0
    step = PIECE // words.itemsize
    for start in range(0, words.size, step):
        pieces.append(coder.compress(_bytes(words[start : start + step])))
        length += len(pieces[-1])
        # Behind two dictionaries nothing is new: what has not gained there will not.
        done = min(start + step, words.size) / words.size
        if length > most or (
            start * words.itemsize > 2 * DICTIONARY and length > 1.1 * done * most
        ):
            return None
    pieces.append(coder.flush())
    return pieces if length + len(pieces[-1]) <= most else None


def sample_gains(words: np.ndarray, size: int) -> bool:
    """Whether a quick LZMA makes two pieces of the array smaller than their part of `size`."""
    sample = int(np.clip(words.nbytes // 4, LEAST_SAMPLE, SAMPLE)) // (2 * words.itemsize)
    pieces = [words[:sample], words[words.size // 2 :][:sample]]
    tried = sum(piece.nbytes for piece in pieces)
    if not any(np.unique(piece).size <= MOST_DIFFERENT * piece.size for piece in pieces):
        return False
    quick = sum(
        len(lzma.compress(_bytes(piece), lzma.FORMAT_RAW, filters=[QUICK])) for piece in pieces
    )
    return quick / tried < PROMISE * size / words.nbytes


def found_again(words: np.ndarray) -> bool:
    """Whether windows of words are found again elsewhere, no further away than LZMA's dictionary
    reaches.
    """
    span = DICTIONARY // words.itemsize
    starts = range(0, words.size, span)
    chosen = starts[:: -(-len(starts) // SPANS)]
    regions = max(REGIONS // len(chosen), REGIONS // SPANS)
    return any(_found_again(words[start : start + span], regions) for start in chosen)


def _found_again(words: np.ndarray, regions: int) -> bool:
    """Whether windows of a stretch are found again in it.

    Every STRIDE-th window is remembered, and all windows of some regions are looked up, so that a
    copy is seen at whatever distance it starts. Windows are as long as it takes for chance not to
    make two alike, and windows of one word, of which other codecs make little, do not count.
    """
    length = _window(words)
    if words.size < 4 * max(length, STRIDE):
        return False
    remembered = np.arange(0, words.size - length + 1, STRIDE)
    known, times = np.unique(_hashes(words, remembered, length, 1)[0], return_counts=True)
    looked_up = np.linspace(0, words.size - length - STRIDE, regions, dtype=np.int64)
    hashes, varied = _hashes(words, looked_up, length, STRIDE)
    place = np.minimum(np.searchsorted(known, hashes), known.size - 1)
    itself = (looked_up[:, None] + np.arange(STRIDE)) % STRIDE == 0
    elsewhere = (known[place] == hashes) & (times[place] > itself)
    return int(np.count_nonzero(np.any(elsewhere & varied, 1))) >= 2


def _window(words: np.ndarray) -> int:
    """How long windows are, by how often two words of a sample are alike."""
    _, times = np.unique(words[:: max(1, words.size // SAMPLED_WORDS)], return_counts=True)
    bits = -np.log2(np.sum((times / times.sum()) ** 2))
    return int(np.clip(np.ceil(WINDOW_BITS / max(bits, 1e-3)), 4, STRIDE))


def _hashes(
    words: np.ndarray, starts: np.ndarray, length: int, windows: int
) -> tuple[np.ndarray, np.ndarray]:
    """`_hashes_of` some starts at a time."""
    step = max(1, AT_ONCE // (windows + length))
    parts = [
        _hashes_of(words, starts[i : i + step], length, windows)
        for i in range(0, starts.size, step)
    ]
    hashes, varied = zip(*parts)
    return np.concatenate(hashes), np.concatenate(varied)


def _hashes_of(
    words: np.ndarray, starts: np.ndarray, length: int, windows: int
) -> tuple[np.ndarray, np.ndarray]:
    """A number of 64 bits for each of so many windows from each start on, and whether a window has
    different words.

    The number is Σ_j f(word_j) B^j modulo 2^64. Windows that overlap share a running sum, and what
    they lack of it is divided by B^i, which an odd B allows.
    """
    stretches = np.lib.stride_tricks.sliding_window_view(words, windows + length - 1)[starts]
    mixed = (stretches.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(
        0xD6E8FEB86659FD93
    )
    mixed ^= mixed >> np.uint64(32)
    sums = np.cumsum(mixed * _powers(BASE, stretches.shape[1]), 1, dtype=np.uint64)
    before = np.pad(sums, ((0, 0), (1, 0)))[:, :windows]
    hashes = (sums[:, length - 1 :] - before) * _powers(pow(BASE, -1, 1 << 64), windows)
    changes = np.cumsum(np.diff(stretches, axis=1, prepend=stretches[:, :1]) != 0, 1)
    return hashes, changes[:, length - 1 :] > changes[:, :windows]


def _powers(base: int, n: int) -> np.ndarray:
    """base^0 … base^(n − 1), modulo 2^64."""
    factors = np.full(n, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


def _bytes(words: np.ndarray) -> bytes:
    return words.astype(words.dtype.newbyteorder("<"), copy=False).tobytes()


# --- reading
# ---------------------------------------------------------------------------------------


def decode(stream: Buffer, n: int, word: str) -> np.ndarray:
    """The n words of an LZMA2 stream."""
    words = np.empty(n, word)
    octets = words.view(np.uint8).data
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[LZMA])
    fed = done = 0
    try:
        while not decoder.eof and done < len(octets):
            piece = b""
            if decoder.needs_input:
                piece = stream[fed : fed + PIECE]
                fed = fed + PIECE
                if not len(piece):
                    raise FormatError("an LZMA stream is truncated")
            plain = decoder.decompress(piece, min(PIECE, len(octets) - done))
            octets[done : done + len(plain)] = plain
            done += len(plain)
        while not decoder.eof and fed < len(stream):  # its end may come after the last word
            piece = stream[fed : fed + PIECE]
            fed = fed + PIECE
            if decoder.decompress(piece, 1):
                raise FormatError("an LZMA stream holds more words than its array")
        if not decoder.eof and decoder.decompress(b"", 1):
            raise FormatError("an LZMA stream holds more words than its array")
    except lzma.LZMAError as e:
        raise FormatError(f"an LZMA stream cannot be read: {e}") from None
    if not decoder.eof or decoder.unused_data or fed < len(stream) or done < len(octets):
        raise FormatError("an LZMA stream does not end with its array")
    return words.view(words.dtype.newbyteorder("<")).astype(word, copy=False)
