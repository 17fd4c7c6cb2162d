"""Files to nodes: everything is checked before the first large allocation.

NumPy and the standard library only, so that a file can be read where JAX is not.

`contents` reads the header and the manifest; `Decoder.read` one leaf's bytes, which its CRC-32 guards. Whatever the
file holds, the only exceptions are `FormatError` and the operating system's own.
"""

import json
import math
import os
import re
import stat
import struct
import zlib
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxprune.storage import banks, streams
from jaxprune.storage import format as f
from jaxprune.storage.format import DTYPES, KINDS, Array, Bank, Code, FormatError, Leaf, Row
from jaxprune.storage.nodes import Nodes, grids, integer
from jaxprune.storage.structure import Shaped, check_values, integers_of


class Contents(NamedTuple):
    """What a file says without its data: the tree of `Leaf`s, the same leaves in order, and sizes in bytes."""

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


def contents(file: BinaryIO) -> Contents:
    """The checked manifest of an open file."""
    total = os.fstat(file.fileno()).st_size
    manifest, data = _header(file, total)
    start = file.tell()
    said, crcs = _manifest(_exactly(file, manifest, "jp.manifest"))
    lengths = _bank_lengths(said.get("b", []))
    found = Nodes(grids(said.get("g", [])), len(lengths), crcs)
    try:
        tree = found.node(said["t"], (), None)
    except RecursionError:  # Commons in Commons have no depth of their own
        raise FormatError("the tree is too deep") from None
    banks = _banks(found, lengths)
    if found.offset + sum(lengths) != data or next(found.crcs, None) is not None:
        said = found.offset + sum(lengths)
        raise FormatError(f"the streams cover {said} of {data} bytes of data, or checksums are left over")
    predicted = data + integer(said["p"], -data, 2**63, "error of the prediction")
    metadata = said.get("m", {})
    if type(metadata) is not dict:
        raise FormatError("the metadata is not an object")
    return Contents(tree, found.leaves, banks, metadata, predicted, manifest, data, start + manifest)


class Decoder:
    """Reads the leaves of one file. A bank is decoded when the first of its arrays is asked for, and kept till the last
    is; `read` raises a `FormatError` with the leaf and the byte."""

    def __init__(self, file: BinaryIO, contents: Contents):
        self.file, self.contents = file, contents
        self.waiting: dict[int, dict[int, np.ndarray]] = {}  # by bank and place in it
        self.damaged: dict[int, str] = {}

    def read(self, leaf: Leaf, shared: Shaped | None = None) -> Any:
        """The leaf's node, with an `Array` for each `Row`."""
        start = self.contents.start + leaf.offset
        try:
            octets = self.octets(leaf.offset, leaf.length, leaf.crc)
            node = self.decoded(leaf.node, octets, leaf.offset, None)
            check_values(node, shared)
        except FormatError as e:
            raise FormatError(f"leaf {leaf.path!r}, byte {start}: {e}") from None
        return node

    def octets(self, offset: int, length: int, crc: int) -> memoryview:
        self.file.seek(self.contents.start + offset)
        octets = _exactly(self.file, length, "jp.data")
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
                self.damaged[row.bank] = reason  # said again for its other arrays, and not decoded again
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
            parts.append(self.decoded(part, octets, start, mask if name in KINDS[node.tag].hidden else None))
            if node.tag == "M" and name == "mask" and isinstance(parts[0], Array):
                mask = parts[0].words.view(bool)
        if node.tag == "M" and not isinstance(parts[0], Array):
            inner = integers_of(parts[1])
            parts[0] = Array("?", inner.host, (inner.words != 0).view(np.uint8))
        return Code(node.tag, node.statics, tuple(parts))

    def array(self, row: Row, octets: memoryview, mask: np.ndarray | None) -> Array:
        dtype = DTYPES[row.dtype]
        if row.codec == f.CONTEXT:
            return Array(row.dtype, row.host, self.banked(row))
        if not row.hidden or mask is None:
            words = streams.decode(octets, math.prod(row.shape), row.codec, dtype)
            return Array(row.dtype, row.host, words.reshape(row.shape))
        words = np.zeros(row.shape, dtype.word)
        words[mask] = streams.decode(octets, int(np.count_nonzero(mask)), row.codec, dtype)
        return Array(row.dtype, row.host, words)


def decoded_bytes(node: Any) -> int:
    """Bytes of the arrays of a leaf's node, decoded."""
    if isinstance(node, Row):
        return math.prod(node.shape) * DTYPES[node.dtype].itemsize
    if not isinstance(node, Code):
        return 0
    mask = math.prod(integers_of(node.parts[1]).shape) if node.tag == "M" and not isinstance(node.parts[0], Row) else 0
    return mask + sum(map(decoded_bytes, node.parts))


