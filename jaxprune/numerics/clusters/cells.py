"""Weights as points on a line: a fine histogram, in one pass and without a sort.

Put x into m bins that are equal in

    u(x) = sign(x) lg(1 + |x|/s),    s = (mean |x|^¼)⁴

with lg and the root read off the bits of a float, linear between powers of two. u is linear for the
bulk of the weights and logarithmic for outliers, so that one weight of 10⁴ among 10⁻² does not put
all others into one bin. A bin keeps its mass H = Σ h and Σ h (x − centre), hence the exact mean v
of its members: it is a point v of mass H, called a cell.

All of a histogram is in units of s, a power of two: float32 then holds sums and squares of the
largest and the smallest weights alike.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..placement import fold_chunks, sharding_on, spec_of

BINS = 1 << 15  # counters of 256 kB: half of the second-level cache
ONE = 0x3F800000  # the bits of 1.0


def xp_of(x: Any) -> Any:
    return jnp if isinstance(x, jax.Array) else np


def _as_bits(x: Any) -> Any:
    return (
        lax.bitcast_convert_type(x, jnp.int32)
        if isinstance(x, jax.Array)
        else np.asarray(x).view(np.int32)
    )


def _as_float(bits: Any) -> Any:
    return (
        lax.bitcast_convert_type(bits, jnp.float32)
        if isinstance(bits, jax.Array)
        else bits.view(np.float32)
    )


def sums(index: Any, values: Any, size: int, start: Any = None) -> Any:
    """`start` (else 0) + Σ of `values` by `index`. A sharded scatter stays on its devices; only the
    sums travel.
    """
    if not isinstance(index, jax.Array):
        return np.bincount(index.reshape(-1), values.reshape(-1), size)
    out = None if spec_of(index) is None else sharding_on(index)
    start = jnp.zeros((size, *values.shape[index.ndim :]), values.dtype) if start is None else start
    return start.at[index].add(values, mode="promise_in_bounds", out_sharding=out)


class Data(NamedTuple):
    """The weights and their h, read in chunks or whole."""

    xs: Sequence[Any]
    hs: Sequence[Any]
    chunked: bool

    def fold(self, f: Callable, carry: Any) -> Any:
        """carry <- f(carry, x, h) over all parts, cleaned."""
        for x, h in zip(self.xs, self.hs):
            parts = (x,) if h is None else (x, h)
            if self.chunked:
                carry = fold_chunks(lambda c, _, *p: f(c, *clean(*p)), carry, *parts)
            else:
                carry = f(carry, *clean(*parts))
        return carry


def clean(x: Any, h: Any = None) -> tuple[Any, Any]:
    """float32, and h = 0, x = 0 where there is no weight."""
    xp = xp_of(x)
    x = x.astype(np.float32)
    h = xp.ones((), np.float32) if h is None else h.astype(np.float32)
    there = xp.isfinite(x) & (h > 0)
    return xp.where(there, x, 0.0), xp.where(there, h, 0.0)


class Scale(NamedTuple):
    """low, high: the range of x; s: the size of most of x; start, length: the range of u; zeros: Σ
    h where x is 0.
    """

    low: Any
    high: Any
    s: Any
    start: Any
    length: Any
    zeros: Any

    def position(self, x: Any, m: int) -> Any:
        """Where x lies among m bins, in [0, m]."""
        return (_u(x, self.s) - self.start) * (m / self.length)

    def index(self, x: Any, m: int) -> Any:
        xp = xp_of(x)
        return xp.minimum(xp.maximum(self.position(x, m), 0.0), m - 1.0).astype(np.int32)

    def value(self, position: Any, m: int) -> Any:
        """The inverse of `position`, in units of s."""
        xp = xp_of(position)
        u = self.start + position * (self.length / m)
        y = _as_float((xp.clip(xp.abs(u), 0.0, 127.0) * 2.0**23).astype(np.int32) + ONE) - 1.0
        return xp.where(u < 0, -y, y)


def in_units(x: Any, s: Any) -> Any:
    """x / s by a product; 1 / s of a large s would be flushed to 0."""
    return x * (4 / s) * np.float32(0.25)


def _u(x: Any, s: Any) -> Any:
    u = (_as_bits(abs(in_units(x, s)) + 1.0) - ONE).astype(np.float32) * np.float32(2.0**-23)
    return xp_of(x).where(x < 0, -u, u)


def scale_of(data: Data) -> Scale:
    """The range and the s of what has weight, in one pass."""
    bare = all(h is None for h in data.hs)

    def widen(carry: Any, x: Any, h: Any) -> Any:
        xp = xp_of(x)
        there = (
            xp.ones_like(x, bool) if bare else h > 0
        )  # the compiler sees through the ones; a NaN counts as 0
        low, high, root, n, zeros = carry
        low = xp.minimum(low, xp.min(xp.where(there, x, np.inf), initial=np.inf))
        high = xp.maximum(high, xp.max(xp.where(there, x, -np.inf), initial=-np.inf))
        root = root + xp.sum(_as_float((_as_bits(xp.abs(x)) >> 2) + ONE // 4 * 3), dtype=np.float32)
        zeros = zeros + xp.sum(xp.where(x == 0, h, 0.0), dtype=np.float32)
        return low, high, root, n + xp.sum(there, dtype=np.float32), zeros

    xp = xp_of(data.xs[0])
    zero = xp.zeros((), np.float32)
    first = (zero + np.float32(np.inf), zero - np.float32(np.inf), zero, zero, zero)
    low, high, root, n, zeros = data.fold(widen, first)
    size = xp.maximum(xp.abs(low), xp.abs(high))
    _, most = xp.frexp(xp.where(xp.isfinite(size), size, 1.0))
    exponent = xp.floor(
        4 * xp.log2(xp.maximum(root / xp.maximum(n, 1.0), np.float32(1e-20)))
    ).astype(np.int32)
    # Squares of what is 2^56 times s still fit into float32.
    exponent = xp.clip(exponent, xp.maximum(most - 56, -125), xp.minimum(most, 126))
    s = xp.ldexp(zero + np.float32(1), xp.where(root > 0, exponent, 0))
    start = _u(low, s)
    return Scale(low, high, s, start, xp.maximum(_u(high, s) - start, np.float32(1e-30)), zeros)


def bins_for(xs: Sequence[Any]) -> int:
    """At least 64 a weight, up to BINS."""
    return min(BINS, max(1 << 14, 1 << (64 * sum(x.size for x in xs)).bit_length()))


class Cells(NamedTuple):
    """Points `mean` of mass `mass`, ascending, in units of a scale's s; `index`: the cell in which
    any x lies.
    """

    mass: Any
    mean: Any
    index: Callable


def cells_of(data: Data, scale: Scale, m: int) -> Cells:
    """The histogram, in one pass, of jax arrays."""
    centre = partial(scale.value, m=m)
    few = sum(x.size for x in data.xs) <= 1 << 24 and data.chunked

    def tally(total: Any, x: Any, h: Any) -> Any:
        i = scale.index(x, m)
        off = h * (in_units(x, scale.s) - centre(i.astype(np.float32) + 0.5))
        pair = lax.complex(h, off)  # one scatter of pairs costs less than two
        # Of more weights each part goes into fresh counters: in a float32 that has reached 2^24,
        # adding 1 is lost.
        return sums(i, pair, m, total) if few else total + sums(i, pair, m)

    pairs = data.fold(tally, jnp.zeros(m, np.complex64))
    mass = pairs.real
    off = pairs.imag
    offset = jnp.where(mass > 0, off / jnp.where(mass > 0, mass, 1.0), 0.0)
    mean = centre(jnp.arange(m, dtype=np.float32) + 0.5) + offset
    return Cells(mass, mean, lambda v: scale.index(v * scale.s, m))
