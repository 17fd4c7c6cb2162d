"""Weights on a grid: w ≈ (q − z)·s with small integers q, one scale s a channel, group or tensor.

The scale has the rank of q, and each of its axes divides q's: one rule for a tensor (all ones), a
channel (one axis whole) and a group (an axis cut into equal runs). Integers of 1 to 7 bits are
packed into bytes, in memory and in files.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxprune.core.arrays import CompressedArray, _bits, code, materialize, static
from jaxprune.numerics import affine, packing


@code
class Packed(CompressedArray):
    """Integers of 1 to 7 bits as bit planes: Δ unpacks them.

    Attributes:
      words: `UInt8[... bits ceil(length/8)]`; plane b holds bit b of eight consecutive integers a
        byte.
      length: integers on the last axis, the one size that the words do not tell.
      signed: whether the top bit is a sign (two's complement).
    """

    words: Any
    length: int = static()
    signed: bool = static(default=False)

    def materialize(self) -> Array:
        return packing.unpack(self.words, self.length, self.signed)

    def nbits(self, kept: Any = None) -> Any:
        *rows, bits, _ = self.words.shape
        n = self.length
        for r in rows:
            n *= r
        return (n if kept is None else kept) * bits

    @property
    def bits(self) -> int:
        """Bits of one integer."""
        return self.words.shape[-2]


def pack(codes: Array, bits: int) -> Any:
    """The integers packed when they have fewer than 8 bits, else as they are."""
    if bits >= 8:
        return codes
    return Packed(
        packing.pack(codes, bits),
        codes.shape[-1],
        bool(jnp.issubdtype(codes.dtype, jnp.signedinteger)),
    )


@code
class Quantized(CompressedArray):
    """Integers (or float8, or entries of a fixed grid) and a scale: Δ = (q − zero_point)·scale, or
    grid[q]·scale.

    Attributes:
      q: integers, `Packed` below 8 bits; or float8.
      scale: `Float32`, of q's rank, each axis dividing q's.
      zero_point: `Int32` shaped like `scale`, or None.
      bits: bits of one q (6 bits pay 6, 12 bits pay 12).
      dense_dtype: of the weights.
      grid: the values q points at (nf4), or None.
    """

    q: Any
    scale: Any
    zero_point: Any
    bits: int = static()
    dense_dtype: Any = static()
    grid: tuple[float, ...] | None = static(default=None)

    def materialize(self) -> Array:
        q, scale, zero_point = materialize((self.q, self.scale, self.zero_point))
        return affine.dequantize(q, scale, zero_point, self.grid).astype(self.dense_dtype)

    def nbits(self, kept: Any = None) -> Any:
        n = kept
        if kept is None:
            n = self.q.nbits() // self.bits if isinstance(self.q, Packed) else self.q.size
        side = _bits(self.scale) + (0 if self.zero_point is None else _bits(self.zero_point))
        return n * self.bits + side


@code
class Binary(CompressedArray):
    """Signs and a scale (XNOR-Net, Rastegari et al. 2016, arXiv:1603.05279): Δ = α where the sign
    is set, else −α.

    Attributes:
      signs: `Packed` at 1 bit; 1 is +.
      scale: α = mean |w| a channel, of the signs' rank.
      dense_dtype: of the weights.
    """

    signs: Any
    scale: Any
    dense_dtype: Any = static()

    def materialize(self) -> Array:
        signs = materialize(self.signs)
        alpha = materialize(self.scale)
        return affine.dequantize(signs.astype(bool), alpha).astype(self.dense_dtype)

    def nbits(self, kept: Any = None) -> Any:
        return _bits(self.signs, kept) + _bits(self.scale)
