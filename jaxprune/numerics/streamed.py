"""Arrays of the host, block by block: what `select`, `affine` and `kmeans` compute, bit for bit, in
little memory.

NumPy makes a temporary of each step, so arrays are cut into blocks of some megabytes at most;
nothing of an array's size is made but the result, and nothing is compiled. Arrays too many to be
held go the same way: `split_magnitudes` finds the key of rank k 16 bits at a time from histograms,
reading everything once for each digit.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from typing import Any

import jax
import numpy as np

from jaxprune.numerics.placement import CHUNK
from jaxprune.numerics.select import DIGIT, key_dtype, key_of

Parts = Callable[[], Iterable[np.ndarray]]  # reads an array anew, in parts
ALIGNED = 64  # bytes: what JAX needs to take over a buffer of NumPy's


def takes(*xs: Any) -> bool:
    """Whether all are arrays of NumPy's, of dtypes that JAX holds as they are."""
    return all(
        isinstance(x, np.ndarray) and jax.dtypes.canonicalize_dtype(x.dtype) == x.dtype for x in xs
    )


def empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array that JAX can take over without a copy."""
    dtype = np.dtype(dtype)
    n = prod(shape) * dtype.itemsize
    octets = np.empty(n + ALIGNED, np.uint8)
    start = -octets.ctypes.data % ALIGNED
    return octets[start : start + n].view(dtype).reshape(shape)


def mapped(f: Callable[..., np.ndarray], dtype: Any, *xs: np.ndarray) -> np.ndarray:
    """f of the flattened arrays' blocks, as one array of their shape."""
    out = empty(xs[0].shape, dtype)
    flat = out.reshape(-1)
    flats = [x.reshape(-1) for x in xs]
    for i in range(0, flat.size, CHUNK):
        flat[i : i + CHUNK] = f(*(x[i : i + CHUNK] for x in flats))
    return out


# --- selection
# ---------------------------------------------------------------------------------------


def split_magnitudes(arrays: Sequence[Parts], remove: int, dtype: np.dtype) -> list[int]:
    """How many entries each array loses when the `remove` smallest magnitudes of all go:
    `select.split_global`.

    Args:
      arrays: each a function that reads its array anew, in parts of any shape, in order.
      remove: how many go, fewer than there are; among ties those of the last arrays go first.
      dtype: of the keys: `select.key_dtype` of all arrays.

    Example:
      >>> import numpy as np
      >>> split_magnitudes([lambda: [np.array([1.0, 2.0])], lambda: [np.array([-0.5, 2.0])]], 3,
      ...     np.dtype("uint32"))
      [1, 2]
    """

    def keys(array):
        return (key_of(np.asarray(part), True, dtype) for part in array())

    t, left = _rank(lambda: (key for array in arrays for key in keys(array)), remove, dtype)
    each = [
        np.sum([[np.sum(key < t), np.sum(key == t)] for key in keys(array)], axis=0)
        for array in arrays
    ]
    counts = []
    for less, same in each:
        stay = min(left, int(same))
        left -= stay
        counts.append(int(less + same) - stay)
    return counts


def keep_largest(x: np.ndarray, remove: int) -> np.ndarray:
    """`select.keep_largest` by magnitude.

    Example:
      >>> import numpy as np
      >>> keep_largest(np.array([0.5, -3.0, 0.5, np.nan], np.float32), 2)
      array([ True,  True, False, False])
    """
    remove = min(max(remove, 0), x.size)
    if remove == x.size:
        return mapped(np.zeros_like, bool, x)
    dtype = key_dtype([x])
    flat = x.reshape(-1)

    def keys():
        return (key_of(flat[i : i + CHUNK], True, dtype) for i in range(0, flat.size, CHUNK))

    t, left = _rank(keys, remove, dtype)

    def kept(part: np.ndarray) -> np.ndarray:
        nonlocal left
        key = key_of(part, True, dtype)
        mask = key > t
        ties = np.flatnonzero(key == t)[:left]
        mask[ties] = True
        left -= ties.size
        return mask

    return mapped(kept, bool, x)


def _rank(
    read: Callable[[], Iterable[np.ndarray]], k: int, dtype: np.dtype
) -> tuple[np.generic, int]:
    """The key of rank k (from 0), and how many that equal it are of rank k or more."""
    t = 0
    bins = 1 << DIGIT
    u = dtype.type
    left = 0
    for shift in range(8 * dtype.itemsize - DIGIT, -1, -DIGIT):
        counts = np.zeros(bins, np.int64)
        for key in read():
            high = key.reshape(-1) >> u(shift)
            inside = high if shift + DIGIT == 8 * dtype.itemsize else high[high >> u(DIGIT) == u(t)]
            counts += np.bincount((inside & u(bins - 1)).astype(np.int64), minlength=bins)
        ends = np.cumsum(counts)
        digit = int(np.searchsorted(ends, k, side="right"))
        left = int(ends[digit]) - k
        t = t << DIGIT | digit
        k = k - (int(ends[digit - 1]) if digit else 0)
    return u(t), left


# --- scales and codes
# ---------------------------------------------------------------------------------------


def absmax(w: Any, where: Any, channels: Sequence[int]) -> np.ndarray:
    """max |w| over all axes but the channels (negative), none of them the first; where w is finite
    and counts.
    """
    over = tuple(a for a in range(-w.ndim, 0) if a not in channels)
    wide = np.float64 if w.dtype == np.float64 else np.float32
    top = np.zeros([n if a - w.ndim in channels else 1 for a, n in enumerate(w.shape)], wide)
    mask = None if where is None else np.asarray(where)
    for rows in _rows(w):
        counts = np.isfinite(w[rows]) if mask is None else np.isfinite(w[rows]) & mask[rows]
        size = np.where(counts, np.abs(w[rows].astype(wide, copy=False)), wide(0))
        np.maximum(top, size.max(over, keepdims=True, initial=0), out=top)
    return top


def codes(w: Any, scale: np.ndarray, top: int, dtype: Any) -> np.ndarray:
    """`affine.quantize_symmetric` to the nearest: round(w / s) in ±top. Each axis of s is 1, or
    w's; the first is 1.
    """
    out = empty(w.shape, dtype)
    inverse = (4 / scale).astype(scale.dtype)  # as in `affine.ratio`
    for rows in _rows(w):
        with np.errstate(all="ignore"):  # infinities saturate, NaN becomes 0
            q = w[rows] * inverse
            q *= scale.dtype.type(0.25)
            np.nan_to_num(q, copy=False, nan=0.0, posinf=np.inf, neginf=-np.inf)
            np.rint(q, out=q)
            out[rows] = np.clip(q, -top, top, out=q)
    return out


def _rows(w: np.ndarray) -> Iterator[slice]:
    """Runs of the first axis, of some CHUNK entries."""
    step = max(1, CHUNK * len(w) // max(1, w.size))
    return (slice(i, i + step) for i in range(0, len(w), step))
