"""Every score of the library, one line each: the laws of `tests/methods/test_score_laws.py` run
over this table."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import jaxprune as jp


class Score(NamedTuple):
    """A score and what it must equal.

    Attributes:
      name: of the row.
      score: params, and extras that it names -> scores.
      reference: (w, g) in float64 -> the scores of a leaf, written out; None where there is noise
        in it.
      extras: the names of the extras that it needs.
      gathers: may gather a sharded leaf.
    """

    name: str
    score: Callable[..., Any]
    reference: Callable[[np.ndarray, np.ndarray], np.ndarray] | None
    extras: tuple[str, ...] = ()
    gathers: bool = False


def slow_lamp(w, g):
    squares = w.ravel() ** 2
    rest = np.array([squares[squares >= x].sum() for x in squares])
    return (squares / rest).reshape(w.shape)


def slow_fpgm(w, g):
    filters = w.reshape(-1, w.shape[-1]).T
    distances = [sum(np.linalg.norm(f - other) for other in filters) for f in filters]
    return np.broadcast_to(np.array(distances) / np.sqrt(filters.shape[1]), w.shape)


SCORES = [
    Score("magnitude", jp.scores.magnitude, lambda w, g: np.abs(w)),
    Score("random", jp.scores.random, None, extras=("key",)),
    Score("lamp", jp.scores.lamp, slow_lamp, gathers=True),
    Score("fpgm", jp.scores.fpgm, slow_fpgm, gathers=True),
    Score("saliency", jp.scores.saliency, lambda w, g: np.abs(w * g), extras=("grads",)),
    Score("movement", jp.scores.movement, lambda w, g: -w * g, extras=("grads",)),
    Score(
        "fisher_from",
        lambda params, *, grads: jp.scores.fisher_from(grads)(params),
        lambda w, g: w**2 * g**2 / 2,
        extras=("grads",),
    ),
    Score(
        "wanda",
        lambda params, *, grads: jp.scores.wanda(grads)(params),
        lambda w, g: np.abs(w) * g,
        extras=("grads",),
    ),
    Score("only kernels", jp.scores.only("(.*/)?kernel", "magnitude"), lambda w, g: np.abs(w)),
]
