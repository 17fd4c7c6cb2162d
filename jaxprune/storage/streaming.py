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

from jaxprune.storage.atomic import replacing
from jaxprune.storage.format.trees import to_nodes
from jaxprune.storage.format.words import Leaf
from jaxprune.storage.writer import Writer

Keys = tuple[str, ...]
COPIED = 1 << 20  # bytes at a time


class LeafWriter:
    """A file that is being written; `add` takes one leaf at a time."""

    def __init__(self, writer: Writer):
        self.nodes: dict[str, Any] = {}
        self._writer = writer
        self._last_keys: Keys = ()

    def add(self, keys: Keys, value: Any) -> None:
        """Encodes and writes a leaf: an array, a compressed array or a number.

        Raises:
          ValueError: keys that do not come in order, or a value that cannot be saved.
        """
        if not self._last_keys < keys:
            raise ValueError(
                f"leaves come in the order of their keys: {keys} after {self._last_keys}"
            )
        self._last_keys = keys
        node = to_nodes(nested(keys, value))
        parent = self.nodes
        for key in keys[:-1]:
            node = node[key]
            parent = parent.setdefault(key, {})
        leaf = node[keys[-1]]
        if not isinstance(leaf, Leaf):
            raise ValueError(f"{'/'.join(keys)}: a {type(value).__name__} is no single leaf")
        # Its place alone: the arrays are forgotten once they are written.
        parent[keys[-1]] = Leaf(leaf.path, None)
        self._writer.add(leaf)


@contextlib.contextmanager
def streamed(path: Any, metadata: dict[str, Any] | None = None) -> Iterator[LeafWriter]:
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
    with (
        replacing(path) as file,
        tempfile.TemporaryFile(dir=folder) as data,
        tempfile.TemporaryFile(dir=folder) as banks,
    ):
        writer = Writer(data.write, banks.write)
        leaf_writer = LeafWriter(writer)
        yield leaf_writer
        file.write(writer.finish(leaf_writer.nodes, metadata))
        for streams in (data, banks):
            streams.seek(0)
            shutil.copyfileobj(streams, file, COPIED)


def nested(keys: Keys, value: Any) -> Any:
    """A value below its keys, in a tree of dicts."""
    for key in reversed(keys):
        value = {key: value}
    return value
