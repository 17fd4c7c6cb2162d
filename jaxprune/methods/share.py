"""Weight sharing by prototype: W ≈ P·S, the sparse S holding one scale a unit.

    unit u  ≈  s_u · p_{a(u)},    cos(unit, prototype) >= τ   ⟹   ‖error_u‖ <= √(1 − τ²) · ‖unit_u‖

Units are the columns of a kernel, the filters of a convolution: whatever lies along `axis`. P and S
are stored, never W.
"""

from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import Float, Int

from jaxprune.core import arguments
from jaxprune.core.arrays import CompressedArray, Dense, nbits
from jaxprune.core.compression import Compression, map_weights
from jaxprune.core.factors import Shared
from jaxprune.core.leaves.layout import axes_of, check_layout
from jaxprune.core.trees.checks import check_decoded, check_finite, dense_weights
from jaxprune.core.types import WhereLike
from jaxprune.core.where import Slot
from jaxprune.numerics import directions
from jaxprune.numerics.placement import gathered
from jaxprune.numerics.precision import index_dtype


def share(
    *,
    similarity: float | None = None,
    k: int | None = None,
    axis: int | Literal["outputs"] = "outputs",
    layout: Any = None,
    where: WhereLike = None,
) -> Compression:
    """Units that point the same way share one prototype.

    Args:
      similarity: the least cosine τ of a unit with its prototype, in (0, 1]. Prototypes are as many
        as that takes, which depends on the values: concrete arrays only.
      k: instead, the number of prototypes (works under `jit` and `vmap`). Either way a sharded leaf
        is gathered.
      axis: the axis of the units, counted from the end. By default the outputs, as names and biases
        tell (docs/layers.md): the last axis of a `kernel` or `w`, the first of a `weight`.
      layout: which axes are the outputs, instead: "jax" (last), "torch" (first), or a dict of path
        regex -> axis.
      where: which leaves, as in `jp.prune`; `jp.where.weights` by default.

    Returns:
      A `Compression` whose leaves are `Shared`, or `Dense` where P and S together would be larger
      than W. Weights under a mask are taken as 0, and stay so; zeros without a mask become what
      their prototype has (`prune` first).

    Raises:
      ValueError: for a similarity outside (0, 1], k < 1 or above the number of units, an axis that
        is not there, `similarity` under trace.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> w = jnp.array([[3.0, 6.0, 0.0], [4.0, 8.0, 1.0]])     # column 1 is twice column 0
      >>> tree = jp.share(similarity=0.9).init(jnp.tile(w, (4, 1)))
      >>> print(tree.prototypes.shape, tree.assignment, tree.scale)
      (8, 2) [0 0 1] [0.5 1.  1. ]
    """
    if (similarity is None) == (k is None):
        raise ValueError(
            "share takes one of similarity= and k=, as share(similarity=0.9) or share(k=16)"
        )
    if similarity is not None:
        similarity = float(arguments.share("share(similarity={})", similarity))
    if k is not None:
        k = arguments.whole("share(k={})", k)
    if axis != "outputs":
        axis = _check_axis(axis)
    check_layout(layout, "share")

    def encode(slot: Slot, **extra: Any) -> CompressedArray:
        check_finite(slot)
        unit_axis = axes_of(slot.place, layout).output if axis == "outputs" else axis
        if -unit_axis > slot.value.ndim:
            raise ValueError(f"share(axis={axis}): {slot} has no such axis")
        units = jnp.moveaxis(gathered(dense_weights(slot)), unit_axis, 0)
        rows = units.reshape(units.shape[0], -1)
        prototype_rows, assignment = _prototypes(slot, rows, similarity, k)
        scale = directions.scales(rows, prototype_rows, assignment)
        num_prototypes = prototype_rows.shape[0]
        prototypes = jnp.moveaxis(prototype_rows.reshape(-1, *units.shape[1:]), 0, unit_axis)
        code = Shared(
            prototypes.astype(slot.value.dtype),
            assignment.astype(index_dtype(num_prototypes)),
            scale,
            unit_axis,
        )
        check_decoded(slot, code)
        if nbits(code) >= nbits(slot.value):
            why = f"{num_prototypes} prototypes of {rows.shape[0]} units would be larger"
            return Dense(slot.value, why)
        return code

    return map_weights(encode, where)


def _check_axis(axis: Any) -> int:
    axis = arguments.whole("share(axis={})", axis, None)
    if axis >= 0:
        raise ValueError(
            f"share(axis={axis}): count axes from the end, as axis={axis - 2} of a matrix; "
            "stacked layers then work too"
        )
    return axis


def _prototypes(
    slot: Slot, units: Float[Array, "units n"], similarity: float | None, k: int | None
) -> tuple[Float[Array, "prototypes n"], Int[Array, " units"]]:
    """The prototypes of units, and which of them each unit has."""
    num_units = units.shape[0]
    if k is not None:
        if k > num_units:
            raise ValueError(
                f"share(k={k}): {slot} has only {num_units} units; choose k <= {num_units}"
            )
        return directions.spherical(units, k)
    assert similarity is not None
    if isinstance(units, Tracer):
        raise ValueError(
            f"share(similarity={similarity}): the number of prototypes of {slot} needs its values; "
            "under trace give k="
        )
    leaders, assignment = directions.leaders(np.asarray(units), similarity)
    return units[jnp.asarray(leaders)], jnp.asarray(assignment.astype(np.int32))
