"""The names of scores, which Python and recipes share."""

from typing import Any, Literal

from jaxprune.core.words import choice
from jaxprune.methods.scores.filters import fpgm
from jaxprune.methods.scores.from_gradients import movement, saliency
from jaxprune.methods.scores.from_weights import lamp, magnitude, random
from jaxprune.methods.scores.types import Score

Word = Literal["magnitude", "random", "lamp", "fpgm"]
"""The scores of a recipe: those of weights alone."""

BY_WORD: dict[str, Score] = {
    "magnitude": magnitude,
    "random": random,
    "lamp": lamp,
    "fpgm": fpgm,
    "saliency": saliency,
    "movement": movement,
}
"""The scores that need no data; what they need, as a key, is given to `init` and `update`."""

FROM_DATA = {
    "fisher": "jp.scores.fisher(loss, params, batches)",
    "obd": "jp.scores.obd(loss, params, batches, key=jax.random.key(0))",
    "wanda": "jp.scores.wanda(jp.input_rms(f, params, batches))",
    "fisher_from": "jp.scores.fisher_from(grads)",
}


def from_words(call: str, score: Any) -> Any:
    """The score that a word names, in Python and in recipes; anything else as it is.

    Args:
      call: that takes the score, for the error.
      score: a word of `BY_WORD`, or anything else.

    Raises:
      ValueError: a word that names no score; one of a score that is made from data, with the call
        that makes it.

    Example:
      >>> import jaxprune as jp
      >>> jp.prune(0.5, score="fisher")
      Traceback (most recent call last):
      ValueError: prune(score='fisher'): it is made from data: give
      score=jp.scores.fisher(loss, params, batches)
    """
    if not isinstance(score, str):
        return score
    if score in FROM_DATA:
        raise ValueError(
            f"{call}(score={score!r}): it is made from data: give score={FROM_DATA[score]}"
        )
    return BY_WORD[choice(f"{call}(score={{}})", score, BY_WORD)]
