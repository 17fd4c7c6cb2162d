"""Projection: after each update the weights are put back on what a code can say.

w ← Δ(Θ(w + u))            projected gradient descent; iterative hard thresholding for pruning
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.core.arrays import materialize
from jaxprune.core.compression import Compression
from jaxprune.core.where import is_float

if TYPE_CHECKING:
    import optax


class ProjectState(NamedTuple):
    """Steps taken."""

    count: Any


def project(compression: Compression, *, every: int = 1) -> "optax.GradientTransformationExtraArgs":
    """An optax transform, last in its chain: the updated weights are those of the code.

    Args:
      compression: any compression that works under `jit`; encoded anew, with `step` given to its schedules.
      every: project on the steps that this divides (the encoding runs inside `lax.cond`).

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

    if every < 1:
        raise ValueError(f"project(every={every}): every is at least 1")

    def init(params: Any) -> ProjectState:
        return ProjectState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, ProjectState]:
        if params is None:
            raise ValueError("project needs the params: tx.update(grads, state, params)")
        count: Any = optax.safe_increment(state.count)

        def onto(updates: Any) -> Any:
            new = optax.apply_updates(params, updates)
            hard = materialize(compression.init(new, **({"step": count} | extra)))
            return jax.tree.map(lambda h, p, u: (h - p).astype(u.dtype) if is_float(p) else u, hard, params, updates)

        return lax.cond(count % every == 0, onto, lambda u: u, updates), ProjectState(count)

    return optax.GradientTransformationExtraArgs(init, update)
