"""Flax's msgpack checkpoints (`flax.serialization`), read and written leaf by leaf.

An array is the extension 1 around msgpack of (shape, dtype's name, bytes); one of more than 2^30
bytes is the map {"__msgpack_chunked_array__": true, "shape": {"0": …}, "chunks": {"0": array, …}}
of flat arrays. The file is walked once to see where the bytes lie; they are read when they are
asked for.

https://github.com/msgpack/msgpack/blob/master/spec.md
"""

import contextlib
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import msgspec
import numpy as np

from jaxprune.numerics.streamed import empty
from jaxprune.storage.checkpoints import bounds
from jaxprune.storage.checkpoints import tensors as t
from jaxprune.storage.checkpoints.bounds import quoted
from jaxprune.storage.checkpoints.tensors import Checkpoint, Keys, Read, Tensor
from jaxprune.storage.checkpoints.walker import ARRAY, Piece, Walker
from jaxprune.storage.format.manifest import open_regular
from jaxprune.storage.format.words import FormatError

MAX_CHUNK = 2**30  # bytes of one array, Flax's limit
CHUNKED = "__msgpack_chunked_array__"
MAX_AXES = 15  # of a list whose length stands in its first byte
PLAIN = (bool, int, float)


@contextlib.contextmanager
def opened(path: Any) -> Iterator[Checkpoint]:
    """The checkpoint of a msgpack file."""
    with open_regular(path) as file:
        tree = Walker(file, t.size_of(file)).whole()
        if not isinstance(tree, dict):
            raise FormatError(
                "it is msgpack, but no map of names: what flax.serialization.to_bytes writes is "
                "read"
            )
        leaves: dict[Keys, Any] = {}
        notes: list[str] = []
        _collect(tree, (), leaves, notes)
        tensors = t.by_path(_tensor(keys, x) for keys, x in leaves.items())

        def read(path: str, into: np.ndarray | None = None) -> np.ndarray:
            tensor = tensors[path]
            into = empty(tensor.shape, tensor.dtype) if into is None else into
            x = leaves[tensor.keys]
            if isinstance(x, PLAIN):
                into[...] = x
                return into
            return t.fill(
                into, _Bytes(file, list(_listed(x["chunks"])) if isinstance(x, dict) else [x]).read
            )

        yield Checkpoint("msgpack", tensors, read, tuple(notes))


def _collect(x: Any, keys: Keys, leaves: dict[Keys, Any], notes: list[str]) -> None:
    """Arrays and numbers by keys; anything else gets a note."""
    if isinstance(x, dict) and x.get(CHUNKED) is True:
        leaves[keys] = x
    elif isinstance(x, dict) and x:
        for key, kid in x.items():
            _collect(kid, (*keys, key), leaves, notes)
    elif isinstance(x, (Piece, *PLAIN)):
        leaves[keys] = x
    else:
        what = "an empty dict" if x == {} else "nothing (None)" if x is None else "text"
        notes.append(f"{quoted('/'.join(keys))[1:-1] or 'the tree'} is {what}, and is left out")


def _tensor(keys: Keys, x: Any) -> Tensor:
    if isinstance(x, PLAIN):
        return Tensor(keys, (), np.asarray(x).dtype)
    if isinstance(x, Piece):
        return t.checked(keys, x.shape, x.dtype)
    shape = _listed(x.get("shape"))
    chunks = _listed(x.get("chunks"))
    name = "/".join(keys)
    fit = chunks and all(
        isinstance(c, Piece) and len(c.shape) == 1 and c.dtype == chunks[0].dtype for c in chunks
    )
    if not fit or math.prod(bounds.check_shape(name, shape)) != sum(c.shape[0] for c in chunks):
        raise FormatError(f"{quoted(name)} is a chunked array whose chunks do not fit its shape")
    return t.checked(keys, shape, chunks[0].dtype)


def _listed(x: Any) -> tuple[Any, ...]:
    """{"0": a, "1": b} as (a, b)."""
    return (
        tuple(x[str(i)] for i in range(len(x)))
        if isinstance(x, dict) and all(str(i) in x for i in range(len(x)))
        else ()
    )


