"""Weights as products of smaller arrays: prototypes and assignments, two factors, a core and two
factors."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxprune.core.arrays import CompressedArray, _bits, code, index_bits, materialize, static
from jaxprune.numerics.precision import wide


def matmul(a: Array, b: Array) -> Array:
    """a @ b with float32 (or wider) accumulation, in a's dtype: batches over leading axes."""
    out = jnp.matmul(a, b, precision=lax.Precision.HIGHEST, preferred_element_type=wide(a.dtype))
    return out.astype(a.dtype)


@code
class Shared(CompressedArray):
    """Weight sharing by prototypes, W ≈ P·S: unit u of the weights is scale[u] ·
    prototypes[assignment[u]].

    Attributes:
      prototypes: shaped like the weights, but k long on `axis`.
      assignment: unsigned integers, one a unit.
      scale: one a unit.
      axis: the axis of the units, counted from the end (negative).
    """

    prototypes: Any
    assignment: Any
    scale: Any
    axis: int = static()
    payload = ("prototypes",)

    def materialize(self) -> Array:
        def one(p: Array, a: Array, s: Array) -> Array:
            units = jnp.take(p, a, axis=self.axis, mode="clip")
            shape = [1] * p.ndim
            shape[self.axis] = s.size
            return units * s.reshape(shape).astype(p.dtype)

        for _ in range(self.assignment.ndim - 1):  # leading axes are batch axes
            one = jax.vmap(one)
        return one(materialize(self.prototypes), self.assignment, materialize(self.scale))

    def nbits(self, kept: Any = None) -> Any:
        k = self.prototypes.shape[self.axis]
        return _bits(self.prototypes) + self.assignment.size * index_bits(k) + _bits(self.scale)


@code
class LowRank(CompressedArray):
    """Two factors: Δ = u @ v.

    Attributes:
      u: `Float[... in rank]`.
      v: `Float[... rank out]`.
    """

    u: Any
    v: Any
    payload = ("u", "v")

    def materialize(self) -> Array:
        return matmul(materialize(self.u), materialize(self.v))

    def nbits(self, kept: Any = None) -> Any:
        return _bits(self.u) + _bits(self.v)


@code
class Tucker(CompressedArray):
    """Tucker-2 of a convolution (Kim et al. 2016, arXiv:1511.06530): Δ[x, i, o] = Σ u[i, a] core[x,
    a, b] v[b, o] at each window place x.

    Attributes:
      core: `Float[... window rank_in rank_out]`.
      u: `Float[... in rank_in]`.
      v: `Float[... rank_out out]`.
    """

    core: Any
    u: Any
    v: Any
    payload = ("core", "u", "v")

    def materialize(self) -> Array:
        core, u, v = materialize((self.core, self.u, self.v))
        window = (1,) * (core.ndim - u.ndim)
        u = u.reshape(*u.shape[:-2], *window, *u.shape[-2:])
        v = v.reshape(*v.shape[:-2], *window, *v.shape[-2:])
        return matmul(matmul(u, core), v)

    def nbits(self, kept: Any = None) -> Any:
        return _bits(self.core) + _bits(self.u) + _bits(self.v)
