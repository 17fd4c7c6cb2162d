"""A file's leaves as a tree: all of them or a selection, by themselves or in the places of a
template.
"""

import re
from collections.abc import Callable
from typing import Any, BinaryIO, Literal

import jax
import numpy as np

from jaxprune.core.arrays import Common
from jaxprune.core.words import compiled, nearest
from jaxprune.storage.accounting import dense_bytes, leaves, needed, shared
from jaxprune.storage.decoder import Decoder
from jaxprune.storage.filling import fill
from jaxprune.storage.format import parts
from jaxprune.storage.format.manifest import Contents
from jaxprune.storage.format.words import Code, FormatError, Group, Leaf

As = Literal["compressed", "dense", "numpy"]


def load_tree(
    file: BinaryIO, contents: Contents, like: Any, as_: As, only: str | None, max_bytes: int
) -> Any:
    """The tree of an open file; the arguments are those of `load`."""
    pattern = None if only is None else compiled("only", only)
    selected = _selection(contents, pattern)
    _check_memory(contents, selected, as_, max_bytes)
    reader = LeafReader(file, contents, as_)
    if like is not None:
        return fill(like, contents, reader, selected, pattern)

    def holds_selected(node: Any) -> bool:
        below = node.tree if isinstance(node, Group) else node
        return pattern is None or any(leaf in selected for leaf, _ in leaves(below))

    return _tree(contents.tree, None, reader, holds_selected)


class LeafReader:
    """Reads the leaves of one file as codes, JAX arrays or NumPy arrays."""

    def __init__(self, file: BinaryIO, contents: Contents, as_: As):
        self.as_ = as_
        self._decoder = Decoder(file, contents)
        self._codebooks: dict[Group, Any] = {}
        self._tied_nodes = {id(leaf.node) for leaf in contents.leaves if leaf.tied is not None}
        self._tied_values: dict[int, Any] = {}  # by the id of the node

    def read(self, leaf: Leaf, group: Group | None) -> Any:
        """A leaf's value; tied leaves are one object, but for NumPy's arrays, which can be
        written to.
        """
        if id(leaf.node) not in self._tied_nodes:
            return self._decode(leaf, group)
        if id(leaf.node) not in self._tied_values:
            self._tied_values[id(leaf.node)] = self._decode(leaf, group)
            return self._tied_values[id(leaf.node)]
        return jax.tree.map(_own_copy, self._tied_values[id(leaf.node)])

    def codebook(self, group: Group) -> Any:
        """The codebook of a `Common`, read once."""
        if group not in self._codebooks:
            node = self._decoder.read(group.codebook)
            self._codebooks[group] = parts.made(node, host=self.as_ == "compressed")
        return self._codebooks[group]

    def _decode(self, leaf: Leaf, group: Group | None) -> Any:
        node = self._decoder.read(leaf, shared(group))
        codebook = None
        if group is not None and self.as_ != "compressed":
            codebook = self.codebook(group)
        return parts.from_node(node, self.as_, codebook)


def _own_copy(x: Any) -> Any:
    return x.copy() if isinstance(x, np.ndarray) else x


def _selection(contents: Contents, pattern: re.Pattern[str] | None) -> set[Leaf]:
    """The leaves to read: those whose path matches, and the codebooks they look into."""
    chosen = list(leaves(contents.tree))
    if pattern is not None:
        chosen = [(leaf, group) for leaf, group in chosen if pattern.fullmatch(leaf.path)]
        if not chosen:
            near = nearest(pattern.pattern, [leaf.path for leaf in contents.leaves])
            raise ValueError(
                f"only={pattern.pattern!r} matches no leaf of the file. Nearest: {near}"
            )
    codebooks = {group.codebook for _, group in chosen if group is not None}
    return {leaf for leaf, _ in chosen} | codebooks


def _check_memory(contents: Contents, selected: set[Leaf], as_: As, max_bytes: int) -> None:
    def made_bytes(node: Any, group: Group | None) -> int:
        is_made_dense = as_ != "compressed" and isinstance(node, Code)
        return dense_bytes(node, group) if is_made_dense else 0

    total = needed(contents, selected, made_bytes)
    if total > max_bytes:
        raise FormatError(f"the arrays take {total} bytes decoded, more than max_bytes={max_bytes}")


def _tree(
    node: Any, group: Group | None, reader: LeafReader, holds_selected: Callable[[Any], bool]
) -> Any:
    """The selected leaves below a node: others are left out of dicts, and None in lists."""
    if node is None or not holds_selected(node):
        return None
    if isinstance(node, Leaf):
        return reader.read(node, group)
    if isinstance(node, Group):
        tree = _tree(node.tree, node, reader, holds_selected)
        return Common(reader.codebook(node), tree) if reader.as_ == "compressed" else tree
    if isinstance(node, dict):
        return {
            key: _tree(child, group, reader, holds_selected)
            for key, child in node.items()
            if holds_selected(child)
        }
    return type(node)([_tree(child, group, reader, holds_selected) for child in node])
