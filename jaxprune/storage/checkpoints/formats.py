"""Opening and writing any checkpoint: what a file holds tells its format; one to be written has
that of its suffix."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxprune.storage import limits
from jaxprune.storage.atomic import replacing
from jaxprune.storage.checkpoints import foreign, msgpack, npy, npz, orbax, own, safetensors, shards
from jaxprune.storage.checkpoints.bounds import quoted
from jaxprune.storage.checkpoints.tensors import Checkpoint, Read, Tensor
from jaxprune.storage.format.manifest import open_regular
from jaxprune.storage.format.words import FormatError

READ = {
    "jaxprune": own.opened,
    "safetensors": safetensors.opened,
    "shards": shards.opened,
    "npz": npz.opened,
    "npy": npy.opened,
    "msgpack": msgpack.opened,
    "orbax": orbax.opened,
}
WRITE = {".safetensors": safetensors.write, ".npz": npz.write, ".msgpack": msgpack.write}
MAP_HEADS = {0xDE: 3, 0xDF: 5}  # tag of a map of msgpack -> bytes before its first key
KNOWN = (
    "a .safetensors file, a folder of them or its index, a .npz, .npy or Flax .msgpack file, an "
    "Orbax folder, or a file of jaxprune's"
)


@contextlib.contextmanager
def open_checkpoint(path: Any, max_bytes: int | None = None) -> Iterator[Checkpoint]:
    """Opens a checkpoint of any format that is known; its arrays are read one by one, when they are
    asked for.

    Args:
      path: a file or a folder.
      max_bytes: the most that reading one array may take; by default `limits.allowance` of the size
        on the disk.

    Raises:
      FormatError: it is of no known format, damaged or truncated, or an array is too large; with
        the path.
      OSError: it cannot be opened.

    Example:
      >>> import numpy as np, os, tempfile
      >>> path = os.path.join(tempfile.mkdtemp(), "model.npz")
      >>> np.savez(path, **{"params/dense/kernel": np.eye(2)})
      >>> with open_checkpoint(path) as checkpoint:
      ...     print(checkpoint.kind, list(checkpoint.tensors),
      ...     checkpoint.read("params/dense/kernel")[1])
      npz ['params/dense/kernel'] [0. 1.]
    """
    with contextlib.ExitStack() as stack:
        with _naming(path):
            checkpoint = stack.enter_context(READ[kind_of(path)](path))
        if max_bytes is None:
            max_bytes = limits.allowance(_size_on_disk(path))

        def read(leaf: str, into: np.ndarray | None = None) -> np.ndarray:
            with _naming(path):
                limits.afford(f"{quoted(leaf)} takes", checkpoint.memory(leaf), max_bytes)
                return checkpoint.read(leaf, into)

        yield checkpoint._replace(read=read)


def _size_on_disk(path: Any) -> int:
    """Bytes of a file; of a folder, or of the folder of an index, those of all files in it."""
    path = os.fspath(path)
    if path.endswith(shards.INDEX):
        path = os.path.dirname(path) or "."
    if not os.path.isdir(path):
        return os.path.getsize(path)
    size = 0
    for folder, _, names in os.walk(path):
        for name in names:
            file = os.path.join(folder, name)
            if os.path.exists(file):  # a link may lead nowhere
                size += os.path.getsize(file)
    return size


@contextlib.contextmanager
def _naming(path: Any) -> Iterator[None]:
    """An error says of which file it is: of two that are open, the one that was read."""
    try:
        yield
    except FormatError as e:
        raise FormatError(f"{os.fspath(path)}: {e}") from None


def kind_of(path: Any) -> str:
    """The format of a checkpoint, from its first bytes: suffixes lie."""
    name = os.fspath(path)
    if name.endswith(shards.INDEX) and os.path.isfile(path):
        return "shards"
    if os.path.isdir(path):
        is_sharded = not orbax.is_checkpoint(name) and shards.is_sharded(name)
        return "shards" if is_sharded else "orbax"
    with open_regular(path) as file:
        first = file.read(foreign.FIRST)
        file.seek(max(0, os.fstat(file.fileno()).st_size - 8))
        last = file.read(8)
    if first[:2] == b"PK":
        return "npz"
    if first[:6] == npy.MAGIC:
        return "npy"
    if first[8:9] == b"{" and first[6:8] == b"\0\0":
        return "jaxprune" if own.is_own(first) else "safetensors"
    foreign_kind = foreign.of_file(first, last)
    if foreign_kind:
        raise FormatError(foreign_kind)
    if _is_map(first):
        return "msgpack"
    if name.endswith(".msgpack"):
        raise FormatError(str(foreign.MSGPACK))
    raise FormatError(f"this is none of the formats that are known: {KNOWN}")


def _is_map(first: bytes) -> bool:
    """Whether these are the first bytes of a map of msgpack that has texts for keys, or of an empty
    one."""
    if not first:
        return False
    if 0x80 <= first[0] <= 0x8F:
        head = 1
    elif first[0] in MAP_HEADS:
        head = MAP_HEADS[first[0]]
    else:
        return False
    if len(first) <= head:
        return True
    key = first[head]
    return 0xA0 <= key <= 0xBF or 0xD9 <= key <= 0xDB


def write_checkpoint(
    path: Any,
    tensors: Mapping[str, Tensor],
    read: Read,
    about: Mapping[str, Any],
    *,
    shard_bytes: int | None = None,
) -> None:
    """Writes a checkpoint in the format of the suffix, reading one tensor at a time; whole, or not
    at all.

    Args:
      path: ends in .safetensors, .npz or .msgpack; without a suffix it is a folder for Orbax, which
        holds all tensors in memory.
      tensors: path -> shape and dtype, as of an open checkpoint.
      read: path -> array.
      about: metadata of the whole, for formats that have some.
      shard_bytes: write a folder of safetensors shards of at most so many bytes instead.

    Raises:
      ValueError: an unknown suffix; a name or a dtype that the format cannot hold, before anything
        is written.
    """
    if shard_bytes is not None:
        shards.write(path, tensors, read, about, shard_bytes)
        return
    format_of(path)
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if not suffix:
        orbax.write(path, tensors, read, about)
        return
    with replacing(path) as file:
        WRITE[suffix](file, tensors, read, about)


def format_of(path: Any) -> str:
    """The suffix of a checkpoint to be written, if it is known; "" is Orbax."""
    suffix = os.path.splitext(os.fspath(path).rstrip(os.sep))[1].lower()
    if suffix and suffix not in WRITE:
        raise ValueError(
            f"{os.fspath(path)}: unknown suffix {suffix}. Known: {', '.join(WRITE)}; none is Orbax"
        )
    return suffix
