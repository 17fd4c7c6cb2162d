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


class Tensor(NamedTuple):
    """One array of a checkpoint, unread."""

    keys: Keys
    shape: Shape
    dtype: np.dtype
    boxed: bool = (
        False  # on disk the array is the one child of its last key, `value`, as NNX's variables are
    )

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
      read: (path, into=None) -> the array; `into`, of its shape and dtype, may be a transposed
        view.
      notes: what was assumed or left out, in words.
      about: what the format says about the whole, to be written back: the metadata of a safetensors
        file.
      needs: path -> bytes that reading it takes, where that is more than the array itself.
    """

    kind: str
    tensors: Mapping[str, Tensor]
    read: Read
    notes: tuple[str, ...] = ()
    about: Mapping[str, Any] = {}
    needs: Callable[[str], int] | None = None

    def memory(self, path: str) -> int:
        """Bytes that reading one array takes."""
        return self.tensors[path].nbytes if self.needs is None else self.needs(path)


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
    bounds.check_names(names)
    split = {name: tuple(name.split("/")) for name in names}
    return split if _is_tree(split.values()) else {name: (name,) for name in split}


def _is_tree(leaves: Collection[Keys]) -> bool:
    """Whether keys are those of the leaves of nested dicts: none is empty, and none leads to
    another leaf.
    """
    # Whatever begins with a leaf's keys stands right behind it when all are sorted.
    ordered = sorted(leaves)
    below = any(after[: len(keys)] == keys for keys, after in itertools.pairwise(ordered))
    return not below and all(key for keys in ordered for key in keys)


# --- arrays in blocks
# ---------------------------------------------------------------------------------------


def blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    """Views of at most some megabytes that cover x in C order, whatever its strides."""
    if x.nbytes <= BLOCK or x.ndim == 0:
        yield x
        return
    step = BLOCK * len(x) // x.nbytes
    parts = (
        (x[i : i + step] for i in range(0, len(x), step))
        if step
        else (y for row in x for y in blocks(row))
    )
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
        little = (
            block.astype(block.dtype.newbyteorder("<"), copy=False)
            if block.dtype.kind not in "Vb"
            else block
        )
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


# --- refusals
# ---------------------------------------------------------------------------------------


def checked(keys: Keys, shape: Any, dtype: np.dtype, boxed: bool = False) -> Tensor:
    """The tensor, if this library can hold it."""
    name = "/".join(keys)
    return Tensor(keys, bounds.check_shape(name, shape), bounds.check_dtype(name, dtype), boxed)


def check_tree(tensors: Iterable[Tensor], holds: Callable[[Tensor], str]) -> None:
    """Refuses what a format of nested dicts cannot hold, before it is written; `holds` gives the
    reason, or "".
    """
    for tensor in tensors:
        reason = "" if tensor.keys else "it is one array without a name: put it in a dict"
        for key in tensor.keys:
            reason = reason or bounds.why_bad_name(key.replace("/", "|"))
        if len(tensor.keys) > MAX_DEPTH:
            reason = f"it has more than {MAX_DEPTH} keys"
        if reason := reason or holds(tensor):
            raise ValueError(f"{bounds.quoted(tensor.name)}: {reason}")


def check_names(tensors: Collection[Tensor], holds: Callable[[Tensor], str]) -> None:
    """The same for a format whose arrays have one name each: read back, the names must give the
    same keys.
    """
    check_tree(tensors, holds)
    names = [tensor.name for tensor in tensors]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise ValueError(
            f"two arrays are named {bounds.quoted(twice)}: restore to .msgpack, which has nested "
            f"keys"
        )
    try:
        back = split_names(names)
    except FormatError as e:
        raise ValueError(f"{e}: restore to another format") from None
    for tensor in tensors:
        if back[tensor.name] != tensor.keys:
            raise ValueError(
                f"{bounds.quoted(tensor.name)}: its keys {bounds.quoted(tensor.keys)} would come "
                f"back as "
                f"{bounds.quoted(back[tensor.name])}: restore to .msgpack, which has nested keys"
            )


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
