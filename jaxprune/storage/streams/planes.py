"""The codec `planes`: floats in fewer bytes, bit for bit.

The sign, the exponent and the first bits of the mantissa of a weight tell little, the last bits of
the mantissa are noise. So a word is rotated by one bit (float32 and bfloat16 then have the exponent
in a byte of its own), and byte j of all words of a block is a *plane*: deflated where that helps,
raw where it is noise.

    stream = blocks of 2^24 bytes of words, the last one shorter
    block  = u8 form, then
      0 planes   one plane for each byte of a rotated word, the highest first
      1 sparse   the most frequent word; a plane of bits, where it is not; the others' planes
      2 palette  u16 k, the k different words, a plane of the indices' low bytes and, if k > 256,
                 one of the high ones
      3 rare     the most frequent word; u32 count of the others; the planes of their gaps;
                 the others' planes
    plane  = `byte_planes`

NumPy and the standard library only.
"""

import struct
from collections.abc import Iterator

import numpy as np

from ..format.words import FormatError
from .byte_planes import read_byte_planes, read_plane, write_byte_planes, write_plane
from .byte_sources import FileSource, MemorySource, Source
from .lzma_stream import little_endian
from .palettes import MAX_PALETTE, find_palette
from .varints import Buffer

BLOCK = 1 << 24  # bytes of words in a block
FORM_PLANES, FORM_SPARSE, FORM_PALETTE, FORM_RARE = range(4)
MIN_SPARSE = 1 / 16  # share of the most frequent word from which it is left out of the planes
MAX_RARE = 1 / 32  # share of other words up to which their gaps are stored, not a bit for each word
SAMPLED_WORDS = 1 << 16  # words that are looked at for a palette or a frequent word
EXACT_SIZE = 1 << 22  # words up to which `size` encodes all of them
NUM_SAMPLES = 8  # pieces that `size` encodes of more words
SAMPLE = 1 << 19  # words of such a piece


# --- writing -------------------------------------------------------------------------------------


def encode(words: np.ndarray) -> Iterator[bytes]:
    """The stream of some words, in pieces: unsigned integers of 2, 4 or 8 bytes, on one axis."""
    step = BLOCK // words.itemsize
    for start in range(0, words.size, step):
        yield from _write_block(words[start : start + step])


def size(words: np.ndarray) -> int:
    """Bytes that `encode` comes to; for many words an estimate from some pieces of them."""
    if words.size <= EXACT_SIZE:
        return sum(map(len, encode(words)))
    starts = np.linspace(0, words.size - SAMPLE, NUM_SAMPLES, dtype=np.int64)
    sample_size = 0
    for start in starts:
        sample_size += sum(map(len, encode(words[start : start + SAMPLE])))
    return round(sample_size * words.size / (NUM_SAMPLES * SAMPLE))


