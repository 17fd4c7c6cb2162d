"""Projection: after each update the weights are put back on what a code can say.

w ← Δ(Θ(w + u))            projected gradient descent; iterative hard thresholding for pruning
"""

from typing import TYPE_CHECKING, Any

import jax
from jax import Array, lax
from jaxtyping import Float

from jaxprune.core.arguments import whole
from jaxprune.core.arrays import materialize
from jaxprune.core.compression import Compression, check_compression
from jaxprune.core.trees.partition import join_arrays, split_arrays
from jaxprune.core.types import Params
from jaxprune.core.where import is_float
from jaxprune.training.steps import StepState, check_params, first_step, next_step
from jaxprune.training.updating import map_updates

if TYPE_CHECKING:
    import optax


def project(compression: Compression, *, every: int = 1) -> "optax.GradientTransformationExtraArgs":
    """An optax transform, last in its chain: the updated weights are those of the code.

    Args:
      compression: any compression that works under `jit`; encoded anew, with `step` given to its
        schedules.
      every: project on the steps that this divides, an integer of at least 1 (the encoding runs
        inside `lax.cond`).

    Returns:
      A `GradientTransformation` on dense params. Pruned weights land on exactly +0.0; other values
      within an ulp, because optax adds.

    Raises:
      ValueError: what is no compression, `every` below 1; an update without params.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp, optax
      >>> tx = optax.chain(optax.sgd(0.1), jp.project(jp.prune(0.5)))
      >>> w = jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> updates, _ = tx.update(jnp.ones_like(w), tx.init(w), w)
      >>> print(optax.apply_updates(w, updates))
      [[0.  0. ]
       [2.9 3.9]]
    """
    import optax  # a quarter of a second that only users of this transform pay

    check_compression("project(compression)", compression)
    every = whole("project(every={})", every)

    def init(params: Params) -> StepState:
        return first_step()

    def update(
        updates: Any, state: Any, params: Params = None, **extra: Any
    ) -> tuple[Any, StepState]:
        check_params("project", params)
        state = next_step(state)
        arrays, rest = split_arrays(updates)  # functions of a module cannot go through `lax.cond`

        def onto_codes(arrays: Any) -> Any:
            moved = jax.tree.map(_moved, join_arrays(arrays, rest), params, is_leaf=_is_none)
            decoded = materialize(compression.init(moved, **{"step": state.count, **extra}))
            return map_updates(_difference, arrays, decoded, params)

        is_due = state.count % every == 0
        projected = lax.cond(is_due, onto_codes, lambda arrays: arrays, arrays)
        return join_arrays(projected, rest), state

    return optax.GradientTransformationExtraArgs(init, update)


def _is_none(x: Any) -> bool:
    return x is None


def _moved(update: Any, w: Any) -> Any:
    """w + update, in the dtype of w; what has no update stays."""
    return (w + update).astype(w.dtype) if is_float(w) and is_float(update) else w


def _difference(
    update: Float[Array, "..."], target: Float[Array, "..."], w: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The update that takes w to the target."""
    return (target - w).astype(update.dtype)
