"""Floats as they are, in fewer bytes: bit for bit, NumPy and the standard library only.

The sign, the exponent and the first bits of the mantissa of a weight tell little, the last bits of the mantissa are
noise. So a word is rotated by one bit (float32 and bfloat16 then have the exponent in a byte of its own), and byte j of
all words of a block is a *plane*: deflated where that helps, raw where it is noise.

    stream = blocks of 2^24 bytes of words, the last one shorter
    block  = u8 form, then
      0 planes   one plane for each byte of a rotated word, the highest first
      1 sparse   the most frequent word; a plane of bits, where it is not; the planes of the other words
      2 palette  u16 k, the k different words, a plane of the indices' low bytes and, if k > 256, one of the high ones
    plane  = u8 method (0 raw, 1 raw deflate, 2 one byte for all, 3 deflated twice), u32 length, so many bytes

What repeats itself over long distances (rows that are copies) has another codec, `lzma`: raw LZMA2 of the words. It is
slow (megabytes a second), so it is only tried where windows of words are found again elsewhere in the array, and only
taken where it is smaller by 7%.
"""

import lzma
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from .format import FormatError
from .integers import Buffer

BLOCK = 1 << 24  # bytes of words in a block
FORM_PLANES, FORM_SPARSE, FORM_PALETTE = range(3)
METHOD_RAW, METHOD_DEFLATE, METHOD_CONSTANT, METHOD_TWICE = range(4)
MAX_PALETTE = 4096
TABLE_BITS = 22  # of the table that finds a word's place in a palette
MULTIPLIERS = 256  # that are tried before two words of a palette are kept apart by none
LEAST_SPARSE = 1 / 16  # share of the most frequent word from which it is left out of the planes
SAMPLE = 1 << 13  # bytes of a plane that are tried at a time
SAMPLED_WORDS = 1 << 16  # words that are looked at for a palette or a frequent word
LZMA = {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 24, "lc": 1, "lp": 2, "pb": 2}
LZMA_PIECE = 1 << 20  # bytes that LZMA gets or gives at a time
LZMA_GAIN = 0.93  # of the planes' size, from which LZMA's slowness is worth it
WINDOW_BITS = 64  # −log2 of the chance that two windows of independent words are alike
EXACT_SIZE = 1 << 22  # words up to which `size` encodes all of them
PIECES, PIECE = 8, 1 << 19  # of words that it encodes of more
STRIDE = 1 << 10  # words between the windows that are remembered
REGIONS = 64  # of STRIDE words each, whose windows are looked up


# --- writing ---------------------------------------------------------------------------------------------------------


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


def encode_lzma(words: np.ndarray, most: float) -> list[bytes] | None:
    """The words by LZMA2, in pieces; None as soon as they come to more than `most` bytes."""
    coder = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=[LZMA])
    pieces: list[bytes] = []
    step = LZMA_PIECE // words.itemsize
    for start in range(0, words.size, step):
        pieces.append(coder.compress(_little(words[start : start + step])))
        if sum(map(len, pieces)) > most:
            return None
    pieces.append(coder.flush())
    return pieces if sum(map(len, pieces)) <= most else None


def repeats(words: np.ndarray) -> bool:
    """Whether windows of words are found again elsewhere: whether LZMA is worth its time.

    Every STRIDE-th window is remembered, and all windows of some regions are looked up, so that a copy is seen at
    whatever distance it starts. Windows are as long as it takes for chance not to make two alike, and windows of one
    word, of which planes take little, do not count.
    """
    length = _window(words)
    if words.size < 4 * max(length, STRIDE):
        return False
    starts = np.arange(0, words.size - length + 1, STRIDE)
    known, times = np.unique(_hashes(words, starts, length), return_counts=True)
    found = 0
    for region in np.linspace(0, words.size - length - STRIDE, REGIONS, dtype=np.int64):
        starts = np.arange(region, region + STRIDE)
        hashes = _hashes(words, starts, length)
        place = np.minimum(np.searchsorted(known, hashes), known.size - 1)
        itself = starts % STRIDE == 0
        elsewhere = (known[place] == hashes) & (times[place] > itself)
        found += bool(np.any(elsewhere & _varied(words, starts, length)))
    return found >= 2


