"""A file's leaves as a tree: all of them or a selection, by themselves or in the places of a
template.
"""

from typing import Any, BinaryIO

import jax
import numpy as np

from jaxprune.core.arrays import Common
from jaxprune.core.leaves.paths import leaf_path
from jaxprune.core.words import compiled, nearest
from jaxprune.storage import reader
from jaxprune.storage.accounting import dense_bytes, leaves, needed, shared
from jaxprune.storage.format import parts, trees
from jaxprune.storage.format.manifest import Contents
from jaxprune.storage.format.words import Code, FormatError, Group, Leaf

SHOWN = 10  # paths of each sort in an error


class Loading:
    """One call of `load`."""

    def __init__(
        self, file: BinaryIO, contents: Contents, as_: str, only: str | None, max_bytes: int
    ):
        self.contents = contents
        self.as_ = as_
        self.decoder = reader.Decoder(file, contents)
        self.pattern = None if only is None else compiled("only", only)
        self.wanted = self.selection()
        self.codebooks: dict[Group, Any] = {}
        self.tied_to = {id(leaf.node) for leaf in contents.leaves if leaf.tied is not None}
        self.made: dict[int, Any] = {}  # by the node, of leaves that others are tied to
        self.afford(max_bytes)

    def run(self, like: Any) -> Any:
        """The tree, in the places of `like` if there is one."""
        return (
            self.tree(self.contents.tree, None)
            if like is None
            else self.fill(trees.dense_template(like))
        )

    # --- what is read

    def matches(self, path: str) -> bool:
        return self.pattern is None or self.pattern.fullmatch(path) is not None

    def selection(self) -> set[Leaf]:
        """The leaves to read: those that match, and the codebooks they look into."""
        chosen = [
            (leaf, group) for leaf, group in leaves(self.contents.tree) if self.matches(leaf.path)
        ]
        if self.pattern is not None and not chosen:
            near = nearest(self.pattern.pattern, [leaf.path for leaf in self.contents.leaves])
            raise ValueError(
                f"only={self.pattern.pattern!r} matches no leaf of the file. Nearest: {near}"
            )
        return {leaf for leaf, _ in chosen} | {group.codebook for _, group in chosen if group}

    def afford(self, max_bytes: int) -> None:
        def dense_too(node):
            return self.as_ != "compressed" and isinstance(node, Code)

        def made(node, group):
            return dense_bytes(node, group) if dense_too(node) else 0

        total = needed(self.contents, self.wanted, made)
        if total > max_bytes:
            raise FormatError(
                f"the arrays take {total} bytes decoded, more than max_bytes={max_bytes}"
            )

    def leaf(self, leaf: Leaf, group: Group | None) -> Any:
        """A leaf's value; leaves that are tied are one object, but for NumPy's arrays, which can be
        written to.
        """
        if id(leaf.node) not in self.tied_to:
            return self.decoded(leaf, group)
        if id(leaf.node) not in self.made:
            self.made[id(leaf.node)] = self.decoded(leaf, group)
            return self.made[id(leaf.node)]
        return jax.tree.map(
            lambda x: x.copy() if isinstance(x, np.ndarray) else x, self.made[id(leaf.node)]
        )

    def decoded(self, leaf: Leaf, group: Group | None) -> Any:
        node = self.decoder.read(leaf, shared(group))
        return parts.from_node(
            node, self.as_, self.codebook(group) if group and self.as_ != "compressed" else None
        )

    def codebook(self, group: Group) -> Any:
        """A codebook, read once."""
        if group not in self.codebooks:
            node = self.decoder.read(group.codebook)
            self.codebooks[group] = parts.made(node, host=self.as_ == "compressed")
        return self.codebooks[group]

    # --- without a template

    def tree(self, node: Any, group: Group | None) -> Any:
        if node is None or not self.holds(node):
            return None
        if isinstance(node, Leaf):
            return self.leaf(node, group)
        if isinstance(node, Group):
            tree = self.tree(node.tree, node)
            return Common(self.codebook(node), tree) if self.as_ == "compressed" else tree
        if isinstance(node, dict):
            return {key: self.tree(kid, group) for key, kid in node.items() if self.holds(kid)}
        return type(node)(self.tree(kid, group) for kid in node)

    def holds(self, node: Any) -> bool:
        """Whether there is something to load below a node."""
        if self.pattern is None:
            return True
        return any(
            leaf in self.wanted
            for leaf, _ in leaves(node.tree if isinstance(node, Group) else node)
        )

    # --- with a template

    def fill(self, template: Any) -> Any:
        """The template with the stored leaves in their places; densely, or each as its code."""
        named = self.named()
        flat, treedef = jax.tree_util.tree_flatten_with_path(template)
        places = [
            next((p for p in paths if p in named), paths[0]) for paths in trees.names(template)
        ]
        self.compare([(path, x) for path, (_, x) in zip(places, flat)], named)

        def take(path, x):
            return self.leaf(*named[path]) if path in named and named[path][0] in self.wanted else x

        filled = jax.tree.unflatten(treedef, [take(path, x) for path, (_, x) in zip(places, flat)])
        return self.grouped(filled, named) if self.as_ == "compressed" else filled

    def named(self) -> dict[str, tuple[Leaf, Group | None]]:
        codebooks = {group.codebook for _, group in leaves(self.contents.tree) if group}
        found = [
            (leaf, group) for leaf, group in leaves(self.contents.tree) if leaf not in codebooks
        ]
        named = {leaf.path: (leaf, group) for leaf, group in found}
        if len(named) != len(found):
            raise ValueError("the file has two leaves with one path: load it without `like`")
        return named

    def compare(
        self, places: list[tuple[str, Any]], named: dict[str, tuple[Leaf, Group | None]]
    ) -> None:
        """Refuses a template that is not of the file's leaves."""
        there = dict(places)
        lost = [
            path
            for path, x in there.items()
            if path not in named and trees.expects_data(x) and self.matches(path)
        ]
        more = [
            path for path, (leaf, _) in named.items() if path not in there and leaf in self.wanted
        ]
        other = []
        for path, (leaf, group) in named.items():
            why = (
                trees.mismatch(there[path], leaf.node, shared(group))
                if path in there and leaf in self.wanted
                else ""
            )
            other += [f"{path or 'the array itself'} ({why})"] if why else []
        if lost or more or other:
            kinds = (("lacks", lost), ("has besides", more), ("holds otherwise", other))
            found = "; and ".join(f"{kind} {_some(paths)}" for kind, paths in kinds if paths)
            raise ValueError(f"`like` does not fit the file, which {found}")

    def grouped(self, tree: Any, named: dict[str, tuple[Leaf, Group | None]]) -> Any:
        """Puts each `Common` around its subtree, the innermost first."""
        groups = {group: None for leaf, group in named.values() if group and leaf in self.wanted}
        for group in sorted(groups, key=lambda g: -len(g.path)):
            tree = _around(tree, group.path, self.codebook(group))
        return tree


def _around(tree: Any, path: str, codebook: Any) -> Any:
    def is_place(keys, x):
        return leaf_path(keys) == path

    def wrap(keys, x):
        return Common(codebook, x) if leaf_path(keys) == path else x

    return jax.tree_util.tree_map_with_path(wrap, tree, is_leaf=is_place, is_leaf_takes_path=True)


def _some(paths: list[str]) -> str:
    shown = ", ".join(path or "the array itself" for path in paths[:SHOWN])
    return shown + (f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else "")
