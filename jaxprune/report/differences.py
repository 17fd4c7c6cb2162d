"""How two arrays differ, and how many arrays do together: errors, signal to noise, zeros that came
and went.

    max error   max |a − b|              SQNR        10 log10(Σ a² / Σ (a − b)²)  dB
    relative    ‖a − b‖ / ‖a‖            new zeros   a ≠ 0, b = 0          lost zeros   a = 0, b ≠ 0

These run over the entries that are finite in both arrays. NaN equals NaN, an infinity equals itself
and −0 equals 0; an entry that is not finite in one array and another value in the other is a
difference, and is counted apart. The sums of squares are kept as base-2 logarithms: no square of a
large or a small entry leaves the range of float64.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

BLOCK = 1 << 18  # entries compared at a time
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SQUARES_FIT = (
    1e-140,
    1e140,
)  # a sum of squares of numbers whose largest is between these is a float64


class Difference(NamedTuple):
    """What became of one array, or of many together.

    Attributes:
      path: the leaf's name.
      size: entries of the first array.
      compared: False where there are no two arrays of one shape.
      changed: entries whose values differ.
      not_finite: how many of these are NaN or infinite in one of the arrays.
      other_bits: entries of equal value and other bits: −0 for 0, another NaN.
      max_error: max |a − b|.
      log2_signal: log2 Σ a².
      log2_noise: log2 Σ (a − b)².
      new_zeros: entries that became 0.
      lost_zeros: entries that were 0.
      note: what differs besides the entries: the shape, the dtype, or a leaf that one side lacks.
    """

    path: str
    size: int
    compared: bool = True
    changed: int = 0
    not_finite: int = 0
    other_bits: int = 0
    max_error: float = 0.0
    log2_signal: float = -math.inf
    log2_noise: float = -math.inf
    new_zeros: int = 0
    lost_zeros: int = 0
    note: str = ""

    @property
    def same(self) -> bool:
        """Whether shape, dtype and every value are equal."""
        return self.compared and not self.changed and not self.note

    @property
    def exact(self) -> bool:
        """Whether every bit is equal."""
        return self.same and not self.other_bits

    @property
    def relative(self) -> float:
        """‖a − b‖ / ‖a‖; 0 where nothing differs, infinite where only zeros do."""
        if self.log2_noise == -math.inf:
            return 0.0
        return _exp2((self.log2_noise - self.log2_signal) / 2)

    @property
    def sqnr(self) -> float:
        """Decibels; infinite where no finite entry differs, −inf where only zeros do."""
        if self.log2_noise == -math.inf:
            return math.inf
        return 10 * math.log10(2) * (self.log2_signal - self.log2_noise)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity and no NaN: null."""
        numbers = {
            "max_error": self.max_error,
            "relative_error": self.relative,
            "sqnr_db": self.sqnr,
        }
        return {
            "path": self.path,
            "size": self.size,
            "same": self.same,
            "exact": self.exact,
            "changed": self.changed,
            "not_finite": self.not_finite,
            "other_bits": self.other_bits,
            **{name: x if math.isfinite(x) else None for name, x in numbers.items()},
            "new_zeros": self.new_zeros,
            "lost_zeros": self.lost_zeros,
            "note": self.note,
        }


def difference(path: str, a: np.ndarray, b: np.ndarray) -> Difference:
    """The difference of two arrays.

    Example:
      >>> import numpy as np
      >>> from jaxprune.report.differences import difference
      >>> row = difference("w", np.array([10.0, 1.0, np.inf]), np.array([10.0, 0.0, np.inf]))
      >>> row.changed, row.max_error, row.new_zeros, round(row.sqnr, 2)       # 101 : 1
      (1, 1.0, 1, 20.04)
    """
    if a.shape != b.shape:
        return Difference(path, a.size, compared=False, note=other_shape(a, b))
    note = "" if a.dtype == b.dtype else f"{a.dtype.name} became {b.dtype.name}"
    x = a.reshape(-1)
    y = b.reshape(-1)
    rows = [_block(path, x[i : i + BLOCK], y[i : i + BLOCK]) for i in range(0, x.size, BLOCK)]
    return together(path, rows)._replace(note=note)


