"""Allocate: how many units each leaf gives up."""

import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from jaxprune.core.trees.lookup import look_up
from jaxprune.core.words import nearest
from jaxprune.methods import allocate as allocations
from jaxprune.methods.pruning.leaves import PrunedLeaf


def num_removed(leaves: Sequence[PrunedLeaf], sparsity: Any, allocate: Any) -> list[Any]:
    """How many units each leaf gives up; it keeps at least one.

    Args:
      leaves: in order.
      sparsity: a fraction of the units, or a dict of path regex -> fraction.
      allocate: (params, scores, sparsity) -> a tree of counts, such a tree, or None for the same
        fraction everywhere.

    Returns:
      Python ints for a Python sparsity, int32 scalars for a traced one.
    """
    counts = _counts(leaves, sparsity, allocate)
    return [_all_but_one(leaf, count) for leaf, count in zip(leaves, counts)]


def _counts(leaves: Sequence[PrunedLeaf], sparsity: Any, allocate: Any) -> list[Any]:
    if isinstance(sparsity, dict):
        return _counts_by_path(leaves, sparsity)
    if allocate is not None and not callable(allocate):
        return look_up(allocate, [leaf.slot for leaf in leaves], "allocate", shapes=False)
    params = {leaf.slot.key: leaf.weights for leaf in leaves}
    scores = None
    if not leaves[0].by_magnitude:
        scores = {leaf.slot.key: leaf.unit_scores() for leaf in leaves}
    allocation: Any = allocations.uniform if allocate is None else allocate
    counts = allocation(params, scores, sparsity)
    return [counts[leaf.slot.key] for leaf in leaves]


def _all_but_one(leaf: PrunedLeaf, count: Any) -> Any:
    """A leaf's last unit stays, for without it the network is a constant."""
    most = max(0, leaf.num_units - 1)
    if isinstance(count, Tracer | Array):
        return jnp.minimum(count, most)
    return min(int(count), most)


def _counts_by_path(leaves: Sequence[PrunedLeaf], sparsity: dict[str, Any]) -> list[Any]:
    """The counts of leaves whose sparsity the first expression that matches their path says."""
    unused = dict(sparsity)
    counts = []
    for leaf in leaves:
        matching = [regex for regex in sparsity if re.fullmatch(regex, leaf.slot.path)]
        if not matching:
            counts.append(0)
            continue
        regex = matching[0]
        unused.pop(regex, None)
        counts.append(allocations.total(sparsity[regex], leaf.num_units))
    if unused:
        regex = next(iter(unused))
        paths = [leaf.slot.path for leaf in leaves]
        raise ValueError(
            f"prune: the rule {regex!r} matches no path. Nearest: {nearest(regex, paths)}"
        )
    return counts
