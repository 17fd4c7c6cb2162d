"""A score of the leaves that a `where` selects, and of no others."""

from typing import Any

import jax

from jaxprune.core.compression import call_with
from jaxprune.core.trees.selection import no_match, selector
from jaxprune.core.types import Params, WhereLike
from jaxprune.core.where import leaf_slots
from jaxprune.methods.scores.types import Score, Scores


def on_selected(where: WhereLike, score: Score) -> Score:
    """The score of the leaves that a `where` selects, None for all others.

    Raises:
      ValueError: `where` selects nothing that has a score.
    """

    def selected_scores(params: Params, **extra: Any) -> Scores:
        test = selector(where, params)
        slots, treedef = leaf_slots(params)
        flags = jax.tree.unflatten(treedef, [test(slot) for slot in slots])
        scores = call_with(score, params, **extra)
        selected = jax.tree.map(lambda flag, x: x if flag else None, flags, scores)
        if not jax.tree.leaves(selected):
            raise no_match(where, params)
        return selected

    return selected_scores