def _block(words: np.ndarray) -> Iterator[bytes]:
    sample = words[:: max(1, words.size // SAMPLED_WORDS)]
    different, times = np.unique(sample, return_counts=True)
    frequent = different[np.argmax(times)]
    indexed = _indexed(words, different)
    if indexed is not None:
        palette, indices = indexed
        yield struct.pack("<BH", FORM_PALETTE, palette.size) + _little(palette)
        yield from _plane(indices.astype(np.uint8))
        if palette.size > 256:
            yield from _plane((indices >> np.uint16(8)).astype(np.uint8))
    elif times.max() < LEAST_SPARSE * sample.size:
        yield bytes([FORM_PLANES])
        yield from _planes(words)
    else:
        others = words != frequent
        yield bytes([FORM_SPARSE]) + _little(frequent.reshape(1))
        yield from _plane(np.packbits(others, bitorder="little"))
        yield from _planes(words[others])


def _indexed(words: np.ndarray, different: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(the different words, the place of each word among them), if they are few enough to pay: those of a sample are
    `different`, and each round adds those that were missing."""
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
    """The place of each word in `different`, anything for a word that is not there; None if no table tells them apart.

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
    rotated = _rotated(words, 1)
    for byte in reversed(range(words.itemsize)):
        yield from _plane((rotated >> words.dtype.type(8 * byte)).astype(np.uint8))


def _plane(octets: np.ndarray) -> Iterator[bytes]:
    """A plane by the method that a sample of it chooses."""
    if octets.size and octets.min() == octets.max():
        yield _head(METHOD_CONSTANT, 1) + octets[:1].tobytes()
        return
    strategy = _strategy(octets)
    if strategy is not None:
        method, small = METHOD_DEFLATE, _deflated(octets, strategy)
        if len(small) < octets.size // 100:  # long runs: deflate's own output repeats itself
            again = _deflated(np.frombuffer(small, np.uint8), zlib.Z_DEFAULT_STRATEGY)
            method, small = min((method, small), (METHOD_TWICE, again), key=lambda pair: len(pair[1]))
        if len(small) < octets.size:
            yield _head(method, len(small))
            yield small
            return
    yield _head(METHOD_RAW, octets.size)
    yield octets.tobytes()


def _strategy(octets: np.ndarray) -> int | None:
    """How to deflate a plane: with matches, by Huffman codes alone (five times faster), or not at all."""
    middles = (octets.size // 8, octets.size // 2, 7 * octets.size // 8)
    pieces = [octets[middle : middle + SAMPLE] for middle in middles] if octets.size > 4 * SAMPLE else [octets]
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


def _window(words: np.ndarray) -> int:
    """How long windows are, by how often two words of a sample are alike."""
    _, times = np.unique(words[:: max(1, words.size // SAMPLED_WORDS)], return_counts=True)
    bits = -np.log2(np.sum((times / times.sum()) ** 2))
    return int(np.clip(np.ceil(WINDOW_BITS / max(bits, 1e-3)), 4, STRIDE))


def _windows(words: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(words, length)[starts]


def _hashes(words: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """A number of 64 bits for each window."""
    odd = np.random.Generator(np.random.Philox(0)).integers(0, 2**63, length, np.uint64) * np.uint64(2) + np.uint64(1)
    hashes = np.empty(starts.size, np.uint64)
    for i in range(0, starts.size, STRIDE):
        window = _windows(words, starts[i : i + STRIDE], length).astype(np.uint64)
        mixed = (window + np.uint64(0x9E3779B97F4A7C15)) * odd
        hashes[i : i + STRIDE] = (mixed ^ (mixed >> np.uint64(29))).sum(1, dtype=np.uint64)
    return hashes


def _varied(words: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Whether a window has different words."""
    windows = _windows(words, starts, length)
    return np.any(windows != windows[:, :1], 1)


# --- reading ---------------------------------------------------------------------------------------------------------


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
            raise FormatError(f"a block is truncated: {n} bytes are wanted, and {self.left} are left")
        taken, self._rest = self._rest[:n], self._rest[n:]
        return taken


class FileBlocks:
    """A stream in a file, read front to back, with the checksum of what was read.

    Args:
      file: at the stream's first byte.
      length: of the stream.
    """

    def __init__(self, file: BinaryIO, length: int) -> None:
        self.file, self.left, self.crc = file, length, 0

    def take(self, n: int) -> Buffer:
        """The next n bytes."""
        octets = self.file.read(n) if n <= self.left else b""
        if len(octets) < n:
            raise FormatError(f"a block is truncated: {n} bytes are wanted, and {max(len(octets), self.left)} are left")
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


def decode_lzma(stream: Buffer, n: int, word: str) -> np.ndarray:
    """The n words of an LZMA2 stream."""
    words = np.empty(n, word)
    octets = words.view(np.uint8).data
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[LZMA])
    fed = done = 0
    try:
        while not decoder.eof and done < len(octets):
            piece = b""
            if decoder.needs_input:
                piece, fed = stream[fed : fed + LZMA_PIECE], fed + LZMA_PIECE
                if not len(piece):
                    raise FormatError("an LZMA stream is truncated")
            plain = decoder.decompress(piece, min(LZMA_PIECE, len(octets) - done))
            octets[done : done + len(plain)] = plain
            done += len(plain)
        while not decoder.eof and fed < len(stream):  # its end may come after the last word
            piece, fed = stream[fed : fed + LZMA_PIECE], fed + LZMA_PIECE
            if decoder.decompress(piece, 1):
                raise FormatError("an LZMA stream holds more words than its array")
        if not decoder.eof and decoder.decompress(b"", 1):
            raise FormatError("an LZMA stream holds more words than its array")
    except lzma.LZMAError as e:
        raise FormatError(f"an LZMA stream cannot be read: {e}") from None
    if not decoder.eof or decoder.unused_data or fed < len(stream) or done < len(octets):
        raise FormatError("an LZMA stream does not end with its array")
    return words.view(words.dtype.newbyteorder("<")).astype(word, copy=False)


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
    elif form == FORM_PALETTE:
        words[:] = _read_palette(blocks, words.size, words.dtype)
    else:
        raise FormatError(f"a block has the form {form}; there are {FORM_PLANES} to {FORM_PALETTE}")


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
    rotated = np.zeros(n, dtype)
    for byte in reversed(range(dtype.itemsize)):
        rotated |= _read_plane(blocks, n).astype(dtype) << dtype.type(8 * byte)
    return _rotated(rotated, -1)


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
