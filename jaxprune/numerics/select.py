"""Exact selection without a sort: the k-th smallest of n floats, and the masks that pruning makes
of it.

Order the floats by an unsigned integer key, monotone in x (or in |x|):

    key(x) = bits(x) | 2^31  if x >= 0,   ~bits(x)  if x < 0;      key(|x|) = bits(|x|) + 1;
        key(NaN) = 0

so that NaN is the smallest of all and -0.0 equals +0.0. The k-th smallest key t (k counts from 0)
is the largest t with #{key < t} <= k, and both engines below compute just that:

    radix      Count the leading 16 bits in a histogram, walk to the bin that holds rank k, count
               the next 16 bits of
               that bin's members. Two passes, in chunks, so that nothing of the array's size is
               ever allocated.
    bisection  Fix the bits of t from the top; each costs one count over the whole array, in the
    shape it has. Scalar
               reductions only: a sharded array stays where it is, which a scatter or a flattening
               would not allow.

Small concrete arrays on the CPU take a third way, `np.partition` of the same keys on the host, and
compile nothing. All three agree to the bit. Counts are int32: at most 2^31 - 1 entries in all.

Everything here is deterministic. Among equal keys the one of the lowest flat index is kept.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .placement import fold_chunks, may_be_sharded, on_host, put_like, varying_like

DIGIT = 16  # bits a radix pass; 65,536 counters still fit the cache

Count = int | jax.Array  # a number of entries; may be traced


# --- keys
# ---------------------------------------------------------------------------------------


def order_key(x: jax.Array, magnitude: bool = False) -> jax.Array:
    """Unsigned integers ordered as x (or as |x|): uint32, or uint64 for float64. NaN is 0, below
    everything.
    """
    return key_of(x, magnitude, key_dtype([x]))


def key_dtype(xs: Sequence[Any]) -> np.dtype:
    """The key that holds every array of `xs`; float16, bfloat16 and float8 pass through float32
    unharmed.
    """
    for x in xs:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"selection orders floats, got {x.dtype}{list(x.shape)}: cast it, e.g. "
                f"x.astype(float32)"
            )
    return np.dtype(np.uint64 if any(x.dtype == jnp.float64 for x in xs) else np.uint32)


def key_of(x: Any, magnitude: bool, dtype: np.dtype) -> Any:
    """`order_key` for a jax or a numpy array. In integers throughout: float compares may flush
    denormals to zero.
    """
    host = isinstance(x, np.ndarray)
    xp: Any = np if host else jnp
    u = dtype.type
    info = np.finfo(f"float{8 * dtype.itemsize}")
    x = x.astype(info.dtype)
    bits = x.view(dtype) if host else lax.bitcast_convert_type(x, dtype)
    sign = u(1 << (info.bits - 1))
    size = bits & ~sign
    order = size + u(1) if magnitude else xp.where((bits == size) | (size == 0), size | sign, ~bits)
    return xp.where(size > np.array(np.inf, info.dtype).view(dtype), u(0), order)


# --- dispatch
# ---------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("f", "sharded", "magnitude"))
def _compiled(f: Callable, xs: Any, k: Any, sharded: bool, magnitude: bool) -> Any:
    # Scatter is fast on a CPU only; a GPU or TPU would rather read the array 32 times.
    run = partial(f, magnitude=magnitude)
    if sharded:
        return run(False, xs, k)
    return lax.platform_dependent(xs, k, cpu=partial(run, True), default=partial(run, False))


def _dispatch(f: Callable, xs: list[Any], k: Any, magnitude: bool) -> Any:
    k = lax.convert_element_type(k, jnp.int32)
    return _compiled(f, xs, k, any(map(may_be_sharded, xs)), magnitude)


def _flat_index(x: Any) -> jax.Array:
    """int32 flat index of every entry, in the shape of x: an iota an axis, so that it is sharded
    like x.
    """
    strides = [prod(x.shape[a + 1 :]) for a in range(x.ndim)]
    iota = (
        lax.broadcasted_iota(jnp.int32, x.shape, a) * jnp.int32(s) for a, s in enumerate(strides)
    )
    return reduce(jnp.add, iota, jnp.int32(0))


def _count(
    chunked: bool, x: jax.Array, dtype: np.dtype, magnitude: bool, test: Callable
) -> jax.Array:
    """#{i : test(key_i, i)}; chunked, because XLA:CPU allocates the n integers that it is about to
    sum.
    """

    def tally(total: jax.Array, start: jax.Array, part: jax.Array) -> jax.Array:
        index = start + lax.iota(jnp.int32, part.size)
        return total + jnp.sum(test(key_of(part, magnitude, dtype), index), dtype=jnp.int32)

    if chunked:
        return fold_chunks(tally, jnp.int32(0), x)
    return jnp.sum(test(key_of(x, magnitude, dtype), _flat_index(x)), dtype=jnp.int32)


# --- the k-th smallest
# ---------------------------------------------------------------------------------------


def kth(
    xs: jax.Array | Sequence[jax.Array], k: Count, *, magnitude: bool = False
) -> tuple[jax.Array, ...]:
    """The key of rank k (from 0, may be traced) among all entries of `xs`, one array or several
    taken as one list.

    Returns (key, below, equal): the key t, #{key < t} and #{key = t}. A rank of n or more gives the
    key above all keys, with below = n and equal = 0, so that "keep everything from rank k on" needs
    no special case.
    """
    xs = list(xs) if isinstance(xs, Sequence) else [xs]
    if on_host(*xs, k):
        t, below, equal, _ = _kth_host(xs, int(k), magnitude)
        return tuple(put_like(v, xs[0]) for v in (t, below, equal))
    return _dispatch(_kth, xs, k, magnitude)


def _kth(
    chunked: bool, xs: list[jax.Array], k: jax.Array, magnitude: bool
) -> tuple[jax.Array, ...]:
    return (_kth_radix if chunked else _kth_bisection)(xs, k, magnitude)


def _kth_bisection(xs: list[jax.Array], k: jax.Array, magnitude: bool) -> tuple[jax.Array, ...]:
    dtype = key_dtype(xs)
    width = 8 * dtype.itemsize

    def count(test: Callable) -> jax.Array:
        return reduce(jnp.add, (_count(False, x, dtype, magnitude, test) for x in xs))

    def fix_bit(i: jax.Array, t: jax.Array) -> jax.Array:
        up = t | (jnp.ones((), dtype) << (width - 1 - i).astype(dtype))
        return jnp.where(count(lambda key, _: key < up) <= k, up, t)

    t = lax.fori_loop(0, width, fix_bit, varying_like(jnp.zeros((), dtype), xs, k))
    return t, count(lambda key, _: key < t), count(lambda key, _: key == t)


def _kth_radix(xs: list[jax.Array], k: jax.Array, magnitude: bool) -> tuple[jax.Array, ...]:
    dtype = key_dtype(xs)
    n = sum(x.size for x in xs)
    t = jnp.zeros((), dtype)
    below = jnp.int32(0)
    equal = jnp.int32(0)
    for shift in range(8 * dtype.itemsize - DIGIT, -1, -DIGIT):
        counts = _digit_counts(xs, t, shift, magnitude, dtype)
        digit, skipped, equal = _walk(counts, jnp.clip(k, 0, n) - below)
        t = (t << dtype.type(DIGIT)) | digit.astype(dtype)
        below = below + skipped
    past = k >= n
    top = jnp.array(np.iinfo(dtype).max, dtype)
    return jnp.where(past, top, t), jnp.where(past, n, below), jnp.where(past, 0, equal)


def _digit_counts(
    xs: list[jax.Array], prefix: jax.Array, shift: int, magnitude: bool, dtype: np.dtype
) -> jax.Array:
    """How often each 16-bit digit at `shift` occurs among the keys whose higher bits are
    `prefix`.
    """
    bins = 1 << DIGIT
    u = dtype.type

    def add(counts: jax.Array, _: jax.Array, part: jax.Array) -> jax.Array:
        high = key_of(part, magnitude, dtype) >> u(shift)
        digit = (high & u(bins - 1)).astype(jnp.int32)
        if shift + DIGIT < 8 * dtype.itemsize:  # others go to a bin of their own
            digit = jnp.where(high >> u(DIGIT) == prefix, digit, bins)
        return counts.at[digit].add(1, mode="promise_in_bounds")

    return reduce(
        lambda counts, x: fold_chunks(add, counts, x), xs, jnp.zeros(bins + 1, jnp.int32)
    )[:bins]


def _walk(counts: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The bin of rank k, the number in the bins before it, and in it. Two levels: cumsum(65536) is
    slow to compile.
    """
    coarse = counts.reshape(256, -1)

    def step(c: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        ends = jnp.cumsum(c)
        i = jnp.minimum(jnp.sum(ends <= k, dtype=jnp.int32), c.size - 1)
        return i, ends[i] - c[i]

    i, before = step(coarse.sum(1, dtype=jnp.int32), k)
    j, inside = step(coarse[i], k - before)
    return i * coarse.shape[1] + j, before + inside, coarse[i, j]


def _kth_host(xs: list[Any], k: int, magnitude: bool) -> tuple[Any, Any, Any, list[np.ndarray]]:
    dtype = key_dtype(xs)
    keys = [key_of(np.asarray(x).reshape(-1), magnitude, dtype) for x in xs]
    n = sum(key.size for key in keys)
    if k >= n:
        return dtype.type(np.iinfo(dtype).max), np.int32(n), np.int32(0), keys
    t = dtype.type(_rank_host(keys, max(k, 0)))
    below, equal = (
        np.int32(sum(int(test(key, t).sum()) for key in keys)) for test in (np.less, np.equal)
    )
    return t, below, equal, keys


def _rank_host(keys: list[np.ndarray], k: int) -> int:
    """The key of rank k: a partition of one array; digit by digit, as `_kth_radix`, over
    several.
    """
    if len(keys) == 1:
        return int(np.partition(keys[0], k)[k])
    t = 0
    mask = (1 << DIGIT) - 1
    u = keys[0].dtype.type
    for shift in range(8 * keys[0].itemsize - DIGIT, -1, -DIGIT):
        high = [key >> u(shift) for key in keys]
        first = shift + DIGIT == 8 * keys[0].itemsize
        inside = [h if first else h[h >> u(DIGIT) == u(t)] for h in high]
        ends = np.cumsum(sum(np.bincount(h & u(mask), minlength=mask + 1) for h in inside))
        digit = int(np.searchsorted(ends, k, side="right"))
        t = t << DIGIT | digit
        k = k - (int(ends[digit - 1]) if digit else 0)
    return t


# --- keep the largest
# ---------------------------------------------------------------------------------------


def keep_largest(x: jax.Array, remove: Count, *, magnitude: bool = False) -> jax.Array:
    """A bool mask like x with exactly `remove` entries False (int or traced; clipped to 0..n): the
    smallest.

    Among entries equal to the smallest one kept, those of the highest flat index go.
    """
    if on_host(x, remove):
        return put_like(_keep_host(x, int(remove), magnitude), x)
    return _dispatch(_keep, [x], remove, magnitude)


def _keep(chunked: bool, xs: list[jax.Array], remove: jax.Array, magnitude: bool) -> jax.Array:
    (x,), dtype = xs, key_dtype(xs)
    t, below, equal = _kth(chunked, xs, remove, magnitude)
    stay = equal - jnp.maximum(remove - below, 0)
    count = partial(_count, chunked, x, dtype, magnitude)

    # The end of the ties that stay: the least index with `stay` ties before it. Not a single step
    # if all of them do.
    def halve(span: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = span
        mid = low + (high - low) // 2
        enough = count(lambda key, i: (key == t) & (i < mid)) >= stay
        return jnp.where(enough, low, mid + 1), jnp.where(enough, mid, high)

    low = jnp.where(stay == equal, x.size, 0).astype(jnp.int32)
    span = varying_like((low, jnp.full_like(low, x.size)), low, x)
    end, _ = lax.while_loop(lambda span: span[0] < span[1], halve, span)
    key = key_of(x, magnitude, dtype)
    return (key > t) | ((key == t) & (_flat_index(x) < end))


def _keep_host(x: Any, remove: int, magnitude: bool) -> np.ndarray:
    t, below, equal, (key,) = _kth_host([x], remove, magnitude)
    mask = key > t
    mask[np.flatnonzero(key == t)[: equal - max(remove - below, 0)]] = True
    return mask.reshape(np.shape(x))


def split_global(
    xs: Sequence[jax.Array], remove: Count, *, magnitude: bool = False
) -> list[jax.Array]:
    """How many entries each array loses (int32) when the `remove` smallest of all go; nothing is
    concatenated.

    `keep_largest(x, count)` of each then is the global mask: among ties the lowest (array, flat
    index) is kept.
    """
    xs = list(xs)
    if on_host(*xs, remove):
        t, below, equal, keys = _kth_host(xs, int(remove), magnitude)
        each = [(np.int32((key < t).sum()), np.int32((key == t).sum())) for key in keys]
        return [put_like(v, x) for v, x in zip(_shares(each, below, equal, int(remove), np), xs)]
    return _dispatch(_split, xs, remove, magnitude)


def _split(
    chunked: bool, xs: list[jax.Array], remove: jax.Array, magnitude: bool
) -> list[jax.Array]:
    dtype = key_dtype(xs)
    t, below, equal = _kth(chunked, xs, remove, magnitude)
    count = partial(_count, chunked, dtype=dtype, magnitude=magnitude)
    each = [
        (count(x, test=lambda key, _: key < t), count(x, test=lambda key, _: key == t)) for x in xs
    ]
    return _shares(each, below, equal, remove, jnp)


def _shares(each: list[tuple[Any, Any]], below: Any, equal: Any, remove: Any, xp: Any) -> list[Any]:
    """Ties stay with the first arrays: each keeps what it holds of those that the arrays before it
    left over.
    """
    left = equal - xp.clip(remove - below, 0, equal)
    out = []
    for less, same in each:
        stay = xp.minimum(left, same)
        left = left - stay
        out.append((less + same - stay).astype(np.int32))
    return out