def other_shape(a: Any, b: Any) -> str:
    """The note of two arrays whose shapes differ."""
    return f"{a.dtype.name}{list(a.shape)} became {b.dtype.name}{list(b.shape)}"


def together(path: str, rows: Iterable[Difference]) -> Difference:
    """Several rows as one. Only rows with two arrays of one shape have entries to count."""
    rows = list(rows)
    compared = [row for row in rows if row.compared]
    notes = sum(bool(row.note) for row in rows)
    return Difference(
        path,
        sum(row.size for row in rows),
        compared=bool(compared) or not rows,
        changed=sum(row.changed for row in compared),
        not_finite=sum(row.not_finite for row in compared),
        other_bits=sum(row.other_bits for row in compared),
        max_error=max((row.max_error for row in compared), default=0.0),
        log2_signal=float(np.logaddexp2.reduce([-np.inf, *(row.log2_signal for row in compared)])),
        log2_noise=float(np.logaddexp2.reduce([-np.inf, *(row.log2_noise for row in compared)])),
        new_zeros=sum(row.new_zeros for row in compared),
        lost_zeros=sum(row.lost_zeros for row in compared),
        note=f"{notes} of other shape or dtype, or in one alone" if notes else "",
    )


def _block(path: str, was: np.ndarray, now: np.ndarray) -> Difference:
    if was.dtype == now.dtype and np.array_equal(was.view(np.uint8), now.view(np.uint8)):
        return Difference(path, was.size, log2_signal=_log2_squares(_finite(_wide(was))))
    x = _wide(was)
    y = _wide(now)
    equal = was == now if was.dtype == now.dtype else x == y
    finite = np.isfinite(x) & np.isfinite(y)
    all_finite = bool(finite.all())
    error, unit = _errors(was, now, x, y)
    if not all_finite:
        equal = equal | ((x != x) & (y != y))
        error = np.where(finite, error, 0.0)
    both_zero = int(np.count_nonzero((x == 0) & (y == 0)))
    return Difference(
        path,
        was.size,
        changed=int(np.count_nonzero(~equal)),
        not_finite=0 if all_finite else int(np.count_nonzero(~equal & ~finite)),
        other_bits=int(np.count_nonzero(equal & ~_same_bits(was, now)))
        if was.dtype == now.dtype
        else 0,
        max_error=float(error.max()) * unit,
        log2_signal=_log2_squares(x if all_finite else np.where(finite, x, 0.0)),
        log2_noise=_log2_squares(error) + 2 * math.log2(unit),
        new_zeros=int(np.count_nonzero(y == 0)) - both_zero,
        lost_zeros=int(np.count_nonzero(x == 0)) - both_zero,
    )


def _errors(
    was: np.ndarray, now: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, float]:
    """|a − b| in some unit, and the unit."""
    if was.dtype == now.dtype and was.dtype.kind in "iu":
        # 64-bit integers are not all floats: their difference, below 2⁶⁴, wraps around to the right
        # one.
        larger = np.maximum(was, now).astype(np.uint64)
        smaller = np.minimum(was, now).astype(np.uint64)
        return (larger - smaller).astype(np.float64), 1.0
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(x - y)
        if x.itemsize == was.itemsize and np.any(np.isinf(error) & np.isfinite(x) & np.isfinite(y)):
            return np.abs(x / 2 - y / 2), 2.0
    return error, 1.0


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


def _finite(x: np.ndarray) -> np.ndarray:
    """The array with 0 in place of what is not finite."""
    finite = np.isfinite(x)
    return x if finite.all() else np.where(finite, x, 0.0)


def _log2_squares(x: np.ndarray) -> float:
    """log2 Σ |x|²."""
    size = np.abs(x)
    largest = float(size.max())
    if largest == 0:
        return -math.inf
    if SQUARES_FIT[0] < largest < SQUARES_FIT[1]:
        return math.log2(float(np.square(size, out=size).sum()))
    return math.log2(float(np.square(size / largest).sum())) + 2 * math.log2(largest)


def _same_bits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """For each entry whether its bits are equal."""
    if a.itemsize in WORDS:
        return a.view(WORDS[a.itemsize]) == b.view(WORDS[b.itemsize])
    words = [x.view(np.uint64).reshape(x.size, -1) for x in (a, b)]
    return (words[0] == words[1]).all(axis=1)


def _exp2(x: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp2(x))
