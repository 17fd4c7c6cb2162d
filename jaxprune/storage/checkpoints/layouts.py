"""The order of axes: PyTorch's kernels have their outputs first, JAX's last.

    torch   O I        O I W        O I H W        O I D H W
    jax     I O        W I O        H W I O        D H W I O

A rule that speaks of axes (scales and channels of the last axis) means JAX's order, so a kernel of
PyTorch is turned when it is read, and turned back when it is restored. What is turned is a matter
of names, those that `core.layout` calls PyTorch's: arrays of 2 to 5 axes named `weight`,
`in_proj_weight`, `weight_ih_l0` and so on. (So are embedding tables and transposed convolutions,
which have another order: only which of their axes is the last then differs.)
"""

import re
from collections.abc import Mapping

import numpy as np

from jaxprune.core.leaves.layout import Axes, outputs_first
from jaxprune.core.leaves.names import Place
from jaxprune.numerics.streamed import empty
from jaxprune.storage.checkpoints.tensors import Keys, Read, Shape, Tensor

LAYOUTS = ("jax", "torch")


def guess(tensors: Mapping[str, Tensor]) -> str:
    """The layout that the names speak of."""
    last = {re.split(r"[/.]", tensor.name)[-1] for tensor in tensors.values()}
    kernels = any(turns("torch", tensor.keys, tensor.shape) for tensor in tensors.values())
    return "torch" if kernels and "kernel" not in last else "jax"


def turns(layout: str, keys: Keys, shape: Shape) -> bool:
    """Whether this layout has another order of axes for an array."""
    return (
        layout == "torch" and 2 <= len(shape) <= 5 and outputs_first(Place("/".join(keys), shape))
    )


def axes_turned(axes: Axes, rank: int) -> Axes:
    """The axes of an array (out, in, *window) once it is (*window, in, out)."""

    def moved(axis: int) -> int:
        place = axis + rank
        return place - 2 - rank if place >= 2 else -1 - place

    return Axes(*(tuple(sorted(map(moved, role))) for role in axes))


def to_jax(layout: str, tensor: Tensor) -> Tensor:
    """The tensor as JAX orders it."""
    if not turns(layout, tensor.keys, tensor.shape):
        return tensor
    outputs, inputs, *window = tensor.shape
    return tensor._replace(shape=(*window, inputs, outputs))


def turned(x: np.ndarray, layout: str, keys: Keys) -> np.ndarray:
    """A view of an array in JAX's order with its axes in the layout's."""
    if not turns(layout, keys, x.shape):
        return x
    return np.moveaxis(x, (-1, -2), (0, 1))


def read_as_jax(read: Read, path: str, layout: str, tensor: Tensor) -> np.ndarray:
    """The array in JAX's order; nothing of its size is allocated besides."""
    x = empty(to_jax(layout, tensor).shape, tensor.dtype)
    read(path, turned(x, layout, tensor.keys))
    return x
