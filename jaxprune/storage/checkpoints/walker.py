"""Walks msgpack as Flax writes it, without reading the bytes of arrays.

An array is the extension 1 or 3 around msgpack of (shape, dtype's name, bytes).
https://github.com/msgpack/msgpack/blob/master/spec.md
"""

import math
import struct
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxprune.storage.checkpoints import bounds
from jaxprune.storage.checkpoints import tensors as t
from jaxprune.storage.checkpoints.bounds import quoted
from jaxprune.storage.format.words import CODE_OF, MAX_DEPTH, FormatError

# Flax's extensions
ARRAY = 1
COMPLEX = 2
SCALAR = 3
MAX_VALUES = (
    1 << 21
)  # maps, lists, texts, numbers and arrays of one file, which bounds what they take in memory
NUMBERS = {0xCA: ">f", 0xCB: ">d", **{0xCC + i: f">{c}" for i, c in enumerate("BHIQbhiq")}}
SIZES = (">B", ">H", ">I")


class Piece(NamedTuple):
    """An array where it lies in the file."""

    shape: t.Shape
    dtype: np.dtype
    start: int


class Walker:
    """Reads msgpack and skips the bytes of arrays."""

    def __init__(self, file: BinaryIO, end: int):
        self.file = file
        self.end = end
        self.values = 0

    def whole(self) -> Any:
        tree = self.value(0)
        if self.file.tell() != self.end:
            raise FormatError(
                f"byte {self.file.tell()}: msgpack ends here, the file goes on to byte {self.end}"
            )
        return tree

    def value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise FormatError(f"it is more than {MAX_DEPTH} levels deep")
        self.values += 1
        if self.values > MAX_VALUES:
            raise self.bad(f"it has more than {MAX_VALUES} values")
        tag = self.number(">B")
        if tag < 0x80 or tag >= 0xE0:
            return tag if tag < 0x80 else tag - 256
        if tag in NUMBERS:
            return self.number(NUMBERS[tag])
        if tag in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[tag]
        if tag & 0xE0 == 0xA0 or 0xD9 <= tag <= 0xDB:
            return self.text(tag & 31 if tag < 0xC0 else self.number(SIZES[tag - 0xD9]))
        if tag & 0xF0 == 0x80 or tag in (0xDE, 0xDF):
            return self.mapping(tag & 15 if tag < 0xC0 else self.number(SIZES[tag - 0xDD]), depth)
        if tag & 0xF0 == 0x90 or tag in (0xDC, 0xDD):
            return self.sequence(tag & 15 if tag < 0xC0 else self.number(SIZES[tag - 0xDB]), depth)
        if 0xC7 <= tag <= 0xC9 or 0xD4 <= tag <= 0xD8:
            return self.extension(
                1 << (tag - 0xD4) if tag >= 0xD4 else self.number(SIZES[tag - 0xC7])
            )
        raise self.bad(f"the byte {tag:#x} begins nothing that Flax writes")

    def mapping(self, n: int, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(n):
            key = self.value(depth + 1)
            if type(key) is not str or key in found:
                raise self.bad(f"the key {quoted(key, 40)} is no text, or is there twice")
            found[key] = self.value(depth + 1)
        return found

    def sequence(self, n: int, depth: int) -> dict[str, Any]:
        """A list is the dict of its places, as Flax writes lists."""
        return {str(i): self.value(depth + 1) for i in range(n)}

    def text(self, n: int) -> str:
        if n > bounds.MAX_NAME:
            raise self.bad(f"a text of {n} bytes")
        try:
            return t.exactly(self.file.read, n).decode("utf-8")
        except UnicodeDecodeError:
            raise self.bad("a name is not UTF-8") from None

    def extension(self, n: int) -> Any:
        kind = self.number(">b")
        start = self.file.tell()
        if kind not in (ARRAY, SCALAR):
            known = "complex numbers are not read" if kind == COMPLEX else "Flax writes 1, 2 and 3"
            raise self.bad(f"an extension of type {kind}; {known}")
        if start + n > self.end:
            raise self.bad(
                f"an array ends {start + n - self.end} bytes behind the end of the file: it is "
                f"truncated"
            )
        piece = self.array()
        if self.file.tell() != start + n:
            raise self.bad(f"an array of shape {list(piece.shape)} does not fill its {n} bytes")
        return piece

    def array(self) -> Piece:
        """(shape, dtype's name, bytes): the bytes are skipped."""
        if self.number(">B") != 0x93:
            raise self.bad("an array is not a shape, a dtype and bytes")
        shape = (
            tuple(self.value(MAX_DEPTH - 1).values()) if self.peek() in range(0x90, 0xA0) else (-1,)
        )
        name = self.value(MAX_DEPTH)
        width = self.number(">B") - 0xC4
        if (
            not all(type(n) is int and n >= 0 for n in shape)
            or type(name) is not str
            or width not in range(3)
        ):
            raise self.bad("an array is not a shape, a dtype and bytes")
        size = self.number(SIZES[width])
        if name not in CODE_OF:
            raise self.bad(f"an array has the dtype {quoted(name, 20)}, which is none of JAX's")
        dtype = np.dtype(name)
        if dtype.itemsize * math.prod(shape) != size:
            raise self.bad(f"{size} bytes are no array of {name}{list(shape)}")
        start = self.file.tell()
        self.file.seek(size, 1)
        return Piece(shape, dtype, start)

    def peek(self) -> int:
        octet = self.number(">B")
        self.file.seek(-1, 1)
        return octet

    def number(self, form: str) -> Any:
        return struct.unpack(form, t.exactly(self.file.read, struct.calcsize(form)))[0]

    def bad(self, why: str) -> FormatError:
        return FormatError(f"byte {self.file.tell()}: {why}")
