"""Planes: byte j of many words, deflated where that helps and raw where it is noise.

    plane = u8 method (0 raw, 1 raw deflate, 2 one byte for all, 3 deflated twice), u32 length, so
    many bytes

NumPy and the standard library only.
"""

import struct
import zlib
from collections.abc import Iterator

import numpy as np

from ..format.words import FormatError
from .byte_sources import Source
from .varints import Buffer

METHOD_RAW, METHOD_DEFLATE, METHOD_CONSTANT, METHOD_TWICE = range(4)
SAMPLE = 1 << 13  # bytes of a plane that are tried at a time
NOISE = 0.99  # ratio of a deflated sample from which a plane is noise
MATCHES_PAY = 0.97  # of the size by Huffman codes alone, from which matches are worth their time
LONG_RUNS = 100  # times smaller: from there on deflate's own output repeats itself


# --- writing -------------------------------------------------------------------------------------


def write_byte_planes(words: np.ndarray) -> Iterator[bytes]:
    """A plane for each byte of a word, the highest first."""
    for byte in reversed(range(words.itemsize)):
        yield from write_plane((words >> words.dtype.type(8 * byte)).astype(np.uint8))


def write_plane(data: np.ndarray) -> Iterator[bytes]:
    """A plane, in pieces, by the method that a sample of it chooses."""
    if data.size and data.min() == data.max():
        yield _head(METHOD_CONSTANT, 1) + data[:1].tobytes()
        return
    strategy = _strategy(data)
    if strategy is not None:
        method, deflated = _deflate_plane(data, strategy)
        if len(deflated) < data.size:
            yield _head(method, len(deflated))
            yield deflated
            return
    yield _head(METHOD_RAW, data.size)
    yield data.tobytes()


def _deflate_plane(data: np.ndarray, strategy: int) -> tuple[int, bytes]:
    """(method, bytes)."""
    deflated = _deflate(data, strategy)
    if len(deflated) < data.size // LONG_RUNS:
        twice = _deflate(np.frombuffer(deflated, np.uint8), zlib.Z_DEFAULT_STRATEGY)
        if len(twice) < len(deflated):
            return METHOD_TWICE, twice
    return METHOD_DEFLATE, deflated


def _strategy(data: np.ndarray) -> int | None:
    """How to deflate a plane: with matches, by Huffman codes alone (five times faster), or not at
    all.
    """
    samples = [data]
    if data.size > 4 * SAMPLE:
        starts = (data.size // 8, data.size // 2, 7 * data.size // 8)
        samples = [data[start : start + SAMPLE] for start in starts]
    plain = sum(sample.size for sample in samples)
    matched = sum(len(_deflate(sample, zlib.Z_DEFAULT_STRATEGY)) for sample in samples)
    huffman = sum(len(_deflate(sample, zlib.Z_HUFFMAN_ONLY)) for sample in samples)
    if min(matched, huffman) >= NOISE * plain:
        return None
    return zlib.Z_DEFAULT_STRATEGY if matched < MATCHES_PAY * huffman else zlib.Z_HUFFMAN_ONLY


def _deflate(data: np.ndarray, strategy: int) -> bytes:
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15, 9, strategy)
    return compressor.compress(data.data) + compressor.flush()


def _head(method: int, length: int) -> bytes:
    return struct.pack("<BI", method, length)


# --- reading -------------------------------------------------------------------------------------


def read_byte_planes(source: Source, num_words: int, dtype: np.dtype) -> np.ndarray:
    """The words of the planes that `write_byte_planes` makes."""
    words = np.zeros(num_words, dtype)
    for byte in reversed(range(dtype.itemsize)):
        words |= read_plane(source, num_words).astype(dtype) << dtype.type(8 * byte)
    return words


def read_plane(source: Source, num_bytes: int) -> np.ndarray:
    """The bytes of one plane."""
    method, length = struct.unpack("<BI", source.take(5))
    data = source.take(length)
    if method == METHOD_CONSTANT and length == 1:
        return np.full(num_bytes, data[0], np.uint8)
    if method == METHOD_RAW and length == num_bytes:
        return np.frombuffer(data, np.uint8)
    if method == METHOD_TWICE:
        data = _inflate(data, num_bytes)
    elif method != METHOD_DEFLATE:
        raise FormatError(
            f"a plane of {num_bytes} bytes has the method {method} and {length} bytes"
        )
    plain = _inflate(data, num_bytes)
    if len(plain) != num_bytes:
        raise FormatError(f"a plane inflates to {len(plain)} bytes, and not to its {num_bytes}")
    return np.frombuffer(plain, np.uint8)


def _inflate(deflated: Buffer, max_bytes: int) -> bytes:
    """What a deflate stream of exactly these bytes holds, if that is at most `max_bytes`."""
    inflater = zlib.decompressobj(-15)
    try:
        plain = inflater.decompress(deflated, max_bytes + 1)
    except zlib.error as e:
        raise FormatError(f"a plane does not inflate: {e}") from None
    if len(plain) > max_bytes or not inflater.eof or inflater.unused_data:
        raise FormatError(f"a plane is truncated, or inflates to more than its {max_bytes} bytes")
    return plain
