"""What a file says of itself: the header and the manifest, checked in full before any data is read.

NumPy and the standard library only. Whatever the file holds, the only exceptions are `FormatError`
and the operating system's own.
"""

import contextlib
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from ..streams.context_stream import num_symbols
from . import words as f
from .json_text import parse_json
from .nodes import Nodes, grids, integer
from .words import Bank, FormatError, Leaf


class Contents(NamedTuple):
    """What a file says without its data: the tree of `Leaf`s, the same leaves in order, and sizes
    in bytes."""

    tree: Any
    leaves: list[Leaf]
    banks: list[Bank]
    metadata: dict[str, Any]
    predicted: int
    manifest: int
    data: int
    start: int  # of the data


def open_regular(path: Any) -> BinaryIO:
    """The file, if it is one: pipes and devices have no end."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FormatError("not a regular file")
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


@contextlib.contextmanager
def opened(path: Any) -> Iterator[BinaryIO]:
    """The same, to be read in a block whose `FormatError`s get its name."""
    try:
        with open_regular(path) as file:
            yield file
    except FormatError as e:
        raise FormatError(f"{os.fspath(path)}: {e}") from None


def contents(file: BinaryIO) -> Contents:
    """The checked manifest of an open file."""
    total = os.fstat(file.fileno()).st_size
    manifest, data, version = _header(file, total)
    start = file.tell()
    said, crcs = _manifest(exactly(file, manifest, "jp.manifest"))
    lengths = _bank_lengths(said.get("b", []))
    found = Nodes(grids(said.get("g", [])), len(lengths), crcs, f.LAST_CODEC[version])
    try:
        tree = found.node(said["t"], (), None)
    except RecursionError:  # Commons in Commons have no depth of their own
        raise FormatError("the tree is too deep") from None
    shared = _banks(found, lengths)
    if found.offset + sum(lengths) != data or next(found.crcs, None) is not None:
        said = found.offset + sum(lengths)
        raise FormatError(
            f"the streams cover {said} of {data} bytes of data, or checksums are left over"
        )
    predicted = data + integer(said["p"], -data, 2**63, "error of the prediction")
    metadata = said.get("m", {})
    if type(metadata) is not dict:
        raise FormatError("the metadata is not an object")
    return Contents(
        tree, found.leaves, shared, metadata, predicted, manifest, data, start + manifest
    )


def _bank_lengths(said: Any) -> list[int]:
    if type(said) is not list:
        raise FormatError("the lengths of the banks are not a list")
    return [integer(n, 1, 2**63, "length of a bank") for n in said]


def _banks(found: Nodes, lengths: list[int]) -> list[Bank]:
    """The banks, which follow the leaves."""
    offset = found.offset
    made = []
    for number, (rows, length) in enumerate(zip(found.banks, lengths)):
        size = num_symbols(rows)
        crc = next(found.crcs, None)
        if (
            not f.LEAST_BANK <= size <= (f.MOST_BANK if len(rows) > 1 else f.MOST_OF_ONE)
            or crc is None
        ):
            raise FormatError(
                f"bank {number} has {len(rows)} arrays of {size} symbols, or no checksum"
            )
        made.append(Bank(rows, offset, length, crc))
        offset += length
    return made


# --- header and manifest
# ---------------------------------------------------------------------------------------


def _header(file: BinaryIO, total: int) -> tuple[int, int, int]:
    """Bytes of the manifest, bytes of the data, and the version; the header must be the one that
    such a file has."""
    if total < 8:
        raise FormatError(f"{total} bytes are too few for a jaxprune file")
    (length,) = struct.unpack("<Q", exactly(file, 8, "header"))
    if not 2 <= length <= min(f.MAX_HEADER, total - 8):
        raise FormatError(f"byte 0: a header of {length} bytes; this is no jaxprune file")
    raw = exactly(file, length, "header")
    said = parse_json(raw, "header")
    meta = said.get("__metadata__") if type(said) is dict else None
    version = meta.get("jaxprune") if type(meta) is dict else None
    if type(version) is not str or not re.fullmatch(r"[1-9][0-9]{0,8}", version, re.ASCII):
        raise FormatError(
            "byte 8: the header names no version of jaxprune; this is no file of `save`"
        )
    if int(version) > f.VERSION:
        raise FormatError(
            f"this needs version {version} of the format; this library reads up to {f.VERSION}: "
            f"upgrade"
        )
    try:
        manifest = said["jp.manifest"]["shape"][0]
        data = said["jp.data"]["shape"][0]
    except (KeyError, TypeError, IndexError):
        raise FormatError("byte 8: the header lacks jp.manifest or jp.data") from None
    manifest = integer(manifest, 5, 2**31, "size of jp.manifest")
    data = integer(data, 0, 2**63, "size of jp.data")
    if f.header(manifest, data, int(version))[8:] != raw:
        raise FormatError("byte 8: the header is not the one that `save` writes for these sizes")
    said = 8 + length + manifest + data
    if said != total:
        raise FormatError(
            f"the file has {total} bytes, its header speaks of {said}: truncated or extended"
        )
    return manifest, data, int(version)


def _manifest(octets: bytes) -> tuple[dict[str, Any], list[int]]:
    if struct.unpack_from("<I", octets)[0] != zlib.crc32(memoryview(octets)[4:]):
        raise FormatError("the manifest's checksum is wrong: the bytes are damaged")
    inflate = zlib.decompressobj(-15, zdict=f.DICTIONARY)
    try:
        raw = inflate.decompress(memoryview(octets)[4:], f.MAX_MANIFEST)
    except zlib.error as e:
        raise FormatError(f"the manifest does not inflate: {e}") from None
    crcs = inflate.unused_data
    if not inflate.eof or inflate.unconsumed_tail or len(crcs) % 4:
        raise FormatError(f"the manifest is truncated, or longer than {f.MAX_MANIFEST} bytes")
    said = parse_json(raw, "manifest")
    if type(said) is not dict or not {"t", "p"} <= said.keys() <= {"t", "p", "b", "g", "m"}:
        raise FormatError("the manifest is not an object of t, p, b, g and m")
    return said, [crc for (crc,) in struct.iter_unpack("<I", crcs)]


def exactly(file: BinaryIO, n: int, what: str) -> bytes:
    octets = file.read(n)
    if len(octets) != n:
        raise FormatError(f"{what} ends {n - len(octets)} bytes early: the file is truncated")
    return octets
