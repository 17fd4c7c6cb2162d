"""Integers in streams: varints (7 bits a byte, the lowest first), zigzag for signs, a reader that
checks lengths.
"""

import zlib

from ..format.words import FormatError

Buffer = bytes | memoryview
CHUNK = 1 << 12


def leb(n: int) -> bytes:
    """n >= 0 as a varint."""
    out = bytearray()
    while n >= 128:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def varint(buffer: Buffer, at: int, most: int = 10) -> tuple[int, int]:
    """The varint at `at`, of at most `most` bytes, and where it ends."""
    n = 0
    for i, octet in enumerate(buffer[at : at + most]):
        n |= (octet & 127) << 7 * i
        if octet < 128:
            return n, at + i + 1
    raise FormatError("an integer is truncated or too long")


def zigzag(n: int) -> int:
    """0, 1, 2, … for 0, −1, 1, −2, …"""
    return 2 * n if n >= 0 else -2 * n - 1


def unzigzag(n: int) -> int:
    """The inverse of `zigzag`."""
    return -(n + 1) // 2 if n & 1 else n // 2


def inflated(octets: Buffer, most: int) -> bytes:
    """What raw deflate holds: all of `octets`, at most `most` bytes."""
    plain, rest = inflated_first(octets, most)
    if len(rest):
        raise FormatError(f"{len(rest)} bytes are left over after a deflate stream")
    return plain


def inflated_first(octets: Buffer, most: int) -> tuple[bytes, memoryview]:
    """What the raw deflate that `octets` begin with holds, and the bytes after it."""
    inflate = zlib.decompressobj(-15)
    plain = b""
    taken = 0
    while not inflate.eof and taken < len(octets) and len(plain) <= most:
        some = octets[taken : taken + CHUNK]  # all at once, zlib would copy what follows the table
        try:
            plain += inflate.decompress(some, most + 1 - len(plain))
        except zlib.error as e:
            raise FormatError(f"a table does not inflate: {e}") from None
        taken += len(some)
    if not inflate.eof or len(plain) > most:
        raise FormatError("a table is truncated or too long")
    return plain, memoryview(octets)[taken - len(inflate.unused_data) :]


class Reader:
    """Takes values off the front of a buffer."""

    def __init__(self, octets: memoryview):
        self.rest = octets

    def varint(self) -> int:
        n, at = varint(self.rest, 0)
        self.rest = self.rest[at:]
        return n

    def signed(self) -> int:
        return unzigzag(self.varint())

    def below(self, most: int) -> int:
        n = self.varint()
        if n >= most:
            raise FormatError(f"{n} where at most {most - 1} is allowed")
        return n

    def octets(self, n: int) -> memoryview:
        if n > len(self.rest):
            raise FormatError(
                f"{n} bytes are said where {len(self.rest)} are left: the stream is truncated"
            )
        taken = self.rest[:n]
        self.rest = self.rest[n:]
        return taken
