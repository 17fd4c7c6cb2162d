"""Streams read front to back, from memory or from a file: what `planes.decode` takes its blocks
from.
"""

import zlib
from typing import BinaryIO

from ..format.words import FormatError
from .varints import Buffer


class MemorySource:
    """A stream in memory."""

    def __init__(self, stream: Buffer) -> None:
        self._rest = memoryview(stream)

    @property
    def remaining(self) -> int:
        """How many bytes are left."""
        return len(self._rest)

    def take(self, count: int) -> Buffer:
        """The next bytes."""
        if count > self.remaining:
            raise _truncated(count, self.remaining)
        taken = self._rest[:count]
        self._rest = self._rest[count:]
        return taken


class FileSource:
    """A stream in a file, with the checksum of what was read.

    Args:
      file: at the stream's first byte.
      length: of the stream.
    """

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file = file
        self.remaining = length
        self.crc = 0

    def take(self, count: int) -> Buffer:
        """The next bytes."""
        data = self._file.read(count) if count <= self.remaining else b""
        if len(data) < count:
            raise _truncated(count, max(len(data), self.remaining))
        self.remaining -= count
        self.crc = zlib.crc32(data, self.crc)
        return data


Source = MemorySource | FileSource


def _truncated(wanted: int, remaining: int) -> FormatError:
    return FormatError(f"a block is truncated: {wanted} bytes are wanted, and {remaining} are left")
