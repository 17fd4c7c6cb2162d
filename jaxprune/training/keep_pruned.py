"""Zeros that stay: the last link of an optax chain, so that no hook can be forgotten.

u ← −w where w was pruned, so that w + u is exactly +0.0        whatever the links before it did
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from jaxprune.core.arrays import is_code
from jaxprune.core.guesses import refuse_no_tree
from jaxprune.core.leaves.companions import bias_of, norm_of, zeroed_units
from jaxprune.core.trees.lookup import by_path
from jaxprune.core.trees.selection import no_match, selected_leaves
from jaxprune.core.types import Params, WhereLike
from jaxprune.core.where import Slot, is_float, leaf_slots
from jaxprune.core.words import nearest
from jaxprune.training.steps import check_params
from jaxprune.training.updating import map_updates

if TYPE_CHECKING:
    import optax

Masks = dict[str, Any]
"""path -> a mask, True for what is free."""


class KeepPrunedState(NamedTuple):
    """Masks shaped like the params (True: free); None for leaves that have none."""

    masks: Any


def keep_pruned(
    mask: Any = None, *, where: WhereLike = None
) -> "optax.GradientTransformationExtraArgs":
    """An optax transform, last in its chain: weights that are exactly zero at `init` stay +0.0.

    Works inside `optax.chain`, `MultiSteps`, `multi_transform`, `masked` and `inject_hyperparams`,
    and with `nnx.Optimizer`; it looks at no other transform's state.

    Args:
      mask: instead of the zeros at init: a tree with masks at the paths of some params, True for
        what is free. All that it holds is held, biases too; None, or no entry, leaves a param free.
      where: which leaves; by default `jp.where.weights`, and the biases (and batch norms) of units
        without weights.

    Returns:
      A `GradientTransformation` on dense params. A leaf that is wholly zero at init stays free (it
      was initialised so, not pruned).

    Raises:
      ValueError: for a `where` that matches nothing, a mask that is no mask or of no param, or
        without params.

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

    def init(params: Params) -> KeepPrunedState:
        refuse_no_tree(params)
        slots, treedef = leaf_slots(params)
        weights = selected_leaves(where, params, of=_is_no_code)
        if mask is None:
            masks = _masks_of_zeros(weights)
        else:
            masks = by_path(mask, "mask")
            _check_masks(masks, slots, is_part=_is_part(params, optax.MaskedNode))
            masks = {slot.path: masks[slot.path] for slot in slots if _has_mask(slot, masks)}
        # The default rule may find nothing in one group of a multi_transform; a rule that was given
        # must.
        if where is not None and not weights and (mask is None or not masks):
            raise no_match(where, params)
        if mask is None and where is None:
            masks |= _masks_of_biases(weights, slots)
        return KeepPrunedState(jax.tree.unflatten(treedef, [masks.get(s.path) for s in slots]))

    def update(
        updates: Any, state: Any, params: Params = None, **extra: Any
    ) -> tuple[Any, KeepPrunedState]:
        check_params("keep_pruned", params)
        return map_updates(_hold, updates, state.masks, params), state

    return optax.GradientTransformationExtraArgs(init, update)


def _hold(
    update: Float[Array, "*shape"],
    free: Bool[Array, "*shape"] | None,
    w: Float[Array, "*shape"],
) -> Float[Array, "*shape"]:
    """The update where a weight is free, else the one that makes it +0.0."""
    return update if free is None else jnp.where(free, update, (-w).astype(update.dtype))


def _is_no_code(slot: Slot) -> bool:
    return not is_code(slot.value)


# --- masks of zeros ---


def _masks_of_zeros(weights: Sequence[Slot]) -> Masks:
    """Free is what is not zero, and all of a leaf of zeros: it was initialised so."""
    masks = {}
    for slot in weights:
        is_zero = slot.value == 0
        masks[slot.path] = ~is_zero | jnp.all(is_zero)
    return masks


def _masks_of_biases(weights: Sequence[Slot], slots: list[Slot]) -> Masks:
    """A bias's entry is held where it is zero and its unit has no weights left.

    Others may be zero by initialisation.
    """
    masks = {}
    for weight in weights:
        is_zero = weight.value == 0
        is_pruned = is_zero & ~jnp.all(is_zero)
        for companion in [bias_of(weight, slots), *norm_of(weight, slots)]:
            if companion is not None:
                bias = companion.value
                without_weights = zeroed_units(weight, is_pruned, bias)
                masks[companion.path] = ~(without_weights & (bias == 0))
    return masks


# --- masks of the user's ---


def _has_mask(slot: Slot, masks: Mapping[str, Any]) -> bool:
    return slot.path in masks and is_float(slot.value)


def _is_part(params: Params, masked_node: type) -> bool:
    """Whether `optax.multi_transform` or `optax.masked` gave a part of the params."""

    def is_hole(x: Any) -> bool:
        return isinstance(x, masked_node)

    return any(is_hole(x) for x in jax.tree.leaves(params, is_leaf=is_hole))


def _check_masks(masks: Mapping[str, Any], slots: Sequence[Slot], is_part: bool) -> None:
    """Refuses entries that are no masks, and, where all params are there, those of no param."""
    paths = [slot.path for slot in slots]
    for path, x in masks.items():
        if not hasattr(x, "dtype") and not isinstance(x, bool):
            raise ValueError(
                f"keep_pruned(mask=…): {path or 'it'} is a {type(x).__name__}, not a mask: "
                "give booleans shaped like the param, True for what is free"
            )
        if path not in paths and not is_part:
            near = nearest(path, paths)
            raise ValueError(f"keep_pruned(mask=…): {path!r} is no param. Nearest: {near}")
