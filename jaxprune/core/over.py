"""A compression of each slice of an axis by itself: layers that a scan has stacked, experts, heads.

The slices are one array to `jax.vmap`, so that the code of a stack is a code with one more leading
axis. A bias beside a stacked kernel goes through the same `vmap`: pruning of units masks it too.
"""

from collections.abc import Sequence
from typing import Any

import jax

from jaxprune.core.arguments import whole
from jaxprune.core.arrays import Stacked, is_code
from jaxprune.core.combinators import refuse_swapped
from jaxprune.core.compression import Compression, check_compression
from jaxprune.core.leaves.companions import bias_of
from jaxprune.core.trees.selection import select, selector
from jaxprune.core.trees.walk import slots, walk
from jaxprune.core.types import Compressed, Params, WhereLike
from jaxprune.core.where import Slot, Where


def over(axis: int, compression: Compression) -> Compression:
    """The compression of each slice of a stacked axis by itself: layers, experts, heads.

    Args:
      axis: the stacked axis of every selected leaf.
      compression: what each slice gets; it must be traceable (budgets as `k=` or `rank=`, not
        `similarity=` or `energy=`).

    Raises:
      ValueError: a selected leaf lacks the axis; what is no compression.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> layers = jnp.stack([jnp.eye(2), 5 * jnp.eye(2)])
      >>> print(jp.materialize(jp.over(0, jp.prune(0.75)).init(layers))[1])
      [[5. 0.]
       [0. 0.]]
    """
    refuse_swapped("over(axis, compression)", axis)
    axis = whole("over(axis={})", axis, None)
    check_compression("over(axis, compression)", compression)

    def init(params: Params, *, where: WhereLike = None, **extra: Any) -> Compressed:
        selection = select(where, params)
        neighbours = slots(params)
        codes: list[Any] = []
        biases: dict[str, Any] = {}
        for slot in selection.slots:
            _check_axis(slot, axis)
            stacked_on = axis % slot.value.ndim
            bias = _stacked_bias(slot, neighbours) if stacked_on == 0 else None
            layers = _layers(slot, bias)

            def encode(layer: Any, name: str = _name(slot)) -> Any:
                return compression.init(layer, where=_leaf_named(name), **extra)

            encoded = jax.vmap(encode, in_axes=axis)(layers)
            codes.append(_moved_back(encoded[_name(slot)], stacked_on, slot.value.ndim))
            if bias is not None and is_code(encoded[_name(bias)]):
                biases[bias.path] = encoded[_name(bias)]
        return _with_biases(selection.replaced(codes), biases)

    def update(tree: Compressed, *, where: WhereLike = None, **extra: Any) -> Compressed:
        test = selector(where, tree)
        leaves = slots(tree, is_code)
        codes: dict[str, Any] = {}
        biases: dict[str, Any] = {}
        for slot in leaves:
            if not is_code(slot.value) or not test(slot):
                continue
            bias = None if isinstance(slot.value, Stacked) else bias_of(slot, leaves)
            if bias is not None and not is_code(bias.value):
                bias = None
            layers = _layers(slot, bias)

            def step_layer(layer: Any, name: str = _name(slot)) -> Any:
                return compression.update(layer, where=_leaf_named(name), **extra)

            updated = jax.vmap(step_layer)(layers)
            codes[slot.key] = _restacked(slot.value, updated[_name(slot)])
            if bias is not None:
                biases[bias.path] = updated[_name(bias)]
        new = walk(lambda slot: codes.get(slot.key, slot.value), tree, is_code)
        return _with_biases(new, biases)

    return Compression(init, update)


def _check_axis(slot: Slot, axis: int) -> None:
    rank = slot.value.ndim
    if not -rank <= axis < rank:
        raise ValueError(f"over(axis={axis}): {slot} has no axis {axis}")


def _stacked_bias(weight: Slot, neighbours: Sequence[Slot]) -> Slot | None:
    """The bias beside a stack of kernels, if it is a stack of as many biases."""
    bias = bias_of(weight, neighbours)
    if bias is None or bias.value.shape[0] != weight.value.shape[0]:
        return None
    return bias


def _layers(weight: Slot, bias: Slot | None) -> dict[str, Any]:
    """A stack of layers as its own tree, with the names that its leaves have in the whole tree."""
    code = weight.value.each if isinstance(weight.value, Stacked) else weight.value
    layers = {_name(weight): code}
    if bias is not None:
        layers[_name(bias)] = bias.value
    return layers


def _name(slot: Slot) -> str:
    """The last part of a path: names tell the axes of a leaf, so a layer has those of its stack."""
    name = slot.path.rpartition("/")[2]
    return name if name and "\\" not in name else "kernel"


def _leaf_named(name: str) -> Where:
    return Where(lambda slot: slot.path == name, f"the leaf {name}")


def _moved_back(code: Any, stacked_on: int, rank: int) -> Any:
    """A code whose batch axis leads, for an array whose stacked axis may be another one."""
    return code if stacked_on == 0 else Stacked(code, stacked_on - rank, rank)


def _restacked(old: Any, new: Any) -> Any:
    return old.replace(each=new) if isinstance(old, Stacked) else new


def _with_biases(tree: Compressed, biases: dict[str, Any]) -> Compressed:
    """The tree with the codes of biases, by path."""
    return walk(lambda slot: biases.get(slot.path, slot.value), tree, is_code)
