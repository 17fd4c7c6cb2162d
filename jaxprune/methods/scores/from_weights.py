"""Scores of the weights alone: magnitude, its share of the leaf's squares, and noise."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxprune.core.leaves.paths import leaf_path, map_with_path
from jaxprune.core.trees.lookup import fold_path
from jaxprune.core.types import Params, PRNGKey
from jaxprune.core.where import is_float
from jaxprune.methods.scores.types import Scores, map_floats
from jaxprune.numerics.affine import power_of_two, ratio


def magnitude(params: Params) -> Scores:
    """|w|.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print(jp.scores.magnitude(jnp.array([-3.0, 2.0])))
      [3. 2.]
    """
    return map_floats(jnp.abs, params)


def random(params: Params, *, key: PRNGKey) -> Scores:
    """Uniform noise from a key, folded with each leaf's path: a new leaf changes no other's mask.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> random = jp.prune(0.5, score=jp.scores.random)
      >>> tree = random.init({"w": jnp.ones((4, 4))}, key=jax.random.key(0))
      >>> int(tree["w"].mask.sum())
      8
    """

    def noise(keys: Any, x: Any) -> Any:
        return jax.random.uniform(fold_path(key, leaf_path(keys)), x.shape) if is_float(x) else x

    return map_with_path(noise, params)


def lamp(params: Params) -> Scores:
    """w² / Σ v² over the v of its leaf with v² >= w²: 1 for the largest weight of every leaf.

    Lee et al. 2021, arXiv:2010.07611: the scale of a leaf does not matter.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> print(jp.scores.lamp(jnp.array([3.0, -4.0, 0.0])))          # 9 / (9 + 16), 16 / 16
      [0.36 1.   0.  ]
    """
    return map_floats(_lamp, params)


def _lamp(w: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    # Scores do not depend on the leaf's scale: over a power of two, squares neither overflow nor
    # vanish.
    unit = power_of_two(jnp.max(jnp.abs(w), initial=0).reshape((1,) * w.ndim))
    square = jnp.square(ratio(w, unit)).reshape(-1)
    order = jnp.argsort(square)
    ascending = square[order]
    at_least_as_large = jnp.cumsum(ascending[::-1])[::-1]
    scores = ascending / jnp.where(at_least_as_large > 0, at_least_as_large, 1)
    return jnp.zeros_like(square).at[order].set(scores).reshape(w.shape)
