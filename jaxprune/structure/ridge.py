"""Ridge regression of a layer's weights on its outputs: min over D of ‖X' (W' + D) − Y‖² + λ ‖D‖²."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.numerics.precision import widen
from jaxprune.structure.rows import inputs, outputs, weights


def solved(eqn: Any, k: int, w: Any, xs: list[Any], wanted: list[Any], made: list[Any], ridge: float) -> Any:
    """D, and ‖Y' − Y‖ / ‖Y‖ before and after."""

    @jax.jit
    def sums(x: Any, y: Any, z: Any) -> Any:
        rows = inputs(eqn, widen(x), w.shape, k)
        y, z = (outputs(eqn, widen(one), k, len(rows)) for one in (y, z))
        dot = lambda a, b: jnp.einsum("gni,gnj->gij", a, b, precision="highest")
        return dot(rows, rows), dot(rows, y - z), jnp.square(y - z).sum(), jnp.square(y).sum()

    parts = zip(*(sums(*batch) for batch in zip(xs, wanted, made)))
    gram, right, error, whole = (np.sum([np.asarray(x, np.float64) for x in part], axis=0) for part in parts)
    change = ridge_regression(gram, right, ridge)
    after = error - 2 * np.sum(change * right) + np.sum(change * (gram @ change))
    relative = [float(np.sqrt(max(e, 0.0) / whole)) if whole else 0.0 for e in (error, after)]
    return weights(eqn, change, w.shape, k).astype(np.float32), tuple(relative)


def ridge_regression(gram: np.ndarray, right: np.ndarray, ridge: float) -> np.ndarray:
    """(G + λ I)⁻¹ R of each group, λ = ridge · tr(G) / n; zeros where nothing ever came in."""
    if not (np.isfinite(gram).all() and np.isfinite(right).all()):
        raise ValueError("what it is multiplied with, or gives, has NaN or Inf")
    n, live = gram.shape[-1], np.trace(gram, axis1=1, axis2=2) > 0
    change = np.zeros_like(right)
    pull = ridge / n * np.trace(gram[live], axis1=1, axis2=2)[:, None, None]
    try:
        change[live] = np.linalg.solve(gram[live] + pull * np.eye(n), right[live])
    except np.linalg.LinAlgError:
        raise ValueError("its inputs are dependent: give a ridge above 0, or more examples") from None
    return change