def _write_block(words: np.ndarray) -> Iterator[bytes]:
    sample = words[:: max(1, words.size // SAMPLED_WORDS)]
    distinct, times = np.unique(sample, return_counts=True)
    frequent = distinct[np.argmax(times)]
    frequency = times.max() / sample.size
    if frequency >= 1 - MAX_RARE:
        yield from _write_rare(words, frequent)
        return
    indexed = find_palette(words, distinct)
    if indexed is not None:
        yield from _write_palette(*indexed)
    elif frequency >= MIN_SPARSE:
        yield from _write_sparse(words, frequent)
    else:
        yield bytes([FORM_PLANES])
        yield from _write_planes(words)


def _write_rare(words: np.ndarray, frequent: np.ndarray) -> Iterator[bytes]:
    places = np.flatnonzero(words != frequent)
    gaps = np.diff(places, prepend=-1) - 1
    yield bytes([FORM_RARE]) + little_endian(frequent.reshape(1)) + struct.pack("<I", places.size)
    yield from write_byte_planes(gaps.astype(np.uint32))
    yield from _write_planes(words[places])


def _write_sparse(words: np.ndarray, frequent: np.ndarray) -> Iterator[bytes]:
    others = words != frequent
    yield bytes([FORM_SPARSE]) + little_endian(frequent.reshape(1))
    yield from write_plane(np.packbits(others, bitorder="little"))
    yield from _write_planes(words[others])


def _write_palette(palette: np.ndarray, indices: np.ndarray) -> Iterator[bytes]:
    yield struct.pack("<BH", FORM_PALETTE, palette.size) + little_endian(palette)
    yield from write_plane(indices.astype(np.uint8))
    if palette.size > 256:
        yield from write_plane((indices >> np.uint16(8)).astype(np.uint8))


def _write_planes(words: np.ndarray) -> Iterator[bytes]:
    return write_byte_planes(_rotate(words, 1))


def _rotate(words: np.ndarray, num_bits: int) -> np.ndarray:
    """The words, their bits moved to the left and in again on the right."""
    word_bits = 8 * words.itemsize
    dtype = words.dtype.type
    left = num_bits % word_bits
    return (words << dtype(left)) | (words >> dtype(word_bits - left))


# --- reading -------------------------------------------------------------------------------------


def decode(stream: Buffer | Source, num_words: int, word: str) -> np.ndarray:
    """The words of a stream; `word` is their dtype, "u2", "u4" or "u8".

    Raises:
      FormatError: not what `encode` writes.
    """
    words = np.empty(num_words, word)
    source = stream if isinstance(stream, MemorySource | FileSource) else MemorySource(stream)
    step = BLOCK // words.itemsize
    for start in range(0, num_words, step):
        _read_block(source, words[start : start + step])
    if source.remaining:
        raise FormatError(f"{source.remaining} bytes are left over after the last block")
    return words


def _read_block(source: Source, words: np.ndarray) -> None:
    """Fills `words`, a view of the array: a block is not held twice."""
    (form,) = source.take(1)
    if form == FORM_PLANES:
        words[:] = _read_planes(source, words.size, words.dtype)
    elif form == FORM_SPARSE:
        _read_sparse(source, words)
    elif form == FORM_RARE:
        _read_rare(source, words)
    elif form == FORM_PALETTE:
        words[:] = _read_palette(source, words.size, words.dtype)
    else:
        raise FormatError(f"a block has the form {form}; there are {FORM_PLANES} to {FORM_RARE}")


def _read_sparse(source: Source, words: np.ndarray) -> None:
    frequent = _read_words(source, 1, words.dtype)[0]
    packed = read_plane(source, -(-words.size // 8))
    others = np.unpackbits(packed, count=words.size, bitorder="little").view(bool)
    if words.size % 8 and packed[-1] >> (words.size % 8):
        raise FormatError("the bits after the last word are not zero")
    words.fill(frequent)
    words[others] = _read_planes(source, int(np.count_nonzero(others)), words.dtype)


def _read_rare(source: Source, words: np.ndarray) -> None:
    frequent = _read_words(source, 1, words.dtype)[0]
    places = _read_places(source, words.size)
    words.fill(frequent)
    words[places] = _read_planes(source, places.size, words.dtype)


def _read_places(source: Source, num_words: int) -> np.ndarray:
    """The places of the rare words in a block, by the gaps before them."""
    (count,) = struct.unpack("<I", source.take(4))
    if count > num_words:
        raise FormatError(f"{count} rare words in a block of {num_words}")
    gaps = read_byte_planes(source, count, np.dtype(np.uint32))
    places = np.cumsum(gaps.astype(np.int64) + 1) - 1
    if count and places[-1] >= num_words:
        raise FormatError(f"a rare word at {places[-1]} of a block of {num_words}")
    return places


def _read_palette(source: Source, num_words: int, dtype: np.dtype) -> np.ndarray:
    (palette_size,) = struct.unpack("<H", source.take(2))
    if not 1 <= palette_size <= MAX_PALETTE:
        raise FormatError(f"a palette of {palette_size} words; there are 1 to {MAX_PALETTE}")
    palette = _read_words(source, palette_size, dtype)
    indices = read_plane(source, num_words)
    if palette_size > 256:
        high_bytes = read_plane(source, num_words).astype(np.uint16)
        indices = indices | high_bytes << np.uint16(8)
    largest = indices.max(initial=0)
    if largest >= palette_size:
        raise FormatError(f"an index of {largest} into a palette of {palette_size} words")
    return palette[indices]


def _read_planes(source: Source, num_words: int, dtype: np.dtype) -> np.ndarray:
    return _rotate(read_byte_planes(source, num_words, dtype), -1)


def _read_words(source: Source, num_words: int, dtype: np.dtype) -> np.ndarray:
    stored = np.frombuffer(source.take(num_words * dtype.itemsize), dtype.newbyteorder("<"))
    return stored.astype(dtype)
