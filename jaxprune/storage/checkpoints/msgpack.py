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
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import msgspec
import numpy as np

from jaxprune.numerics.streamed import empty
from jaxprune.storage.checkpoints import bounds
from jaxprune.storage.checkpoints.bounds import quoted
from jaxprune.storage.checkpoints.msgpack_walker import ARRAY, Piece, Walker
from jaxprune.storage.checkpoints.tensors import (
    Checkpoint,
    Keys,
    Read,
    Tensor,
    by_path,
    check_tensor,
    check_tree,
    fill,
    size_of,
    write_array,
)
from jaxprune.storage.format.manifest import open_regular
from jaxprune.storage.format.words import FormatError

MAX_CHUNK = 2**30  # bytes of one array, Flax's limit
CHUNKED = "__msgpack_chunked_array__"
MAX_AXES = 15  # of a list whose length stands in its first byte
PLAIN = (bool, int, float)
FIXED_EXTENSIONS = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}  # length -> tag

encode = msgspec.msgpack.encode


@contextlib.contextmanager
def opened(path: Any) -> Iterator[Checkpoint]:
    """The checkpoint of a msgpack file."""
    with open_regular(path) as file:
        tree = Walker(file, size_of(file)).tree()
        if not isinstance(tree, dict):
            raise FormatError(
                "it is msgpack, but no map of names: what flax.serialization.to_bytes writes is "
                "read"
            )
        nodes = list(_flatten(tree, ()))
        leaves = {keys: node for keys, node in nodes if _is_leaf(node)}
        notes = [_left_out(keys, node) for keys, node in nodes if not _is_leaf(node)]
        tensors = by_path(_tensor(keys, leaf) for keys, leaf in leaves.items())

        def read(path: str, into: np.ndarray | None = None) -> np.ndarray:
            tensor = tensors[path]
            array = empty(tensor.shape, tensor.dtype) if into is None else into
            leaf = leaves[tensor.keys]
            if isinstance(leaf, PLAIN):
                array[...] = leaf
                return array
            pieces = _as_sequence(leaf["chunks"]) if isinstance(leaf, dict) else [leaf]
            return fill(array, _PieceReader(file, pieces).read)

        yield Checkpoint("msgpack", tensors, read, tuple(notes))


def _flatten(node: Any, keys: Keys) -> Iterator[tuple[Keys, Any]]:
    """What is below a node, arrays or not, with its keys."""
    if isinstance(node, dict) and node and node.get(CHUNKED) is not True:
        for key, child in node.items():
            yield from _flatten(child, (*keys, key))
    else:
        yield keys, node


def _is_leaf(node: Any) -> bool:
    """Whether this is an array or a number."""
    return isinstance(node, (Piece, *PLAIN)) or (isinstance(node, dict) and len(node) > 0)


def _left_out(keys: Keys, node: Any) -> str:
    """The note about what is no array."""
    what = "text"
    if node == {}:
        what = "an empty dict"
    elif node is None:
        what = "nothing (None)"
    return f"{quoted('/'.join(keys))[1:-1] or 'the tree'} is {what}, and is left out"


def _tensor(keys: Keys, leaf: Any) -> Tensor:
    if isinstance(leaf, PLAIN):
        return Tensor(keys, (), np.asarray(leaf).dtype)
    if isinstance(leaf, Piece):
        return check_tensor(keys, leaf.shape, leaf.dtype)
    shape = _as_sequence(leaf.get("shape"))
    chunks = _as_sequence(leaf.get("chunks"))
    name = "/".join(keys)
    if not _are_flat(chunks) or math.prod(bounds.check_shape(name, shape)) != sum(
        x.shape[0] for x in chunks
    ):
        raise FormatError(f"{quoted(name)} is a chunked array whose chunks do not fit its shape")
    return check_tensor(keys, shape, chunks[0].dtype)


def _are_flat(chunks: Sequence[Any]) -> bool:
    """Whether these are arrays of one axis and one dtype, one at least."""
    dtypes = {chunk.dtype for chunk in chunks if isinstance(chunk, Piece) and len(chunk.shape) == 1}
    return len(dtypes) == 1 and all(
        isinstance(chunk, Piece) and len(chunk.shape) == 1 for chunk in chunks
    )


def _as_sequence(node: Any) -> tuple[Any, ...]:
    """{"0": a, "1": b} as (a, b); () of anything else."""
    if not isinstance(node, dict):
        return ()
    keys = [str(i) for i in range(len(node))]
    if not all(key in node for key in keys):
        return ()
    return tuple(node[key] for key in keys)