class _Bytes:
    """Pieces of a file as one stream."""

    def __init__(self, file: BinaryIO, pieces: list[Piece]):
        self.file = file
        self.left = [(p.start, math.prod(p.shape) * p.dtype.itemsize) for p in pieces]

    def read(self, n: int) -> bytes:
        parts = []
        while n and self.left:
            start, size = self.left.pop(0)
            self.file.seek(start)
            parts.append(self.file.read(min(n, size)))
            n -= min(n, size)
            if len(parts[-1]) < size:
                self.left.insert(0, (start + len(parts[-1]), size - len(parts[-1])))
        return b"".join(parts)


# --- writing
# ---------------------------------------------------------------------------------------


def write(
    file: BinaryIO, tensors: Mapping[str, Tensor], read: Read, about: Mapping[str, Any]
) -> None:
    """Writes what `flax.serialization.msgpack_serialize` would, reading one tensor at a time."""
    check(tensors)
    tree: Any = {}
    for path, tensor in tensors.items():
        place = tree
        for key in tensor.keys[:-1]:
            place = place.setdefault(key, {})
        place[tensor.keys[-1]] = path
    _node(file, tree, tensors, read)


def check(tensors: Mapping[str, Tensor]) -> None:
    """Refuses what the format cannot hold."""
    t.check_tree(tensors.values(), _why_not)


def _why_not(tensor: Tensor) -> str:
    if CHUNKED in tensor.keys:
        return f"the key {CHUNKED} is reserved in Flax's msgpack: restore to another format"
    return "" if len(tensor.shape) <= MAX_AXES else f"Flax's msgpack has at most {MAX_AXES} axes"


def _node(file: BinaryIO, x: Any, tensors: Mapping[str, Tensor], read: Read) -> None:
    if isinstance(x, dict):
        _map(file, len(x))
        for key, kid in x.items():
            file.write(msgspec.msgpack.encode(key))
            _node(file, kid, tensors, read)
    elif tensors[x].nbytes <= MAX_CHUNK:
        _array(file, tensors[x], lambda: read(x))
    else:
        _chunked(file, tensors[x], read(x))


def _map(file: BinaryIO, n: int) -> None:
    file.write(
        bytes([0x80 | n])
        if n < 16
        else struct.pack(">BH", 0xDE, n)
        if n < 1 << 16
        else struct.pack(">BI", 0xDF, n)
    )


def _array(file: BinaryIO, tensor: Tensor, read: Any) -> None:
    """An extension: its length comes before what it holds."""
    plain = msgspec.msgpack.encode
    head = b"\x93" + plain(tensor.shape) + plain(tensor.dtype.name) + _sized(0xC4, tensor.nbytes)
    n = len(head) + tensor.nbytes
    fixed = {1 << i: bytes([0xD4 + i]) for i in range(5)}
    file.write(fixed.get(n) or _sized(0xC7, n))
    file.write(bytes([ARRAY]) + head)
    t.write(read(), file.write)


def _sized(tag: int, n: int) -> bytes:
    """The length of some bytes, in 1, 2 or 4 bytes after a tag of its own."""
    if n < 1 << 8:
        return struct.pack(">BB", tag, n)
    return struct.pack(">BH", tag + 1, n) if n < 1 << 16 else struct.pack(">BI", tag + 2, n)


def _chunked(file: BinaryIO, tensor: Tensor, x: np.ndarray) -> None:
    flat = x.reshape(-1)
    step = max(1, MAX_CHUNK // x.dtype.itemsize)
    starts = range(0, flat.size, step)
    _map(file, 3)
    file.write(msgspec.msgpack.encode(CHUNKED) + b"\xc3" + msgspec.msgpack.encode("shape"))
    file.write(
        msgspec.msgpack.encode({str(i): n for i, n in enumerate(x.shape)})
        + msgspec.msgpack.encode("chunks")
    )
    _map(file, len(starts))
    for i, start in enumerate(starts):
        part = flat[start : start + step]
        file.write(msgspec.msgpack.encode(str(i)))
        _array(file, Tensor((), part.shape, part.dtype), lambda part=part: part)
