"""Selection among arrays that are too many to be held: `select.split_global`, reading everything once for each digit.

The key of rank k is found 16 bits at a time from histograms, as `select` does; a last reading counts what lies below it
in each array. NumPy on the host.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from jaxprune.numerics.select import DIGIT, key_of

Parts = Callable[[], Iterable[np.ndarray]]  # reads an array anew, in parts


def split_magnitudes(arrays: Sequence[Parts], remove: int, dtype: np.dtype) -> list[int]:
    """How many entries each array loses when the `remove` smallest magnitudes of all go.

    Args:
      arrays: each a function that reads its array anew, in parts of any shape, in order.
      remove: how many go, fewer than there are; among ties those of the last arrays go first.
      dtype: of the keys: `select.key_dtype` of all arrays.

    Example:
      >>> import numpy as np
      >>> split_magnitudes([lambda: [np.array([1.0, 2.0])], lambda: [np.array([-0.5, 2.0])]], 3, np.dtype("uint32"))
      [1, 2]
    """
    keys = lambda array: (key_of(np.asarray(part), True, dtype) for part in array())
    t = _rank(lambda: (key for array in arrays for key in keys(array)), remove, dtype)
    each = [np.sum([[np.sum(key < t), np.sum(key == t)] for key in keys(array)], axis=0) for array in arrays]
    left = sum(int(less + same) for less, same in each) - remove  # of the ties, those that stay
    counts = []
    for less, same in each:
        stay = min(left, int(same))
        left -= stay
        counts.append(int(less + same) - stay)
    return counts


def _rank(read: Callable[[], Iterable[np.ndarray]], k: int, dtype: np.dtype) -> np.generic:
    """The key of rank k (from 0)."""
    t, bins, u = 0, 1 << DIGIT, dtype.type
    for shift in range(8 * dtype.itemsize - DIGIT, -1, -DIGIT):
        counts = np.zeros(bins, np.int64)
        for key in read():
            high = key.reshape(-1) >> u(shift)
            inside = high if shift + DIGIT == 8 * dtype.itemsize else high[high >> u(DIGIT) == u(t)]
            counts += np.bincount((inside & u(bins - 1)).astype(np.int64), minlength=bins)
        ends = np.cumsum(counts)
        digit = int(np.searchsorted(ends, k, side="right"))
        t, k = t << DIGIT | digit, k - (int(ends[digit - 1]) if digit else 0)
    return u(t)
