"""Nodes to bytes: every array by its smallest codec, and the manifest that says how.

Deterministic: the same tree gives the same bytes. Dicts are written in the order of their keys, and nothing of time
  or place goes into a file.
"""

import json
import math
import struct
import zlib
from collections.abc import Callable
from typing import Any

from jaxprune.storage import format as f
from jaxprune.storage import streams
from jaxprune.storage.format import DTYPES, KINDS, Array, Code, Group, Leaf
from jaxprune.storage.streams import Buffer
from jaxprune.storage.trees import to_nodes


def encode(tree: Any, metadata: dict[str, Any] | None) -> list[Any]:
    """The file that holds a tree, in pieces to be written one after another."""
    pieces: list[Buffer] = []
    writer = Writer(pieces.append)
    said = writer.node(to_nodes(tree))
    return [*writer.head(said, metadata), *pieces]


def predicted_bytes(tree: Any) -> int:
    """Bytes of the streams that `save` would write, from counts and closed forms: nothing is encoded.

    Example:
      >>> import jax.numpy as jnp
      >>> predicted_bytes({"w": jnp.zeros((3, 5))})
      60
    """
    return _predicted(to_nodes(tree))


def _predicted(node: Any) -> int:
    if isinstance(node, Array):
        return streams.predict(node.kept(), DTYPES[node.dtype])
    below = {Leaf: lambda: [node.node], Code: lambda: node.parts, Group: lambda: [node.codebook, node.tree]}
    if type(node) in below:
        return sum(map(_predicted, below[type(node)]()))
    kids = node.values() if isinstance(node, dict) else node
    return sum(map(_predicted, kids)) if isinstance(node, dict | list | tuple) else 0


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


class Writer:
    """Encodes a tree's arrays in order, hands the bytes on, and says what the manifest needs to know."""

    def __init__(self, sink: Callable[[Buffer], Any]) -> None:
        self.sink = sink
        self.crcs: list[int] = []
        self.grids: list[list[float]] = []
        self.length = 0
        self.predicted = 0
        self._crc = 0  # of the leaf so far

    def head(self, tree: Any, metadata: dict[str, Any] | None) -> list[bytes]:
        """What comes before the bytes handed on: header and manifest; `tree` is what `node` said."""
        said: dict[str, Any] = {"t": tree, "p": self.predicted - self.length}
        if self.grids:
            said["g"] = self.grids
        if metadata:
            said["m"] = _checked(metadata)
        manifest = _manifest(said, self.crcs)
        return [f.header(len(manifest), self.length), manifest]

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
        self._crc = 0
        said = self.part(x)
        self.crcs.append(self._crc)
        return said

    def part(self, x: Any) -> Any:
        if isinstance(x, Array):
            return self.array(x)
        if x is None:
            return None
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

    def array(self, x: Array) -> list[Any]:
        codec, octets, predicted = streams.encode(x.kept(), DTYPES[x.dtype])
        self.sink(octets)
        self._crc = zlib.crc32(octets, self._crc)
        self.length += len(octets)
        self.predicted += predicted
        said = [(f.HOST if x.host else "") + x.dtype, list(x.shape) if x.mask is None else 0]
        return said if codec == f.RAW and x.mask is None else [*said, codec, len(octets)]
