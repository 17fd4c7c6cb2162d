"""Streams to arrays: the leaves of one file, each guarded by a CRC-32. NumPy and the standard
library only.
"""

import math
import zlib
from typing import Any, BinaryIO

import numpy as np

from .format.manifest import Contents, exactly
from .format.shapes import Shaped, check_values, integers_of
from .format.words import BANKED, DTYPES, KINDS, PLANES, Array, Code, FormatError, Leaf, Row
from .streams import context_stream, planes, smallest
from .streams.byte_sources import FileSource

WRONG_CHECKSUM = "the checksum is wrong: the bytes are damaged"


class Decoder:
    """Reads the leaves of one open file.

    A bank is decoded when the first of its arrays is asked for, and kept until the last one is.
    """

    def __init__(self, file: BinaryIO, contents: Contents):
        self.file = file
        self.contents = contents
        self.waiting: dict[int, dict[int, np.ndarray]] = {}  # by bank and place in it
        self._damaged_banks: dict[int, str] = {}

    def read(self, leaf: Leaf, shared: Shaped | None = None) -> Any:
        """The leaf's node, with an `Array` for each `Row`.

        Args:
          leaf: one of the file's.
          shared: shape and dtype of the codebook above it, if there is one.

        Raises:
          FormatError: it is damaged; the message has the leaf and the byte.
        """
        start = self.contents.start + leaf.offset
        try:
            if isinstance(leaf.node, Row) and leaf.node.codec == PLANES:
                node = self._read_planes(leaf.node, start, leaf.crc)
            else:
                data = self.read_bytes(leaf.offset, leaf.length, leaf.crc)
                node = self._decode(leaf.node, data, leaf.offset, None)
            check_values(node, shared)
        except FormatError as e:
            raise FormatError(f"leaf {leaf.path!r}, byte {start}: {e}") from None
        return node

    def _read_planes(self, row: Row, start: int, crc: int) -> Array:
        """An array whose stream is never in memory whole."""
        dtype = DTYPES[row.dtype]
        if dtype.itemsize == 1:
            raise FormatError(f"the codec {row.codec} is none of an array of {dtype.name}")
        self.file.seek(start)
        source = FileSource(self.file, row.length)
        words = planes.decode(source, math.prod(row.shape), f"u{dtype.itemsize}")
        if source.crc != crc:
            raise FormatError(WRONG_CHECKSUM)
        return Array(row.dtype, row.host, words.view(dtype.word).reshape(row.shape))

    def read_bytes(self, offset: int, length: int, crc: int) -> memoryview:
        """Bytes of the data, if their checksum is right."""
        self.file.seek(self.contents.start + offset)
        data = exactly(self.file, length, "jp.data")
        if zlib.crc32(data) != crc:
            raise FormatError(WRONG_CHECKSUM)
        return memoryview(data)

    def _decode(self, node: Any, data: memoryview, start: int, mask: np.ndarray | None) -> Any:
        """A node's arrays, from the leaf's bytes, which begin at `start`; `mask` is above the
        node.
        """
        if isinstance(node, Row):
            stream = data[node.offset - start :][: node.length]
            return self._decode_array(node, stream, mask)
        if not isinstance(node, Code):
            return node
        kind = KINDS[node.tag]
        if node.tag == "S" and mask is not None:
            mask = _stack_first(mask, *node.statics)
        parts: list[Any] = []
        for name, part in zip(kind.fields, node.parts):
            parts.append(self._decode(part, data, start, mask if name in kind.hidden else None))
            if node.tag == "M" and name == "mask" and isinstance(parts[0], Array):
                mask = parts[0].words.view(bool)
        if node.tag == "M" and not isinstance(parts[0], Array):
            integers = integers_of(parts[1])
            nonzero = (integers.words != 0).view(np.uint8)
            parts[0] = Array("?", integers.host, nonzero)
        return Code(node.tag, node.statics, tuple(parts))

    def _decode_array(self, row: Row, stream: memoryview, mask: np.ndarray | None) -> Array:
        dtype = DTYPES[row.dtype]
        if row.codec in BANKED:
            return Array(row.dtype, row.host, self._take_from_bank(row))
        if not row.hidden or mask is None:
            words = smallest.decode(stream, math.prod(row.shape), row.codec, dtype)
            return Array(row.dtype, row.host, words.reshape(row.shape))
        words = np.zeros(row.shape, dtype.word)
        words[mask] = smallest.decode(stream, int(np.count_nonzero(mask)), row.codec, dtype)
        return Array(row.dtype, row.host, words)

    def _take_from_bank(self, row: Row) -> np.ndarray:
        """The words of an array in a bank."""
        if row.bank in self._damaged_banks:
            raise FormatError(self._damaged_banks[row.bank])
        if row.offset not in self.waiting.get(row.bank, {}):
            self.waiting[row.bank] = self._decode_bank(row.bank)
        return self.waiting[row.bank].pop(row.offset)

    def _decode_bank(self, number: int) -> dict[int, np.ndarray]:
        bank = self.contents.banks[number]
        try:
            data = self.read_bytes(bank.offset, bank.length, bank.crc)
            return dict(enumerate(context_stream.decode(data, bank.rows)))
        except FormatError as e:
            reason = f"bank {number}, byte {self.contents.start + bank.offset}: {e}"
            # Repeated for its other arrays, and not decoded again.
            self._damaged_banks[number] = reason
            raise FormatError(reason) from None


def _stack_first(mask: np.ndarray, axis: int, rank: int) -> np.ndarray | None:
    """A mask with the stacked axis before the last `rank` ones; None where it has no such axis."""
    fits = -axis <= mask.ndim and mask.ndim >= rank
    return np.moveaxis(mask, axis, -rank) if fits else None
