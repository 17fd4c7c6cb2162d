"""What a method may take and give: finite float weights, and codes that decode to such."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jaxtyping import Float

from jaxprune.core.arrays import materialize
from jaxprune.core.where import Slot, is_float
from jaxprune.numerics.placement import not_finite
from jaxprune.numerics.precision import widen


def dense_weights(slot: Slot) -> Float[Array, "..."]:
    """The weights of a slot in float32 or wider, 0 under a mask: what a code has to write."""
    weights = widen(materialize(slot.value))
    if slot.mask is None:
        return weights
    return jnp.where(slot.mask, weights, jnp.zeros((), weights.dtype))


def check_weight(slot: Slot) -> None:
    """Refuses what cannot be compressed: leaves that are no float arrays, and empty ones."""
    if not is_float(slot.value):
        raise ValueError(
            f"{slot} is not a float array: only weights can be compressed. Exclude it with `where`"
        )
    if slot.value.size == 0:
        raise ValueError(
            f"{slot} is empty. Exclude it with `where`, "
            "as where=jp.where.weights & jp.where.size(min=1)"
        )


def check_finite(slot: Slot) -> None:
    """Refuses NaN and infinities that no mask hides; nothing is known of a traced leaf."""
    weights = materialize(slot.value)
    if isinstance(weights, Tracer) or isinstance(slot.mask, Tracer):
        return
    num_bad = not_finite(weights, slot.mask)
    if num_bad:
        raise ValueError(
            f"{slot} has {num_bad} NaN or infinite weights, which no scale can hold; "
            "fix them, or prune them first"
        )


def check_decoded(slot: Slot, code: Any) -> None:
    """Refuses a code of finite weights that decodes to infinities; a traced leaf passes.

    A product of factors may exceed the largest float where the weights are near it.

    Raises:
      ValueError: with path, count and the fix.
    """
    decoded = materialize(code)
    if isinstance(decoded, Tracer):
        return
    num_bad = not_finite(decoded, slot.mask)
    if num_bad:
        raise ValueError(
            f"{slot} is near the largest {decoded.dtype}, and {num_bad} entries of its code decode "
            "to infinity: divide the weights by a power of two"
        )
