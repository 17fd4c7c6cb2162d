"""Training for the file: a penalty on the bits that an entropy coder will spend on each weight.

    R(w) = Σ_ij π_ij log2(1 + |w_ij| / ε),    π_ij = log2((1 − p_ij) / p_ij) + b

What a coder pays for a weight that is not zero: that it is there, and its value. Of an (inputs,
outputs) matrix it learns how dense each row and each column is; p_ij is the probability that this
gives, so that a weight in an empty row or column is expensive and one in a full one cheap, and
whole inputs and units die out. b are the bits of a value. The logarithm stands for "is not zero":
its slope 1 / (|w| + ε) leaves large weights alone and drives small ones to zero.

The logarithm is the reweighted l1 norm of Candès, Wakin and Boyd 2008, arXiv:0711.1612; paying for
code length is the minimum description length of Hinton and van Camp 1993 and of Oktay et al. 2020,
arXiv:1906.06624.
"""

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxprune.core.arguments import at_least_zero, finite, positive
from jaxprune.core.arrays import is_code
from jaxprune.core.leaves.layout import axes_of, check_layout
from jaxprune.core.trees.selection import no_match, selected_leaves
from jaxprune.core.types import Params, Schedule, WhereLike
from jaxprune.core.where import Slot, is_float, leaf_slots
from jaxprune.numerics.precision import widen
from jaxprune.training.steps import StepState, check_params, first_step, next_step, value_at
from jaxprune.training.updating import map_updates

if TYPE_CHECKING:
    import optax

CLEAR = 1e-5
"""The least probability of a weight that is taken for possible."""


def rate_penalty(
    strength: float | Schedule,
    *,
    width: float = 0.02,
    value_bits: float = 6.0,
    layout: Any = None,
    where: WhereLike = None,
) -> "optax.GradientTransformationExtraArgs":
    """An optax transform, first in its chain: adds λ ∂R/∂w to the gradient, π being held fixed.

    Follow it by `jp.prune(threshold=width)`: what the penalty has driven below the width stays a
    little above zero. Of LeNet-300-100 and a mean cross-entropy, a strength of 5e-7 leaves 3% of
    the weights, and 2e-6 leaves 1.3%.

    Args:
      strength: λ, in units of the loss per bit, or an optax schedule of it (raise it from 0 over
        the first third).
      width: ε, the size at which a weight counts as half there.
      value_bits: b, what a coder will pay for a value that is not zero.
      layout: which axes are the outputs, all others being inputs: "jax" (last), "torch" (first), or
        a dict of path regex -> axis. By default names and biases tell (docs/layers.md).
      where: which leaves; `jp.where.weights` by default.

    Returns:
      A transform on dense params; codes in the tree are left alone.

    Raises:
      ValueError: a negative strength, a width that is not positive, a `where` that matches nothing;
        no params.

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

    def init(params: Params) -> StepState:
        if where is not None and not selected_leaves(where, params, of=_is_float_array):
            raise no_match(where, params)
        return first_step()

    def update(
        updates: Any, state: Any, params: Params = None, **extra: Any
    ) -> tuple[Any, StepState]:
        check_params("rate_penalty", params)
        factor = value_at(strength, state)
        slots, treedef = leaf_slots(params)
        selected = {slot.path for slot in selected_leaves(where, params, of=_is_float_array)}
        output_axes = [
            _output_axes(slot, layout) if slot.path in selected else None for slot in slots
        ]

        def add_slope(gradient: Any, outputs: tuple[int, ...] | None, w: Any) -> Any:
            if outputs is None:
                return gradient
            penalty = slope(w, width, value_bits, outputs)
            return gradient + (factor * penalty).astype(gradient.dtype)

        axes_by_leaf = jax.tree.unflatten(treedef, output_axes)
        return map_updates(add_slope, updates, axes_by_leaf, params), next_step(state)

    return optax.GradientTransformationExtraArgs(init, update)


def slope(
    w: Float[Array, "*shape"],
    width: float,
    value_bits: float,
    outputs: tuple[int, ...] = (-1,),
) -> Float[Array, "*shape"]:
    """∂R/∂w of one array, π being held fixed, in float32 or wider.

    Args:
      w: the weights.
      width: ε.
      value_bits: b.
      outputs: the axes that number the columns.
    """
    x = widen(jnp.asarray(w))
    size = jnp.abs(x)
    presence = size / (size + width)
    bits = odds(presence, outputs) + value_bits
    return jnp.sign(x) * bits / ((size + width) * math.log(2))


def odds(
    presence: Float[Array, "*shape"], outputs: tuple[int, ...] = (-1,)
) -> Float[Array, "*shape"]:
    """log2((1 − p) / p), with p = row · column / all the density of an entry, at most 0.9.

    A column is an output, one entry of the axes `outputs`; a row is a place on all other axes.

    Args:
      presence: how far each weight is there, from 0 to 1.
      outputs: the axes that number the columns.
    """
    columns = tuple(axis % presence.ndim for axis in outputs)
    rows = tuple(axis for axis in range(presence.ndim) if axis not in columns)
    num_columns = math.prod(presence.shape[axis] for axis in columns)
    num_rows = math.prod(presence.shape[axis] for axis in rows)
    # Fractions of one weight keep empty rows and columns from a density of 0.
    row_density = (presence.sum(columns, keepdims=True) + 0.3) / (num_columns + 1)
    column_density = (presence.sum(rows, keepdims=True) + 0.3) / (num_rows + 1)
    density = (presence.sum() + 1) / presence.size
    p = jnp.clip(row_density * column_density / density, CLEAR, 0.9)
    return jnp.log2((1 - p) / p)


def _is_float_array(slot: Slot) -> bool:
    return not is_code(slot.value) and is_float(slot.value)


def _output_axes(slot: Slot, layout: Any) -> tuple[int, ...]:
    """The axes that number a leaf's outputs; a vector is one row."""
    last_axis = (-1,) if slot.value.ndim else ()
    return axes_of(slot.place, layout).outputs or last_axis
