"""Files to arrays, where JAX is not: NumPy and the standard library only.

    python jaxprune/storage/reader.py model.jpz                  what it holds
    python jaxprune/storage/reader.py model.jpz -o model.npz     its dense arrays, for NumPy

`read` gives them to a program. Everything is checked before the first large allocation: whatever a
file holds, the only exceptions are `FormatError` and the operating system's own. `Decoder.read`
decodes one leaf, which a CRC-32 guards.
"""

import argparse
import functools
import importlib.machinery
import math
import os
import pathlib
import sys
import types
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np

if not (__package__ or "").endswith(".storage"):
    # Run by its path, or loaded from it. The package jaxprune imports JAX, so the folders here
    # become another one's.
    _root = pathlib.Path(__file__).resolve().parent.parent
    _alone = types.ModuleType(f"jaxprune_alone_{zlib.crc32(os.fsencode(_root)):08x}")
    _alone.__path__ = [str(_root)]
    sys.modules.setdefault(_alone.__name__, _alone)
    __spec__ = importlib.machinery.ModuleSpec(f"{_alone.__name__}.storage.reader", None)
    __package__ = __spec__.parent  # what relative imports start from (PEP 366)

from ..core.leaves.keys import split
from . import atomic
from .accounting import needed, shared
from .format import words as f
from .format.manifest import Contents, contents, exactly, opened
from .format.shapes import Shaped, check_values, integers_of
from .format.values import made_bytes, value
from .format.words import DTYPES, KINDS, Array, Code, FormatError, Group, Leaf, Row
from .inspection import summary
from .streams import banks, planes, smallest

MAX_BYTES = 2**34


class Decoder:
    """Reads the leaves of one file. A bank is decoded when the first of its arrays is asked for,
    and kept till the last is; `read` raises a `FormatError` with the leaf and the byte.
    """

    def __init__(self, file: BinaryIO, contents: Contents):
        self.file = file
        self.contents = contents
        self.waiting: dict[int, dict[int, np.ndarray]] = {}  # by bank and place in it
        self.damaged: dict[int, str] = {}

    def read(self, leaf: Leaf, shared: Shaped | None = None) -> Any:
        """The leaf's node, with an `Array` for each `Row`."""
        start = self.contents.start + leaf.offset
        try:
            if isinstance(leaf.node, Row) and leaf.node.codec == f.PLANES:
                node = self.by_blocks(leaf.node, start, leaf.crc)
            else:
                octets = self.octets(leaf.offset, leaf.length, leaf.crc)
                node = self.decoded(leaf.node, octets, leaf.offset, None)
            check_values(node, shared)
        except FormatError as e:
            raise FormatError(f"leaf {leaf.path!r}, byte {start}: {e}") from None
        return node

    def by_blocks(self, row: Row, start: int, crc: int) -> Array:
        """An array whose stream is never in memory whole."""
        dtype = DTYPES[row.dtype]
        if dtype.itemsize == 1:
            raise FormatError(f"the codec {row.codec} is none of an array of {dtype.name}")
        self.file.seek(start)
        blocks = planes.FileBlocks(self.file, row.length)
        words = planes.decode(blocks, math.prod(row.shape), f"u{dtype.itemsize}").view(dtype.word)
        if blocks.crc != crc:
            raise FormatError("the checksum is wrong: the bytes are damaged")
        return Array(row.dtype, row.host, words.reshape(row.shape))

    def octets(self, offset: int, length: int, crc: int) -> memoryview:
        self.file.seek(self.contents.start + offset)
        octets = exactly(self.file, length, "jp.data")
        if zlib.crc32(octets) != crc:
            raise FormatError("the checksum is wrong: the bytes are damaged")
        return memoryview(octets)

    def banked(self, row: Row) -> np.ndarray:
        """The words of an array in a bank."""
        if row.bank in self.damaged:
            raise FormatError(self.damaged[row.bank])
        waiting = self.waiting.get(row.bank, {})
        if row.offset not in waiting:
            bank = self.contents.banks[row.bank]
            try:
                words = banks.decode(self.octets(bank.offset, bank.length, bank.crc), bank.rows)
            except FormatError as e:
                reason = f"bank {row.bank}, byte {self.contents.start + bank.offset}: {e}"
                self.damaged[row.bank] = (
                    reason  # said again for its other arrays, and not decoded again
                )
                raise FormatError(reason) from None
            waiting = self.waiting[row.bank] = dict(enumerate(words))
        return waiting.pop(row.offset)

    def decoded(self, node: Any, octets: memoryview, start: int, mask: np.ndarray | None) -> Any:
        if isinstance(node, Row):
            return self.array(node, octets[node.offset - start :][: node.length], mask)
        if not isinstance(node, Code):
            return node
        parts: list[Any] = []
        if node.tag == "S" and mask is not None:
            axis, rank = node.statics
            mask = np.moveaxis(mask, axis, -rank) if -axis <= mask.ndim >= rank else None
        for name, part in zip(KINDS[node.tag].fields, node.parts):
            parts.append(
                self.decoded(part, octets, start, mask if name in KINDS[node.tag].hidden else None)
            )
            if node.tag == "M" and name == "mask" and isinstance(parts[0], Array):
                mask = parts[0].words.view(bool)
        if node.tag == "M" and not isinstance(parts[0], Array):
            inner = integers_of(parts[1])
            parts[0] = Array("?", inner.host, (inner.words != 0).view(np.uint8))
        return Code(node.tag, node.statics, tuple(parts))

    def array(self, row: Row, octets: memoryview, mask: np.ndarray | None) -> Array:
        dtype = DTYPES[row.dtype]
        if row.codec in f.BANKED:
            return Array(row.dtype, row.host, self.banked(row))
        if not row.hidden or mask is None:
            words = smallest.decode(octets, math.prod(row.shape), row.codec, dtype)
            return Array(row.dtype, row.host, words.reshape(row.shape))
        words = np.zeros(row.shape, dtype.word)
        words[mask] = smallest.decode(octets, int(np.count_nonzero(mask)), row.codec, dtype)
        return Array(row.dtype, row.host, words)


