"""Nodes to bytes: every array by its smallest codec, and the manifest that says how.

Deterministic: the same tree gives the same bytes. Dicts are written in the order of their keys, and nothing of time
  or place goes into a file.
"""

import json
import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from jaxprune.storage import format as f
from jaxprune.storage import grouping, streams
from jaxprune.storage.format import DTYPES, KINDS, Array, Code, Group, Leaf
from jaxprune.storage.grouping import groups
from jaxprune.storage.trees import to_nodes


def encode(tree: Any, metadata: dict[str, Any] | None) -> list[Any]:
    """The file that holds a tree, in pieces to be written one after another."""
    nodes = to_nodes(tree)
    writer = _Writer(groups(list(_arrays(nodes))))
    said: dict[str, Any] = {"t": writer.node(nodes)}
    if writer.groups:
        said["b"] = writer.banks()
    said["p"] = writer.predicted - sum(map(len, writer.pieces))
    if writer.grids:
        said["g"] = writer.grids
    if metadata:
        said["m"] = _checked(metadata)
    manifest = _manifest(said, writer.crcs)
    return [f.header(len(manifest), sum(map(len, writer.pieces))), manifest, *writer.pieces]


def predicted_bytes(tree: Any) -> int:
    """Bytes of the streams that `save` would write, from counts and closed forms: nothing is encoded.

    Example:
      >>> import jax.numpy as jnp
      >>> predicted_bytes({"w": jnp.zeros((3, 5))})
      60
    """
    arrays = list(_arrays(to_nodes(tree)))
    shared = groups(arrays)
    inside = {id(x) for group in shared for x in group.members}
    alone = sum(streams.predict(x.kept(), DTYPES[x.dtype]) for x in arrays if id(x) not in inside)
    return alone + sum(group.size for group in shared)


def _arrays(node: Any) -> Iterator[Array]:
    """A tree's arrays, in the order of the file."""
    if isinstance(node, Array):
        yield node
    elif isinstance(node, Leaf):
        yield from _arrays(node.node)
    elif isinstance(node, Group):
        yield from _arrays(node.codebook)
        yield from _arrays(node.tree)
    elif isinstance(node, Code | dict | list | tuple):
        for kid in node.parts if isinstance(node, Code) else node.values() if isinstance(node, dict) else node:
            yield from _arrays(kid)


def _checked(metadata: Any) -> Any:
    """The metadata, if JSON gives it back as it is."""
    try:
        same = json.loads(json.dumps(metadata, allow_nan=False)) == metadata and type(metadata) is dict
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise ValueError("metadata must be a dict of JSON: strings, finite numbers, booleans, None, lists and dicts")
    return metadata


def _manifest(said: dict[str, Any], crcs: list[int]) -> bytes:
    raw = json.dumps(said, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    if len(raw) > f.MAX_MANIFEST // 4 or sum(map(raw.count, ",[{")) > f.MAX_TOKENS:
        raise ValueError(f"{len(crcs)} leaves and the metadata make the manifest too long: save in parts")
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, f.DICTIONARY)
    body = deflate.compress(raw.encode("utf-8")) + deflate.flush() + struct.pack(f"<{len(crcs)}I", *crcs)
    return struct.pack("<I", zlib.crc32(body)) + body


class _Writer:
    """Encodes a tree's arrays in order, and says where each is."""

    def __init__(self, shared: list[grouping.Group]) -> None:
        self.groups = shared
        self.bank_of = {id(x): number for number, group in enumerate(shared) for x in group.members}
        self.pieces: list[Any] = []
        self.crcs: list[int] = []
        self.grids: list[list[float]] = []
        self.predicted = 0

    def node(self, x: Any) -> Any:
        if isinstance(x, Leaf):
            return self.leaf(x.node)
        if isinstance(x, Group):
            return [f.GROUP, self.node(x.codebook), self.node(x.tree)]
        if isinstance(x, list | tuple):
            return [f.LIST if isinstance(x, list) else f.TUPLE, *map(self.node, x)]
        if not isinstance(x, dict):
            return None
        if any(type(key) is int for key in x):
            return [f.INT_KEYS, *(y for key, kid in x.items() for y in (key, self.node(kid)))]
        return {key: self.node(kid) for key, kid in x.items()}

    def leaf(self, x: Any) -> Any:
        if isinstance(x, float) and not math.isfinite(x):
            return [f.NOT_FINITE, str(x)]
        if not isinstance(x, Array | Code):
            return x
        first = len(self.pieces)
        said = self.part(x)
        crc = 0
        for piece in self.pieces[first:]:
            crc = zlib.crc32(piece, crc)
        self.crcs.append(crc)
        return said

    def part(self, x: Any) -> Any:
        if isinstance(x, Array):
            return self.array(x)
        if not isinstance(x, Code):
            return x  # None, or the NONZERO of a mask
        statics = [self.static(name, value) for name, value in zip(KINDS[x.tag].statics, x.statics)]
        return [x.tag, *statics, *map(self.part, x.parts)]

    def static(self, name: str, value: Any) -> Any:
        if name != "grid":
            return value
        if value is None:
            return 0
        if list(value) not in self.grids:
            self.grids.append(list(value))
        return 1 + self.grids.index(list(value))

    def banks(self) -> list[int]:
        """Writes the banks, after all leaves; their lengths."""
        octets = [group.write() for group in self.groups]
        self.pieces += octets
        self.crcs += map(zlib.crc32, octets)
        self.predicted += sum(group.size for group in self.groups)
        return list(map(len, octets))

    def array(self, x: Array) -> list[Any]:
        name = (f.HOST if x.host else "") + x.dtype
        if id(x) in self.bank_of:
            return [name, list(x.shape), f.CONTEXT, self.bank_of[id(x)]]
        codec, octets, predicted = streams.encode(x.kept(), DTYPES[x.dtype])
        self.pieces.append(octets)
        self.predicted += predicted
        said = [name, list(x.shape) if x.mask is None else 0]
        return said if codec == f.RAW and x.mask is None else [*said, codec, len(octets)]
