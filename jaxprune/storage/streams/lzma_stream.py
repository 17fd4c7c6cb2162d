"""The codec `lzma`: raw LZMA2 of the words, little endian. NumPy and the standard library only."""

import lzma

import numpy as np

from ..format.words import FormatError
from .varints import Buffer

DICTIONARY = 1 << 24  # bytes back to which LZMA finds words again
LZMA = {
    "id": lzma.FILTER_LZMA2,
    "preset": 6,
    "dict_size": DICTIONARY,
    "lc": 1,
    "lp": 2,
    "pb": 2,
}
QUICK = {**LZMA, "preset": 0, "dict_size": 1 << 16}  # to try on a sample: 16 MB/s
PIECE = 1 << 20  # bytes that LZMA gets or gives at a time
GAIN = 0.93  # of the other codecs' size, from which LZMA's slowness is worth it
HOPELESS = 1.1  # times the size that LZMA should have by now, from which it is given up
MORE_WORDS = "an LZMA stream holds more words than its array"


def encode(words: np.ndarray, other_size: int) -> list[bytes] | None:
    """The stream in pieces; None if it does not gain 7% on `other_size` bytes, those of another
    codec.
    """
    max_size = GAIN * other_size
    compressor = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=[LZMA])
    pieces: list[bytes] = []
    size = 0
    step = PIECE // words.itemsize
    for start in range(0, words.size, step):
        pieces.append(compressor.compress(little_endian(words[start : start + step])))
        size += len(pieces[-1])
        if size > max_size:
            return None
        # Behind two dictionaries nothing is new: what has not gained there will not.
        done = min(start + step, words.size) / words.size
        settled = start * words.itemsize > 2 * DICTIONARY
        if settled and size > HOPELESS * done * max_size:
            return None
    pieces.append(compressor.flush())
    size += len(pieces[-1])
    return pieces if size <= max_size else None


def quick_size(words: np.ndarray) -> int:
    """Bytes that a fast LZMA makes of some words."""
    return len(lzma.compress(little_endian(words), lzma.FORMAT_RAW, filters=[QUICK]))


def decode(stream: Buffer, num_words: int, word: str) -> np.ndarray:
    """The words of a stream.

    Raises:
      FormatError: it is damaged, or holds fewer or more words.
    """
    words = np.empty(num_words, word)
    data = words.view(np.uint8).data
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[LZMA])
    try:
        num_read = _decompress(decoder, stream, data)
    except lzma.LZMAError as e:
        raise FormatError(f"an LZMA stream cannot be read: {e}") from None
    if not decoder.eof or decoder.unused_data or num_read < len(stream):
        raise FormatError("an LZMA stream does not end with its array")
    return words.view(words.dtype.newbyteorder("<")).astype(word, copy=False)


def _decompress(decoder: lzma.LZMADecompressor, stream: Buffer, data: memoryview) -> int:
    """Fills `data` and reads on to the end of the LZMA stream; the number of bytes fed."""
    num_read = 0
    num_written = 0
    while not decoder.eof and num_written < len(data):
        piece = b""
        if decoder.needs_input:
            piece = stream[num_read : num_read + PIECE]
            num_read += PIECE
            if not len(piece):
                raise FormatError("an LZMA stream is truncated")
        plain = decoder.decompress(piece, min(PIECE, len(data) - num_written))
        data[num_written : num_written + len(plain)] = plain
        num_written += len(plain)
    # The end marker may come in a later piece than the last word.
    while not decoder.eof and num_read < len(stream):
        piece = stream[num_read : num_read + PIECE]
        num_read += PIECE
        if decoder.decompress(piece, 1):
            raise FormatError(MORE_WORDS)
    if not decoder.eof and decoder.decompress(b"", 1):
        raise FormatError(MORE_WORDS)
    if num_written < len(data):
        raise FormatError("an LZMA stream does not end with its array")
    return num_read


def little_endian(words: np.ndarray) -> bytes:
    """The bytes of some words."""
    return words.astype(words.dtype.newbyteorder("<"), copy=False).tobytes()
