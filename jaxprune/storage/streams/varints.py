"""Integers in streams: varints (7 bits a byte, the lowest first), zigzag for signs, and deflated
tables.
"""

import zlib

from ..format.words import FormatError

Buffer = bytes | memoryview
MAX_VARINT = 10  # bytes: 64 bits and some
CHUNK = 1 << 12  # bytes that the inflater gets at a time


def encode_varint(number: int) -> bytes:
    """A number >= 0 as a varint.

    >>> encode_varint(300)
    b'\\xac\\x02'
    """
    encoded = bytearray()
    while number >= 128:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def decode_varint(buffer: Buffer, start: int, max_bytes: int = MAX_VARINT) -> tuple[int, int]:
    """(the varint that begins at `start`, where it ends).

    Raises:
      FormatError: it does not end within `max_bytes` bytes.
    """
    number = 0
    for i, byte in enumerate(buffer[start : start + max_bytes]):
        number |= (byte & 127) << 7 * i
        if byte < 128:
            return number, start + i + 1
    raise FormatError("an integer is truncated or too long")


def zigzag(number: int) -> int:
    """0, 1, 2, 3, … for 0, −1, 1, −2, …"""
    return 2 * number if number >= 0 else -2 * number - 1


def unzigzag(number: int) -> int:
    """The inverse of `zigzag`."""
    return -(number + 1) // 2 if number & 1 else number // 2


def deflate(plain: bytes) -> bytes:
    """A table as raw deflate."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    return compressor.compress(plain) + compressor.flush()


def inflate(compressed: Buffer, max_bytes: int) -> bytes:
    """The inverse of `deflate`.

    Raises:
      FormatError: `compressed` is longer than its deflate stream, or holds more than `max_bytes`
        bytes.
    """
    plain, rest = inflate_prefix(compressed, max_bytes)
    if len(rest):
        raise FormatError(f"{len(rest)} bytes are left over after a deflate stream")
    return plain


def inflate_prefix(buffer: Buffer, max_bytes: int) -> tuple[bytes, memoryview]:
    """(what the deflate stream at the beginning of a buffer holds, the bytes after that stream)."""
    inflater = zlib.decompressobj(-15)
    plain = b""
    position = 0
    while not inflater.eof and position < len(buffer) and len(plain) <= max_bytes:
        # In chunks: given the whole buffer, zlib would copy all that follows the table.
        chunk = buffer[position : position + CHUNK]
        try:
            plain += inflater.decompress(chunk, max_bytes + 1 - len(plain))
        except zlib.error as e:
            raise FormatError(f"a table does not inflate: {e}") from None
        position += len(chunk)
    if not inflater.eof or len(plain) > max_bytes:
        raise FormatError("a table is truncated or too long")
    return plain, memoryview(buffer)[position - len(inflater.unused_data) :]


class ByteReader:
    """Reads values from the front of a buffer; `rest` is what follows them."""

    def __init__(self, buffer: Buffer) -> None:
        self.rest = memoryview(buffer)

    def varint(self) -> int:
        """The next varint."""
        number, end = decode_varint(self.rest, 0)
        self.rest = self.rest[end:]
        return number

    def signed(self) -> int:
        """The next zigzagged varint."""
        return unzigzag(self.varint())

    def below(self, limit: int) -> int:
        """The next varint, which must be less than `limit`."""
        number = self.varint()
        if number >= limit:
            raise FormatError(f"{number} where at most {limit - 1} is allowed")
        return number

    def bytes(self, count: int) -> memoryview:
        """The next bytes."""
        if count > len(self.rest):
            raise FormatError(
                f"{count} bytes are announced where {len(self.rest)} are left: the stream is "
                f"truncated"
            )
        taken = self.rest[:count]
        self.rest = self.rest[count:]
        return taken
