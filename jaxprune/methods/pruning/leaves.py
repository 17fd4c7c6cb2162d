"""A weight that is being pruned: its place, its scores, and what its units are."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxprune.core.leaves.layout import axes_of
from jaxprune.core.where import Slot
from jaxprune.methods.patterns import Pattern, is_unstructured


class PrunedLeaf(NamedTuple):
    """A weight that is being pruned.

    Attributes:
      slot: its place.
      weights: the dense array.
      scores: shaped like the weights; None stands for their magnitudes.
      pattern: how its entries are grouped into units, on its own axes.
    """

    slot: Slot
    weights: Float[Array, "..."]
    scores: Float[Array, "..."] | None
    pattern: Pattern

    @property
    def by_magnitude(self) -> bool:
        """Whether single weights are ranked by |w|, which needs no array of scores."""
        return self.scores is None and is_unstructured(self.pattern)

    def unit_scores(self) -> Float[Array, "..."]:
        """A score for each unit; single weights without a score stand for themselves.

        Raises:
          ValueError: the pattern does not fit the leaf.
        """
        if is_unstructured(self.pattern):
            return self.weights if self.scores is None else self.scores
        scores = jnp.abs(self.weights) if self.scores is None else self.scores
        try:
            return self.pattern.pool(scores)
        except ValueError as error:  # a pattern knows no path
            raise ValueError(f"{self.slot}: {error}") from None

    @property
    def num_units(self) -> int:
        """How many units there are, found without computing their scores."""

        def scores_of(weights: Any, scores: Any) -> Any:
            return self._replace(weights=weights, scores=scores).unit_scores()

        return jax.eval_shape(scores_of, self.weights, self.scores).size


def pattern_at(slot: Slot, pattern: Pattern, layout: Any) -> Pattern:
    """The pattern on the axes that are a leaf's inputs and outputs.

    Vectors and fields of codes have neither, and get the pattern as it is.
    """
    if pattern.at is None or not slot.open or slot.value.ndim < 2:
        return pattern
    return pattern.at(axes_of(slot.place, layout))
