"""The header of a .npy array: magic, version, length, and a dict of three keys as Python writes it.

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html

NumPy evaluates that dict as Python. Here it is read by a grammar that has nothing but these keys, texts, numbers, True
and False, so that no header can ask for more than its own length of work.
"""

import re
import struct
from typing import Any, NamedTuple

import numpy as np

from jaxprune.storage.checkpoints import tensors as t
from jaxprune.storage.format import MAX_RANK, FormatError

MAGIC = b"\x93NUMPY"
LENGTHS = {(1, 0): "<H", (2, 0): "<I"}
MAX_HEADER = 10_000  # what NumPy itself reads at most
TOKEN = re.compile(r"\s*('[^'\\]{0,40}'|True|False|[0-9]{1,20}|[{}(),:])")
TOKENS = 200


class Header(NamedTuple):
    """What a header says of its array."""

    shape: t.Shape
    fortran_order: bool
    dtype: np.dtype


def read_header(stream: Any) -> Header:
    """The header at the front of a stream, which then is at the array's first byte.

    Raises:
      FormatError: anything else than a dict of descr, fortran_order and shape.
    """
    magic = t.exactly(stream.read, 8)
    version = magic[6], magic[7]
    if magic[:6] != MAGIC or version not in LENGTHS:
        raise FormatError("it does not begin as a .npy array of the version 1.0 or 2.0")
    size = struct.calcsize(LENGTHS[version])
    (length,) = struct.unpack(LENGTHS[version], t.exactly(stream.read, size))
    if length > MAX_HEADER:
        raise FormatError(f"its header says that it is {length} bytes long; {MAX_HEADER} are read at most")
    found = _parsed(t.exactly(stream.read, length).decode("latin-1"))
    try:
        dtype = np.dtype(found["descr"])
    except TypeError:
        raise FormatError(f"its dtype is {found['descr']!r}, which NumPy does not know") from None
    return Header(found["shape"], found["fortran_order"], dtype)


def _parsed(text: str) -> dict[str, Any]:
    """The three values of a header."""
    tokens = _tokens(text)
    found: dict[str, Any] = {}
    _expect(tokens, "{")
    while tokens and tokens[0] != "}":
        name = tokens.pop(0).strip("'")
        _expect(tokens, ":")
        if name in found or name not in ("descr", "fortran_order", "shape"):
            raise FormatError(f"its header has the key {name[:20]!r}, twice or unknown")
        found[name] = _value(tokens, name)
        if tokens[:1] == [","]:
            tokens.pop(0)
    _expect(tokens, "}")
    if tokens or len(found) < 3:
        raise FormatError("its header is no dict of descr, fortran_order and shape")
    return found


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    place, end = 0, len(text.rstrip())
    while place < end:
        match = TOKEN.match(text, place)
        if match is None or len(tokens) == TOKENS:
            raise FormatError(f"its header is no dict of NumPy's: {text[place : place + 20]!r} at letter {place}")
        tokens.append(match[1])
        place = match.end()
    return tokens


def _value(tokens: list[str], name: str) -> Any:
    first = tokens.pop(0) if tokens else ""
    if name == "descr" and first.startswith("'"):
        return first.strip("'")
    if name == "fortran_order" and first in ("True", "False"):
        return first == "True"
    if name == "shape" and first == "(":
        return _shape(tokens)
    raise FormatError(f"its header has {first[:20]!r} for {name}")


def _shape(tokens: list[str]) -> t.Shape:
    shape: list[int] = []
    while tokens and tokens[0].isdigit():
        shape.append(int(tokens.pop(0)))
        if tokens[:1] == [","]:
            tokens.pop(0)
    _expect(tokens, ")")
    if len(shape) > MAX_RANK:
        raise FormatError(f"its shape has {len(shape)} axes; {MAX_RANK} are read at most")
    return tuple(shape)


def _expect(tokens: list[str], token: str) -> None:
    if not tokens or tokens.pop(0) != token:
        raise FormatError(f"its header has no {token!r} where one must be")
