"""One update of an optimizer, as every loop here makes it."""

from collections.abc import Callable
from typing import Any

import jax

from jaxprune.core.arrays import is_code
from jaxprune.core.where import is_float


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


def map_updates(f: Callable[..., Any], updates: Any, *trees: Any) -> Any:
    """f(update, leaves of the other trees) for every float update; all others are passed through.

    A module may hold functions, texts and numbers, for which there is nothing to update: its
    updates have None there, or the same function. Codes are passed through as well.

    Args:
      f: of an update, and the leaves of `trees` in its place.
      updates: what an optax transform is given.
      trees: shaped like the updates, but for leaves whose update is None.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.training.updating import map_updates
      >>> updates, params = {"w": jnp.ones(1), "act": None}, {"w": jnp.ones(1), "act": print}
      >>> map_updates(lambda u, w: u + w, updates, params)
      {'act': None, 'w': Array([2.], dtype=float32)}
    """

    def map_update(update: Any, *leaves: Any) -> Any:
        return f(update, *leaves) if is_float(update) and not is_code(update) else update

    return jax.tree.map(map_update, updates, *trees, is_leaf=lambda x: x is None or is_code(x))
