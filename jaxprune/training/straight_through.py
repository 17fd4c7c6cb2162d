"""Straight through: the forward pass sees the code, the gradient passes as if it were not there.

    w' = Δ(Θ(w)),   ∂w'/∂w := 1            Bengio et al. 2013, arXiv:1308.3432

Quantisation-aware training, binary nets (BinaryConnect, XNOR-Net) and straight-through pruning are
this with one code or another.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from jaxprune.core.arrays import materialize
from jaxprune.core.compression import Compression, check_compression
from jaxprune.core.guesses import refuse_no_tree
from jaxprune.core.types import Params
from jaxprune.core.where import is_float


def straight_through(compression: Compression) -> Callable[..., Any]:
    """Dense params -> the dense params that the code stands for, with the identity's gradient.

    Args:
      compression: any compression that works under `jit`; encoded anew at each call, so that it
        follows the weights.

    Returns:
      f(params, **extra) -> params. The values are exactly those of `materialize(init(params))`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> f = jp.straight_through(jp.quantize(bits=2))
      >>> w = jnp.array([[0.9, -0.2], [0.1, 1.0]])
      >>> print(f(w))
      [[0.9 0. ]
       [0.  1. ]]
      >>> print(jax.grad(lambda w: jnp.sum(f(w) * w))(w))        # f(w) + w
      [[ 1.8 -0.2]
       [ 0.1  2. ]]
    """
    check_compression("straight_through(compression)", compression)

    def encoded(params: Params, **extra: Any) -> Params:
        refuse_no_tree(params)
        constants = jax.tree.map(_constant, params)
        decoded = materialize(compression.init(constants, **extra))
        return jax.tree.map(_with_identity_gradient, decoded, params)

    return encoded


def _constant(w: Any) -> Any:
    """A weight without a gradient."""
    return lax.stop_gradient(w) if is_float(w) else w


def _with_identity_gradient(decoded: Any, w: Any) -> Any:
    """The decoded weight, whose gradient is that of w."""
    if not is_float(w):
        return decoded
    # Not w + stop(decoded − w): that rounds, and a pruned weight or a grid point would be off by an
    # ulp. This adds exactly 0.
    return lax.stop_gradient(decoded) + (w - lax.stop_gradient(w))
