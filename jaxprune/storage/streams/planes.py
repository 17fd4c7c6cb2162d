"""Floats as they are, in fewer bytes: bit for bit, NumPy and the standard library only.

The sign, the exponent and the first bits of the mantissa of a weight tell little, the last bits of
the mantissa are noise. So a word is rotated by one bit (float32 and bfloat16 then have the exponent
in a byte of its own), and byte j of all words of a block is a *plane*: deflated where that helps,
raw where it is noise.

    stream = blocks of 2^24 bytes of words, the last one shorter
    block  = u8 form, then
      0 planes   one plane for each byte of a rotated word, the highest first
      1 sparse   the most frequent word; a plane of bits, where it is not; the planes of the other
                 words
      3 rare     the most frequent word; u32 count of the others; the planes of their gaps; the
                 planes of the others
      2 palette  u16 k, the k different words, a plane of the indices' low bytes and, if k > 256,
      one of the high ones
    plane  = u8 method (0 raw, 1 raw deflate, 2 one byte for all, 3 deflated twice), u32 length, so
    many bytes
"""

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from ..format.words import FormatError
from .integers import Buffer

BLOCK = 1 << 24  # bytes of words in a block
FORM_PLANES, FORM_SPARSE, FORM_PALETTE, FORM_RARE = range(4)
METHOD_RAW, METHOD_DEFLATE, METHOD_CONSTANT, METHOD_TWICE = range(4)
MAX_PALETTE = 4096
TABLE_BITS = 22  # of the table that finds a word's place in a palette
MULTIPLIERS = 256  # that are tried before two words of a palette are kept apart by none
LEAST_SPARSE = 1 / 16  # share of the most frequent word from which it is left out of the planes
MOST_RARE = (
    1 / 32
)  # share of other words up to which the gaps between them are stored, not a bit for each word
SAMPLE = 1 << 13  # bytes of a plane that are tried at a time
SAMPLED_WORDS = 1 << 16  # words that are looked at for a palette or a frequent word
EXACT_SIZE = 1 << 22  # words up to which `size` encodes all of them
# of words that it encodes of more
PIECES = 8
PIECE = 1 << 19


# --- writing
# ---------------------------------------------------------------------------------------


def encode(words: np.ndarray) -> Iterator[bytes]:
    """The blocks of some words: unsigned integers of 2, 4 or 8 bytes, on one axis."""
    step = BLOCK // words.itemsize
    for start in range(0, words.size, step):
        yield from _block(words[start : start + step])


def size(words: np.ndarray) -> int:
    """Bytes that `encode` comes to; for many words an estimate from some pieces of them."""
    if words.size <= EXACT_SIZE:
        return sum(map(len, encode(words)))
    starts = np.linspace(0, words.size - PIECE, PIECES, dtype=np.int64)
    some = sum(len(part) for start in starts for part in encode(words[start : start + PIECE]))
    return round(some * words.size / (PIECES * PIECE))


