"""What goes with a removed unit: its entry in the bias beside the kernel, and in the batch norm
right behind it.

A unit whose weights are zero still gives its bias, and a batch norm of zeros gives beta − mean ·
gamma / sigma. So the bias's entry is zeroed, whatever its shape ((out,), (layers, out), (heads,
dim), (C, 1, 1)), and so are scale and bias of the norm where it is plain which norm that is:

    under one parent module there is one kernel with n outputs, none with n inputs, and one batch
    norm of n channels

Everywhere else, as in a block of many convolutions of one width, norms stay: `jp.shrink` reads the
function itself.
"""

import math
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxprune.core.leaves.layout import axes_of
from jaxprune.core.leaves.names import BIAS, MAYBE_BIAS, fits_as_bias, parts, words_of
from jaxprune.core.where import Slot, is_float

BATCH_NORM = ("batch", "batchnorm", "bn")  # words of a module's name
COLLECTIONS = ("params", "batch_stats")  # of linen; they are no modules


def units_of(slot: Slot, entries: Array, reduce: Any, layout: Any = None) -> Array:
    """`entries`, shaped as the weight at `slot`, reduced over everything but the axes that tell its
    units apart.

    Args:
      slot: of the weight.
      entries: booleans, (…) shaped as the weight.
      reduce: jnp.any or jnp.all.
      layout: as in `axes_of`.

    Returns:
      (units,), in the order of the weight's axes; with a stack, (layers · units,).
    """
    rank = entries.ndim
    units = {axis % rank for axis in axes_of(slot.place, layout).units}
    return reduce(entries, tuple(axis for axis in range(rank) if axis not in units)).reshape(-1)


def bias_of(weight: Slot, others: Iterable[Slot], layout: Any = None) -> Slot | None:
    """The bias beside a weight: a float leaf of the same module, named as one, with an entry for
    each unit."""
    module = weight.path.rpartition("/")[0]
    size = _count(weight, axes_of(weight.place, layout).units)
    for other in others:
        holder, _, name = other.path.rpartition("/")
        named = BIAS.fullmatch(name) or MAYBE_BIAS.fullmatch(name)
        fits = holder == module and named and is_float(other.value) and other.value.size == size
        if fits and fits_as_bias(tuple(other.value.shape), tuple(weight.value.shape)):
            return other
    return None


def norm_of(weight: Slot, others: list[Slot], layout: Any = None) -> list[Slot]:
    """Scale and bias of the batch norm behind a weight; empty where it is not plain which one that
    is."""
    axes = axes_of(weight.place, layout)
    outputs = _count(weight, axes.outputs)
    block = _block(weight.path)
    if axes.stacked:
        return []
    inside = [other for other in others if _block(other.path) == block and is_float(other.value)]
    kernels = [other for other in inside if other.value.ndim >= 2 and other.value.size > outputs]
    rivals = [
        k
        for k in kernels
        if k.path != weight.path and _count(k, axes_of(k.place, layout).outputs) == outputs
    ]
    readers = [k for k in kernels if _count(k, axes_of(k.place, layout).inputs[-1:]) == outputs]
    norms = [
        other for other in inside if other.value.shape == (outputs,) and _is_batch_norm(other.path)
    ]
    modules = {_module(norm.path) for norm in norms}
    return norms if len(modules) == 1 and not rivals and not readers else []


def _count(slot: Slot, axes: tuple[int, ...]) -> int:
    return math.prod(slot.value.shape[axis] for axis in axes)


def _module(path: str) -> tuple[str, ...]:
    return tuple(name for name in parts(path)[:-1] if name not in COLLECTIONS)


def _block(path: str) -> tuple[str, ...]:
    """The module that holds the module of a leaf."""
    return _module(path)[:-1]


def _is_batch_norm(path: str) -> bool:
    """Whether a leaf is the scale or the bias of a batch norm: its mean and variance are no
    params."""
    module = _module(path)
    name = parts(path)[-1]
    learned = name in ("scale", "bias", "offset", "weight", "gamma", "beta")
    return learned and bool(module) and any(word in BATCH_NORM for word in words_of(module[-1]))


def zeroed_units(weight: Slot, zero: Array, bias: Array) -> Array:
    """Where a bias, shaped as it is, belongs to units of which all weights are zero."""
    return units_of(weight, zero, jnp.all).reshape(bias.shape)
