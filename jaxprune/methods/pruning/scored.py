"""Score: a number for every weight that may be pruned."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jaxtyping import Bool, Float

from jaxprune.core.arrays import Masked, materialize
from jaxprune.core.compression import call_with
from jaxprune.core.trees.lookup import look_up
from jaxprune.core.types import Params
from jaxprune.core.where import Slot


def leaf_scores(
    score: Any, slots: Sequence[Slot], tree: Params, extra: dict[str, Any]
) -> Sequence[Float[Array, "..."] | None]:
    """The scores of each slot; None stands for magnitudes.

    Args:
      score: a tree like the params, a function that makes one of them, or None.
      slots: the weights.
      tree: that they are in.
      extra: what `init` or `update` was given besides.

    Raises:
      ValueError: a slot has no score, or one with NaN or another shape.
    """
    if score is None:
        return [None] * len(slots)
    scores = call_with(score, materialize(tree), **extra) if callable(score) else score
    by_slot = look_up(scores, slots, "score")
    for slot, x in zip(slots, by_slot):
        _check_no_nan(slot, x)
    return [_pruned_lowest(slot, x) for slot, x in zip(slots, by_slot)]


def _pruned_lowest(slot: Slot, scores: Float[Array, "..."]) -> Float[Array, "..."]:
    """The scores, with those of weights that are pruned already below all others."""
    return _below_all(slot.value.mask, scores) if isinstance(slot.value, Masked) else scores


def _below_all(mask: Bool[Array, "..."], scores: Float[Array, "..."]) -> Float[Array, "..."]:
    if jnp.issubdtype(scores.dtype, jnp.floating):
        # A kept weight may have the score −inf: it counts as finite, or it would tie with pruned
        # ones.
        scores = jnp.maximum(scores, jnp.finfo(scores.dtype).min)
    return jnp.where(mask, scores, -jnp.inf)


def _check_no_nan(slot: Slot, scores: Float[Array, "..."]) -> None:
    """Refuses NaN, which would be the highest score or the lowest, as sorting has it."""
    if isinstance(scores, Tracer):
        return
    num_nan = int(jnp.sum(jnp.isnan(scores)))
    if num_nan:
        raise ValueError(
            f"the score of {slot} has {num_nan} NaN: no order is known for these weights"
        )
