"""Bytes that `save` would write of each leaf: what the storage predicts from counts, so that
nothing is encoded."""

from typing import Any

from jaxprune.core.arrays import is_code
from jaxprune.core.pieces import Leaf, host
from jaxprune.storage.format import words as f
from jaxprune.storage.format.parts import to_node
from jaxprune.storage.format.trees import expects_data
from jaxprune.storage.prediction import predicted_leaf_bytes


def stored_bytes(leaves: list[Leaf]) -> list[int]:
    """Bytes of leaves that are saved together, headers and names apart.

    Arrays that share tables in a file have each a part of their bytes, by their number of symbols,
    as in `inspect`.

    Raises:
      ValueError: a leaf that cannot be saved.
    """
    return predicted_leaf_bytes([f.Leaf(leaf.path, _node(leaf.code)) for leaf in leaves])


def _node(x: Any) -> Any:
    """A leaf as the storage has it; functions, strings and other static leaves are in no file."""
    if is_code(x) or isinstance(x, bool | int | float):
        return to_node(x)
    return to_node(host(x)) if expects_data(x) else None
