"""Nodes to bytes: every array by its smallest codec, and the manifest that says how.

Deterministic: the same tree gives the same bytes. Dicts are written in the order of their keys, and
nothing of time
  or place goes into a file.
"""

import json
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import compress
from typing import Any, NamedTuple

from jaxprune.storage.accounting import shares
from jaxprune.storage.format import words as f
from jaxprune.storage.format.tied import Ties
from jaxprune.storage.format.trees import to_nodes
from jaxprune.storage.format.words import DTYPES, KINDS, Array, Code, Group, Leaf
from jaxprune.storage.streams import smallest
from jaxprune.storage.streams.grouping import arrays_of, batches, elements, groups, members_of
from jaxprune.storage.streams.smallest import Buffer

Sink = Callable[[Buffer], Any]


def encode(tree: Any, metadata: dict[str, Any] | None) -> list[Any]:
    """The file that holds a tree, in pieces to be written one after another."""
    data: list[Buffer] = []
    banks: list[Buffer] = []
    writer = Writer(data.append, banks.append, held=True)
    nodes = to_nodes(tree)
    for leaf in _leaves(nodes):
        writer.add(leaf)
    return [*writer.head(nodes, metadata), *data, *banks]


def predicted_bytes(tree: Any) -> int:
    """Bytes of the streams that `save` would write, from counts and closed forms: nothing is
    encoded.

    Example:
      >>> import jax.numpy as jnp
      >>> predicted_bytes({"w": jnp.arange(15.0).reshape(3, 5)})
      60
    """
    return sum(predicted_of(_leaves(to_nodes(tree))))


def predicted_of(leaves: Iterable[Leaf]) -> list[int]:
    """`predicted_bytes` of each of the leaves of a file. Of a bank they have parts as `accounting`
    gives them; a leaf that is tied to an earlier one takes none.
    """
    ties = Ties(held=True)
    every = list(leaves)
    firsts = [ties.first(leaf) is None for leaf in every]
    sizes = iter([size for batch in batches(compress(every, firsts)) for size in _predicted(batch)])
    return [next(sizes) if first else 0 for first in firsts]


def _predicted(batch: list[Leaf]) -> Iterator[int]:
    part: dict[int, int] = {}  # of a bank, by the ids of its arrays
    for group in groups(members_of(batch)):
        arrays = [x.array for x in group.members]
        part |= zip(map(id, arrays), shares(group.size, (x.words.size for x in arrays)))
    for leaf in batch:
        yield sum(
            part[id(x)] if id(x) in part else smallest.predict(x.kept(), DTYPES[x.dtype])
            for x in arrays_of([leaf])
        )


def _leaves(node: Any) -> Iterator[Leaf]:
    """A tree's leaves, in the order of the file."""
    if isinstance(node, Leaf):
        yield node
    elif isinstance(node, Group):
        yield node.codebook
        yield from _leaves(node.tree)
    elif isinstance(node, dict | list | tuple):
        for kid in node.values() if isinstance(node, dict) else node:
            yield from _leaves(kid)


class _Tied(NamedTuple):
    """In the place of a leaf's node: the number of the earlier leaf that it is."""

    first: int


