"""Scores of weights and what they are multiplied with."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.core.types import Params
from jaxprune.methods.scores.types import Score, Scores
from jaxprune.numerics.precision import widen


def wanda(norms: Any) -> Score:
    """|w|·√E[x²], with x what the weight is multiplied with; None where that is not known.

    Sun et al. 2023, arXiv:2306.11695.

    Args:
      norms: √E[x²] of every weight, a tree like the params with None for leaves that multiply
        nothing: `jp.input_rms`.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> score = jp.scores.wanda({"w": jnp.array([1.0, 10.0]), "b": None})
      >>> print(score({"w": jnp.array([-3.0, 2.0]), "b": 1.0}))
      {'b': None, 'w': Array([ 3., 20.], dtype=float32)}
    """

    def score_leaf(norm: Any, w: Any) -> Any:
        if norm is None:
            return None
        magnitude = jnp.abs(widen(w))
        return magnitude * jnp.asarray(norm).astype(magnitude.dtype)

    def score(params: Params) -> Scores:
        return jax.tree.map(score_leaf, norms, params, is_leaf=lambda norm: norm is None)

    return score
