"""Opening and writing any checkpoint: what a file holds tells its format; one to be written has that of its suffix."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from jaxprune.storage import atomic
from jaxprune.storage.checkpoints import msgpack, npz, orbax, own, safetensors, shards
from jaxprune.storage.checkpoints.tensors import Checkpoint, Read, Tensor
from jaxprune.storage.format import FormatError
from jaxprune.storage.manifest import open_regular

READ = {
    "jaxprune": own.opened,
    "safetensors": safetensors.opened,
    "npz": npz.opened,
    "msgpack": msgpack.opened,
    "orbax": orbax.opened,
    "shards": shards.opened,
}
WRITE = {".safetensors": safetensors.write, ".npz": npz.write, ".msgpack": msgpack.write}
KNOWN = "a .safetensors (or a folder of shards), .npz or Flax .msgpack file, an Orbax folder, or a file of jaxprune's"


FOREIGN = {
    b"\x89HDF\r\n": "this is HDF5 (.h5, Keras): read it with h5py or Keras, and np.savez its arrays",
    b"GGUF": "this is GGUF (llama.cpp), whose weights are quantised already: convert the model it was made from",
    b"\x93NUMPY": "this is one .npy array: give it a name, as np.savez(file, kernel=np.load(…))",
    b"\x08": "this may be ONNX: read it with the onnx package, and np.savez its initializers",
    b"TFL3": "this is TensorFlow Lite: convert the model it was made from",
}


@contextlib.contextmanager
def open_checkpoint(path: Any) -> Iterator[Checkpoint]:
    """Opens a checkpoint of any format that is known; its arrays are read one by one, when they are asked for.

    Raises:
      FormatError: it is of no known format, damaged or truncated; with the path.
      OSError: it cannot be opened.

    Example:
      >>> import numpy as np, os, tempfile
      >>> path = os.path.join(tempfile.mkdtemp(), "model.npz")
      >>> np.savez(path, **{"params/dense/kernel": np.eye(2)})
      >>> with open_checkpoint(path) as checkpoint:
      ...     print(checkpoint.kind, list(checkpoint.tensors), checkpoint.read("params/dense/kernel")[1])
      npz ['params/dense/kernel'] [0. 1.]
    """
    with contextlib.ExitStack() as stack:
        with _naming(path):
            checkpoint = stack.enter_context(READ[kind_of(path)](path))

        def read(leaf: str, into: Any = None) -> Any:
            with _naming(path):
                return checkpoint.read(leaf, into)

        yield checkpoint._replace(read=read)


@contextlib.contextmanager
def _naming(path: Any) -> Iterator[None]:
    """An error says of which file it is: of two that are open, the one that was read."""
    try:
        yield
    except FormatError as e:
        raise FormatError(f"{os.fspath(path)}: {e}") from None


def kind_of(path: Any) -> str:
    """The format of a checkpoint, from its first bytes: suffixes lie."""
    if shards.is_sharded(path):
        return "shards"
    if os.path.isdir(path):
        return "orbax"
    with open_regular(path) as file:
        first = file.read(64)
    if first[:2] == b"PK":
        return "npz"
    if first[:1] == b"\x80" and 2 <= (first[1] if len(first) > 1 else 0) <= 5:
        raise FormatError("this is a pickle, which is never read. Save it as .safetensors, .npz or .msgpack")
    if first[8:9] == b"{" and first[6:8] == b"\0\0":
        return "jaxprune" if own.is_own(first) else "safetensors"
    if _is_map(first):
        return "msgpack"
    foreign = next((text for start, text in FOREIGN.items() if first.startswith(start)), None)
    raise FormatError(foreign or f"this is none of the formats that are known: {KNOWN}")


def _is_map(first: bytes) -> bool:
    """Whether these are the first bytes of a map of msgpack that has texts for keys, or of an empty one."""
    if not first or not (first[0] & 0xF0 == 0x80 or first[0] in (0xDE, 0xDF)):
        return False
    key = first[{0xDE: 3, 0xDF: 5}.get(first[0], 1) :][:1]
    return not key or key[0] & 0xE0 == 0xA0 or key[0] in (0xD9, 0xDA, 0xDB)


def write_checkpoint(path: Any, tensors: Mapping[str, Tensor], read: Read, about: Mapping[str, Any]) -> None:
    """Writes a checkpoint in the format of the suffix, reading one tensor at a time; whole, or not at all.

    Args:
      path: ends in .safetensors, .npz or .msgpack; without a suffix it is a folder for Orbax, which holds all tensors
        in memory.
      tensors: path -> shape and dtype, as of an open checkpoint.
      read: path -> array.
      about: metadata of the whole, for formats that have some.

    Raises:
      ValueError: an unknown suffix; a name or a dtype that the format cannot hold, before anything is written.
    """
    format_of(path)
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if not suffix:
        orbax.write(path, tensors, read, about)
        return
    with atomic.replacing(path) as file:
        WRITE[suffix](file, tensors, read, about)


def format_of(path: Any) -> str:
    """The suffix of a checkpoint to be written, if it is known; "" is Orbax."""
    suffix = os.path.splitext(os.fspath(path).rstrip(os.sep))[1].lower()
    if suffix and suffix not in WRITE:
        raise ValueError(f"{os.fspath(path)}: unknown suffix {suffix}. Known: {', '.join(WRITE)}; none is Orbax")
    return suffix
