"""The order of axes: PyTorch's kernels have their outputs first, JAX's last.

    torch   O I        O I W        O I H W        O I D H W
    jax     I O        W I O        H W I O        D H W I O

A rule that speaks of axes (scales and channels of the last axis) means JAX's order, so a kernel of
PyTorch is reordered when it is read, and back when it is restored. Names tell which arrays are:
those of 2 to 5 axes that `core.layout` calls PyTorch's (`weight`, `in_proj_weight`, `weight_ih_l0`
and so on). Embedding tables and transposed convolutions are among them and have another order: only
which of their axes is the last differs then.
"""

import re
from collections.abc import Mapping

import numpy as np

from jaxprune.core.leaves.layout import Axes, outputs_first
from jaxprune.core.leaves.names import Place
from jaxprune.numerics.streamed import empty
from jaxprune.storage.checkpoints.tensors import Keys, Read, Shape, Tensor


def guess(tensors: Mapping[str, Tensor]) -> str:
    """The layout that the names speak of: "jax" or "torch"."""
    last_names = {re.split(r"[/.]", tensor.name)[-1] for tensor in tensors.values()}
    has_torch_kernels = any(
        is_reordered("torch", tensor.keys, tensor.shape) for tensor in tensors.values()
    )
    return "torch" if has_torch_kernels and "kernel" not in last_names else "jax"


def is_reordered(layout: str, keys: Keys, shape: Shape) -> bool:
    """Whether an array's axes have another order in this layout than in JAX."""
    if layout != "torch" or not 2 <= len(shape) <= 5:
        return False
    return outputs_first(Place("/".join(keys), shape))


def axes_to_jax(axes: Axes, rank: int) -> Axes:
    """The axes of an array (out, in, *window) once it is (*window, in, out)."""

    def moved(axis: int) -> int:
        place = axis + rank
        return place - 2 - rank if place >= 2 else -1 - place

    return Axes(*(tuple(sorted(map(moved, role))) for role in axes))


def to_jax(layout: str, tensor: Tensor) -> Tensor:
    """The tensor with its axes in JAX's order."""
    if not is_reordered(layout, tensor.keys, tensor.shape):
        return tensor
    outputs, inputs, *window = tensor.shape
    return tensor._replace(shape=(*window, inputs, outputs))


def from_jax(array: np.ndarray, layout: str, keys: Keys) -> np.ndarray:
    """A view of an array in JAX's order with its axes in the layout's."""
    if not is_reordered(layout, keys, array.shape):
        return array
    return np.moveaxis(array, (-1, -2), (0, 1))


def read_as_jax(read: Read, path: str, layout: str, tensor: Tensor) -> np.ndarray:
    """The array in JAX's order; nothing of its size is allocated besides."""
    array = empty(to_jax(layout, tensor).shape, tensor.dtype)
    read(path, from_jax(array, layout, tensor.keys))
    return array
