"""An array as few bits and scales, one function for each kind.

All have one signature: quantizer(w, bits, axes, runs, mask, range, noise) -> code

    w       the weights
    bits    of a code
    axes    that keep a scale of their own, counted from the end
    runs    the groups of weights with a scale of their own, or None
    mask    True for the weights that count, or None
    range   "max" or "mse": what the scale is fitted to
    noise   u in ⌊w/s + u⌋ for stochastic rounding, or None
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jaxtyping import Bool, Float

from jaxprune.core.quantized import Binary, Quantized, pack
from jaxprune.methods.quantize_arguments import Kind, Range
from jaxprune.numerics import affine, grids
from jaxprune.numerics.precision import wide

Weights = Float[Array, "..."]
Mask = Bool[Array, "..."] | None
Noise = Float[Array, "..."] | None
Axes = tuple[int, ...]
Quantizer = Callable[..., Quantized | Binary]

# Compiled, it allocates nothing of the weights' size but the codes.
_affine_codes = jax.jit(affine.quantize_affine, static_argnames="bits")


def fixed_point(w: Weights, Q: float, bits: int | None, clip: bool, mask: Mask) -> Quantized:
    """q = round(w·Q), in as many bits as the largest weight needs if none are given.

    Raises:
      ValueError: no bits for a traced leaf; too few, unless `clip`.
    """
    if bits is None and isinstance(w, Tracer):
        raise ValueError(
            f"quantize(scale={Q}) finds its bits from values, and this leaf is traced: give bits="
        )
    bits = bits or max(2, affine.bits_needed(w, Q, mask))
    q = affine.fixed_point(w, Q, bits, clip, mask)
    scale = jnp.full((1,) * w.ndim, 1 / Q, wide(w.dtype))
    return Quantized(pack(q, bits), scale, None, bits, w.dtype)


def symmetric(
    w: Weights, bits: int, axes: Axes, runs: Any, mask: Mask, range: Range, noise: Noise
) -> Quantized:
    scale = affine.symmetric_scale(w, bits, axes, runs, mask, range)
    q = affine.symmetric_codes(w, scale, bits, noise)
    return Quantized(pack(q, bits), scale, None, bits, w.dtype)


def with_zero_point(
    w: Weights, bits: int, axes: Axes, runs: Any, mask: Mask, range: Range, noise: Noise
) -> Quantized:
    scale, zero_point = affine.affine_params(w, bits, axes, runs, mask, range)
    q = _affine_codes(w, scale, zero_point, bits, noise)
    return Quantized(pack(q, bits), scale, zero_point, bits, w.dtype)


def float8(dtype: Any) -> Quantizer:
    """The quantizer of a float8 dtype, whose largest number stands for the largest |w|."""
    largest = grids.FLOAT8[jnp.dtype(dtype).name]

    def quantizer(
        w: Weights, bits: int, axes: Axes, runs: Any, mask: Mask, range: Range, noise: Noise
    ) -> Quantized:
        scale = affine.absmax_scale(w, largest, axes, runs, mask)
        return Quantized(grids.quantize_float8(w, scale, dtype), scale, None, bits, w.dtype)

    return quantizer


def nf4(
    w: Weights, bits: int, axes: Axes, runs: Any, mask: Mask, range: Range, noise: Noise
) -> Quantized:
    scale = affine.absmax_scale(w, 1.0, axes, runs, mask)
    q = grids.quantize_grid(w, scale, grids.NF4)
    return Quantized(pack(q, bits), scale, None, bits, w.dtype, grids.NF4)


def binary(
    w: Weights, bits: int, axes: Axes, runs: Any, mask: Mask, range: Range, noise: Noise
) -> Binary:
    signs, scale = grids.binary(w, axes, mask, runs)
    return Binary(pack(signs.astype(jnp.uint8), 1), scale, w.dtype)


def ternary(
    w: Weights, bits: int, axes: Axes, runs: Any, mask: Mask, range: Range, noise: Noise
) -> Quantized:
    q, scale = grids.ternary(w, axes, mask, runs)
    return Quantized(pack(q, bits), scale, None, bits, w.dtype)


QUANTIZERS: dict[Kind, Quantizer] = {
    "symmetric": symmetric,
    "affine": with_zero_point,
    "float8_e4m3": float8(jnp.float8_e4m3fn),
    "float8_e5m2": float8(jnp.float8_e5m2),
    "nf4": nf4,
    "binary": binary,
    "ternary": ternary,
}
