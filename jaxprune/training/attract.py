"""Attraction: a spring pulls each weight towards what a code can say, until little is lost by encoding.

∇L(w) + μ (w − Δ(Θ(w)))        the quadratic penalty of learning-compression, Carreira-Perpiñán 2017, arXiv:1707.01209
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp

from jaxprune.core.arguments import at_least_zero
from jaxprune.core.arrays import materialize
from jaxprune.core.compression import Compression, check_compression
from jaxprune.training.updating import map_updates

if TYPE_CHECKING:
    import optax


class AttractState(NamedTuple):
    """Steps taken."""

    count: Any


def attract(compression: Compression, mu: float | Callable[[Any], Any]) -> "optax.GradientTransformationExtraArgs":
    """An optax transform, first in its chain: adds μ (w − Δ(Θ(w))) to the gradient.

    Args:
      compression: any compression that works under `jit`.
      mu: strength of the spring, a number >= 0, or an optax schedule of it (learning-compression raises it step by
        step).

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

    def init(params: Any) -> AttractState:
        return AttractState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, AttractState]:
        if params is None:
            raise ValueError("attract needs the params: tx.update(grads, state, params)")
        strength = mu(state.count) if callable(mu) else mu
        near = materialize(compression.init(params, **({"step": state.count} | extra)))

        def pull(g: Any, w: Any, h: Any) -> Any:
            return g + jnp.asarray(strength, g.dtype) * (w - h).astype(g.dtype)

        return map_updates(pull, updates, params, near), AttractState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)
