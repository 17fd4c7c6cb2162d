"""Weight sharing by prototype: W ≈ P·S, the sparse S holding one scale a unit.

    unit u  ≈  s_u · p_{a(u)},     cos(unit, prototype) >= τ     ⟹     ‖error_u‖ <= √(1 − τ²) · ‖unit_u‖

Units are the columns of a kernel, the filters of a convolution: whatever lies along `axis`. P and S are stored, never
W.
"""

from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune.core import arguments
from jaxprune.core.arrays import CompressedArray, Dense, nbits
from jaxprune.core.compression import Compression, keep
from jaxprune.core.factors import Shared
from jaxprune.core.leaves.layout import axes_of, check_layout
from jaxprune.core.leaves.where import Slot
from jaxprune.core.tree import check_decoded, check_finite, map_slots, there
from jaxprune.numerics import directions
from jaxprune.numerics.placement import gathered
from jaxprune.numerics.precision import index_dtype


def share(
    *,
    similarity: float | None = None,
    k: int | None = None,
    axis: int | Literal["outputs"] = "outputs",
    layout: Any = None,
    where: Any = None,
) -> Compression:
    """Units that point the same way share one prototype.

    Args:
      similarity: the least cosine τ of a unit with its prototype, in (0, 1]. Prototypes are as many as that takes,
        which depends on
        the values: concrete arrays only.
      k: instead, the number of prototypes (works under `jit` and `vmap`). Either way a sharded leaf is gathered.
      axis: the axis of the units, counted from the end. By default the outputs, as names and biases tell
        (docs/layers.md): the last axis of a `kernel` or `w`, the first of a `weight`.
      layout: which axes are the outputs, instead: "jax" (last), "torch" (first), or a dict of path regex -> axis.
      where: which leaves, as in `jp.prune`; `jp.where.weights` by default.

    Returns:
      A `Compression` whose leaves are `Shared`, or `Dense` where P and S together would be larger than W. Weights under
      a mask are taken as 0, and stay so; zeros without a mask become what their prototype has (`prune` first).

    Raises:
      ValueError: for a similarity outside (0, 1], k < 1 or above the number of units, an axis that is not there,
        `similarity` under trace.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> w = jnp.array([[3.0, 6.0, 0.0], [4.0, 8.0, 1.0]])           # the second column is twice the first
      >>> tree = jp.share(similarity=0.9).init(jnp.tile(w, (4, 1)))
      >>> print(tree.prototypes.shape, tree.assignment, tree.scale)
      (8, 2) [0 0 1] [0.5 1.  1. ]
    """
    if (similarity is None) == (k is None):
        raise ValueError("share takes one of similarity= and k=, as share(similarity=0.9) or share(k=16)")
    if similarity is not None:
        similarity = float(arguments.share("share(similarity={})", similarity))
    k = None if k is None else arguments.whole("share(k={})", k)
    if axis != "outputs":
        axis = arguments.whole("share(axis={})", axis, None)
    if axis != "outputs" and axis >= 0:
        raise ValueError(
            f"share(axis={axis}): count axes from the end, as axis={axis - 2} of a matrix; stacked layers then work too"
        )
    check_layout(layout, "share")
    rule = where

    def encode(slot: Slot) -> CompressedArray:
        check_finite(slot)
        along = axes_of(slot.place, layout).output if axis == "outputs" else axis
        if -along > slot.value.ndim:
            raise ValueError(f"share(axis={axis}): {slot} has no such axis")
        units = jnp.moveaxis(gathered(there(slot)), along, 0)
        flat = units.reshape(units.shape[0], -1)
        p, assignment = _prototypes(slot, flat, similarity, k)
        s = directions.scales(flat, p, assignment)
        prototypes = jnp.moveaxis(p.reshape(-1, *units.shape[1:]), 0, along).astype(slot.value.dtype)
        code = Shared(prototypes, assignment.astype(index_dtype(p.shape[0])), s, along)
        check_decoded(slot, code)
        if nbits(code) >= nbits(slot.value):
            return Dense(slot.value, f"{p.shape[0]} prototypes of {flat.shape[0]} units would be larger")
        return code

    def init(params: Any, *, where: Any = None, **extra: Any) -> Any:
        return map_slots(encode, params, rule if where is None else where)

    return Compression(init, keep)


def _prototypes(slot: Slot, units: Any, similarity: float | None, k: int | None) -> tuple[Any, Any]:
    if k is not None:
        if k > units.shape[0]:
            raise ValueError(f"share(k={k}): {slot} has only {units.shape[0]} units; choose k <= {units.shape[0]}")
        return directions.spherical(units, k)
    if isinstance(units, Tracer):
        raise ValueError(
            f"share(similarity={similarity}): the number of prototypes of {slot} needs its values; under trace give k="
        )
    chosen, assignment = directions.leaders(np.asarray(units), similarity)  # pyright: ignore[reportArgumentType]
    return units[jnp.asarray(chosen)], jnp.asarray(assignment.astype(np.int32))
