"""Writing a file leaf by leaf: the streams go to nameless files beside it, and follow the manifest
at the end.

The bytes are those of `save` for the same tree: leaves come in the order in which it writes them.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from jaxprune.storage import atomic
from jaxprune.storage.format.trees import to_nodes
from jaxprune.storage.format.words import Leaf
from jaxprune.storage.writer import Writer

Keys = tuple[str, ...]


class Stream:
    """A file that is being written; `add` takes one leaf at a time."""

    def __init__(self, writer: Writer):
        self.writer = writer
        self.tree: dict[str, Any] = {}
        self._last: Keys = ()

    def add(self, keys: Keys, x: Any) -> None:
        """Encodes and writes a leaf: an array, a compressed array or a number.

        Raises:
          ValueError: keys that do not come in order, or x cannot be saved.
        """
        if not self._last < keys:
            raise ValueError(f"leaves come in the order of their keys: {keys} after {self._last}")
        self._last = keys
        leaf = to_nodes(nested(keys, x))
        place = self.tree
        for key in keys[:-1]:
            leaf = leaf[key]
            place = place.setdefault(key, {})
        leaf = leaf[keys[-1]]
        place[keys[-1]] = Leaf(
            leaf.path, None
        )  # its place; the arrays are forgotten once they are written
        self.writer.add(leaf)


@contextlib.contextmanager
def streamed(path: Any, metadata: dict[str, Any] | None = None) -> Iterator[Stream]:
    """Writes the file at `path` leaf by leaf; it appears whole when the block ends, or not at all.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp, tempfile, os
      >>> path = os.path.join(tempfile.mkdtemp(), "model.jpz")
      >>> with streamed(path) as file:
      ...     file.add(("dense", "bias"), jnp.zeros(2))
      ...     file.add(("dense", "kernel"), jp.Masked(jnp.eye(2), jnp.eye(2) > 0))
      >>> [row.path for row in jp.inspect(path).rows]
      ['dense/bias', 'dense/kernel']
    """
    folder = os.path.dirname(os.path.realpath(path))
    nameless = tempfile.TemporaryFile
    with (
        atomic.replacing(path) as file,
        nameless(dir=folder) as data,
        nameless(dir=folder) as banks,
    ):
        writer = Writer(data.write, banks.write)
        stream = Stream(writer)
        yield stream
        for piece in writer.head(stream.tree, metadata):
            file.write(piece)
        for streams in (data, banks):
            streams.seek(0)
            shutil.copyfileobj(streams, file, 1 << 20)


def nested(keys: Keys, x: Any) -> Any:
    """x below its keys, in a tree of dicts."""
    for key in reversed(keys):
        x = {key: x}
    return x
