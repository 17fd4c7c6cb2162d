"""Quantisation of an array on a grid: w ≈ s (q − z), with few bits for q.

    symmetric  q = round(w / s) in [−m, m]            s = max|w| / m, m = 2^(b−1) − 1
    affine     q = round(w / s) + z in [0, 2^b − 1]   s = (max w − min w) / (2^b − 1), z =
                                                      round(−min w / s)
    fixed      q = round(w Q), w ≈ q / Q              one given Q for the whole array

One rule says which weights share a scale: s has the rank of w, each size of s divides that of w,
and equal runs of w share an entry. So one scale, one for each channel and one for each channel's
groups of 128 inputs are (1, 1), (1, n) and (m/128, n): no group size is stored. `axis` names the
channel axes, which keep scales of their own (() is none: one scale); `group` cuts the contraction
axis into runs: −2, or the axis that `Runs` names. A vector has no channels; its one axis is the
contraction.

`where` marks the weights that count (False: pruned). Others, and NaN and infinities, have no
influence on any statistic; infinities saturate and NaN becomes 0. Encoding the decoded array again
gives the same codes, and the same scale to an ulp or two.

Any finite float may be a weight. Two floors keep the arithmetic exact at the ends of the range: no
step is finer than twice the smallest normal float (XLA flushes what is smaller to 0, so the
rounding costs no more than that), and no affine step is finer than max|w| / 2^22, about the spacing
of float32 there (2^30 in float64: z is int32).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.typing import DTypeLike

from . import streamed
from .placement import CHUNK, HOST, may_be_sharded, put_like, split_axes
from .precision import wide, widen

Range = Literal["max", "mse"]
Axes = tuple[int, ...]


class Runs(NamedTuple):
    """Runs of `length` weights along the contraction axis of a matrix or convolution, counted from
    the end.
    """

    length: int
    axis: int = -2


Group = int | Runs | None  # a number stands for runs along −2
RATIOS = 64  # clip ratios tried by range="mse": 1, 63/64, ..., 1/64

# --- which weights share a scale
# ---------------------------------------------------------------------------------------


def expand(s: Array, shape: Sequence[int]) -> Array:
    """s repeated to `shape`, of the same rank: each of its sizes must divide; runs of equal length
    share an entry.
    """
    if s.ndim != len(shape) or any(d == 0 or n % d for d, n in zip(s.shape, shape) if d != n):
        raise ValueError(
            f"scale {s.shape} for an array {tuple(shape)}: the ranks must agree and each size "
            f"divide"
        )
    plain = [d in (1, n) for d, n in zip(s.shape, shape)]
    if all(plain):
        return jnp.broadcast_to(s, shape)
    # a repeat would gather a sharded axis; reshape, broadcast and reshape leave the shards where
    # they are
    thin = [x for d, p in zip(s.shape, plain) for x in ((d,) if p else (d, 1))]
    wide = [x for d, n, p in zip(s.shape, shape, plain) for x in ((n,) if p else (d, n // d))]
    return jnp.broadcast_to(s.reshape(thin), wide).reshape(shape)


def reduce_over(f: Callable[..., Array], w: Array, axis: Axes = (), group: Group = None) -> Array:
    """f(w, axis=…, keepdims=True) over all axes but the channels `axis`, and in runs of `group`;
    the rank of w stays.

    >>> reduce_over(jnp.sum, jnp.ones((6, 4)), axis=(-1,), group=3).shape
    (2, 4)
    """
    channels = () if w.ndim < 2 else axis
    if any(not -w.ndim <= a < 0 for a in channels):
        raise ValueError(
            f"axis={axis} for an array of shape {w.shape}: give axes from −{w.ndim} to −1"
        )
    if group is None:
        return f(w, axis=tuple(a for a in range(-w.ndim, 0) if a not in channels), keepdims=True)
    length, along = group if isinstance(group, Runs) else Runs(group)
    cut = w.ndim + along if w.ndim > 1 else 0  # the contraction axis
    if (
        w.ndim == 0
        or not 0 <= cut < w.ndim
        or cut - w.ndim in channels
        or length < 1
        or w.shape[cut] % length
    ):
        raise ValueError(
            f"group={length}, axis={axis} for an array of shape {w.shape}: the group must divide "
            f"the contraction axis ({along}, or -1 of a vector), and that axis can't be a channel "
            "axis; choose a divisor, or group=None"
        )
    runs = split_axes(w, {cut: length})
    kept = {cut, *(a + w.ndim + (a + w.ndim > cut) for a in channels)}
    return jnp.squeeze(
        f(runs, axis=tuple(a for a in range(runs.ndim) if a not in kept), keepdims=True), cut + 1
    )


def counted(w: Array, where: Array | None) -> Array:
    return jnp.isfinite(w) if where is None else jnp.isfinite(w) & where


def kept_of(w: Array, where: Array | None) -> Array:
    return jnp.where(counted(w, where), widen(w), 0.0)


def ratio(w: Array, s: Array) -> Array:
    """w / s. XLA divides by a broadcast through its reciprocal: written out, eager and jit agree
    exactly.

    1 / s of a very large s is below the normal floats, and XLA flushes it to 0; 4 / s is a normal
    float for every s that `usable` lets through. Multiplying by 4 and by 1/4 is exact, so all other
    quotients stay as they are.
    """
    w = widen(w)
    s = widen(s)
    inverse = 4 / s if s.ndim == 0 else expand(4 / s, w.shape)
    return w * inverse.astype(w.dtype) * 0.25


def usable(scale: Array, largest: Array) -> Array:
    """The scale, at least twice the smallest normal float; where the largest weight is 0, scale 1
    (and codes 0).
    """
    finest = 2 * jnp.finfo(scale.dtype).tiny
    return jnp.where(largest > 0, jnp.maximum(scale, finest), 1.0)


def power_of_two(x: Array) -> Array:
    """The power of two at or below each x > 0 (and 1 for 0): dividing by it is exact, and squares
    then fit.
    """
    _, exponent = jnp.frexp(usable(x, x))
    return jnp.ldexp(jnp.ones_like(x), exponent - 1)


# --- scales
# ---------------------------------------------------------------------------------------


def absmax_scale(
    w: Array, top: float, axis: Axes = (), group: Group = None, where: Array | None = None
) -> Array:
    """s = max|w| / top, so that |w / s| <= top: 2^(b−1) − 1 for b-bit integers, FLOAT8[…] for
    float8, 1 for NF4.
    """
    of_rows = w.ndim > 1 and -w.ndim in axis  # each has a scale of its own
    if (
        streamed.takes(w)
        and w.ndim
        and not of_rows
        and group is None
        and all(-w.ndim <= a < 0 for a in axis)
    ):
        largest = jnp.asarray(streamed.absmax(w, where, axis if w.ndim > 1 else ()))
    elif (
        isinstance(w, Tracer) or may_be_sharded(w) or w.size < HOST or of_rows or group is not None
    ):
        largest = _absmax(w, where, axis, group)
    else:
        largest = _absmax_of_rows(w, where, axis)
    scale = usable(largest * (1 / np.asarray(top, largest.dtype)), largest)
    # Rounded up, the scale of the largest float would decode to infinity.
    return jnp.where(jnp.isfinite(scale * top), scale, scale * (1 - 2.0**-22))


def _absmax(w: Array, where: Array | None, axis: Axes, group: Group) -> Array:
    return reduce_over(partial(jnp.max, initial=0.0), jnp.abs(kept_of(w, where)), axis, group)


@partial(jax.jit, static_argnames="axis")
def _absmax_of_rows(w: Array, where: Array | None, axis: Axes) -> Array:
    """`_absmax`, a run of rows at a time: XLA on a CPU allocates all that it is about to reduce."""
    step = max(1, CHUNK * len(w) // w.size)
    whole = len(w) // step
    cut = lax.dynamic_slice_in_dim

    def one(i, n):
        return _absmax(cut(w, i, n), None if where is None else cut(where, i, n), axis, None)

    top = lax.fori_loop(
        1, whole, lambda i, top: jnp.maximum(top, one(i * step, step)), one(0, step)
    )
    return jnp.maximum(top, one(whole * step, len(w) % step)) if len(w) % step else top


def clip_ratio(
    rebuild: Callable[[Array], Array],
    w: Array,
    scale: Array,
    axis: Axes = (),
    group: Group = None,
    where: Array | None = None,
) -> Array:
    """The r in {1, 63/64, …, 1/64} with the least Σ (w − rebuild(r))² over each scale's own
    weights.

    rebuild(r) is w encoded, with every range cut to r of itself, and decoded. r = 1 is tried: never
    worse than "max". The scale is the one of r = 1: errors are compared in its units, in which
    their squares neither overflow nor vanish.
    """
    counts = counted(w, where)
    w = lax.stop_gradient(widen(w))
    unit = lax.stop_gradient(power_of_two(scale))

    def error(r):
        gap = jnp.where(counts, ratio(lax.stop_gradient(rebuild(r)) - w, unit), 0.0)
        return reduce_over(jnp.sum, gap * gap, axis, group)

    def step(i, best):
        r = (RATIOS - i).astype(w.dtype) * (1 / RATIOS)
        now = error(r)
        better = now < best[0]
        return jnp.where(better, now, best[0]), jnp.where(better, r, best[1])

    first = error(jnp.ones((), w.dtype))
    return lax.fori_loop(1, RATIOS, step, (first, jnp.ones_like(first)))[
        1
    ]  # one w-sized buffer, not 64


def _top(bits: int) -> int:
    if not 2 <= bits <= 32:
        raise ValueError(f"bits={bits}: symmetric integers have 2 to 32 bits (1 bit is `binary`)")
    return 2 ** (bits - 1) - 1


def symmetric_scale(
    w: Array,
    bits: int,
    axis: Axes = (),
    group: Group = None,
    where: Array | None = None,
    range: Range = "max",
) -> Array:
    """s = max|w| / (2^(b−1) − 1), or with range="mse" the fraction of it with the least squared
    error.
    """
    scale = absmax_scale(w, _top(bits), axis, group, where)
    if range == "max":
        return scale

    def rebuild(r: Array) -> Array:
        clipped = usable(scale * r, scale)
        return dequantize(quantize_symmetric(w, clipped, bits), clipped)

    return usable(scale * clip_ratio(rebuild, w, scale, axis, group, where), scale)


def affine_params(
    w: Array,
    bits: int,
    axis: Axes = (),
    group: Group = None,
    where: Array | None = None,
    range: Range = "max",
) -> tuple[Array, Array]:
    """(s, z) of the affine grid, z int32: s = (max w − min w) / (2^b − 1), z = round(−min w / s).

    Where 0 lies in the range it is the code z, exactly. Equal weights are exact too. range="mse"
    pulls both ends towards 0, or, where 0 is outside the range, towards the end that is nearer to
    it.
    """
    counts = counted(w, where)
    wide = widen(w)
    infinity = np.asarray(np.inf, wide.dtype)
    low = reduce_over(
        partial(jnp.min, initial=infinity), jnp.where(counts, wide, infinity), axis, group
    )
    high = reduce_over(
        partial(jnp.max, initial=-infinity), jnp.where(counts, wide, -infinity), axis, group
    )
    nothing = low > high
    low = jnp.where(nothing, 0.0, low)
    high = jnp.where(nothing, 0.0, high)
    largest = float(jnp.finfo(w.dtype).max)
    if range == "max":
        return _affine(low, high, bits, largest)

    middle = jnp.clip(jnp.zeros_like(low), low, high)

    def clipped(r: Array) -> tuple[Array, Array]:
        scale, z = _affine(middle + (low - middle) * r, middle + (high - middle) * r, bits, largest)
        # Weights outside the range take the ends of the grid, so both must be finite.
        furthest = jnp.maximum(jnp.abs(z), jnp.abs(2**bits - 1 - z)).astype(scale.dtype)
        return jnp.minimum(scale, np.asarray(largest, scale.dtype) / furthest), z

    def rebuild(r: Array) -> Array:
        s, z = clipped(r)
        return dequantize(quantize_affine(w, s, z, bits), s, z)

    scale, _ = _affine(low, high, bits, largest)
    return clipped(clip_ratio(rebuild, w, scale, axis, group, where))


def _affine(low: Array, high: Array, bits: int, largest: float) -> tuple[Array, Array]:
    """(s, z) for weights in [low, high] of a dtype whose largest number is given."""
    if not 1 <= bits <= 16:
        raise ValueError(f"bits={bits}: affine integers have 1 to 16 bits")
    top = 2**bits - 1
    half = high * 0.5 - low * 0.5  # high − low may overflow
    scale = jnp.minimum(half * (1 / np.asarray(top, low.dtype)), 0.5 * jnp.finfo(low.dtype).max) * 2
    # The spacing of floats at the largest weight: a finer step means nothing, and its z would not
    # be exact.
    size = jnp.maximum(jnp.abs(low), jnp.abs(high))
    spacing = size * max(2 * float(jnp.finfo(low.dtype).eps), 2.0**-30)
    scale = usable(jnp.maximum(scale, spacing), size)
    # When −low/s ends in ½, both ends may round towards 0 and use one code less; encoding again
    # would then find a shorter range. A scale shorter by 2^−20 moves both ends past the tie.
    span = jnp.round(ratio(high, scale)) - jnp.round(ratio(low, scale))
    tie = (span == top - 1) & (scale > spacing)
    scale = usable(jnp.where(tie, scale * (1 - 2.0**-20), scale), size)
    scale = _finite_ends(low, high, scale, top, largest)
    z = jnp.round(ratio(-low, scale))
    # The grid's ends lie up to half a step outside the range. Beyond the dtype they would decode to
    # infinity: there the grid moves by one step. An end that is left outside is then no weight's
    # code.
    over = (top - z) * scale > largest
    under = -z * scale < -largest
    z = z + over.astype(z.dtype) - (under & ~over).astype(z.dtype)
    return scale, z.astype(jnp.int32)


def _finite_ends(low: Array, high: Array, scale: Array, top: int, largest: float) -> Array:
    """The step with which both ends of the range, rounded to multiples of it, are finite in the
    weights' dtype.

    It is `scale` unless an end k steps from 0 would lie beyond the largest float. Then k steps
    reach just to that, if `top` steps still cover the range; else the end lies just below k − ½
    steps, and is rounded to k − 1.
    """
    size = jnp.maximum(jnp.abs(low), jnp.abs(high))
    steps = jnp.round(ratio(size, scale))
    beyond = steps * scale > largest
    steps = jnp.maximum(steps, 1)
    narrower = jnp.asarray(largest * (1 - 2.0**-22), scale.dtype) / steps
    covers = jnp.round(ratio(high, narrower)) - jnp.round(ratio(low, narrower)) <= top
    wider = size / jnp.maximum(steps - 0.5, 0.5) * (1 + 2.0**-20)
    return jnp.where(beyond, jnp.where(covers, narrower, wider), scale)


# --- codes
# ---------------------------------------------------------------------------------------


def _rounded(x: Array, u: Array | None) -> Array:
    """Half to even; or ⌊x + u⌋, whose mean over uniform u in [0, 1) is x. NaN becomes 0."""
    x = jnp.where(jnp.isnan(x), 0.0, x)
    return jnp.round(x) if u is None else jnp.floor(x + u.astype(x.dtype))


def _signed(x: Array, bits: int) -> Array:
    """Whole numbers, clipped to ±(2^(b−1) − 1)."""
    top = np.asarray(_top(bits), x.dtype)
    if int(top) > _top(bits):  # float32 has 24 bits: take its largest number that fits
        top = np.nextafter(top, np.zeros_like(top))
    return jnp.clip(x, -top, top).astype(
        jnp.int8 if bits <= 8 else jnp.int16 if bits <= 16 else jnp.int32
    )


def quantize_symmetric(w: Array, scale: Array, bits: int, u: Array | None = None) -> Array:
    """q = round(w / s) in ±(2^(b−1) − 1), or ⌊w/s + u⌋: int8 up to 8 bits, int16 up to 16, int32
    above.

    >>> quantize_symmetric(jnp.array([0.2, -1.0, 0.5]), jnp.array([0.2]), 4).tolist()
    [1, -5, 2]
    """
    return _signed(_rounded(ratio(w, scale), u), bits)


def symmetric_codes(w: Array, scale: Array, bits: int, u: Array | None = None) -> Array:
    """`quantize_symmetric`, in which nothing of the size of w is made but q: compiled, or for
    NumPy's w by blocks.
    """
    plain = scale.shape[:1] == (1,) and all(d in (1, n) for d, n in zip(scale.shape, w.shape))
    if streamed.takes(w) and plain and u is None and bits <= 16:
        dtype = np.int8 if bits <= 8 else np.int16
        return put_like(streamed.codes(w, np.asarray(scale), _top(bits), dtype), w)
    return _compiled_codes(w, scale, bits, u)


_compiled_codes = jax.jit(quantize_symmetric, static_argnames="bits")


def quantize_affine(
    w: Array, scale: Array, zero_point: Array, bits: int, u: Array | None = None
) -> Array:
    """q = round(w / s) + z in [0, 2^b − 1]: uint8 up to 8 bits, uint16 above."""
    x = _rounded(ratio(w, scale), u)
    q = x + expand(zero_point.astype(x.dtype), w.shape)  # both whole, and exact: see `_affine`
    return jnp.clip(q, 0, 2**bits - 1).astype(jnp.uint8 if bits <= 8 else jnp.uint16)


def dequantize(
    q: Array, scale: Array, zero_point: Array | None = None, grid: Sequence[float] | None = None
) -> Array:
    """s (q − z), or s g_q; booleans stand for ±s. In float32 (float64 if s is)."""
    scale = expand(widen(scale), q.shape)
    if q.dtype == jnp.bool_:
        return (2 * q.astype(scale.dtype) - 1) * scale
    x = _looked_up(q, grid, scale.dtype) if grid is not None else q.astype(scale.dtype)
    if zero_point is not None:
        x = x - expand(zero_point.astype(scale.dtype), q.shape)
    return x * scale


def _looked_up(q: Array, grid: Sequence[float], dtype: DTypeLike) -> Array:
    """grid[q] by selection: it fuses, and an explicitly sharded q has no rule for gathering."""
    x = jnp.zeros_like(q, dtype)
    for i, g in enumerate(grid):
        x = jnp.where(q == i, jnp.asarray(g, dtype), x)
    return x


# --- a given scale
# ---------------------------------------------------------------------------------------


def bits_needed(w: Array, Q: float, where: Array | None = None) -> int:
    """The least signed width b with max|round(w Q)| <= 2^(b−1) − 1. Needs concrete values."""
    if isinstance(w, Tracer):
        raise ValueError(
            f"the width for Q={Q} depends on values, and w {w.shape} is traced: give bits="
        )
    largest = float(jnp.max(jnp.abs(kept_of(w, where)), initial=0.0))
    # In Python's float64: the product of a large weight and a large Q overflows float32.
    top = np.round(np.asarray(largest, wide(w.dtype)).astype(np.float64) * Q)
    return int(top).bit_length() + 1 if np.isfinite(top) else 1025


def fixed_point(
    w: Array, Q: float, bits: int | None = None, clip: bool = False, where: Array | None = None
) -> Array:
    """q = round(w Q), in `bits` or the least width that holds it.

    A weight too large for `bits` saturates if clip=True or w is traced, and is an error otherwise.
    """
    finest = 2 * float(jnp.finfo(wide(w.dtype)).tiny)
    if not finest <= Q <= 1 / finest:
        raise ValueError(
            f"Q={Q}: Q and 1 / Q must be normal floats, so Q is from {finest:.3g} to "
            f"{1 / finest:.3g}"
        )
    if bits is None or not (clip or isinstance(w, Tracer)):
        needed = bits_needed(w, Q, where)
        if bits is not None and needed > bits:
            raise ValueError(
                f"round(w · {Q}) needs {needed} bits, not {bits} (w {w.shape}): lower Q, or "
                f"clip=True"
            )
        if needed > 32:
            raise ValueError(
                f"round(w · {Q}) needs {needed} bits, and at most 32 are held (w {w.shape}): lower "
                f"Q"
            )
        bits = max(2, needed) if bits is None else bits
    q = _rounded(widen(w) * Q, None)
    largest = min(float(jnp.finfo(w.dtype).max) * Q, float(jnp.finfo(q.dtype).max))
    representable = np.floor(largest)  # beyond, q / Q is infinite in the weights' dtype
    return _signed(jnp.clip(q, -representable, representable), bits)
