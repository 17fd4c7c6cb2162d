"""Select: which units stay, as masks of weights; True is kept. And the code of a masked weight."""

from collections.abc import Sequence
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Bool

from jaxprune.core.arrays import Masked, count, materialize
from jaxprune.core.hidden import zero_hidden
from jaxprune.methods.pruning.leaves import PrunedLeaf
from jaxprune.numerics import select, streamed
from jaxprune.numerics.placement import put_like
from jaxprune.numerics.precision import widen

Masks = list[Bool[Array, "..."]]


def masked(value: Any, mask: Bool[Array, "..."]) -> Masked:
    """The code of an array, or of a code, under a mask; beneath it are zeros, in memory too."""
    if isinstance(value, Masked):
        return zero_hidden(value.replace(mask=value.mask & mask))
    return zero_hidden(Masked(value, mask))


def masks_by_pattern(leaves: Sequence[PrunedLeaf]) -> Masks:
    """The masks of a pattern that chooses by itself, as N:M does."""
    return [_mask_by_pattern(leaf) for leaf in leaves]


def _mask_by_pattern(leaf: PrunedLeaf) -> Bool[Array, "..."]:
    assert leaf.pattern.select is not None
    by_magnitude = leaf.scores is None
    scores = leaf.weights if leaf.scores is None else leaf.scores
    try:
        return leaf.pattern.select(scores, by_magnitude)
    except ValueError as error:  # a pattern knows no path
        raise ValueError(f"{leaf.slot}: {error}") from None


def masks_by_count(leaves: Sequence[PrunedLeaf], num_removed: Sequence[Any]) -> Masks:
    """The masks that remove so many of the units with the smallest scores from each leaf."""
    return [_mask_by_count(leaf, removed) for leaf, removed in zip(leaves, num_removed)]


def _mask_by_count(leaf: PrunedLeaf, num_removed: Any) -> Bool[Array, "..."]:
    weights = leaf.weights
    if leaf.by_magnitude and streamed.takes(weights) and not isinstance(num_removed, Tracer):
        # An array of NumPy, as checkpoints are read, is pruned on the host, block by block.
        host_mask = streamed.keep_largest(cast(np.ndarray, weights), int(num_removed))
        return put_like(host_mask, weights)
    kept_units = select.keep_largest(leaf.unit_scores(), num_removed, magnitude=leaf.by_magnitude)
    return leaf.pattern.spread(kept_units, weights.shape)


def masks_above(leaves: Sequence[PrunedLeaf], threshold: Any) -> Masks:
    """The masks of units whose score is at least the threshold."""
    return [_mask_above(leaf, threshold) for leaf in leaves]


def _mask_above(leaf: PrunedLeaf, threshold: Any) -> Bool[Array, "..."]:
    scores = jnp.abs(leaf.weights) if leaf.by_magnitude else leaf.unit_scores()
    return leaf.pattern.spread(widen(scores) >= threshold, leaf.weights.shape)


def check_not_empty(
    leaves: Sequence[PrunedLeaf], masks: Masks, threshold: ArrayLike | None
) -> None:
    """Refuses a threshold above all scores of a leaf; nothing is known of a traced mask."""
    for leaf, mask in zip(leaves, masks):
        if isinstance(mask, Tracer) or count(mask):
            continue
        largest = float(jnp.max(jnp.abs(materialize(leaf.slot.value))))
        raise ValueError(
            f"threshold={threshold} removes every weight of {leaf.slot}, whose largest |w| is "
            f"{largest:.6g}: lower it, or exclude the leaf with `where`"
        )
