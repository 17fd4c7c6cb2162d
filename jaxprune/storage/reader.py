"""Files to arrays, where JAX is not: NumPy and the standard library only.

    python jaxprune/storage/reader.py model.jpz                  what it holds
    python jaxprune/storage/reader.py model.jpz -o model.npz     its dense arrays, for NumPy

`read` gives them to a program. Everything is checked before the first large allocation: whatever a
file holds, the only exceptions are `FormatError` and the operating system's own.
"""

import argparse
import functools
import importlib.machinery
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
from .accounting import needed, shared
from .atomic import replacing
from .decoder import Decoder
from .format.manifest import Contents, contents, opened
from .format.values import made_bytes, value
from .format.words import FormatError, Group, Leaf
from .inspection import summary

MAX_BYTES = 2**34

ReadLeaf = Callable[[Leaf, Group | None], Any]


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
      >>> values = jnp.arange(4.0, dtype="bfloat16")
      >>> jp.save(path, {"w": jp.Masked(values, values > 1), "steps": 7})
      >>> read(path)
      {'steps': 7, 'w': array([0., 0., 2., 3.], dtype=float32)}
    """
    with opened(path) as file:
        file_contents = contents(file)
        read_leaf = _leaf_reader(file, file_contents, max_bytes)
        return _map_leaves(file_contents.tree, read_leaf)


def write_npz(path: Any, out: Any, *, max_bytes: int = MAX_BYTES) -> None:
    """Writes the arrays and numbers of a file as an .npz archive, each under its path; one is held
    at a time.

    Raises:
      ValueError: `out` is the file itself; and as `read`.
    """
    if os.path.exists(out) and os.path.samefile(path, out):
        raise ValueError(f"{os.fspath(out)} is the file that is read: choose another name")
    with opened(path) as file, replacing(out) as archive, zipfile.ZipFile(archive, "w") as members:
        file_contents = contents(file)
        read_leaf = _leaf_reader(file, file_contents, max_bytes)
        names = set()

        def write_member(leaf: Leaf, group: Group | None) -> None:
            name = _member_name(leaf.path)
            if name in names:
                raise FormatError(f"leaf {leaf.path!r}: another one has its name")
            names.add(name)
            info = zipfile.ZipInfo(f"{name}.npy")
            with members.open(info, "w", force_zip64=True) as member:
                array = np.asarray(read_leaf(leaf, group))
                np.lib.format.write_array(member, array, allow_pickle=False)

        _map_leaves(file_contents.tree, write_member)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; 2 is for files that cannot be read."""
    parser = argparse.ArgumentParser(
        description="Shows a jaxprune file, or writes its dense arrays for NumPy."
    )
    parser.add_argument("file")
    parser.add_argument("-o", dest="out", metavar="OUT.npz")
    options = parser.parse_args(arguments)
    try:
        with opened(options.file) as file:
            table = str(summary(contents(file)))
        if options.out:
            write_npz(options.file, options.out)
        print(table)
    except (ValueError, OSError) as e:
        print(str(e).replace("\n", " "), file=sys.stderr)
        return 2
    return 0


def _leaf_reader(file: BinaryIO, file_contents: Contents, max_bytes: int) -> ReadLeaf:
    """The function that reads a leaf and makes it dense, if all of them fit in `max_bytes`."""
    total = needed(file_contents, set(file_contents.leaves), made_bytes)
    if total > max_bytes:
        raise FormatError(f"the arrays take {total} bytes decoded, more than max_bytes={max_bytes}")
    decoder = Decoder(file, file_contents)

    @functools.cache
    def codebook(group: Group | None) -> Any:
        return None if group is None else value(decoder.read(group.codebook))

    def read_leaf(leaf: Leaf, group: Group | None) -> Any:
        node = decoder.read(leaf, shared(group))
        group_codebook = codebook(group)
        try:
            dense = value(node, group_codebook)
        except FormatError as e:
            raise FormatError(f"leaf {leaf.path!r}: {e}") from None
        if isinstance(dense, np.ndarray) and not dense.flags.writeable:
            return dense.copy()  # a view of the file's bytes
        return dense

    return read_leaf


def _map_leaves(node: Any, function: ReadLeaf, group: Group | None = None) -> Any:
    """The tree with the results of a function of each leaf and its group."""
    if isinstance(node, Leaf):
        return function(node, group)
    if isinstance(node, Group):
        return _map_leaves(node.tree, function, node)
    if isinstance(node, dict):
        return {key: _map_leaves(child, function, group) for key, child in node.items()}
    if node is None:
        return None
    return type(node)([_map_leaves(child, function, group) for child in node])


def _member_name(path: str) -> str:
    """The name of a leaf in an archive: one that stays in the folder where that is unpacked."""
    name = "/".join(split(path)) or "array"
    if any(_leads_out(part) for part in name.split("/")):
        raise FormatError(
            f"leaf {path!r}: an archive with this name would be unpacked outside of its folder"
        )
    return name


def _leads_out(part: str) -> bool:
    return part in ("", ".", "..") or "\\" in part or "\0" in part or part[1:2] == ":"


if __name__ == "__main__":
    sys.exit(main())
