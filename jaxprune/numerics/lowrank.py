"""Low rank: W ≈ U V, and for convolutions the Tucker-2 form W ≈ U ×_in C ×_out V.

    SVD       min ‖W − U V‖, rank r: W = A Σ Bᵀ, U = A_r √Σ_r, V = √Σ_r B_rᵀ              (Eckart,
              Young 1936)
    FWSVD     min ‖D (W − U V)‖, D² = diag(row sums of the Fisher information): SVD of D W, U
              divided by D
              (Hsu et al. 2022, arXiv:2207.00112; one weight for each row is what keeps the problem
              an SVD)
    Tucker-2  C (window, r_in, r_out), U (in, r_in), V (r_out, out): W[window] ≈ U C[window] V
              HOSVD start, then HOOI sweeps (De Lathauwer et al. 2000; for layers Kim et al. 2016,
              arXiv:1511.06530)

Rows are inputs (axis −2) and columns outputs (axis −1); a window axis is any axis before them. The
HOSVD start is within √2 of the best fit, a sweep never makes it worse, and a tensor of these ranks
is a fixed point.

A factorisation needs its matrix whole: on an Explicit mesh the leaf is gathered first (on an Auto
mesh XLA does it). Its gradient is undefined where singular values tie; train the factors instead.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.sharding import AxisType
from jax.typing import ArrayLike

from .placement import sharding_on

SWEEPS = 3  # of HOOI: on random tensors the fourth moves the error by less than 1e-3 of it
# the least row weight, of the largest: dividing by smaller ones would amplify float32's rounding
FLOOR = 1e-3


def svd(w: Array, rank: int, weights: Array | None = None) -> tuple[Array, Array]:
    """U (…, m, r), V (…, r, n) with the least ‖D (W − U V)‖; D = 1 without weights (Fisher
    information, shaped as w).

    >>> u, v = svd(jnp.array([[1.0, 2.0], [2.0, 4.0]]), rank=1)
    >>> bool(jnp.allclose(u @ v, jnp.array([[1.0, 2.0], [2.0, 4.0]]), atol=1e-5))
    True
    """
    _check_rank("rank", rank, min(w.shape[-2:]), w.shape)
    w = _whole(w)
    d = _row_weights(w, weights, (-1,))
    w, root_unit = _scaled(w)
    a, s, b = jnp.linalg.svd(w * d, full_matrices=False)
    root = jnp.sqrt(s[..., :rank])
    u = a[..., :rank] * root[..., None, :] / d
    v = root[..., :, None] * b[..., :rank, :]
    return u * root_unit, v * root_unit


def singular_values(w: Array) -> np.ndarray:
    """The singular values of a concrete matrix, descending, in float64: their sum of squares may
    leave float32.
    """
    w, root_unit = _scaled(_whole(w))
    return np.asarray(jnp.linalg.svd(w, compute_uv=False), np.float64) * float(root_unit) ** 2


def rank_for_energy(singular_values: ArrayLike, energy: float) -> int:
    """The least r with Σ_{i<=r} s_i² >= energy Σ s_i². Needs concrete, descending values.

    >>> rank_for_energy([2.0, 1.0, 0.5], energy=0.8)
    2
    """
    if isinstance(singular_values, Tracer):
        raise ValueError(
            f"the rank for energy={energy} depends on values, and they are traced: give rank="
        )
    if not 0 <= energy <= 1:
        raise ValueError(f"energy={energy}: give a fraction from 0 to 1")
    power = np.cumsum(np.square(np.asarray(singular_values, np.float64)))
    return (
        1 + int(np.searchsorted(power, energy * power[-1])) if power.size and power[-1] > 0 else 1
    )


def tucker2(
    w: Array, ranks: tuple[int, int], weights: Array | None = None
) -> tuple[Array, Array, Array]:
    """Core (…, r_in, r_out), U (in, r_in), V (r_out, out) of a convolution (…window, in, out).

    All axes before the last two are the window; batches go through vmap. `weights` weigh the
    inputs, as in `svd`.
    """
    for name, rank, size in zip(("r_in", "r_out"), ranks, w.shape[-2:]):
        _check_rank(name, rank, size, w.shape)
    w = _whole(w)
    d = _row_weights(w, weights, (*range(w.ndim - 2), w.ndim - 1))
    w, root_unit = _scaled(w)
    scaled = w * d
    u = _leading(_by_input(scaled), ranks[0])
    v = _leading(_by_output(scaled), ranks[1])
    for _ in range(SWEEPS):
        u = _leading(_by_input(_dot(scaled, v)), ranks[0])
        v = _leading(_by_output(_dot(u.T, scaled)), ranks[1])
    return _dot(_dot(u.T, scaled), v) * root_unit, u / d.reshape(-1, 1) * root_unit, v.T


def tucker_dense(core: Array, u: Array, v: Array) -> Array:
    """U C V at each place of the window; leading axes that u and v share with the core batch."""
    window = (1,) * (core.ndim - u.ndim)
    u = u.reshape(*u.shape[:-2], *window, *u.shape[-2:])
    v = v.reshape(*v.shape[:-2], *window, *v.shape[-2:])
    return _dot(_dot(u, core), v)


def svd_size(m: int, n: int, r: int) -> int:
    """Numbers in U and V: r (m + n). At most m n, so worth storing, up to r = m n / (m + n)."""
    return r * (m + n)


def tucker_size(shape: tuple[int, ...], ranks: tuple[int, int]) -> int:
    """Numbers in the core, U and V of a (…window, in, out) array."""
    *window, n_in, n_out = shape
    return (
        int(np.prod(window, dtype=np.int64)) * ranks[0] * ranks[1]
        + n_in * ranks[0]
        + ranks[1] * n_out
    )


def _scaled(w: Array) -> tuple[Array, Array]:
    """(w / 4^e, 2^e) with the largest |w| / 4^e near 1: squares of very large or small weights
    leave float32's range.

    Both are exact. 2^e goes to each of two factors, which then are of one size.
    """
    _, exponent = jnp.frexp(jnp.max(jnp.abs(w), initial=0))
    root_unit = jnp.ldexp(jnp.ones((), w.dtype), exponent // 2)
    return w / root_unit / root_unit, root_unit


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(
        a, b, precision=lax.Precision.HIGHEST
    )  # the default has 8 bits on some devices


def _by_input(w: Array) -> Array:
    return jnp.moveaxis(w, -2, 0).reshape(w.shape[-2], -1)


def _by_output(w: Array) -> Array:
    return jnp.moveaxis(w, -1, 0).reshape(w.shape[-1], -1)


def _leading(unfolded: Array, rank: int) -> Array:
    """Orthonormal basis (size, rank) of the leading left singular vectors, completed where the
    matrix has fewer.
    """
    # not eigh of the Gram matrix: it would lose everything below 3e-4 of the largest singular value
    return jnp.linalg.svd(unfolded, full_matrices=rank > unfolded.shape[1])[0][:, :rank]


def _row_weights(w: Array, weights: Array | None, others: tuple[int, ...]) -> Array:
    """d_i = √(Σ weights of input i) / max d, with size 1 along `others`; 1 without weights."""
    if weights is None:
        return jnp.ones((1,) * w.ndim, w.dtype)
    if weights.shape != w.shape:
        raise ValueError(f"weights {weights.shape} must have the shape of the array, {w.shape}")
    row = jnp.sqrt(jnp.sum(_whole(weights).astype(w.dtype), axis=others, keepdims=True))
    top = jnp.max(row, axis=-2, keepdims=True)
    return jnp.where(top > 0, jnp.maximum(row / jnp.where(top > 0, top, 1), FLOOR), 1)


def _whole(w: Array) -> Array:
    """In float32 (float64 stays), and on every device if the mesh is Explicit."""
    w = w.astype(jnp.float64 if w.dtype == jnp.float64 else jnp.float32)
    mesh = jax.typeof(w).sharding.mesh
    explicit = not mesh.empty and AxisType.Explicit in mesh.axis_types
    return jax.sharding.reshard(w, sharding_on(w, *(None,) * w.ndim)) if explicit else w


def _check_rank(name: str, rank: int, most: int, shape: tuple[int, ...]) -> None:
    if not 1 <= rank <= most:
        raise ValueError(f"{name}={rank} for an array of shape {shape}: give 1 to {most}")
