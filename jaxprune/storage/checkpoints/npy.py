"""NumPy's .npy: the header, read by a closed grammar, and the array behind it. Nothing is evaluated
or unpickled.

    \\x93NUMPY | version, 2 bytes | length of the header, 2 or 4 bytes | the header | the array
    header:  {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxprune.numerics.streamed import empty
from jaxprune.storage.checkpoints import bounds
from jaxprune.storage.checkpoints.bounds import UnsupportedArray, quoted
from jaxprune.storage.checkpoints.tensors import (
    Checkpoint,
    Shape,
    Tensor,
    fill,
    read_exactly,
    size_of,
)
from jaxprune.storage.format.manifest import open_regular
from jaxprune.storage.format.words import FormatError

MAGIC = b"\x93NUMPY"
MAX_HEADER = 1 << 16
NAME = "array"  # the key of the one array of an .npy file
BFLOAT16 = np.dtype("bfloat16")
NAMELESS_BFLOAT16 = "|V2"

TEXT = r"'([^'\\\n]*)'|\"([^\"\\\n]*)\""
SHAPE = r"\(\s*((?:\d{1,19}L?\s*,\s*)*(?:\d{1,19}L?)?)\s*\)"
VALUE = rf"(?P<text>{TEXT})|(?P<truth>True|False)|(?P<shape>{SHAPE})|(?P<record>\[)"
ENTRY = re.compile(rf"\s*(?:{TEXT})\s*:\s*(?:{VALUE})\s*")
DESCR = re.compile(r"([<>|=]?)([?bBiufcVSUaOmM])(\d{0,9})(\[\w{1,9}\])?")


class Head(NamedTuple):
    """What a header says, and its own size in bytes."""

    shape: Shape
    fortran: bool
    dtype: np.dtype  # of the array
    stored: np.dtype  # of the file: in its order of bytes
    size: int

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_nameless(self) -> bool:
        """Whether NumPy wrote the array without its dtype's name, bfloat16."""
        return self.stored.str == NAMELESS_BFLOAT16


def read_head(read: Callable[[int], bytes], name: str) -> Head:
    """The header that a stream begins with.

    Raises:
      UnsupportedArray: a sound header of an array that JAX has nothing like.
      FormatError: anything else.
    """
    magic = read_exactly(read, 8)
    if magic[:6] != MAGIC:
        raise FormatError("it does not begin as an .npy array")
    version = (magic[6], magic[7])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise FormatError(
            f"its header has the version {version[0]}.{version[1]}; 1.0, 2.0 and 3.0 are read"
        )
    width = 2 if version == (1, 0) else 4
    length = int.from_bytes(read_exactly(read, width), "little")
    if length > MAX_HEADER:
        raise FormatError(
            f"its header says that it is {length} bytes long; at most {MAX_HEADER} are read"
        )
    try:
        text = read_exactly(read, length).decode("utf-8" if version == (3, 0) else "latin-1")
    except UnicodeDecodeError:
        raise FormatError("its header is not UTF-8") from None
    return _head(text, name, 8 + width + length)


def _head(text: str, name: str, size: int) -> Head:
    fields = _fields(text, name)
    if fields.keys() != {"descr", "fortran_order", "shape"}:
        raise FormatError(
            f"its header has the entries {quoted(sorted(fields))}, not descr, fortran_order and "
            f"shape"
        )
    shape = fields["shape"]
    fortran = fields["fortran_order"]
    descr = fields["descr"]
    if type(shape) is tuple:
        bounds.check_shape(name, shape)
    if type(shape) is not tuple or type(fortran) is not bool or type(descr) is not str:
        raise FormatError(
            f"its header is {quoted(text)}: descr is a text, fortran_order a truth, shape a tuple"
        )
    stored = _dtype(descr)
    dtype = bounds.check_dtype(name, _named(stored, name))
    return Head(shape, fortran, dtype, stored, size)


def _fields(text: str, name: str) -> dict[str, Any]:
    """The entries of the header's dict: texts, truths and tuples of integers, and nothing else."""
    body = text.strip(" \n\0")
    if not (body.startswith("{") and body.endswith("}")):
        raise FormatError(f"its header is {quoted(text)}, which is no dict")
    fields: dict[str, Any] = {}
    place = 1
    end = len(body) - 1
    while body[place:end].strip():
        entry = ENTRY.match(body, place, end)
        if entry is None:
            raise FormatError(
                f"its header is {quoted(text)}; it must say descr, fortran_order and shape"
            )
        if entry["record"]:
            raise UnsupportedArray(
                f"{quoted(name)} is an array of records: save each field as an array"
            )
        key = entry[1] if entry[1] is not None else entry[2]
        if key in fields:
            raise FormatError(f"its header has {quoted(key)} twice")
        fields[key] = _value(entry)
        place = entry.end()
        if place < end and body[place] != ",":
            raise FormatError(
                f"its header is {quoted(text)}; commas must stand between its entries"
            )
        place += 1
    return fields


def _value(entry: re.Match[str]) -> Any:
    if entry["truth"]:
        return entry["truth"] == "True"
    if entry["shape"]:
        lengths = [n.strip() for n in entry["shape"][1:-1].split(",")]
        if len(lengths) == 1 and lengths[0]:
            raise FormatError(
                f"its header says that the shape is {quoted(entry['shape'])}, which is no tuple"
            )
        return tuple(int(n.removesuffix("L")) for n in lengths if n)
    return entry["text"][1:-1]


def _dtype(descr: str) -> np.dtype:
    """The dtype of a word of NumPy's, as "<f4"."""
    refusal = FormatError(f"its header says that the dtype is {quoted(descr)}")
    if not DESCR.fullmatch(descr):
        raise refusal
    try:
        return np.dtype(descr)
    except (TypeError, ValueError):
        raise refusal from None


def _named(stored: np.dtype, name: str) -> np.dtype:
    """NumPy writes bfloat16 as two nameless bytes; no other dtype of JAX has that width and no
    name."""
    if stored.str == "|V1":
        raise UnsupportedArray(
            f"{quoted(name)} is |V1, as NumPy writes float8 and int4 without their name: save it "
            "as .safetensors or .msgpack"
        )
    return BFLOAT16 if stored.str == NAMELESS_BFLOAT16 else stored


def read_array(read: Callable[[int], bytes], head: Head, into: np.ndarray) -> np.ndarray:
    """`into`, with the array behind a header."""
    target = into.T if head.fortran else into
    if head.stored.byteorder == ">":
        target[...] = fill(empty(target.shape, target.dtype), read).view(head.stored)
    else:
        fill(target, read)
    if read(1):
        raise FormatError("bytes are left over after the array")
    return into


def note(names: list[str]) -> str:
    """What the reader is told of arrays that NumPy wrote without their dtype's name."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}: NumPy wrote |V2, which is read as bfloat16"


@contextlib.contextmanager
def opened(path: Any) -> Iterator[Checkpoint]:
    """The checkpoint of an .npy file: one array, named `array`."""
    with open_regular(path) as file:
        head = read_head(file.read, NAME)
        if head.size + head.nbytes != size_of(file):
            raise FormatError(
                f"its header speaks of {head.nbytes} bytes, {size_of(file) - head.size} follow: "
                f"truncated or extended"
            )
        tensors = {NAME: Tensor((NAME,), head.shape, head.dtype)}

        def read(path: str, into: np.ndarray | None = None) -> np.ndarray:
            file.seek(head.size)
            array = empty(head.shape, head.dtype) if into is None else into
            return read_array(file.read, head, array)

        notes = (note([NAME]),) if head.is_nameless else ()
        yield Checkpoint("npy", tensors, read, notes)
