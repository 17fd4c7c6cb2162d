"""Bytes that `save` would write, from counts and closed forms: nothing is encoded."""

from collections.abc import Iterable
from typing import Any

from jaxprune.storage.accounting import leaves, shares
from jaxprune.storage.format.tied import Ties
from jaxprune.storage.format.trees import to_nodes
from jaxprune.storage.format.words import DTYPES, Leaf
from jaxprune.storage.streams import smallest
from jaxprune.storage.streams.grouping import arrays_of, batches, plan_banks


def predicted_bytes(tree: Any) -> int:
    """Bytes of the streams of a whole tree.

    Example:
      >>> import jax.numpy as jnp
      >>> predicted_bytes({"w": jnp.arange(15.0).reshape(3, 5)})
      60
    """
    return sum(predicted_leaf_bytes(leaf for leaf, _ in leaves(to_nodes(tree))))


def predicted_leaf_bytes(leaves: Iterable[Leaf]) -> list[int]:
    """Bytes of the streams of each leaf of one file.

    Of a bank, leaves have parts as `accounting` gives them; a leaf that is tied to an earlier one
    takes none.
    """
    ties = Ties(held=True)
    all_leaves = list(leaves)
    stored = [leaf for leaf in all_leaves if ties.first(leaf) is None]
    sizes: dict[int, int] = {}
    for batch in batches(stored):
        sizes |= _batch_bytes(batch)
    return [sizes.get(id(leaf), 0) for leaf in all_leaves]


def _batch_bytes(batch: list[Leaf]) -> dict[int, int]:
    """id(leaf) -> bytes."""
    bank_shares: dict[int, int] = {}  # by the ids of the bank's arrays
    for bank in plan_banks(batch):
        arrays = [member.array for member in bank.members]
        sizes = shares(bank.size, [array.words.size for array in arrays])
        for array, size in zip(arrays, sizes):
            bank_shares[id(array)] = size
    leaf_bytes = {}
    for leaf in batch:
        total = 0
        for array in arrays_of(leaf.node):
            if id(array) in bank_shares:
                total += bank_shares[id(array)]
            else:
                total += smallest.predict_size(array.kept(), DTYPES[array.dtype])
        leaf_bytes[id(leaf)] = total
    return leaf_bytes
