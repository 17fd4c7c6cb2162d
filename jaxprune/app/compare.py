"""Two checkpoints, leaf by leaf: errors, signal to noise, zeros that came and went.

max error   max |a − b|              SQNR   10 log10(Σ a² / Σ (a − b)²)  dB
relative    ‖a − b‖ / ‖a‖            new zeros: a ≠ 0, b = 0;  lost zeros: a = 0, b ≠ 0
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxprune.storage.checkpoints.tensors import Checkpoint, Tensor

BLOCK = 1 << 18  # entries compared at a time


class Difference(NamedTuple):
    """What became of one leaf; `signal` and `noise` are Σ a² and Σ (a − b)². `note` says why there are no numbers."""

    path: str
    size: int
    same: bool
    max_error: float = 0.0
    signal: float = 0.0
    noise: float = 0.0
    new_zeros: int = 0
    lost_zeros: int = 0
    note: str = ""

    @property
    def relative(self) -> float:
        return math.sqrt(self.noise / self.signal) if self.signal else math.inf if self.noise else 0.0

    @property
    def sqnr(self) -> float:
        """Decibels; infinite where nothing differs."""
        if not self.noise:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity and no NaN: null."""
        numbers = {"max_error": self.max_error, "relative_error": self.relative, "sqnr_db": self.sqnr}
        plain = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        zeros = {"new_zeros": self.new_zeros, "lost_zeros": self.lost_zeros}
        return {"path": self.path, "size": self.size, "same": self.same, **plain, **zeros, "note": self.note}


def compare(a: Checkpoint, b: Checkpoint, tick: Callable[[str, int], Any]) -> Iterator[Difference]:
    """Each leaf of either, those of `a` first."""
    for path, tensor in a.tensors.items():
        yield _leaf(path, a, b)
        tick(path, tensor.nbytes)
    for path, tensor in b.tensors.items():
        if path not in a.tensors:
            yield Difference(path, tensor.size, False, note="only in the second")


def _leaf(path: str, a: Checkpoint, b: Checkpoint) -> Difference:
    was, now = a.tensors[path], b.tensors.get(path)
    if now is None:
        return Difference(path, was.size, False, note="only in the first")
    if was.shape != now.shape:
        return Difference(path, was.size, False, note=f"{_array(was)} became {_array(now)}")
    y = b.read(path)  # before the other: where this one is compressed, reading it takes more than the leaf
    found = difference(path, a.read(path), y)
    if was.dtype != now.dtype:
        return found._replace(same=False, note=f"{was.dtype.name} became {now.dtype.name}")
    return found


def _array(tensor: Tensor) -> str:
    return f"{tensor.dtype.name}{list(tensor.shape)}"


def difference(path: str, a: np.ndarray, b: np.ndarray) -> Difference:
    """The difference of two arrays of one shape; NaN is the same as NaN."""
    x, y = a.reshape(-1), b.reshape(-1)
    found = Difference(path, x.size, True)
    for i in range(0, x.size, BLOCK):
        found = _added(found, x[i : i + BLOCK], y[i : i + BLOCK])
    return found


def _added(found: Difference, was: np.ndarray, now: np.ndarray) -> Difference:
    x, y = _wide(was), _wide(now)
    equal = (was == now if was.dtype == now.dtype else x == y) | ((x != x) & (y != y))
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.where(equal, 0, np.abs(x - y))
        signal, noise = np.abs(np.where(np.isnan(x), 0, x)) ** 2, error**2
    return found._replace(
        same=found.same and bool(equal.all()),
        max_error=float(np.maximum(found.max_error, error.max())),  # NaN stays NaN
        signal=found.signal + float(signal.sum()),
        noise=found.noise + float(noise.sum()),
        new_zeros=found.new_zeros + int(np.count_nonzero((x != 0) & (y == 0))),
        lost_zeros=found.lost_zeros + int(np.count_nonzero((x == 0) & (y != 0))),
    )


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


def total(rows: list[Difference]) -> Difference:
    """All leaves that could be compared, as one."""
    return Difference(
        "total",
        sum(r.size for r in rows),
        all(r.same for r in rows),
        max((r.max_error for r in rows), key=lambda x: math.inf if math.isnan(x) else x, default=0.0),
        sum(r.signal for r in rows),
        sum(r.noise for r in rows),
        sum(r.new_zeros for r in rows),
        sum(r.lost_zeros for r in rows),
    )
