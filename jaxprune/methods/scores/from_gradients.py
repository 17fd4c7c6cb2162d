"""Scores of weights and gradients: the first-order change of the loss, and where weights move."""

from typing import Any

import jax.numpy as jnp

from jaxprune.core.types import Params
from jaxprune.methods.scores.types import Scores, map_floats


def saliency(params: Params, *, grads: Any) -> Scores:
    """|w·g|: the first-order change of the loss when w goes.

    Args:
      params: dense params.
      grads: with respect to the dense params.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print(jp.scores.saliency(jnp.array([1.0, 2.0]), grads=jnp.array([3.0, -1.0])))
      [3. 2.]
    """
    return map_floats(lambda w, g: jnp.abs(w * g), params, grads)


def movement(params: Params, *, grads: Any, so_far: Scores | None = None) -> Scores:
    """−Σ w·g: weights that training moves towards zero score low.

    Sanh et al. 2020, arXiv:2005.07683. Carry the returned tree as `so_far`, then pass it as
    `score=`.

    Args:
      params: dense params of this step.
      grads: with respect to them.
      so_far: the sum over the steps before.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> w = jnp.array([1.0, 1.0])
      >>> g = jnp.array([0.5, -0.5])                         # the first shrinks, the second grows
      >>> print(jp.scores.movement(w, grads=g, so_far=jp.scores.movement(w, grads=g)))
      [-1.  1.]
    """
    if so_far is None:
        return map_floats(lambda w, g: -w * g, params, grads)
    return map_floats(lambda w, g, total: total - w * g, params, grads, so_far)
