"""Units that point the same way: W ≈ P·S with one scale a unit.

Rows w_u of an (n, d) array are the units; p_1 … p_k the prototypes. A unit is best written as s·p
with s = ⟨w, p⟩ / ⟨p, p⟩, and then

    ‖w − s·p‖ = ‖w‖ · sin∠(w, p) = ‖w‖ · √(1 − cos²)

so a cosine of at least τ bounds the relative error of every unit by √(1 − τ²). `leaders` finds
prototypes for a τ, `spherical` for a k (spherical k-means, Dhillon & Modha 2001, with prototypes
moved by one power iteration a step: each tends to the direction that explains most of its group's
squares).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .affine import power_of_two, ratio

HIGHEST = lax.Precision.HIGHEST


def _near_one(w: Array) -> Array:
    """Each row over a power of two near its largest entry: its squares then neither overflow nor
    vanish.
    """
    return ratio(w, power_of_two(jnp.max(jnp.abs(w), axis=-1, keepdims=True, initial=0)))


def _unit(w: Array) -> Array:
    w = _near_one(w)
    norm = jnp.linalg.norm(w, axis=-1, keepdims=True)
    return w / jnp.where(norm > 0, norm, 1)


def leaders(units: np.ndarray, similarity: float) -> tuple[np.ndarray, np.ndarray]:
    """Prototypes (row numbers) and an assignment with cos(unit, its prototype) >= similarity.

    The largest unit still alone leads; all that are near enough follow it; at the end each unit
    goes to the nearest leader. Zero units follow the first one. Concrete arrays, on the host:
    O(n·k·d).
    """
    w = np.asarray(units, np.float64)
    norm = np.linalg.norm(w, axis=1)
    u = w / np.where(norm > 0, norm, 1)[:, None]
    best = np.full(len(w), -np.inf)
    assignment = np.zeros(len(w), np.int64)
    chosen = []
    waiting = norm > 0
    while waiting.any():
        lead = int(np.argmax(np.where(waiting, norm, -1)))
        cosine = u @ u[lead]
        nearer = cosine > best
        best[nearer] = cosine[nearer]
        assignment[nearer] = len(chosen)
        chosen.append(lead)
        waiting &= best < similarity
        waiting[lead] = False
    return np.array(chosen or [0]), assignment


@partial(jax.jit, static_argnames=("k", "steps"))
def spherical(units: Array, k: int, steps: int = 20) -> tuple[Array, Array]:
    """(k, d) prototypes, their largest entries from 1 to 2, and an assignment; farthest first from
    the largest unit.
    """
    # Over one power of two for all, so that their norms stay comparable.
    units = ratio(units, power_of_two(jnp.max(jnp.abs(units), initial=0).reshape(1, 1)))
    u = _unit(units)
    norm = jnp.linalg.norm(units, axis=-1)

    def farthest(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        p, nearest = state
        new = u[jnp.argmax(jnp.where(norm > 0, -nearest, -jnp.inf))]
        return p.at[i].set(new), jnp.maximum(nearest, jnp.matmul(u, new, precision=HIGHEST))

    first = u[jnp.argmax(norm)]
    start = (
        jnp.zeros((k, u.shape[1]), u.dtype).at[0].set(first),
        jnp.matmul(u, first, precision=HIGHEST),
    )
    p, _ = lax.fori_loop(1, k, farthest, start)
    p = lax.fori_loop(0, steps, lambda _, p: _power_step(units, u, p), p)
    # Of unit length they would leave their units' norms to the scales, which may overflow.
    return _near_one(p), nearest_direction(u, p)


def _power_step(units: Array, u: Array, p: Array) -> Array:
    a = nearest_direction(u, p)
    share = jnp.sum(units * p[a], axis=-1, keepdims=True)
    moved = jax.ops.segment_sum(share * units, a, p.shape[0])
    return jnp.where(jnp.any(moved != 0, axis=-1, keepdims=True), _unit(moved), p)


def nearest_direction(units: Array, p: Array) -> Array:
    """The prototype with the greatest cosine, for each unit."""
    return jnp.argmax(jnp.matmul(units, _unit(p).T, precision=HIGHEST), axis=-1)


def scales(units: Array, p: Array, assignment: Array) -> Array:
    """s = ⟨w, p⟩ / ⟨p, p⟩: the least squares scale of each unit; 1 exactly for the prototype
    itself.
    """
    # Both over one power of two a unit: that of its prototype, then that of the unit itself.
    of_prototype = power_of_two(jnp.max(jnp.abs(p), axis=-1, keepdims=True, initial=0))
    of_unit = power_of_two(jnp.max(jnp.abs(units), axis=-1, keepdims=True, initial=0))
    mine = ratio(p, of_prototype)[assignment]
    square = jnp.sum(mine * mine, axis=-1)
    dot = jnp.sum(ratio(units, of_unit) * mine, axis=-1)
    # By the exponents: `ratio` multiplies by 4 on its way, which the largest floats do not bear.
    _, of_larger = jnp.frexp(of_unit)
    _, of_smaller = jnp.frexp(of_prototype[assignment])
    times = jnp.ldexp(jnp.ones_like(of_unit), of_larger - of_smaller)[:, 0]
    return dot / jnp.where(square > 0, square, 1) * times
