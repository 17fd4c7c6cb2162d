"""Trees by path: another tree of the same leaves, as scores and counts are, and a key a leaf."""

import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxprune.core.arrays import is_code
from jaxprune.core.leaves.paths import flatten_with_path, leaf_path
from jaxprune.core.types import PRNGKey
from jaxprune.core.where import Slot
from jaxprune.core.words import nearest


def by_path(tree: Any, what: str) -> dict[str, Any]:
    """The leaves of a tree by path; a code is one leaf.

    Args:
      tree: any pytree.
      what: what the error calls it, as "score".

    Raises:
      ValueError: two leaves have one path.
    """
    leaves = flatten_with_path(tree, is_leaf=is_code)[0]
    named = {leaf_path(keys): x for keys, x in leaves}
    if len(named) != len(leaves):
        raise ValueError(f"the {what} tree has two leaves with one path")
    return named


def look_up(tree: Any, slots: Sequence[Slot], what: str, shapes: bool = True) -> list[Any]:
    """The leaves of another tree that belong to slots: by the slot's key, or else by its path.

    Args:
      tree: of scores, curvatures, counts.
      slots: for which a leaf is wanted.
      what: what the error calls the tree.
      shapes: whether each leaf must have the shape of its slot.

    Raises:
      ValueError: a slot has no leaf there, with the nearest names, or one of another shape.
    """
    named = by_path(tree, what)
    leaves = []
    for slot in slots:
        key = slot.key if slot.key in named else slot.path
        if key not in named:
            raise ValueError(
                f"the {what} tree has no leaf {slot.key!r}. Nearest: {nearest(slot.key, named)}"
            )
        leaf = named[key]
        if shapes and np.shape(leaf) != slot.value.shape:
            raise ValueError(
                f"{what} of {slot} has the shape {np.shape(leaf)}; it must be {slot.value.shape}"
            )
        leaves.append(leaf)
    return leaves


def fold_path(key: PRNGKey, path: str) -> PRNGKey:
    """A key of a leaf's own: one more leaf in the tree changes no other's noise."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))
