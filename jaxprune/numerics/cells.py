"""Weights as points on a line: a fine histogram, in one pass and without a sort.

Put x into m bins that are equal in

    u(x) = sign(x) lg(1 + |x|/s),    s = (mean |x|^¼)⁴

with lg and the root read off the bits of a float, linear between powers of two. u is linear for the bulk of the weights
and logarithmic for outliers, so that one weight of 10⁴ among 10⁻² does not put all others into one bin. A bin keeps its
mass H = Σ h and Σ h (x − centre), hence the exact mean v of its members: it is a point v of mass H, called a cell.

The same text runs on jax arrays and on numpy arrays.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from .placement import fold_chunks, spec_of

BINS = 1 << 15  # counters of 256 kB: half of the second-level cache
ONE = 0x3F800000  # the bits of 1.0


def xp_of(x: Any) -> Any:
    return jnp if isinstance(x, jax.Array) else np


def _as_bits(x: Any) -> Any:
    return lax.bitcast_convert_type(x, jnp.int32) if isinstance(x, jax.Array) else np.asarray(x).view(np.int32)


def _as_float(bits: Any) -> Any:
    return lax.bitcast_convert_type(bits, jnp.float32) if isinstance(bits, jax.Array) else bits.view(np.float32)


def sums(index: Any, values: Any, size: int, start: Any = None) -> Any:
    """`start` (else 0) + Σ of `values` by `index`. A sharded scatter stays on its devices; only the sums travel."""
    if not isinstance(index, jax.Array):
        return np.bincount(index.reshape(-1), values.reshape(-1), size)
    out = None if spec_of(index) is None else PartitionSpec()
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
    x, h = x.astype(np.float32), xp.ones((), np.float32) if h is None else h.astype(np.float32)
    there = xp.isfinite(x) & (h > 0)
    return xp.where(there, x, 0.0), xp.where(there, h, 0.0)


class Scale(NamedTuple):
    """low, high: the range of x; s: the size of most of x; start, length: the range of u."""

    low: Any
    high: Any
    s: Any
    start: Any
    length: Any

    def position(self, x: Any, m: int) -> Any:
        """Where x lies among m bins, in [0, m]."""
        return (_u(x, self.s) - self.start) * (m / self.length)

    def index(self, x: Any, m: int) -> Any:
        xp = xp_of(x)
        return xp.minimum(xp.maximum(self.position(x, m), 0.0), m - 1.0).astype(np.int32)

    def value(self, position: Any, m: int) -> Any:
        """The inverse of `position`."""
        xp = xp_of(position)
        u = self.start + position * (self.length / m)
        y = _as_float((xp.clip(xp.abs(u), 0.0, 127.0) * 2.0**23).astype(np.int32) + ONE) - 1.0
        return xp.where(u < 0, -y, y) * self.s


def _u(x: Any, s: Any) -> Any:
    u = (_as_bits(abs(x) * (1 / s) + 1.0) - ONE).astype(np.float32) * np.float32(2.0**-23)
    return xp_of(x).where(x < 0, -u, u)


def scale_of(data: Data) -> Scale:
    """The range and the s of what has weight, in one pass."""
    bare = all(h is None for h in data.hs)

    def widen(carry: Any, x: Any, h: Any) -> Any:
        xp = xp_of(x)
        there = xp.ones_like(x, bool) if bare else h > 0  # the compiler sees through the ones; a NaN counts as 0
        low, high, root, n = carry
        low = xp.minimum(low, xp.min(xp.where(there, x, np.inf), initial=np.inf))
        high = xp.maximum(high, xp.max(xp.where(there, x, -np.inf), initial=-np.inf))
        root = root + xp.sum(_as_float((_as_bits(xp.abs(x)) >> 2) + ONE // 4 * 3), dtype=np.float32)
        return low, high, root, n + xp.sum(there, dtype=np.float32)

    xp = xp_of(data.xs[0])
    zero = xp.zeros((), np.float32)
    low, high, root, n = data.fold(widen, (zero + np.float32(np.inf), zero - np.float32(np.inf), zero, zero))
    s = (root / xp.maximum(n, 1.0)) ** 4
    s = xp.where(s > 1e-30, s, 1.0).astype(np.float32)
    start = _u(low, s)
    return Scale(low, high, s, start, xp.maximum(_u(high, s) - start, np.float32(1e-30)))


def bins_for(xs: Sequence[Any]) -> int:
    """At least 64 a weight, up to BINS."""
    return min(BINS, max(1 << 14, 1 << (64 * sum(x.size for x in xs)).bit_length()))


class Cells(NamedTuple):
    """Points `mean` of mass `mass`, ascending; `index`: the cell in which any x lies."""

    mass: Any
    mean: Any
    index: Callable


def cells_of(data: Data, scale: Scale, m: int) -> Cells:
    """The histogram, in one pass."""
    xp = xp_of(data.xs[0])
    centre = partial(scale.value, m=m)
    few = sum(x.size for x in data.xs) <= 1 << 24 and data.chunked

    def tally(total: Any, x: Any, h: Any) -> Any:
        i = scale.index(x, m)
        off = h * (x - centre(i.astype(np.float32) + 0.5))
        if xp is np:
            return total + (sums(i, h, m) + 1j * sums(i, off, m))
        pair = lax.complex(h, off)  # one scatter of pairs costs less than two
        # Of more weights each part goes into fresh counters: in a float32 that has reached 2^24, adding 1 is lost.
        return sums(i, pair, m, total) if few else total + sums(i, pair, m)

    pairs = data.fold(tally, xp.zeros(m, np.complex64 if xp is jnp else np.complex128))
    mass, off = pairs.real, pairs.imag
    mean = centre(xp.arange(m, dtype=np.float32) + 0.5) + xp.where(mass > 0, off / xp.where(mass > 0, mass, 1.0), 0.0)
    return Cells(mass, mean, partial(scale.index, m=m))
