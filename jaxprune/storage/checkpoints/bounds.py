"""What a checkpoint of any format may say: bounds on names, ranks, sizes and numbers of arrays, and
short refusals.

They are checked before anything is split, multiplied, recursed into or allocated. Real checkpoints
are far below them.
"""

import itertools
import math
import os
from collections.abc import Collection, Iterable
from typing import Any, BinaryIO

import numpy as np

from jaxprune.storage.format.manifest import open_regular
from jaxprune.storage.format.words import CODE_OF, MAX_DEPTH, MAX_RANK, MAX_SIZE, FormatError

MAX_NAME = 1 << 15  # bytes of a whole name in UTF-8: what .npz and Orbax can hold, both
MAX_ARRAYS = 1 << 18  # of one checkpoint: a manifest of ours has room for about as many
MAX_KEYS = 1 << 22  # of all arrays together
# bytes of a safetensors header, the limit of the reference implementation, and of an index
MAX_JSON = 100_000_000
MAX_TOKENS = 1 << 22  # commas and brackets of such JSON


class UnsupportedArray(FormatError):
    """A sound array that JAX has nothing like: Python objects, text, dates. The others beside it
    can be read.
    """


def quoted(x: Any, width: int = 80) -> str:
    """The repr of an untrusted value, without line breaks and of bounded length.

    >>> print(quoted("a" * 1000, 20), quoted([1] * 1000), sep="; ")
    'aaaaaaaaa…aaaaaaaa'; list of 1000: 1, 1, 1, 1, 1, 1, 1, 1, …
    """
    if isinstance(x, str):
        return repr(shortened(x, width - 2))
    if isinstance(x, list | tuple | dict):
        if not x:
            return _size(x)
        first = ", ".join(_item(item) for item in itertools.islice(x, 8))  # of a dict, its keys
        more = ", …" if len(x) > 8 else ""
        return f"{_size(x)}: {shortened(first + more, width)}"
    return shortened(repr(x), width)


def _item(x: Any) -> str:
    """An element of a list, of which lists are not looked into: they may nest as deep as the
    interpreter can read.
    """
    return _size(x) if isinstance(x, list | tuple | dict) else quoted(x, 20)


def _size(x: Collection[Any]) -> str:
    return f"{type(x).__name__} of {len(x)}"


def shortened(text: str, width: int) -> str:
    """A text in `width` letters; of a long one, both ends."""
    if len(text) <= width:
        return text
    return f"{text[: width // 2]}…{text[len(text) - width + width // 2 + 1 :]}"


def why_bad_name(name: str) -> str:
    """Why no checkpoint may have a name; "" of a good one. Nothing is split or copied many
    times.
    """
    if len(name) > MAX_NAME or len(name.encode("utf-8", "surrogatepass")) > MAX_NAME:
        return f"it is longer than {MAX_NAME} bytes"
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        return "it has half of a surrogate pair, which is no text"
    if name.count("/") >= MAX_DEPTH:
        return f'it has more than {MAX_DEPTH} keys, joined by "/"'
    return ""


def check_names(names: Iterable[str]) -> None:
    """Refuses names that no checkpoint has, and more of them than one has."""
    keys = 0
    for number, name in enumerate(names):
        if reason := why_bad_name(name):
            raise FormatError(f"the name {quoted(name)} is not read: {reason}")
        keys += name.count("/") + 1
        if number >= MAX_ARRAYS or keys > MAX_KEYS:
            raise FormatError(
                f"it has more than {MAX_ARRAYS} arrays, or more than {MAX_KEYS} keys in their names"
            )


def check_shape(name: str, shape: Any) -> tuple[int, ...]:
    """The shape of an array, if it is one: its rank is bounded before anything is multiplied."""
    if len(shape) > MAX_RANK:
        raise FormatError(f"{quoted(name)} has {len(shape)} axes; at most {MAX_RANK} are read")
    sound = all(type(n) is int and 0 <= n <= MAX_SIZE for n in shape)
    if not sound or math.prod(max(1, n) for n in shape) > MAX_SIZE:
        raise FormatError(
            f"{quoted(name)} says that its shape is {shortened(str(list(shape)), 80)}"
        )
    return tuple(shape)


def check_dtype(name: str, dtype: np.dtype) -> np.dtype:
    """The dtype in the machine's order of bytes, if JAX has it."""
    if dtype.name not in CODE_OF:
        what = {"O": "Python objects (a pickle; never read)", "U": "text", "S": "bytes"}.get(
            dtype.kind, str(dtype)
        )
        raise UnsupportedArray(
            f"{quoted(name)} holds {what[:40]}, which is no dtype of JAX's arrays: convert it first"
        )
    return dtype.newbyteorder("=")


def read_bounded(path: Any, most: int, what: str) -> bytes:
    """The bytes of a regular file of bounded size; a pipe or a device is refused."""
    with open_regular(path) as file:
        return all_of(file, most, what)


def all_of(file: BinaryIO, most: int, what: str) -> bytes:
    size = os.fstat(file.fileno()).st_size
    if size > most:
        raise FormatError(f"the {what} has {size} bytes; at most {most} are read")
    data = file.read(most + 1)
    if len(data) > most:
        raise FormatError(f"the {what} grew while it was read")
    return data
