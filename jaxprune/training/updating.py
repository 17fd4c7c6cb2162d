"""One update of an optimizer, as every loop here makes it."""

from typing import Any

import jax


def updated(optimizer: Any, grads: Any, opt_state: Any, params: Any) -> tuple[Any, Any]:
    """(params + updates, the next state), each param in its own dtype.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxprune.training.updating import updated
      >>> sgd, w = optax.sgd(0.5), {"w": jnp.array([1.0, 2.0])}
      >>> print(updated(sgd, {"w": jnp.array([2.0, 0.0])}, sgd.init(w), w)[0]["w"])
      [0. 2.]
    """
    import optax

    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer steps
        updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state
