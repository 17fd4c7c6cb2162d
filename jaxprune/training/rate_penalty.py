"""Training for the file: a penalty of about the bits that an entropy coder will spend on each weight.

    R(w) = Σ_ij π_ij log2(1 + |w_ij| / ε),    π_ij = log2((1 − p_ij) / p_ij) + b

What a coder pays for a weight that is not zero: that it is there, and its value. Of an (inputs, outputs) matrix it
learns how dense each row and each column is; p_ij is the probability that this gives, so that a weight in an empty row
or column is dear and one in a full one cheap, and whole inputs and units die out. b are the bits of a value. The
logarithm stands for "is not zero": its slope 1 / (|w| + ε) leaves large weights alone and drives small ones to zero.

The logarithm is the reweighted l1 norm of Candès, Wakin and Boyd 2008, arXiv:0711.1612; paying for code length is the
minimum description length of Hinton and van Camp 1993 and of Oktay et al. 2020, arXiv:1906.06624.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxprune.core.arguments import at_least_zero, finite, positive
from jaxprune.core.arrays import is_code
from jaxprune.core.leaves.layout import axes_of, check_layout
from jaxprune.core.leaves.where import Slot, is_float, leaf_slots
from jaxprune.core.tree import no_match, selector
from jaxprune.numerics.precision import widen
from jaxprune.training.updating import map_updates

if TYPE_CHECKING:
    import optax

CLEAR = 1e-5  # no probability is surer than this


class RatePenaltyState(NamedTuple):
    """Steps taken."""

    count: Any


def rate_penalty(
    strength: float | Callable[[Any], Any],
    *,
    width: float = 0.02,
    value_bits: float = 6.0,
    layout: Any = None,
    where: Any = None,
) -> "optax.GradientTransformationExtraArgs":
    """An optax transform, first in its chain: adds λ ∂R/∂w to the gradient, π being held fixed.

    Follow it by `jp.prune(threshold=width)`: what the penalty has driven below the width stays a little above zero. Of
    LeNet-300-100 and a mean cross-entropy, a strength of 5e-7 leaves 3% of the weights, and 2e-6 leaves 1.3%.

    Args:
      strength: λ, in units of the loss per bit, or an optax schedule of it (raise it from 0 over the first third).
      width: ε, the size at which a weight counts as half there.
      value_bits: b, what a coder will pay for a value that is not zero.
      layout: which axes are the outputs, all others being inputs: "jax" (last), "torch" (first), or a dict of path
        regex -> axis. By default names and biases tell (docs/layers.md).
      where: which leaves; `jp.where.weights` by default.

    Returns:
      A transform on dense params; codes in the tree are left alone.

    Raises:
      ValueError: a negative strength, a width that is not positive, a `where` that matches nothing; no params.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp, optax
      >>> w = jnp.array([[0.0, 2.0, -0.02], [0.0, 1.0, 1.0]])
      >>> tx = jp.rate_penalty(1.0)
      >>> print(tx.update(jnp.zeros_like(w), tx.init(w), w)[0].round())
      [[   0.    4. -247.]
       [   0.    8.    9.]]
    """
    import optax  # a quarter of a second that only users of this transform pay

    at_least_zero("rate_penalty(strength={})", strength)
    positive("rate_penalty(width={})", width)
    finite("rate_penalty(value_bits={})", value_bits)
    check_layout(layout, "rate_penalty")

    def init(params: Any) -> RatePenaltyState:
        chosen = jax.tree.leaves(_chosen(where, params))
        if where is not None and not any(chosen):
            raise no_match(where, params)
        return RatePenaltyState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, RatePenaltyState]:
        if params is None:
            raise ValueError("rate_penalty needs the params: tx.update(grads, state, params)")
        factor = strength(state.count) if callable(strength) else strength

        def add(g: Any, chosen: bool, axes: tuple[int, ...], w: Any) -> Any:
            return g + (factor * slope(w, width, value_bits, axes)).astype(g.dtype) if chosen else g

        added = map_updates(add, updates, _chosen(where, params), _outputs(params, layout), params)
        return added, RatePenaltyState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def slope(w: Array, width: float, value_bits: float, outputs: tuple[int, ...] = (-1,)) -> Array:
    """∂R/∂w of one array whose axes `outputs` number the columns, π being held fixed, in float32."""
    x = widen(jnp.asarray(w))
    size = jnp.abs(x)
    price = odds(size / (size + width), outputs) + value_bits
    return jnp.sign(x) * price / ((size + width) * math.log(2))


def odds(there: Array, outputs: tuple[int, ...] = (-1,)) -> Array:
    """log2((1 − p) / p) for the density `there` of rows and columns: p = row · column / all, at most 0.9.

    A column is an output, one entry of the axes `outputs`; a row is a place on all other axes.
    """
    columns = tuple(axis % there.ndim for axis in outputs)
    rows = tuple(axis for axis in range(there.ndim) if axis not in columns)
    num_columns = math.prod(there.shape[axis] for axis in columns)
    num_rows = math.prod(there.shape[axis] for axis in rows)
    row = (there.sum(columns, keepdims=True) + 0.3) / (num_columns + 1)
    column = (there.sum(rows, keepdims=True) + 0.3) / (num_rows + 1)
    p = jnp.clip(row * column / ((there.sum() + 1) / there.size), CLEAR, 0.9)
    return jnp.log2((1 - p) / p)


def _chosen(where: Any, params: Any) -> Any:
    """For each leaf whether it pays."""
    test = selector(where, params)
    slots, treedef = leaf_slots(params)
    pays = [not is_code(slot.value) and is_float(slot.value) and bool(test(slot)) for slot in slots]
    return jax.tree.unflatten(treedef, pays)


def _outputs(params: Any, layout: Any) -> Any:
    """For each leaf the axes that number its outputs; a vector is one row."""
    slots, treedef = leaf_slots(params)
    return jax.tree.unflatten(treedef, [_output_axes(slot, layout) for slot in slots])


def _output_axes(slot: Slot, layout: Any) -> tuple[int, ...]:
    if is_code(slot.value) or not is_float(slot.value):
        return ()
    last = (-1,) if slot.value.ndim else ()
    return axes_of(slot.place, layout).outputs or last