def banks_of(node: Any) -> set[int]:
    """The banks that a leaf's node has arrays in."""
    if isinstance(node, Row):
        return {node.bank} - {-1}
    return {bank for part in node.parts for bank in banks_of(part)} if isinstance(node, Code) else set()


def banked_bytes(node: Any, used: set[int]) -> int:
    """Bytes of a node's arrays in these banks, decoded."""
    if isinstance(node, Row):
        return decoded_bytes(node) if node.bank in used else 0
    return sum(banked_bytes(part, used) for part in node.parts) if isinstance(node, Code) else 0


def _bank_lengths(said: Any) -> list[int]:
    if type(said) is not list:
        raise FormatError("the lengths of the banks are not a list")
    return [integer(n, 1, 2**63, "length of a bank") for n in said]


def _banks(found: Nodes, lengths: list[int]) -> list[Bank]:
    """The banks, which follow the leaves."""
    offset, made = found.offset, []
    for number, (rows, length) in enumerate(zip(found.banks, lengths)):
        size, crc = banks.symbols(rows), next(found.crcs, None)
        if not f.LEAST_BANK <= size <= (f.MOST_BANK if len(rows) > 1 else f.MOST_OF_ONE) or crc is None:
            raise FormatError(f"bank {number} has {len(rows)} arrays of {size} symbols, or no checksum")
        made.append(Bank(rows, offset, length, crc))
        offset += length
    return made


# --- header and manifest ---------------------------------------------------------------------------------------------


def _header(file: BinaryIO, total: int) -> tuple[int, int]:
    """The bytes of manifest and data; the header must be the one that such a file has."""
    if total < 8:
        raise FormatError(f"{total} bytes are too few for a jaxprune file")
    (length,) = struct.unpack("<Q", _exactly(file, 8, "header"))
    if not 2 <= length <= min(f.MAX_HEADER, total - 8):
        raise FormatError(f"byte 0: a header of {length} bytes; this is no jaxprune file")
    raw = _exactly(file, length, "header")
    said = _json(raw, "header")
    meta = said.get("__metadata__") if type(said) is dict else None
    version = meta.get("jaxprune") if type(meta) is dict else None
    if type(version) is not str or not re.fullmatch(r"[1-9][0-9]{0,8}", version, re.ASCII):
        raise FormatError("byte 8: the header names no version of jaxprune; this is no file of `save`")
    if int(version) > f.VERSION:
        raise FormatError(f"this needs version {version} of the format; this library reads up to {f.VERSION}: upgrade")
    try:
        manifest = said["jp.manifest"]["shape"][0]
        data = said["jp.data"]["shape"][0]
    except (KeyError, TypeError, IndexError):
        raise FormatError("byte 8: the header lacks jp.manifest or jp.data") from None
    manifest, data = integer(manifest, 5, 2**31, "size of jp.manifest"), integer(data, 0, 2**63, "size of jp.data")
    if f.header(manifest, data)[8:] != raw:
        raise FormatError("byte 8: the header is not the one that `save` writes for these sizes")
    said = 8 + length + manifest + data
    if said != total:
        raise FormatError(f"the file has {total} bytes, its header speaks of {said}: truncated or extended")
    return manifest, data


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
    if sum(map(raw.count, (b",", b"[", b"{"))) > f.MAX_TOKENS:
        raise FormatError(f"the manifest has more than {f.MAX_TOKENS} parts")
    said = _json(raw, "manifest")
    if type(said) is not dict or not {"t", "p"} <= said.keys() <= {"t", "p", "b", "g", "m"}:
        raise FormatError("the manifest is not an object of t, p, b, g and m")
    return said, [crc for (crc,) in struct.iter_unpack("<I", crcs)]


def _json(raw: bytes, what: str) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            raise FormatError(f"the {what} has a key twice")
        return found

    def finite(text: str) -> float:
        if not math.isfinite(float(text)):
            raise FormatError(f"the {what} has the number {text[:20]}")
        return float(text)

    try:
        text = raw.decode("utf-8")
        found = json.loads(text, object_pairs_hook=pairs, parse_constant=finite, parse_float=finite)
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # a lone surrogate, written \ud800, is no text
        return found
    except FormatError:
        raise
    except (ValueError, RecursionError) as e:
        raise FormatError(f"the {what} is not JSON: {type(e).__name__}") from None


def _exactly(file: BinaryIO, n: int, what: str) -> bytes:
    octets = file.read(n)
    if len(octets) != n:
        raise FormatError(f"{what} ends {n - len(octets)} bytes early: the file is truncated")
    return octets
