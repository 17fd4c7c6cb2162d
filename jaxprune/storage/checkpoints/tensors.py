"""What all formats of checkpoints share: tensors by path, reading and writing them in blocks, and
refusals.

A checkpoint is a tree of dicts whose leaves are arrays. A name with "/" in it is split there, as
Flax's tools join the keys of nested dicts; if that makes no tree, each name is one key. PyTorch's
"layer1.0.conv1.weight" is one key.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes  # noqa: F401  (gives NumPy the names of bfloat16, float8 and int4)
import numpy as np

from jaxprune.storage.checkpoints import bounds
from jaxprune.storage.format.words import MAX_DEPTH, FormatError, join

BLOCK = 1 << 22  # bytes read or written at a time

Keys = tuple[str, ...]
Shape = tuple[int, ...]
Read = Callable[..., np.ndarray]  # (path, into=None) -> the array, in `into` if that is given
ReadBytes = Callable[[int], bytes]


class Tensor(NamedTuple):
    """One array of a checkpoint, unread."""

    keys: Keys
    shape: Shape
    dtype: np.dtype
    boxed: bool = (
        False  # on disk it is the one child, `value`, of its last key, as NNX's variables are
    )

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.size * self.dtype.itemsize

    @property
    def name(self) -> str:
        """The keys as one name, as files of named tensors have them."""
        return "/".join(self.keys)


class Checkpoint(NamedTuple):
    """An open checkpoint: its tensors by path, sorted by keys, and how to read one.

    Attributes:
      kind: the name of the format.
      tensors: path -> shape, dtype and keys.
      read: (path, into=None) -> the array; `into`, of its shape and dtype, may be a transposed
        view.
      notes: what was assumed or left out, in words.
      about: what the format says about the whole, to be written back: the metadata of a safetensors
        file.
      memory_of: path -> bytes that reading it takes, where that is more than the array itself.
    """

    kind: str
    tensors: Mapping[str, Tensor]
    read: Read
    notes: tuple[str, ...] = ()
    about: Mapping[str, Any] = {}
    memory_of: Callable[[str], int] | None = None

    def memory(self, path: str) -> int:
        """Bytes that reading one array takes."""
        if self.memory_of is None:
            return self.tensors[path].nbytes
        return self.memory_of(path)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, dense."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def by_path(tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    """Tensors by path, sorted by keys: the order in which a file of nested dicts has them."""
    ordered = sorted(tensors, key=lambda tensor: tensor.keys)
    named = {join(tensor.keys): tensor for tensor in ordered}
    if len(named) != len(ordered):
        raise FormatError("two of its arrays have one path")
    return named


def split_names(names: Iterable[str]) -> dict[str, Keys]:
    """The keys of each name: split at "/" if all are then leaves of a tree of dicts."""
    names = list(names)
    bounds.check_names(names)
    split = {name: tuple(name.split("/")) for name in names}
    if _is_tree(split.values()):
        return split
    return {name: (name,) for name in names}


def _is_tree(leaves: Collection[Keys]) -> bool:
    """Whether keys are those of the leaves of nested dicts: none is empty, none leads to another
    leaf."""
    # Whatever begins with a leaf's keys stands right behind it when all are sorted.
    ordered = sorted(leaves)
    for keys, next_keys in itertools.pairwise(ordered):
        if next_keys[: len(keys)] == keys:
            return False
    return all(key for keys in ordered for key in keys)


# --- arrays in blocks
# ---------------------------------------------------------------------------------------


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Views of at most some megabytes that cover an array in C order, whatever its strides."""
    if array.nbytes <= BLOCK or array.ndim == 0:
        yield array
        return
    step = BLOCK * len(array) // array.nbytes
    if step == 0:
        for row in array:
            yield from blocks(row)
        return
    for start in range(0, len(array), step):
        yield array[start : start + step]


def fill(array: np.ndarray, read: ReadBytes) -> np.ndarray:
    """The array, with the next bytes of a stream in C order, little endian."""
    for block in blocks(array):
        data = read_exactly(read, block.nbytes)
        block[...] = np.frombuffer(data, _little_endian(block.dtype)).reshape(block.shape)
    return array


def write_array(array: np.ndarray, write: Callable[[Any], Any]) -> None:
    """Writes the bytes of an array in C order, little endian."""
    for block in blocks(array):
        little = block.astype(_little_endian(block.dtype), copy=False)
        write(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)


def _little_endian(dtype: np.dtype) -> np.dtype:
    """A dtype in the files' order of bytes; ml_dtypes' and bool have none."""
    return dtype if dtype.kind in "Vb" else dtype.newbyteorder("<")


def placed(array: np.ndarray, into: np.ndarray | None) -> np.ndarray:
    """The array, or `into` with its values."""
    if into is None:
        return array
    into[...] = array
    return into


def read_exactly(read: ReadBytes, count: int) -> bytes:
    """The next bytes of a stream."""
    data = read(count)
    if len(data) != count:
        raise FormatError(f"it ends {count - len(data)} bytes early: the file is truncated")
    return data


def size_of(file: BinaryIO) -> int:
    """Bytes of an open file."""
    position = file.tell()
    size = file.seek(0, 2)
    file.seek(position)
    return size


# --- refusals
# ---------------------------------------------------------------------------------------


def check_tensor(keys: Keys, shape: Any, dtype: np.dtype, boxed: bool = False) -> Tensor:
    """The tensor, if this library can hold it."""
    name = "/".join(keys)
    return Tensor(keys, bounds.check_shape(name, shape), bounds.check_dtype(name, dtype), boxed)


def check_tree(tensors: Iterable[Tensor], why_not: Callable[[Tensor], str]) -> None:
    """Refuses what a format of nested dicts cannot hold, before it is written.

    Args:
      tensors: all that are to be written.
      why_not: the reason why the format cannot hold one, or "".
    """
    for tensor in tensors:
        reason = _why_no_leaf(tensor) or why_not(tensor)
        if reason:
            raise ValueError(f"{bounds.quoted(tensor.name)}: {reason}")


def _why_no_leaf(tensor: Tensor) -> str:
    """Why no format can hold a tensor; "" when some can."""
    if not tensor.keys:
        return "it is one array without a name: put it in a dict"
    if len(tensor.keys) > MAX_DEPTH:
        return f"it has more than {MAX_DEPTH} keys"
    for key in tensor.keys:
        reason = bounds.why_bad_name(key.replace("/", "|"))
        if reason:
            return reason
    return ""


def check_names(tensors: Collection[Tensor], why_not: Callable[[Tensor], str]) -> None:
    """The same for a format whose arrays have one name each: read back, the names must give the
    same keys."""
    check_tree(tensors, why_not)
    names = [tensor.name for tensor in tensors]
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(
                f"two arrays are named {bounds.quoted(name)}: restore to .msgpack, which has "
                f"nested keys"
            )
    try:
        keys_read_back = split_names(names)
    except FormatError as e:
        raise ValueError(f"{e}: restore to another format") from None
    for tensor in tensors:
        keys = keys_read_back[tensor.name]
        if keys != tensor.keys:
            raise ValueError(
                f"{bounds.quoted(tensor.name)}: its keys {bounds.quoted(tensor.keys)} would come "
                f"back as {bounds.quoted(keys)}: restore to .msgpack, which has nested keys"
            )


def leads_out(tensor: Tensor) -> bool:
    """Whether a name is no plain path below a folder: it has "..", a root, a backslash or a NUL."""
    for part in tensor.name.split("/"):
        if part in ("", ".", "..") or "\\" in part or "\0" in part or part[1:2] == ":":
            return True
    return False
