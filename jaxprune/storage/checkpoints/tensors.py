"""What all formats of checkpoints share: tensors by path, reading and writing them in blocks, and refusals.

A checkpoint is a tree of dicts whose leaves are arrays. A name with "/" in it is split there, as Flax's tools join the
keys of nested dicts; if that makes no tree, each name is one key. PyTorch's "layer1.0.conv1.weight" is one key.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes  # noqa: F401  (gives NumPy the names of bfloat16, float8 and int4)
import numpy as np

from jaxprune.storage.format import CODE_OF, MAX_DEPTH, MAX_RANK, MAX_SIZE, FormatError, join

MAX_NAME = 1 << 12  # letters of a tensor's name
BLOCK = 1 << 22  # bytes read or written at a time

Keys = tuple[str, ...]
Shape = tuple[int, ...]
Read = Callable[..., np.ndarray]  # (path, into=None) -> the array, in `into` if that is given


class Tensor(NamedTuple):
    """One array of a checkpoint, unread."""

    keys: Keys
    shape: Shape
    dtype: np.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def name(self) -> str:
        """The keys as one name, as files of named tensors have them."""
        return "/".join(self.keys)


class Checkpoint(NamedTuple):
    """An open checkpoint: its tensors by path, sorted by keys, and how to read one.

    Attributes:
      kind: the name of the format.
      tensors: path -> what is there.
      read: (path, into=None) -> the array; `into`, of its shape and dtype, may be a transposed view.
      notes: what was assumed or left out, in words.
      about: what the format says about the whole, to be written back: the metadata of a safetensors file.
    """

    kind: str
    tensors: Mapping[str, Tensor]
    read: Read
    notes: tuple[str, ...] = ()
    about: Mapping[str, Any] = {}


def by_path(tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    """Tensors by path, sorted by keys: the order in which a file of nested dicts has them."""
    found = sorted(tensors, key=lambda t: t.keys)
    named = {join(t.keys): t for t in found}
    if len(named) != len(found):
        raise FormatError("two of its arrays have one path")
    return named


def split_names(names: Iterable[str]) -> dict[str, Keys]:
    """The keys of each name: split at "/" if all are then leaves of a tree of dicts."""
    names = list(names)
    for name in names:
        if len(name) > MAX_NAME or name.count("/") >= MAX_DEPTH:
            raise FormatError(
                f"the name {name[:40]!r}… has {len(name)} letters and {name.count('/')} slashes; at most {MAX_NAME} "
                f"letters and {MAX_DEPTH} levels are read"
            )
    split = {name: tuple(name.split("/")) for name in names}
    inner = {keys[:i] for keys in split.values() for i in range(1, len(keys))}
    if any(keys in inner or not all(keys) for keys in split.values()):
        return {name: (name,) for name in split}
    return split


# --- arrays in blocks ------------------------------------------------------------------------------------------------


def blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    """Views of at most some megabytes that cover x in C order, whatever its strides."""
    if x.nbytes <= BLOCK or x.ndim == 0:
        yield x
        return
    step = BLOCK * len(x) // x.nbytes
    parts = (x[i : i + step] for i in range(0, len(x), step)) if step else (y for row in x for y in blocks(row))
    yield from parts


def fill(into: np.ndarray, read: Callable[[int], bytes]) -> np.ndarray:
    """`into`, with the next bytes of a stream in C order, little endian."""
    for block in blocks(into):
        octets = exactly(read, block.nbytes)
        stored = block.dtype.newbyteorder("<") if block.dtype.kind not in "Vb" else block.dtype
        block[...] = np.frombuffer(octets, stored).reshape(block.shape)
    return into


def write(x: np.ndarray, into: Callable[[Any], Any]) -> None:
    """The bytes of x in C order, little endian."""
    for block in blocks(x):
        little = block.astype(block.dtype.newbyteorder("<"), copy=False) if block.dtype.kind not in "Vb" else block
        into(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)


def placed(x: np.ndarray, into: np.ndarray | None) -> np.ndarray:
    """x, or `into` with the values of x."""
    if into is None:
        return x
    into[...] = x
    return into


def exactly(read: Callable[[int], bytes], n: int) -> bytes:
    """n bytes of a stream."""
    octets = read(n)
    if len(octets) != n:
        raise FormatError(f"it ends {n - len(octets)} bytes early: the file is truncated")
    return octets


# --- refusals --------------------------------------------------------------------------------------------------------


def checked(keys: Keys, shape: Any, dtype: np.dtype) -> Tensor:
    """The tensor, if this library can hold it."""
    name = "/".join(keys)
    if len(shape) > MAX_RANK:
        raise FormatError(f"{name[:80]!r} says that it has {len(shape)} axes; {MAX_RANK} are read at most")
    if not all(type(n) is int and n >= 0 for n in shape) or math.prod(max(1, n) for n in shape) > MAX_SIZE:
        raise FormatError(f"{name[:80]!r} says that its shape is {str(list(shape))[:200]}")
    if dtype.name not in CODE_OF:
        raise FormatError(f"{name!r} holds {_what(dtype)}, which is no dtype of JAX's arrays: convert it first")
    return Tensor(keys, tuple(shape), dtype.newbyteorder("="))


def _what(dtype: np.dtype) -> str:
    return {"O": "Python objects (a pickle; never read)", "U": "text", "S": "bytes"}.get(dtype.kind, str(dtype))


def check_names(tensors: Iterable[Tensor], holds: Callable[[Tensor], str]) -> None:
    """Refuses what a format cannot hold, before anything is written; `holds` gives the reason, or ""."""
    seen: set[str] = set()
    for tensor in tensors:
        reason = holds(tensor) or (f"two arrays are named {tensor.name!r}" if tensor.name in seen else "")
        if reason:
            raise ValueError(f"{tensor.name!r}: {reason}")
        seen.add(tensor.name)


def leads_out(tensor: Tensor) -> bool:
    """Whether a name is no plain path below a folder: it has "..", a root, a backslash or a NUL."""
    parts = tensor.name.split("/")
    return any(p in ("", ".", "..") or "\\" in p or "\0" in p or p[1:2] == ":" for p in parts)


def size_of(file: BinaryIO) -> int:
    """Bytes of an open file."""
    here = file.tell()
    end = file.seek(0, 2)
    file.seek(here)
    return end
