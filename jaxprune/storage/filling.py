"""Stored leaves in the places of a template: the `like` of `load`."""

import re
from collections.abc import Iterable
from typing import Any, Protocol

import jax

from jaxprune.core.arrays import Common
from jaxprune.core.leaves.paths import leaf_path
from jaxprune.storage.accounting import leaves, shared
from jaxprune.storage.format import trees
from jaxprune.storage.format.manifest import Contents
from jaxprune.storage.format.words import Group, Leaf

SHOWN = 10  # paths of each sort in an error

StoredLeaves = dict[str, tuple[Leaf, Group | None]]  # by path


class Reader(Protocol):
    """What reads the leaves: `loading.LeafReader`."""

    as_: str

    def read(self, leaf: Leaf, group: Group | None) -> Any: ...

    def codebook(self, group: Group) -> Any: ...


def fill(
    like: Any,
    contents: Contents,
    reader: Reader,
    selected: set[Leaf],
    pattern: re.Pattern[str] | None,
) -> Any:
    """The template with the stored leaves in their places; densely, or each as its code.

    Args:
      like: a tree shaped like the dense weights.
      contents: of the file.
      reader: of its leaves.
      selected: the leaves to read; others stay as the template has them.
      pattern: of the paths of the selected leaves; None for all.

    Raises:
      ValueError: the template and the file differ in leaves, shapes or dtypes.
    """
    template = trees.dense_template(like)
    stored = leaves_by_path(contents)
    values, treedef = jax.tree.flatten(template)
    paths = [_stored_path(names, stored) for names in trees.names(template)]
    _check_fit(list(zip(paths, values)), stored, selected, pattern)
    filled = []
    for path, value in zip(paths, values):
        leaf, group = stored.get(path, (None, None))
        filled.append(reader.read(leaf, group) if leaf is not None and leaf in selected else value)
    tree = jax.tree.unflatten(treedef, filled)
    if reader.as_ != "compressed":
        return tree
    groups = [group for leaf, group in stored.values() if group is not None and leaf in selected]
    return _wrap_groups(tree, groups, reader)


def leaves_by_path(contents: Contents) -> StoredLeaves:
    """The leaves of a file and their groups, codebooks apart.

    Raises:
      ValueError: two leaves have one path.
    """
    all_leaves = list(leaves(contents.tree))
    codebooks = {group.codebook for _, group in all_leaves if group is not None}
    stored = [(leaf, group) for leaf, group in all_leaves if leaf not in codebooks]
    by_path = {leaf.path: (leaf, group) for leaf, group in stored}
    if len(by_path) != len(stored):
        raise ValueError("the file has two leaves with one path: load it without `like`")
    return by_path


def _stored_path(names: Iterable[str], stored: StoredLeaves) -> str:
    """The name under which a file has a leaf of the template: the first one that it has."""
    names = list(names)
    return next((name for name in names if name in stored), names[0])


def _check_fit(
    template: list[tuple[str, Any]],
    stored: StoredLeaves,
    selected: set[Leaf],
    pattern: re.Pattern[str] | None,
) -> None:
    """Refuses a template that is not of the file's leaves."""
    expected = dict(template)
    missing = []
    for path, value in expected.items():
        is_asked = pattern is None or pattern.fullmatch(path) is not None
        if path not in stored and trees.expects_data(value) and is_asked:
            missing.append(path)
    unexpected = []
    different = []
    for path, (leaf, group) in stored.items():
        if leaf not in selected:
            continue
        if path not in expected:
            unexpected.append(path)
            continue
        reason = trees.mismatch(expected[path], leaf.node, shared(group))
        if reason:
            different.append(f"{path or 'the array itself'} ({reason})")
    differences = []
    for verb, paths in (
        ("lacks", missing),
        ("has besides", unexpected),
        ("holds otherwise", different),
    ):
        if paths:
            differences.append(f"{verb} {_shown(paths)}")
    if differences:
        raise ValueError(f"`like` does not fit the file, which {'; and '.join(differences)}")


def _shown(paths: list[str]) -> str:
    shown = ", ".join(path or "the array itself" for path in paths[:SHOWN])
    return shown + (f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else "")


def _wrap_groups(tree: Any, groups: Iterable[Group], reader: Reader) -> Any:
    """Puts each `Common` around its subtree, the innermost first."""
    distinct = dict.fromkeys(groups)
    for group in sorted(distinct, key=lambda group: -len(group.path)):
        tree = _wrap(tree, group.path, reader.codebook(group))
    return tree


def _wrap(tree: Any, path: str, codebook: Any) -> Any:
    def is_place(keys: Any, node: Any) -> bool:
        return leaf_path(keys) == path

    def wrap(keys: Any, node: Any) -> Any:
        return Common(codebook, node) if leaf_path(keys) == path else node

    return jax.tree_util.tree_map_with_path(wrap, tree, is_leaf=is_place, is_leaf_takes_path=True)
