"""Attraction: a spring pulls each weight towards what a code can say, until encoding loses little.

∇L(w) + μ (w − Δ(Θ(w)))      the quadratic penalty of learning-compression, Carreira-Perpiñán 2017,
                             arXiv:1707.01209
"""

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxprune.core.arguments import at_least_zero
from jaxprune.core.arrays import materialize
from jaxprune.core.compression import Compression, check_compression
from jaxprune.core.types import Params, Schedule
from jaxprune.training.steps import StepState, check_params, first_step, next_step, value_at
from jaxprune.training.updating import map_updates

if TYPE_CHECKING:
    import optax


def attract(
    compression: Compression, mu: float | Schedule
) -> "optax.GradientTransformationExtraArgs":
    """An optax transform, first in its chain: adds μ (w − Δ(Θ(w))) to the gradient.

    Args:
      compression: any compression that works under `jit`; encoded anew at each step.
      mu: strength of the spring, a number >= 0, or an optax schedule of it (learning-compression
        raises it step by step).

    Returns:
      A `GradientTransformation` on dense params.

    Raises:
      ValueError: what is no compression, a negative strength; an update without params.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp, optax
      >>> tx = jp.attract(jp.prune(0.5), mu=0.5)
      >>> w = jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> print(tx.update(jnp.zeros_like(w), tx.init(w), w)[0])
      [[0.5 1. ]
       [0.  0. ]]
    """
    import optax  # a quarter of a second that only users of this transform pay

    check_compression("attract(compression, mu)", compression)
    at_least_zero("attract(mu={})", mu)

    def init(params: Params) -> StepState:
        return first_step()

    def update(
        updates: Any, state: Any, params: Params = None, **extra: Any
    ) -> tuple[Any, StepState]:
        check_params("attract", params)
        strength = value_at(mu, state)
        decoded = materialize(compression.init(params, **{"step": state.count, **extra}))

        def add_pull(
            gradient: Float[Array, "..."], w: Float[Array, "..."], target: Float[Array, "..."]
        ) -> Float[Array, "..."]:
            pull = (w - target).astype(gradient.dtype)
            return gradient + jnp.asarray(strength, gradient.dtype) * pull

        return map_updates(add_pull, updates, params, decoded), next_step(state)

    return optax.GradientTransformationExtraArgs(init, update)
