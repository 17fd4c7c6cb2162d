"""Grids that are not integers: float8, nf4, and the one and two values of binary and ternary nets.

    float8     q = float8(w / s)                      s = max|w| / (largest float8)
    nf4        q = argmin_i |w / s − g_i|, w ≈ s g_q  s = max|w|; g: Dettmers et al. 2023,
                                                      arXiv:2305.14314
    binary     q = sign(w), w ≈ α q                   α = mean|w|; XNOR-Net, Rastegari et al. 2016,
                                                      arXiv:1603.05279
    ternary    q = sign(w) [|w| > Δ], w ≈ α q         Δ = 0.7 mean|w|, α = mean of |w| > Δ; TWN, Li
                                                      et al. 2016,
                                                      arXiv:1605.04711

Which weights share a scale, and which count, is as in `affine`.
"""

import itertools
from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from .affine import Axes, Group, counted, expand, kept_of, power_of_two, ratio, reduce_over
from .precision import widen

FLOAT8 = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}  # the largest finite values
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def quantize_float8(w: Array, scale: Array, dtype: DTypeLike) -> Array:
    """float8(w / s), saturated first: a cast of 500 to e4m3fn gives NaN."""
    top = FLOAT8[jnp.dtype(dtype).name]
    x = ratio(w, scale)
    return jnp.clip(jnp.where(jnp.isnan(x), 0.0, x), -top, top).astype(dtype)


def nearest_code(x: Array, grid: Sequence[float]) -> Array:
    """argmin_i |x − g_i| for an ascending grid of at most 256 values; ties go down; NaN counts as
    0.
    """
    x = widen(x)
    x = jnp.where(jnp.isnan(x), 0.0, x)
    middles = [(a + b) / 2 for a, b in itertools.pairwise(grid)]
    return sum(((x > m).astype(jnp.uint8) for m in middles), start=jnp.zeros_like(x, jnp.uint8))


def quantize_grid(w: Array, scale: Array, grid: Sequence[float]) -> Array:
    """The code of the grid value nearest to w / s."""
    return nearest_code(ratio(w, scale), grid)


def _mean(x: Array, counts: Array, axis: Axes, group: Group) -> Array:
    """Mean of x >= 0 where it counts, or 0; taken about the maximum, so that the mean of equal
    numbers is exact.

    In units of a power of two near the maximum, so that the sum of large weights does not overflow.
    """
    x = jnp.where(counts, x, 0.0)
    largest = reduce_over(partial(jnp.max, initial=0.0), x, axis, group)
    unit = power_of_two(largest)
    x = ratio(x, unit)
    pivot = ratio(largest, unit)
    rest = reduce_over(jnp.sum, jnp.where(counts, x - expand(pivot, x.shape), 0.0), axis, group)
    n = reduce_over(jnp.sum, counts.astype(jnp.int32), axis, group)
    return jnp.where(n > 0, pivot + rest / jnp.maximum(n, 1).astype(x.dtype), 0.0) * unit


def binary(
    w: Array, axis: Axes = (), where: Array | None = None, group: Group = None
) -> tuple[Array, Array]:
    """(w >= 0, α = mean|w|), the least squares fit of ±α; signs of 0, of uncounted weights and for
    α = 0 are +.
    """
    counts = counted(w, where)
    alpha = _mean(jnp.abs(kept_of(w, where)), counts, axis, group)
    return (w >= 0) | ~counts | (expand(alpha, w.shape) == 0), alpha


def ternary(
    w: Array, axis: Axes = (), where: Array | None = None, group: Group = None
) -> tuple[Array, Array]:
    """(codes in {−1, 0, 1}, α): the weights beyond Δ = 0.7 mean|w|, and the mean of their
    magnitudes.
    """
    kept = kept_of(w, where)
    size = jnp.abs(kept)
    delta = 0.7 * _mean(size, counted(w, where), axis, group)
    beyond = size > expand(delta, w.shape)
    return jnp.where(beyond, jnp.sign(kept), 0.0).astype(jnp.int8), _mean(size, beyond, axis, group)
