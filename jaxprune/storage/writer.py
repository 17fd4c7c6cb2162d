"""Leaves to streams: every array by its smallest codec, in banks where they pay.

Deterministic: the same tree gives the same bytes. Dicts are written in the order of their keys, and
nothing of time or place goes into a file.
"""

import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxprune.storage.format.tied import Ties
from jaxprune.storage.format.words import (
    DTYPES,
    HOST,
    KINDS,
    LAST_CODEC,
    NOT_FINITE,
    PLANES,
    RAW,
    TIED,
    Array,
    Code,
    Leaf,
    header,
)
from jaxprune.storage.manifest_writing import Manifest
from jaxprune.storage.streams import smallest
from jaxprune.storage.streams.grouping import Batcher, plan_banks
from jaxprune.storage.streams.varints import Buffer

Sink = Callable[[Buffer], Any]
BankNames = dict[int, tuple[int, int]]  # id(array) -> (codec, number of its bank)


class _TiedNode(NamedTuple):
    """In the place of a leaf's node: the number of the earlier leaf with the same arrays."""

    first: int


class Writer:
    """Encodes leaves in order, hands their bytes on, and keeps what the manifest says of them.

    Leaves wait until they are a batch, in which some arrays may share a bank.

    Args:
      write_data: gets the leaves' own streams.
      write_bank: gets the streams of the banks, which follow those of all leaves in the file.
      keeps_arrays: whether all leaves stay in memory until the end, so that tied ones can be
        compared.
    """

    def __init__(self, write_data: Sink, write_bank: Sink, *, keeps_arrays: bool = False) -> None:
        self._write_data = write_data
        self._write_bank = write_bank
        self._ties = Ties(keeps_arrays)
        self._batcher = Batcher()
        self._manifest = Manifest()
        self._last_codec = RAW

    def add(self, leaf: Leaf) -> None:
        """Takes the next leaf."""
        first = self._ties.first(leaf)
        if first is not None:
            self._last_codec = max(self._last_codec, PLANES)  # such a leaf is of version 2, too
            leaf = Leaf(leaf.path, _TiedNode(first))
        for batch in self._batcher.add(leaf):
            self._write_batch(batch)

    def finish(self, nodes: Any, metadata: dict[str, Any] | None) -> bytes:
        """Header and manifest, which precede the bytes handed on.

        Args:
          nodes: the tree of the leaves that were added, in order.
          metadata: what JSON can hold.
        """
        self._write_batch(self._batcher.rest())
        manifest = self._manifest.to_bytes(nodes, metadata)
        versions = [version for version, codec in LAST_CODEC.items() if codec >= self._last_codec]
        return header(len(manifest), self._manifest.data_bytes, min(versions)) + manifest

    def _write_batch(self, batch: list[Leaf]) -> None:
        banks = plan_banks(batch)
        first_bank = len(self._manifest.bank_lengths)
        bank_names: BankNames = {}
        for number, bank in enumerate(banks, first_bank):
            for member in bank.members:
                bank_names[id(member.array)] = member.codec, number
                self._last_codec = max(self._last_codec, member.codec)
        for leaf in batch:
            self._write_leaf(leaf.node, bank_names)
        for bank in banks:
            stream = bank.write()
            self._write_bank(stream)
            self._manifest.add_bank(len(stream), zlib.crc32(stream), bank.size)

    def _write_leaf(self, node: Any, bank_names: BankNames) -> None:
        if isinstance(node, _TiedNode):
            self._manifest.add_leaf([TIED, node.first])
        elif isinstance(node, float) and not math.isfinite(node):
            self._manifest.add_leaf([NOT_FINITE, str(node)])
        elif isinstance(node, Array | Code):
            entry, crc = self._write_part(node, bank_names, 0)
            self._manifest.add_leaf(entry, crc)
        else:
            self._manifest.add_leaf(node)

    def _write_part(self, part: Any, bank_names: BankNames, crc: int) -> tuple[Any, int]:
        """(the manifest's entry of a part, the leaf's checksum so far)."""
        if isinstance(part, Array):
            return self._write_array(part, bank_names, crc)
        if not isinstance(part, Code):
            return part, crc  # None, or the NONZERO of a mask
        entry: list[Any] = [part.tag]
        for name, value in zip(KINDS[part.tag].statics, part.statics):
            entry.append(self._manifest.grid_number(value) if name == "grid" else value)
        for inner in part.parts:
            inner_entry, crc = self._write_part(inner, bank_names, crc)
            entry.append(inner_entry)
        return entry, crc

    def _write_array(self, array: Array, bank_names: BankNames, crc: int) -> tuple[list[Any], int]:
        dtype = (HOST if array.host else "") + array.dtype
        if id(array) in bank_names:
            return [dtype, list(array.shape), *bank_names[id(array)]], crc
        encoded = smallest.encode(array.kept(), DTYPES[array.dtype])
        length = 0
        for piece in encoded.pieces:
            self._write_data(piece)
            crc = zlib.crc32(piece, crc)
            length += len(piece)
        self._manifest.add_stream(length, encoded.predicted)
        self._last_codec = max(self._last_codec, encoded.codec)
        if array.mask is not None:
            return [dtype, 0, encoded.codec, length], crc
        if encoded.codec == RAW:
            return [dtype, list(array.shape)], crc
        return [dtype, list(array.shape), encoded.codec, length], crc