def _block(words: np.ndarray) -> Iterator[bytes]:
    sample = words[:: max(1, words.size // SAMPLED_WORDS)]
    different, times = np.unique(sample, return_counts=True)
    frequent = different[np.argmax(times)]
    share = times.max() / sample.size
    if share >= 1 - MOST_RARE:
        yield from _rare_block(words, frequent)
        return
    indexed = _indexed(words, different)
    if indexed is not None:
        yield from _palette_block(*indexed)
    elif share >= LEAST_SPARSE:
        yield from _sparse_block(words, frequent)
    else:
        yield bytes([FORM_PLANES])
        yield from _planes(words)


def _rare_block(words: np.ndarray, frequent: np.ndarray) -> Iterator[bytes]:
    places = np.flatnonzero(words != frequent)
    gaps = np.diff(places, prepend=-1) - 1
    yield bytes([FORM_RARE]) + _little(frequent.reshape(1)) + struct.pack("<I", places.size)
    yield from _byte_planes(gaps.astype(np.uint32))
    yield from _planes(words[places])


def _sparse_block(words: np.ndarray, frequent: np.ndarray) -> Iterator[bytes]:
    others = words != frequent
    yield bytes([FORM_SPARSE]) + _little(frequent.reshape(1))
    yield from _plane(np.packbits(others, bitorder="little"))
    yield from _planes(words[others])


def _palette_block(palette: np.ndarray, indices: np.ndarray) -> Iterator[bytes]:
    yield struct.pack("<BH", FORM_PALETTE, palette.size) + _little(palette)
    yield from _plane(indices.astype(np.uint8))
    if palette.size > 256:
        yield from _plane((indices >> np.uint16(8)).astype(np.uint8))


def _indexed(words: np.ndarray, different: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(the different words, the place of each word among them), if they are few enough to pay:
    those of a sample are `different`, and each round adds those that were missing.
    """
    most = min(MAX_PALETTE if words.itemsize > 2 else 256, words.size // 8)
    for _ in range(4):
        indices = _places(words, different) if different.size <= most else None
        if indices is None:
            return None
        other = different[indices] != words
        if not other.any():
            return different, indices
        different = np.union1d(different, words[other])
    return None


def _places(words: np.ndarray, different: np.ndarray) -> np.ndarray | None:
    """The place of each word in `different`, anything for a word that is not there; None if no
    table tells them apart.

    A table at the top bits of word · multiplier is five times faster than a binary search.
    """
    kind = words.dtype.type
    shift = kind(max(0, 8 * words.itemsize - TABLE_BITS))
    odd = np.random.Generator(np.random.Philox(0))
    for _ in range(MULTIPLIERS):
        multiplier = kind(int(odd.integers(0, 2**63)) * 2 + 1 & (1 << 8 * words.itemsize) - 1)
        keys = different * multiplier >> shift
        if np.unique(keys).size == different.size:
            table = np.zeros(1 << min(TABLE_BITS, 8 * words.itemsize), np.uint16)
            table[keys] = np.arange(different.size)
            return table[words * multiplier >> shift]
    return None


def _planes(words: np.ndarray) -> Iterator[bytes]:
    return _byte_planes(_rotated(words, 1))


def _byte_planes(words: np.ndarray) -> Iterator[bytes]:
    """A plane for each byte of a word, the highest first."""
    for byte in reversed(range(words.itemsize)):
        yield from _plane((words >> words.dtype.type(8 * byte)).astype(np.uint8))


def _plane(octets: np.ndarray) -> Iterator[bytes]:
    """A plane by the method that a sample of it chooses."""
    if octets.size and octets.min() == octets.max():
        yield _head(METHOD_CONSTANT, 1) + octets[:1].tobytes()
        return
    strategy = _strategy(octets)
    if strategy is not None:
        method = METHOD_DEFLATE
        small = _deflated(octets, strategy)
        if len(small) < octets.size // 100:  # long runs: deflate's own output repeats itself
            again = _deflated(np.frombuffer(small, np.uint8), zlib.Z_DEFAULT_STRATEGY)
            method, small = min(
                (method, small), (METHOD_TWICE, again), key=lambda pair: len(pair[1])
            )
        if len(small) < octets.size:
            yield _head(method, len(small))
            yield small
            return
    yield _head(METHOD_RAW, octets.size)
    yield octets.tobytes()


def _strategy(octets: np.ndarray) -> int | None:
    """How to deflate a plane: with matches, by Huffman codes alone (five times faster), or not at
    all.
    """
    middles = (octets.size // 8, octets.size // 2, 7 * octets.size // 8)
    pieces = (
        [octets[middle : middle + SAMPLE] for middle in middles]
        if octets.size > 4 * SAMPLE
        else [octets]
    )
    plain = sum(piece.size for piece in pieces)
    matched = sum(len(_deflated(piece, zlib.Z_DEFAULT_STRATEGY)) for piece in pieces)
    huffman = sum(len(_deflated(piece, zlib.Z_HUFFMAN_ONLY)) for piece in pieces)
    if min(matched, huffman) >= 0.99 * plain:
        return None
    return zlib.Z_DEFAULT_STRATEGY if matched < 0.97 * huffman else zlib.Z_HUFFMAN_ONLY


def _deflated(octets: np.ndarray, strategy: int) -> bytes:
    coder = zlib.compressobj(6, zlib.DEFLATED, -15, 9, strategy)
    return coder.compress(octets.data) + coder.flush()


def _head(method: int, length: int) -> bytes:
    return struct.pack("<BI", method, length)


def _little(words: np.ndarray) -> bytes:
    return words.astype(words.dtype.newbyteorder("<"), copy=False).tobytes()


def _rotated(words: np.ndarray, left: int) -> np.ndarray:
    """The words, their bits moved to the left and in again on the right."""
    bits = 8 * words.itemsize
    kind = words.dtype.type
    return (words << kind(left % bits)) | (words >> kind(bits - left % bits))


# --- reading
# ---------------------------------------------------------------------------------------


class Blocks:
    """A stream in memory, read front to back.

    Args:
      stream: all of its bytes.
    """

    def __init__(self, stream: Buffer) -> None:
        self._rest = memoryview(stream)

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._rest)

    def take(self, n: int) -> Buffer:
        """The next n bytes."""
        if n > self.left:
            raise FormatError(
                f"a block is truncated: {n} bytes are wanted, and {self.left} are left"
            )
        taken = self._rest[:n]
        self._rest = self._rest[n:]
        return taken


class FileBlocks:
    """A stream in a file, read front to back, with the checksum of what was read.

    Args:
      file: at the stream's first byte.
      length: of the stream.
    """

    def __init__(self, file: BinaryIO, length: int) -> None:
        self.file = file
        self.left = length
        self.crc = 0

    def take(self, n: int) -> Buffer:
        """The next n bytes."""
        octets = self.file.read(n) if n <= self.left else b""
        if len(octets) < n:
            raise FormatError(
                f"a block is truncated: {n} bytes are wanted, and {max(len(octets), self.left)} "
                f"are left"
            )
        self.left -= n
        self.crc = zlib.crc32(octets, self.crc)
        return octets


def decode(stream: Buffer | Blocks | FileBlocks, n: int, word: str) -> np.ndarray:
    """The n words of a stream; `word` is their dtype, "u2", "u4" or "u8".

    Raises:
      FormatError: not what `encode` writes.
    """
    words = np.empty(n, word)
    blocks = stream if isinstance(stream, Blocks | FileBlocks) else Blocks(stream)
    step = BLOCK // words.itemsize
    for start in range(0, n, step):
        _read_block(blocks, words[start : start + step])
    if blocks.left:
        raise FormatError(f"{blocks.left} bytes are left over after the last block")
    return words


def _read_block(blocks: Blocks | FileBlocks, words: np.ndarray) -> None:
    """Fills `words`."""
    (form,) = blocks.take(1)
    if form == FORM_PLANES:
        words[:] = _read_planes(blocks, words.size, words.dtype)
    elif form == FORM_SPARSE:
        frequent = np.frombuffer(blocks.take(words.itemsize), words.dtype.newbyteorder("<"))[0]
        packed = _read_plane(blocks, -(-words.size // 8))
        others = np.unpackbits(packed, count=words.size, bitorder="little").view(bool)
        if words.size % 8 and packed[-1] >> (words.size % 8):
            raise FormatError("the bits after the last word are not zero")
        words.fill(frequent)
        words[others] = _read_planes(blocks, int(np.count_nonzero(others)), words.dtype)
    elif form == FORM_RARE:
        frequent = np.frombuffer(blocks.take(words.itemsize), words.dtype.newbyteorder("<"))[0]
        places = _read_places(blocks, words.size)
        words.fill(frequent)
        words[places] = _read_planes(blocks, places.size, words.dtype)
    elif form == FORM_PALETTE:
        words[:] = _read_palette(blocks, words.size, words.dtype)
    else:
        raise FormatError(f"a block has the form {form}; there are {FORM_PLANES} to {FORM_RARE}")


def _read_places(blocks: Blocks | FileBlocks, n: int) -> np.ndarray:
    """The places of the rare words among n, by the gaps before them."""
    (count,) = struct.unpack("<I", blocks.take(4))
    if count > n:
        raise FormatError(f"{count} rare words in a block of {n}")
    gaps = _read_byte_planes(blocks, count, np.dtype(np.uint32))
    places = np.cumsum(gaps.astype(np.int64) + 1) - 1
    if count and places[-1] >= n:
        raise FormatError(f"a rare word at {places[-1]} of a block of {n}")
    return places


def _read_palette(blocks: Blocks | FileBlocks, n: int, dtype: np.dtype) -> np.ndarray:
    (k,) = struct.unpack("<H", blocks.take(2))
    if not 1 <= k <= MAX_PALETTE:
        raise FormatError(f"a palette of {k} words; there are 1 to {MAX_PALETTE}")
    palette = np.frombuffer(blocks.take(k * dtype.itemsize), dtype.newbyteorder("<")).astype(dtype)
    indices = _read_plane(blocks, n)
    if k > 256:
        indices = indices | _read_plane(blocks, n).astype(np.uint16) << np.uint16(8)
    if indices.max(initial=0) >= k:
        raise FormatError(f"an index of {indices.max()} into a palette of {k} words")
    return palette[indices]


def _read_planes(blocks: Blocks | FileBlocks, n: int, dtype: np.dtype) -> np.ndarray:
    return _rotated(_read_byte_planes(blocks, n, dtype), -1)


def _read_byte_planes(blocks: Blocks | FileBlocks, n: int, dtype: np.dtype) -> np.ndarray:
    words = np.zeros(n, dtype)
    for byte in reversed(range(dtype.itemsize)):
        words |= _read_plane(blocks, n).astype(dtype) << dtype.type(8 * byte)
    return words


def _read_plane(blocks: Blocks | FileBlocks, n: int) -> np.ndarray:
    """n bytes."""
    method, length = struct.unpack("<BI", blocks.take(5))
    octets = blocks.take(length)
    if method == METHOD_CONSTANT and length == 1:
        return np.full(n, octets[0], np.uint8)
    if method == METHOD_RAW and length == n:
        return np.frombuffer(octets, np.uint8)
    if method == METHOD_TWICE:
        octets = _inflated(octets, n)
    elif method != METHOD_DEFLATE:
        raise FormatError(f"a plane of {n} bytes has the method {method} and {length} bytes")
    plain = _inflated(octets, n)
    if len(plain) != n:
        raise FormatError(f"a plane inflates to {len(plain)} bytes, and not to its {n}")
    return np.frombuffer(plain, np.uint8)


def _inflated(octets: Buffer, most: int) -> bytes:
    """What a deflate stream of exactly these bytes holds, if that is at most `most` bytes."""
    inflate = zlib.decompressobj(-15)
    try:
        plain = inflate.decompress(octets, most + 1)
    except zlib.error as e:
        raise FormatError(f"a plane does not inflate: {e}") from None
    if len(plain) > most or not inflate.eof or inflate.unused_data:
        raise FormatError(f"a plane is truncated, or inflates to more than its {most} bytes")
    return plain