# --- without JAX
# ---------------------------------------------------------------------------------------


def read(path: Any, *, max_bytes: int = MAX_BYTES) -> Any:
    """The tree of a file in NumPy: that of `jp.load(path, as_="numpy")`, but for dtypes that NumPy
    lacks.

    Args:
      path: the file.
      max_bytes: the most that the arrays may take, decoded and dense, and the decoder of the
        largest bank; checked before any of them is made.

    Returns:
      Dicts, lists and tuples of arrays, Python numbers and None. bfloat16, float8 and float4 become
      float32, int4 and int2 become int8 (uint8), exactly.

    Raises:
      FormatError: the file is damaged, truncated, hostile, or of a newer version.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp, tempfile, os
      >>> path = os.path.join(tempfile.mkdtemp(), "model.jpz")
      >>> jp.save(path,
      ...     {"w": jp.Masked(jnp.arange(4.0, dtype="bfloat16"), jnp.arange(4) > 1), "steps": 7})
      >>> read(path)
      {'steps': 7, 'w': array([0., 0., 2., 3.], dtype=float32)}
    """
    with opened(path) as file:
        found = contents(file)
        return _mapped(found.tree, _maker(file, found, max_bytes))


def write_npz(path: Any, out: Any, *, max_bytes: int = MAX_BYTES) -> None:
    """Writes the arrays and numbers of a file as an .npz archive, each under its path; one is held
    at a time.

    Raises:
      ValueError: `out` is the file itself; and as `read`.
    """
    if os.path.exists(out) and os.path.samefile(path, out):
        raise ValueError(f"{os.fspath(out)} is the file that is read: choose another name")
    with (
        opened(path) as file,
        atomic.replacing(out) as archive,
        zipfile.ZipFile(archive, "w") as members,
    ):
        found = contents(file)
        names = set()
        make = _maker(file, found, max_bytes)

        def write(leaf: Leaf, group: Group | None) -> None:
            name = _member(leaf.path)
            if name in names:
                raise FormatError(f"leaf {leaf.path!r}: another one has its name")
            names.add(name)
            with members.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(make(leaf, group)), allow_pickle=False)

        _mapped(found.tree, write)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; 2 is for files that cannot be read."""
    parser = argparse.ArgumentParser(
        description="Shows a jaxprune file, or writes its dense arrays for NumPy."
    )
    parser.add_argument("file")
    parser.add_argument("-o", dest="out", metavar="OUT.npz")
    said = parser.parse_args(arguments)
    try:
        with opened(said.file) as file:
            table = str(summary(contents(file)))
        if said.out:
            write_npz(said.file, said.out)
        print(table)
    except (ValueError, OSError) as e:
        print(str(e).replace("\n", " "), file=sys.stderr)
        return 2
    return 0


Make = Callable[[Leaf, Group | None], Any]


def _maker(file: BinaryIO, found: Contents, max_bytes: int) -> Make:
    """The function that reads a leaf and makes it dense, if all of them fit in `max_bytes`."""
    total = needed(found, set(found.leaves), made_bytes)
    if total > max_bytes:
        raise FormatError(f"the arrays take {total} bytes decoded, more than max_bytes={max_bytes}")
    decoder = Decoder(file, found)
    codebook = functools.cache(lambda group: group and value(decoder.read(group.codebook)))

    def make(leaf: Leaf, group: Group | None) -> Any:
        node = decoder.read(leaf, shared(group))
        above = codebook(group)
        try:
            made = value(node, above)
        except FormatError as e:
            raise FormatError(f"leaf {leaf.path!r}: {e}") from None
        return made.copy() if isinstance(made, np.ndarray) and not made.flags.writeable else made

    return make


def _mapped(node: Any, make: Make, group: Group | None = None) -> Any:
    """The tree with what `make` makes of its leaves."""
    if isinstance(node, Leaf):
        return make(node, group)
    if isinstance(node, Group):
        return _mapped(node.tree, make, node)
    if isinstance(node, dict):
        return {key: _mapped(kid, make, group) for key, kid in node.items()}
    return node if node is None else type(node)(_mapped(kid, make, group) for kid in node)


def _member(path: str) -> str:
    """The name of a leaf in an archive: one that stays in the folder where that is unpacked."""
    name = "/".join(split(path)) or "array"
    if any(
        part in ("", ".", "..") or "\\" in part or "\0" in part or part[1:2] == ":"
        for part in name.split("/")
    ):
        raise FormatError(
            f"leaf {path!r}: an archive with this name would be unpacked outside of its folder"
        )
    return name


if __name__ == "__main__":
    sys.exit(main())
