"""Walks msgpack as Flax writes it, without reading the bytes of arrays.

An array is the extension 1 or 3 around msgpack of (shape, dtype's name, bytes).
https://github.com/msgpack/msgpack/blob/master/spec.md
"""

import math
import struct
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxprune.storage.checkpoints import bounds
from jaxprune.storage.checkpoints.bounds import quoted
from jaxprune.storage.checkpoints.tensors import Shape, read_exactly
from jaxprune.storage.format.words import CODE_OF, MAX_DEPTH, FormatError

# Flax's extensions
ARRAY = 1
COMPLEX = 2
SCALAR = 3
MAX_VALUES = (
    1 << 21
)  # maps, lists, texts, numbers and arrays of one file, which bounds what they take in memory
NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
LENGTHS = (">B", ">H", ">I")
NO_ARRAY = "an array is not a shape, a dtype and bytes"


class Piece(NamedTuple):
    """An array where it lies in the file."""

    shape: Shape
    dtype: np.dtype
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


class Walker:
    """Reads msgpack and skips the bytes of arrays."""

    def __init__(self, file: BinaryIO, end: int):
        self._file = file
        self._end = end
        self._num_values = 0

    def tree(self) -> Any:
        """The one value that the whole file is."""
        tree = self._value(0)
        position = self._file.tell()
        if position != self._end:
            raise FormatError(
                f"byte {position}: msgpack ends here, the file goes on to byte {self._end}"
            )
        return tree

    def _value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise FormatError(f"it is more than {MAX_DEPTH} levels deep")
        self._num_values += 1
        if self._num_values > MAX_VALUES:
            raise self._error(f"it has more than {MAX_VALUES} values")
        tag = self._number(">B")
        if tag < 0x80:  # small integers are their own tags
            return tag
        if tag >= 0xE0:
            return tag - 256
        if tag in CONSTANTS:
            return CONSTANTS[tag]
        if tag in NUMBERS:
            return self._number(NUMBERS[tag])
        # The length of others is in the tag, or in the 1, 2 or 4 bytes behind it.
        if 0xA0 <= tag <= 0xBF:
            return self._text(tag & 31)
        if 0xD9 <= tag <= 0xDB:
            return self._text(self._number(LENGTHS[tag - 0xD9]))
        if 0x80 <= tag <= 0x8F:
            return self._mapping(tag & 15, depth)
        if 0xDE <= tag <= 0xDF:
            return self._mapping(self._number(LENGTHS[1 + tag - 0xDE]), depth)
        if 0x90 <= tag <= 0x9F:
            return self._sequence(tag & 15, depth)
        if 0xDC <= tag <= 0xDD:
            return self._sequence(self._number(LENGTHS[1 + tag - 0xDC]), depth)
        if 0xD4 <= tag <= 0xD8:
            return self._extension(1 << (tag - 0xD4))
        if 0xC7 <= tag <= 0xC9:
            return self._extension(self._number(LENGTHS[tag - 0xC7]))
        raise self._error(f"the byte {tag:#x} begins nothing that Flax writes")

    def _mapping(self, length: int, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for _ in range(length):
            key = self._value(depth + 1)
            if type(key) is not str or key in mapping:
                raise self._error(f"the key {quoted(key, 40)} is no text, or is there twice")
            mapping[key] = self._value(depth + 1)
        return mapping

    def _sequence(self, length: int, depth: int) -> dict[str, Any]:
        """A list is the dict of its places, as Flax writes lists."""
        return {str(i): self._value(depth + 1) for i in range(length)}

    def _text(self, length: int) -> str:
        if length > bounds.MAX_NAME:
            raise self._error(f"a text of {length} bytes")
        try:
            return read_exactly(self._file.read, length).decode("utf-8")
        except UnicodeDecodeError:
            raise self._error("a name is not UTF-8") from None

    def _extension(self, length: int) -> Any:
        kind = self._number(">b")
        end = self._file.tell() + length
        if kind == COMPLEX:
            raise self._error(f"an extension of type {kind}; complex numbers are not read")
        if kind not in (ARRAY, SCALAR):
            raise self._error(f"an extension of type {kind}; Flax writes 1, 2 and 3")
        if end > self._end:
            raise self._error(
                f"an array ends {end - self._end} bytes behind the end of the file: it is truncated"
            )
        piece = self._array()
        if self._file.tell() != end:
            raise self._error(
                f"an array of shape {list(piece.shape)} does not fill its {length} bytes"
            )
        return piece

    def _array(self) -> Piece:
        """(shape, dtype's name, bytes): the bytes are skipped."""
        if self._number(">B") != 0x93:
            raise self._error(NO_ARRAY)
        is_list = 0x90 <= self._peek() <= 0x9F
        shape = tuple(self._value(MAX_DEPTH - 1).values()) if is_list else (-1,)
        name = self._value(MAX_DEPTH)
        width = self._number(">B") - 0xC4
        is_shape = all(type(length) is int and length >= 0 for length in shape)
        if not is_shape or type(name) is not str or width not in range(3):
            raise self._error(NO_ARRAY)
        size = self._number(LENGTHS[width])
        if name not in CODE_OF:
            raise self._error(f"an array has the dtype {quoted(name, 20)}, which is none of JAX's")
        piece = Piece(shape, np.dtype(name), self._file.tell())
        if piece.nbytes != size:
            raise self._error(f"{size} bytes are no array of {name}{list(shape)}")
        self._file.seek(size, 1)
        return piece

    def _peek(self) -> int:
        byte = self._number(">B")
        self._file.seek(-1, 1)
        return byte

    def _number(self, form: str) -> Any:
        (number,) = struct.unpack(form, read_exactly(self._file.read, struct.calcsize(form)))
        return number

    def _error(self, reason: str) -> FormatError:
        return FormatError(f"byte {self._file.tell()}: {reason}")
