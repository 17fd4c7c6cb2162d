"""The codec `bits`: u8 width, then each symbol in `width` bits, the lowest bit first; the last byte
ends in zeros.

NumPy and the standard library only.
"""

import numpy as np

from ..format.words import MAX_WIDTH, FormatError

CHUNK = 1 << 16  # symbols at a time: whole bytes, and little memory


def packed_size(num_symbols: int, width: int) -> int:
    """Bytes of the stream."""
    return 1 + -(-num_symbols * width // 8)


def pack(symbols: np.ndarray, width: int) -> bytes:
    """The stream of symbols below 2^width.

    >>> pack(np.array([1, 2, 3], np.uint8), 2)
    b'\\x029'
    """
    parts = [bytes([width])]
    if width == 0:
        return parts[0]
    for start in range(0, symbols.size, CHUNK):
        chunk = symbols[start : start + CHUNK].astype("<u4")
        bits = np.unpackbits(
            chunk.view(np.uint8).reshape(-1, 4), axis=1, count=width, bitorder="little"
        )
        parts.append(np.packbits(bits, bitorder="little").tobytes())
    return b"".join(parts)


def unpack(stream: memoryview, num_symbols: int) -> np.ndarray:
    """The symbols of a stream, in the fewest bytes that hold them."""
    width = stream[0] if len(stream) else 255
    if width > MAX_WIDTH or len(stream) != packed_size(num_symbols, width):
        raise FormatError(f"{len(stream)} bytes cannot hold {num_symbols} symbols of {width} bits")
    used_bits = num_symbols * width % 8
    if used_bits and stream[-1] >> used_bits:
        raise FormatError("the padding of the last byte is not zero")
    symbols = np.zeros(num_symbols, smallest_unsigned(width))
    if width == 0:
        return symbols
    symbol_bits = 8 * symbols.itemsize
    little = symbols.dtype.newbyteorder("<")
    data = np.frombuffer(stream, np.uint8, offset=1)
    for start in range(0, num_symbols, CHUNK):
        count = min(CHUNK, num_symbols - start)
        first_byte = start * width // 8
        chunk = data[first_byte : first_byte + -(-count * width // 8)]
        bits = np.zeros((count, symbol_bits), np.uint8)
        bits[:, :width] = np.unpackbits(chunk, count=count * width, bitorder="little").reshape(
            count, width
        )
        symbols[start : start + count] = np.packbits(bits, bitorder="little").view(little)
    return symbols


def smallest_unsigned(width: int) -> np.dtype:
    """The unsigned dtype of 8, 16 or 32 bits that holds `width` bits."""
    if width <= 8:
        return np.dtype("u1")
    if width <= 16:
        return np.dtype("u2")
    return np.dtype("u4")
