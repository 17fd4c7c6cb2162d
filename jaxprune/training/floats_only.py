"""Any optax optimizer on a tree of codes: it sees the float arrays; masks and integers stay."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxprune.core.trees.partition import partition
from jaxprune.core.types import Compressed
from jaxprune.core.where import is_float

if TYPE_CHECKING:
    import optax


def floats_only(
    optimizer: "optax.GradientTransformation",
) -> "optax.GradientTransformationExtraArgs":
    """The optimizer of a compressed tree's float arrays: values, codebooks, scales, factors.

    An optimizer takes every leaf for a weight. Weight decay of an index would make it another
    index, and moments of a mask take memory. Here the optimizer is given `partition(tree)[0]`,
    whose masks and integers are scalar zeros, and their updates are zeros of their own dtype.

    Args:
      optimizer: any optax transform.

    Returns:
      An optax transform for trees that hold codes, and gradients of `jp.value_and_grad`. Its update
      needs the params.

    Raises:
      ValueError: an update without params.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp, optax
      >>> tree = {"w": jp.cluster(k=2).init(jnp.array([[1.0, 1.2], [5.0, 1.1]]))}
      >>> optimizer = jp.floats_only(optax.adamw(0.1, weight_decay=0.1))
      >>> state = optimizer.init(tree)
      >>> _, gradient = jp.value_and_grad(lambda p: jnp.sum(p["w"] ** 2))(tree)
      >>> updates, state = optimizer.update(gradient, state, tree)
      >>> print(optax.apply_updates(tree, updates)["w"].indices)
      [[0 0]
       [1 0]]
    """
    import optax  # a quarter of a second that only users of this transform pay

    inner = optax.with_extra_args_support(optimizer)

    def init(params: Compressed) -> Any:
        free, _ = partition(params)
        return inner.init(free)

    def update(
        updates: Any, state: Any, params: Compressed = None, **extra: Any
    ) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(
                "floats_only: give the params too, as optimizer.update(gradient, state, tree)"
            )
        free_updates, _ = partition(updates)
        free_params, _ = partition(params)
        new_updates, state = inner.update(free_updates, state, free_params, **extra)
        return jax.tree.map(_update_of, params, new_updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _update_of(param: Any, update: Any) -> Any:
    """The update of a float array; of another array, a zero of its dtype, which changes nothing."""
    if is_float(param) or not hasattr(param, "dtype"):
        return update
    return jnp.zeros((), param.dtype)
