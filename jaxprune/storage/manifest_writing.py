"""The manifest of a file that is being written: the tree, whose leaves name their arrays, as
deflated JSON.

    t  the tree
    b  lengths of the banks
    p  error of the predicted size
    g  grids
    m  metadata
"""

import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from jaxprune.storage.format.words import (
    DICTIONARY,
    GROUP,
    INT_KEYS,
    LIST,
    MAX_MANIFEST,
    MAX_TOKENS,
    TUPLE,
    Group,
    Leaf,
)


class Manifest:
    """What a file says of its leaves and banks, collected in the order of the file."""

    def __init__(self) -> None:
        self.bank_lengths: list[int] = []
        self._entries: list[Any] = []  # one a leaf
        self._leaf_crcs: list[int] = []
        self._bank_crcs: list[int] = []
        self._grids: list[list[float]] = []
        self._stream_bytes = 0
        self._predicted_bytes = 0

    @property
    def data_bytes(self) -> int:
        """Bytes of all streams."""
        return self._stream_bytes + sum(self.bank_lengths)

    def add_leaf(self, entry: Any, crc: int | None = None) -> None:
        """Takes what is said of the next leaf, and the checksum of its streams if it has arrays."""
        self._entries.append(entry)
        if crc is not None:
            self._leaf_crcs.append(crc)

    def add_stream(self, length: int, predicted: int) -> None:
        """Counts an array's stream."""
        self._stream_bytes += length
        self._predicted_bytes += predicted

    def add_bank(self, length: int, crc: int, predicted: int) -> None:
        """Takes what is said of the next bank."""
        self.bank_lengths.append(length)
        self._bank_crcs.append(crc)
        self._predicted_bytes += predicted

    def grid_number(self, grid: Any) -> int:
        """The number by which leaves name a grid: 0 for none."""
        if grid is None:
            return 0
        levels = list(grid)
        if levels not in self._grids:
            self._grids.append(levels)
        return 1 + self._grids.index(levels)

    def to_bytes(self, nodes: Any, metadata: dict[str, Any] | None) -> bytes:
        """The manifest of a tree whose leaves were added in order.

        Raises:
          ValueError: metadata that JSON cannot hold, or a manifest that no reader would accept.
        """
        fields: dict[str, Any] = {"t": _tree_entry(nodes, iter(self._entries))}
        if self.bank_lengths:
            fields["b"] = self.bank_lengths
        fields["p"] = self._predicted_bytes - self.data_bytes
        if self._grids:
            fields["g"] = self._grids
        if metadata:
            _check_metadata(metadata)
            fields["m"] = metadata
        return _compress(fields, self._leaf_crcs + self._bank_crcs)


def _tree_entry(node: Any, entries: Iterator[Any]) -> Any:
    """A tree as the manifest has it, with the next entry for each leaf."""
    if isinstance(node, Leaf):
        return next(entries)
    if isinstance(node, Group):
        codebook = next(entries)
        return [GROUP, codebook, _tree_entry(node.tree, entries)]
    if isinstance(node, list | tuple):
        tag = LIST if isinstance(node, list) else TUPLE
        return [tag, *(_tree_entry(child, entries) for child in node)]
    if not isinstance(node, dict):
        return None
    children = {key: _tree_entry(child, entries) for key, child in node.items()}
    if any(type(key) is int for key in node):
        return [INT_KEYS, *(item for pair in children.items() for item in pair)]
    return children


def _check_metadata(metadata: Any) -> None:
    """Refuses metadata that JSON does not give back as it is."""
    try:
        text = json.dumps(metadata, allow_nan=False, ensure_ascii=False)
        text.encode("utf-8")  # half of a surrogate pair is no text
        is_json = json.loads(text) == metadata and type(metadata) is dict
    except (TypeError, ValueError, RecursionError):
        is_json = False
    if not is_json:
        raise ValueError(
            "metadata must be a dict of JSON: strings, finite numbers, booleans, None, lists and "
            "dicts"
        )


def _compress(fields: dict[str, Any], crcs: list[int]) -> bytes:
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    num_tokens = sum(map(text.count, ",[{"))
    if len(text) > MAX_MANIFEST // 4 or num_tokens > MAX_TOKENS:
        raise ValueError(
            f"{len(crcs)} leaves and the metadata make the manifest too long: save in parts"
        )
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    body = compressor.compress(text.encode("utf-8")) + compressor.flush()
    body += struct.pack(f"<{len(crcs)}I", *crcs)
    return struct.pack("<I", zlib.crc32(body)) + body
