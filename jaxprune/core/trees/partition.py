"""Trees split in two: what a gradient may move, or what is an array, and the rest."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.core.arrays import is_code, materialize
from jaxprune.core.guesses import refuse_no_tree
from jaxprune.core.types import Compressed
from jaxprune.core.where import is_float


def split_arrays(tree: Any) -> tuple[Any, Any]:
    """(arrays, rest), each shaped like the tree, with None where a leaf went to the other.

    `jit` and `cond` take arrays only; a tree may hold functions, texts and Python numbers too.
    """
    arrays = jax.tree.map(lambda x: x if _is_array(x) else None, tree)
    rest = jax.tree.map(lambda x: None if _is_array(x) else x, tree)
    return arrays, rest


def join_arrays(arrays: Any, rest: Any) -> Any:
    """The tree that `split_arrays` split."""
    return jax.tree.map(lambda a, b: b if a is None else a, arrays, rest, is_leaf=_is_none)


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic)


def _is_none(x: Any) -> bool:
    return x is None


def partition(tree: Compressed) -> tuple[Any, Any]:
    """Splits a tree of codes into what a gradient may move and the rest.

    Args:
      tree: any pytree, with or without compressed arrays.

    Returns:
      (free, fixed), each shaped like the tree: float leaves (values, codebooks, scales, factors) in
      the first, integers, masks and float8 codes in the second, None where a leaf went to the
      other. In `free` a scalar 0.0 stands for the masks and integers *of a code*, so that one
      gradient fits `free` and the whole tree.

    Raises:
      ValueError: what is no tree of weights.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> free, fixed = jp.partition({"w": jnp.ones(2), "steps": jnp.array(3)})
      >>> free["steps"] is None, fixed["w"] is None
      (True, True)
      >>> free, fixed = jp.partition(jp.prune(0.5).init(jnp.eye(2)))
      >>> print(free.values.shape, free.mask, fixed.values, fixed.mask.shape)
      (2, 2) 0.0 None (2, 2)
    """
    refuse_no_tree(tree)
    free = jax.tree.map(_free_part, tree, is_leaf=is_code)
    fixed = jax.tree.map(lambda x: None if is_float(x) else x, tree)
    return free, fixed


def _free_part(leaf: Any) -> Any:
    """The float arrays of a leaf, or of a code, with a scalar zero for the code's other arrays."""
    if is_code(leaf):
        return jax.tree.map(lambda field: field if is_float(field) else jnp.zeros(()), leaf)
    return leaf if is_float(leaf) else None


def combine(free: Any, fixed: Any) -> Compressed:
    """The tree that `partition` split: the inverse.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> tree = {"w": jnp.ones(2), "steps": jnp.array(3)}
      >>> sorted(jp.combine(*jp.partition(tree)))
      ['steps', 'w']
    """
    return jax.tree.map(lambda a, b: a if b is None else b, free, fixed, is_leaf=_is_none)


def value_and_grad(
    loss: Callable[..., Any], *, has_aux: bool = False, dense: bool = False
) -> Callable[..., tuple[Any, ...]]:
    """Trains the code: the value of loss(materialize(tree), …) and its gradient in float leaves.

    Args:
      loss: a function of dense params and further arguments, giving a scalar (and, with `has_aux`,
        something more).
      has_aux: as in `jax.value_and_grad`.
      dense: also return the gradient with respect to `materialize(tree)`, which is not masked:
        growing and moving masks need it.

    Returns:
      f(tree, *args) -> (value, gradient), or (value, gradient, dense gradient). The gradient is
      shaped like `partition(tree)[0]`: masks and integers of codes have the gradient 0.0, a scalar.
      So it goes into optax with the tree as well:

          updates, state = optimizer.update(gradient, state, tree)    # state = optimizer.init(tree)
          tree = optax.apply_updates(tree, updates)

      where masks and integers stay as they are, but for optimizers that decay weights (or look at
      shapes, as Adafactor does): these take every leaf for a weight. `jp.floats_only(optimizer)`
      shows them the floats alone.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> tree = {"w": jp.Clustered(jnp.array([1.0, 2.0]), jnp.array([0, 1, 1, 0], jnp.uint8))}
      >>> value, grad = jp.value_and_grad(lambda p: jnp.sum(p["w"] ** 2))(tree)
      >>> print(value, grad["w"].codebook)      # weights that share a value: a sum
      10.0 [4. 8.]
    """

    def value_and_gradient(tree: Compressed, *args: Any) -> tuple[Any, ...]:
        free, fixed = partition(tree)

        def dense_floats(free: Any) -> Any:
            return partition(materialize(combine(free, fixed)))[0]

        params, transpose = jax.vjp(dense_floats, free)
        other_leaves = partition(materialize(tree))[1]

        def loss_of_floats(params: Any) -> Any:
            return loss(combine(params, other_leaves), *args)

        value, dense_gradient = jax.value_and_grad(loss_of_floats, has_aux=has_aux)(params)
        gradient = transpose(dense_gradient)[0]
        return (value, gradient, dense_gradient) if dense else (value, gradient)

    return value_and_gradient
