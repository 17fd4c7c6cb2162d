"""Zeros that stay: the last link of an optax chain, so that no hook can be forgotten.

u ← −w where w was pruned, so that w + u is exactly +0.0            whatever the links before it did
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.core.arrays import is_code
from jaxprune.core.guesses import refuse_no_tree
from jaxprune.core.leaves.companions import bias_of, norm_of, zeroed_units
from jaxprune.core.leaves.where import Slot, is_float, leaf_slots
from jaxprune.core.tree import by_path, no_match, selector
from jaxprune.core.words import nearest
from jaxprune.training.updating import map_updates

if TYPE_CHECKING:
    import optax


class KeepPrunedState(NamedTuple):
    """Masks shaped like the params (True: free); None for leaves that have none."""

    masks: Any


def keep_pruned(mask: Any = None, *, where: Any = None) -> "optax.GradientTransformationExtraArgs":
    """An optax transform: weights that are exactly zero at `init` stay +0.0. Put it last in its chain.

    Works inside `optax.chain`, `MultiSteps`, `multi_transform`, `masked` and `inject_hyperparams`, and with
    `nnx.Optimizer`; it looks at no other transform's state.

    Args:
      mask: instead of the zeros at init: a tree with masks at the paths of some params, True for what is free. All that
        it holds is held, biases too; None, or no entry, leaves a param free.
      where: which leaves; by default `jp.where.weights`, and the biases (and batch norms) of units without weights.

    Returns:
      A `GradientTransformation` on dense params. A leaf that is wholly zero at init stays free (it was initialised so,
      not pruned).

    Raises:
      ValueError: for a `where` that matches nothing, a mask that is no mask or of no param, or without params.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp, optax
      >>> tx = optax.chain(optax.sgd(0.1), jp.keep_pruned())
      >>> w = jnp.array([[0.0, 2.0], [3.0, 0.0]])
      >>> updates, _ = tx.update(jnp.ones_like(w), tx.init(w), w)
      >>> print(optax.apply_updates(w, updates))
      [[0.  1.9]
       [2.9 0. ]]
    """
    import optax  # a quarter of a second that only users of this transform pay

    def init(params: Any) -> KeepPrunedState:
        refuse_no_tree(params)
        test = selector(where, params)
        given = None if mask is None else by_path(mask, "mask")
        hits: list[str] = []

        slots, treedef = leaf_slots(params)
        if given is not None:
            _check_masks(given, slots, _is_part(params, optax.MaskedNode))
        weights = {slot.path: slot for slot in slots if not is_code(slot.value) and test(slot)}
        biases = {} if given is not None or where is not None else _biases(list(weights.values()), slots)

        def one(slot: Slot) -> Any:
            if given is not None and slot.path in given and is_float(slot.value):
                hits.append(slot.path)
                return given[slot.path]
            if slot.path in biases:
                return _free_bias(slot.value, biases[slot.path])
            if slot.path not in weights:
                return None
            hits.append(slot.path)
            return _free(slot.value) if given is None else None

        masks = jax.tree.unflatten(treedef, [one(slot) for slot in slots])
        # The default rule may find nothing in one group of a multi_transform; a rule that was given must.
        if where is not None and not hits:
            raise no_match(where, params)
        return KeepPrunedState(masks)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, KeepPrunedState]:
        if params is None:
            raise ValueError("keep_pruned needs the params: tx.update(grads, state, params)")

        def held(update: Any, mask: Any, w: Any) -> Any:
            return update if mask is None else jnp.where(mask, update, (-w).astype(update.dtype))

        return map_updates(held, updates, state.masks, params), state

    return optax.GradientTransformationExtraArgs(init, update)


def _is_part(params: Any, masked_node: type) -> bool:
    """Whether `optax.multi_transform` or `optax.masked` gave a part of the params."""
    return any(
        isinstance(x, masked_node) for x in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, masked_node))
    )


def _check_masks(masks: dict[str, Any], slots: list[Slot], part: bool) -> None:
    """Refuses entries that are no masks, and, where all params are there, those of no param."""
    paths = [slot.path for slot in slots]
    for path, x in masks.items():
        if not hasattr(x, "dtype") and not isinstance(x, bool):
            raise ValueError(
                f"keep_pruned(mask=…): {path or 'it'} is a {type(x).__name__}, not a mask: give booleans shaped like "
                "the param, True for what is free"
            )
        if path not in paths and not part:
            raise ValueError(f"keep_pruned(mask=…): {path!r} is no param. Nearest: {nearest(path, paths)}")


def _biases(weights: list[Slot], slots: list[Slot]) -> dict[str, Any]:
    """For each bias beside a weight, the entries whose units have no weights left."""
    found: dict[str, Any] = {}
    for weight in weights:
        for other in [bias_of(weight, slots), *norm_of(weight, slots)]:
            if other is not None:
                zero = (weight.value == 0) & ~jnp.all(weight.value == 0)
                found[other.path] = zeroed_units(weight, zero, other.value)
    return found


def _free_bias(bias: Any, gone: Any) -> jax.Array:
    """A bias's entry is held where it is zero and its unit is gone: others may be zero by initialisation."""
    return ~(gone & (bias == 0))


def _free(w: Any) -> jax.Array:
    zero = w == 0
    return ~zero | jnp.all(zero)