class Writer:
    """Encodes leaves in order, hands the bytes on, and keeps what the manifest says of them.

    Leaves wait until they are a batch, in which some arrays may share a bank. Then `data` gets the
    leaves' own streams, and `banks` those of the batch's banks, which follow all leaves in the
    file.
    """

    def __init__(self, data: Sink, banks: Sink, *, held: bool = False) -> None:
        self.data = data
        self.banks = banks
        self._ties = Ties(held)  # whether all leaves stay in memory until the end
        self.said: list[Any] = []  # of each leaf
        self.crcs: list[int] = []
        self.bank_crcs: list[int] = []
        self.bank_lengths: list[int] = []
        self.grids: list[list[float]] = []
        self.length = 0
        self.predicted = 0
        self.last_codec = f.RAW
        self._batch: list[Leaf] = []
        self._elements = 0  # of the batch
        self._bank_of: dict[
            int, tuple[int, int]
        ] = {}  # codec and bank, by the ids of the batch's arrays
        self._crc = 0  # of the leaf so far

    def add(self, leaf: Leaf) -> None:
        """Takes the next leaf."""
        first = self._ties.first(leaf)
        if first is not None:
            self.last_codec = max(self.last_codec, f.PLANES)  # such a leaf is of version 2, too
            leaf = Leaf(leaf.path, _Tied(first))
        n = elements(leaf)
        if self._elements + n > f.MOST_BANK:
            self._write()
        self._batch.append(leaf)
        self._elements += n
        if n > f.MOST_BANK:  # too large for company: it need not wait
            self._write()

    def head(self, tree: Any, metadata: dict[str, Any] | None) -> list[bytes]:
        """What comes before the bytes handed on: header and manifest, for a tree whose leaves were
        added in order.
        """
        self._write()
        said: dict[str, Any] = {"t": _tree(tree, iter(self.said))}
        length = self.length + sum(self.bank_lengths)
        if self.bank_lengths:
            said["b"] = self.bank_lengths
        said["p"] = self.predicted - length
        if self.grids:
            said["g"] = self.grids
        if metadata:
            said["m"] = _checked(metadata)
        manifest = _manifest(said, self.crcs + self.bank_crcs)
        version = min(
            version for version, codec in f.LAST_CODEC.items() if codec >= self.last_codec
        )
        return [f.header(len(manifest), length, version), manifest]

    def _write(self) -> None:
        """Writes the batch."""
        shared = groups(members_of(self._batch))
        first = len(self.bank_lengths)
        self._bank_of = {
            id(x.array): (x.codec, first + i)
            for i, group in enumerate(shared)
            for x in group.members
        }
        self.said += [self._leaf(leaf.node) for leaf in self._batch]
        for group in shared:
            octets = group.write()
            self.banks(octets)
            self.bank_crcs.append(zlib.crc32(octets))
            self.bank_lengths.append(len(octets))
            self.predicted += group.size
        self._batch = []
        self._elements = 0

    def _leaf(self, x: Any) -> Any:
        if isinstance(x, _Tied):
            return [f.TIED, x.first]
        if isinstance(x, float) and not math.isfinite(x):
            return [f.NOT_FINITE, str(x)]
        if not isinstance(x, Array | Code):
            return x
        self._crc = 0
        said = self._part(x)
        self.crcs.append(self._crc)
        return said

    def _part(self, x: Any) -> Any:
        if isinstance(x, Array):
            return self._array(x)
        if not isinstance(x, Code):
            return x  # None, or the NONZERO of a mask
        statics = [
            self._static(name, value) for name, value in zip(KINDS[x.tag].statics, x.statics)
        ]
        return [x.tag, *statics, *map(self._part, x.parts)]

    def _static(self, name: str, value: Any) -> Any:
        if name != "grid":
            return value
        if value is None:
            return 0
        if list(value) not in self.grids:
            self.grids.append(list(value))
        return 1 + self.grids.index(list(value))

    def _array(self, x: Array) -> list[Any]:
        name = (f.HOST if x.host else "") + x.dtype
        if id(x) in self._bank_of:
            codec, bank = self._bank_of[id(x)]
            self.last_codec = max(self.last_codec, codec)
            return [name, list(x.shape), codec, bank]
        codec, pieces, predicted = smallest.encode(x.kept(), DTYPES[x.dtype])
        length = 0
        for octets in pieces:
            self.data(octets)
            self._crc = zlib.crc32(octets, self._crc)
            length += len(octets)
        self.length += length
        self.predicted += predicted
        self.last_codec = max(self.last_codec, codec)
        said = [name, list(x.shape) if x.mask is None else 0]
        return said if codec == f.RAW and x.mask is None else [*said, codec, length]


def _tree(x: Any, said: Iterator[Any]) -> Any:
    """A tree as the manifest has it, its leaves being what is said of them."""
    if isinstance(x, Leaf):
        return next(said)
    if isinstance(x, Group):
        return [f.GROUP, next(said), _tree(x.tree, said)]
    if isinstance(x, list | tuple):
        return [f.LIST if isinstance(x, list) else f.TUPLE, *(_tree(kid, said) for kid in x)]
    if not isinstance(x, dict):
        return None
    if any(type(key) is int for key in x):
        return [f.INT_KEYS, *(y for key, kid in x.items() for y in (key, _tree(kid, said)))]
    return {key: _tree(kid, said) for key, kid in x.items()}


def _checked(metadata: Any) -> Any:
    """The metadata, if JSON gives it back as it is."""
    try:
        text = json.dumps(metadata, allow_nan=False, ensure_ascii=False)
        text.encode("utf-8")  # half of a surrogate pair is no text
        same = json.loads(text) == metadata and type(metadata) is dict
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise ValueError(
            "metadata must be a dict of JSON: strings, finite numbers, booleans, None, lists and "
            "dicts"
        )
    return metadata


def _manifest(said: dict[str, Any], crcs: list[int]) -> bytes:
    raw = json.dumps(said, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    if len(raw) > f.MAX_MANIFEST // 4 or sum(map(raw.count, ",[{")) > f.MAX_TOKENS:
        raise ValueError(
            f"{len(crcs)} leaves and the metadata make the manifest too long: save in parts"
        )
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, f.DICTIONARY)
    body = (
        deflate.compress(raw.encode("utf-8"))
        + deflate.flush()
        + struct.pack(f"<{len(crcs)}I", *crcs)
    )
    return struct.pack("<I", zlib.crc32(body)) + body
