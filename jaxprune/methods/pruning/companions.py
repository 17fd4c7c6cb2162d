"""What goes with a removed output: its entry of the bias, and of the batch norm behind it.

Which leaves these are, `core.leaves.companions` says.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool

from jaxprune.core.leaves.companions import bias_of, norm_of, units_of
from jaxprune.core.leaves.layout import axes_of
from jaxprune.core.trees.walk import IsSlot, slots, walk
from jaxprune.core.types import Compressed
from jaxprune.core.where import Slot
from jaxprune.methods.pruning.leaves import PrunedLeaf
from jaxprune.methods.pruning.masks import masked


def mask_companions(
    tree: Compressed,
    leaves: Sequence[PrunedLeaf],
    masks: Sequence[Bool[Array, "..."]],
    layout: Any,
    is_slot: IsSlot,
) -> Compressed:
    """The tree in which biases and batch norms are masked where all weights of their unit are.

    Args:
      tree: whose kernels are pruned already.
      leaves: the kernels.
      masks: theirs.
      layout: as in `axes_of`.
      is_slot: which codes are one slot.
    """
    neighbours = slots(tree, is_slot)
    companion_masks: dict[str, Any] = {}
    for leaf, mask in zip(leaves, masks):
        if not _removes_outputs(leaf, mask, layout):
            continue  # inputs have no bias
        kept_units = units_of(leaf.slot, mask, jnp.any, layout)
        for companion in _companions(leaf.slot, neighbours, layout):
            companion_masks[companion.path] = kept_units.reshape(companion.value.shape)

    def new_value(slot: Slot) -> Any:
        mask = companion_masks.get(slot.path)
        return slot.value if mask is None else masked(slot.value, mask)

    return walk(new_value, tree, is_slot)


def _removes_outputs(leaf: PrunedLeaf, mask: Bool[Array, "..."], layout: Any) -> bool:
    """Whether the axes of the pattern's units are among the leaf's outputs."""
    outputs = {axis % mask.ndim for axis in axes_of(leaf.slot.place, layout).units}
    pattern_axes = {axis % mask.ndim for axis in leaf.pattern.axes}
    return pattern_axes <= outputs


def _companions(weight: Slot, neighbours: list[Slot], layout: Any) -> list[Slot]:
    bias = bias_of(weight, neighbours, layout)
    norm = norm_of(weight, neighbours, layout)
    return norm if bias is None else [bias, *norm]
