"""A score of some leaves: of scales of norms, network slimming (Liu et al. 2017, 1708.06519)."""

from jaxprune.core.types import WhereLike
from jaxprune.methods.scores.from_weights import magnitude
from jaxprune.methods.scores.leaves import on_selected
from jaxprune.methods.scores.types import Score
from jaxprune.methods.scores.words import from_words


def only(where: WhereLike, score: Score | str = magnitude) -> Score:
    """A score of the leaves that a `where` selects, None for all others.

    Args:
      where: as in `jp.prune`: a regular expression for whole paths, a rule of `jp.where`, a tree of
        booleans, or a function that makes one.
      score: of them; a function of dense params, or its name.

    Raises:
      ValueError: `where` selects nothing; a score that is no function.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> slimming = jp.scores.only("(.*/)?scale")
      >>> print(slimming({"kernel": jnp.ones((2, 2)), "scale": jnp.array([0.5, -2.0])}))
      {'kernel': None, 'scale': Array([0.5, 2. ], dtype=float32)}
    """
    score_of = from_words("only", score)
    if not callable(score_of):
        raise ValueError(
            f"only(score={score!r}): give a function of dense params, as jp.scores.magnitude, "
            "or its name"
        )
    return on_selected(where, score_of)
