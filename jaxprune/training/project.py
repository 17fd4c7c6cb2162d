"""Projection: after each update the weights are put back on what a code can say.

w ← Δ(Θ(w + u))            projected gradient descent; iterative hard thresholding for pruning
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.core.arguments import whole
from jaxprune.core.arrays import materialize
from jaxprune.core.compression import Compression, check_compression
from jaxprune.core.leaves.where import is_float
from jaxprune.core.tree import join_arrays, split_arrays
from jaxprune.training.updating import map_updates

if TYPE_CHECKING:
    import optax


class ProjectState(NamedTuple):
    """Steps taken."""

    count: Any


def project(compression: Compression, *, every: int = 1) -> "optax.GradientTransformationExtraArgs":
    """An optax transform, last in its chain: the updated weights are those of the code.

    Args:
      compression: any compression that works under `jit`; encoded anew, with `step` given to its schedules.
      every: project on the steps that this divides, an integer of at least 1 (the encoding runs inside `lax.cond`).

    Returns:
      A `GradientTransformation` on dense params. Pruned weights land on exactly +0.0; other values within an ulp,
      because optax adds.

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

    def init(params: Any) -> ProjectState:
        return ProjectState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, ProjectState]:
        if params is None:
            raise ValueError("project needs the params: tx.update(grads, state, params)")
        count: Any = optax.safe_increment(state.count)
        arrays, rest = split_arrays(updates)  # functions of a module cannot go through `lax.cond`

        def onto(arrays: Any) -> Any:
            new = jax.tree.map(_moved, join_arrays(arrays, rest), params, is_leaf=lambda x: x is None)
            hard = materialize(compression.init(new, **({"step": count} | extra)))
            return map_updates(lambda u, h, w: (h - w).astype(u.dtype), arrays, hard, params)

        projected = lax.cond(count % every == 0, onto, lambda arrays: arrays, arrays)
        return join_arrays(projected, rest), ProjectState(count)

    return optax.GradientTransformationExtraArgs(init, update)


def _moved(update: Any, w: Any) -> Any:
    """w + update, in the dtype of w; what has no update stays."""
    return (w + update).astype(w.dtype) if is_float(w) and is_float(update) else w