class _PieceReader:
    """Pieces of a file as one stream."""

    def __init__(self, file: BinaryIO, pieces: Sequence[Piece]):
        self._file = file
        self._spans = [(piece.start, piece.nbytes) for piece in pieces]  # (start, bytes) left

    def read(self, count: int) -> bytes:
        """The next bytes; fewer at the end."""
        parts = []
        while count and self._spans:
            start, size = self._spans.pop(0)
            self._file.seek(start)
            part = self._file.read(min(count, size))
            parts.append(part)
            count -= min(count, size)
            if len(part) < size:
                self._spans.insert(0, (start + len(part), size - len(part)))
        return b"".join(parts)


# --- writing
# ---------------------------------------------------------------------------------------


def write(
    file: BinaryIO, tensors: Mapping[str, Tensor], read: Read, about: Mapping[str, Any]
) -> None:
    """Writes what `flax.serialization.msgpack_serialize` would, reading one tensor at a time."""
    check(tensors)
    paths: Any = {}  # the tree, with paths for leaves
    for path, tensor in tensors.items():
        parent = paths
        for key in tensor.keys[:-1]:
            parent = parent.setdefault(key, {})
        parent[tensor.keys[-1]] = path
    _write_node(file, paths, tensors, read)


def check(tensors: Mapping[str, Tensor]) -> None:
    """Refuses what the format cannot hold."""
    check_tree(tensors.values(), _why_not)


def _why_not(tensor: Tensor) -> str:
    if CHUNKED in tensor.keys:
        return f"the key {CHUNKED} is reserved in Flax's msgpack: restore to another format"
    return "" if len(tensor.shape) <= MAX_AXES else f"Flax's msgpack has at most {MAX_AXES} axes"


def _write_node(file: BinaryIO, node: Any, tensors: Mapping[str, Tensor], read: Read) -> None:
    """Writes a dict of nodes, or the array of a path."""
    if isinstance(node, dict):
        _write_map_head(file, len(node))
        for key, child in node.items():
            file.write(encode(key))
            _write_node(file, child, tensors, read)
        return
    tensor = tensors[node]
    if tensor.nbytes > MAX_CHUNK:
        _write_chunked(file, read(node))
        return
    _write_array_head(file, tensor)
    write_array(read(node), file.write)


def _write_chunked(file: BinaryIO, array: np.ndarray) -> None:
    """Writes an array in flat chunks."""
    flat = array.reshape(-1)
    step = max(1, MAX_CHUNK // array.dtype.itemsize)
    starts = range(0, flat.size, step)
    _write_map_head(file, 3)
    file.write(encode(CHUNKED) + encode(True))
    file.write(encode("shape") + encode({str(i): n for i, n in enumerate(array.shape)}))
    file.write(encode("chunks"))
    _write_map_head(file, len(starts))
    for i, start in enumerate(starts):
        chunk = flat[start : start + step]
        file.write(encode(str(i)))
        _write_array_head(file, Tensor((), chunk.shape, chunk.dtype))
        write_array(chunk, file.write)


def _write_array_head(file: BinaryIO, tensor: Tensor) -> None:
    """Writes all of an array's extension but the bytes of the array: its length comes first."""
    head = b"\x93" + encode(tensor.shape) + encode(tensor.dtype.name)
    head += _tagged_length(0xC4, tensor.nbytes)
    length = len(head) + tensor.nbytes
    if length in FIXED_EXTENSIONS:
        file.write(bytes([FIXED_EXTENSIONS[length]]))
    else:
        file.write(_tagged_length(0xC7, length))
    file.write(bytes([ARRAY]) + head)


def _write_map_head(file: BinaryIO, length: int) -> None:
    if length < 16:
        file.write(bytes([0x80 | length]))
    elif length < 1 << 16:
        file.write(struct.pack(">BH", 0xDE, length))
    else:
        file.write(struct.pack(">BI", 0xDF, length))


def _tagged_length(tag: int, length: int) -> bytes:
    """The length of some bytes, in 1, 2 or 4 bytes after a tag that says which."""
    if length < 1 << 8:
        return struct.pack(">BB", tag, length)
    if length < 1 << 16:
        return struct.pack(">BH", tag + 1, length)
    return struct.pack(">BI", tag + 2, length)
