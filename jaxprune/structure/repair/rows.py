"""Matrix products and convolutions as Y = X W: what multiplies each weight, as rows of a matrix.

    dot_general     rows are the free positions of the input, columns the contracted ones
    convolution     rows are examples and places, columns (input channel, window) (im2col)

A leading axis of G groups holds batch dimensions of a product, or the feature groups of a
convolution.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

CONTRACTIONS = frozenset({"dot_general", "conv_general_dilated"})


def inputs(eqn: Any, x: Array, kernel: Sequence[int], weight: int, every: int = 1) -> Array:
    """[groups, rows, columns]: what the weights of an equation are multiplied by.

    Args:
      eqn: a dot_general or a convolution.
      x: its other operand.
      kernel: the shape of the weights.
      weight: which operand they are.
      every: of a convolution: only every so many places along each spatial axis.
    """
    p = eqn.params
    if eqn.primitive.name == "dot_general":
        batch, contract, free = _parts(p, 1 - weight, x.ndim)
        return _stacked(x, batch, free, contract)
    dims = p["dimension_numbers"]
    groups = kernel_groups(eqn, x.shape, kernel)
    patches = lax.conv_general_dilated_patches(
        x,
        [kernel[k] for k in dims.rhs_spec[2:]],
        [every * stride for stride in p["window_strides"]],
        p["padding"],
        p["lhs_dilation"],
        p["rhs_dilation"],
        dimension_numbers=dims,
        precision=lax.Precision.HIGHEST,
    )
    last = jnp.moveaxis(patches, dims.out_spec[1], -1)
    return jnp.moveaxis(last.reshape(-1, groups, last.shape[-1] // groups), 1, 0)


def outputs(eqn: Any, y: Array, weight: int, groups: int, every: int = 1) -> Array:
    """[groups, rows, outputs]: the result of the equation, in the order of `inputs`."""
    if eqn.primitive.name == "dot_general":
        (_, _), (lb, _) = eqn.params["dimension_numbers"]
        n = len(lb)
        free = y.ndim - n - _free(eqn, weight)
        first = range(n, n + free)
        last = range(n + free, y.ndim)
        if weight == 0:
            first = range(y.ndim - free, y.ndim)
            last = range(n, y.ndim - free)
        return _stacked(y, range(n), first, last)
    spec = eqn.params["dimension_numbers"].out_spec
    y = y[tuple(slice(None, None, every) if k in spec[2:] else slice(None) for k in range(y.ndim))]
    last = jnp.moveaxis(y, spec[1], -1)
    return jnp.moveaxis(last.reshape(-1, groups, last.shape[-1] // groups), 1, 0)


def weights(eqn: Any, w: np.ndarray, shape: Sequence[int], weight: int) -> np.ndarray:
    """[groups, columns, outputs] in the shape that the equation takes."""
    if eqn.primitive.name == "dot_general":
        order = [k for part in _parts(eqn.params, weight, len(shape)) for k in part]
        return w.reshape([shape[k] for k in order]).transpose(np.argsort(order))
    dims = eqn.params["dimension_numbers"].rhs_spec  # (out, in, window); columns are (in, window)
    made = w.transpose(0, 2, 1).reshape(
        [shape[k] for k in dims]
    )  # out = group, output of the group
    return made.transpose(np.argsort(dims))


def columns_of(eqn: Any, w: np.ndarray, weight: int, groups: int) -> np.ndarray:
    """[groups, columns, outputs] of weights in the shape that the equation takes: the inverse of
    `weights`.
    """
    if eqn.primitive.name == "dot_general":
        return np.asarray(_stacked(w, *_parts(eqn.params, weight, w.ndim)))
    dims = eqn.params["dimension_numbers"].rhs_spec
    made = w.transpose(dims)  # (out, in, window)
    return made.reshape(groups, made.shape[0] // groups, -1).transpose(0, 2, 1)


def kernel_groups(eqn: Any, x: Sequence[int], kernel: Sequence[int]) -> int:
    """How many groups the weights have: by the shapes, for a cut equation may have fewer than its
    parameters say.
    """
    if eqn.primitive.name == "dot_general":
        raise ValueError("a product's groups are its batch dimensions")
    dims = eqn.params["dimension_numbers"]
    return x[dims.lhs_spec[1]] // kernel[dims.rhs_spec[1]]


def _parts(p: Any, operand: int, ndim: int) -> tuple[list[int], list[int], list[int]]:
    contract, batch = (list(pair[operand]) for pair in p["dimension_numbers"])
    return batch, contract, [k for k in range(ndim) if k not in (*batch, *contract)]


def _free(eqn: Any, operand: int) -> int:
    return len(_parts(eqn.params, operand, len(eqn.invars[operand].aval.shape))[2])


def _stacked(x: Any, *parts: Sequence[int]) -> Any:
    sizes = [math.prod(x.shape[k] for k in part) for part in parts]
    return x.transpose([k for part in parts for k in part]).reshape(sizes)
