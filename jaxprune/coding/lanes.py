"""The streams of `numerics.rans` in few lanes, by plain integers: the same bytes, symbol by symbol.

Arrays in lanes are faster from about 32 lanes on; a small stream has few, since every lane costs
some 3 bytes, and with one lane one symbol at a time is 30 times faster. `encode` and `decode`
choose, as do `writer` and `reader`, which code a column of symbols at a time: its symbol i is in
lane i mod N, and every column begins with lane 0. NumPy and the standard library only.
"""

import array
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import rans
from .rans import BITS, LOW, MAX_STEPS, TOTAL, Buffer, StreamError

FEW = 32
CHUNK = (
    1 << 12
)  # symbols, or words of a stream, that are Python's integers at once: those take 36 bytes each


def encode(symbols: np.ndarray, freqs: np.ndarray, lanes: int) -> bytes:
    """`rans.encode`."""
    if lanes > FEW:
        return rans.encode(symbols, freqs, lanes)
    f = freqs.astype(np.uint32)
    start = (np.cumsum(freqs, dtype=np.int64) - freqs).astype(np.uint32)
    stream = _FewWriter(lanes)
    some = CHUNK // lanes * lanes
    for i in reversed(range(0, symbols.size, some)):
        s = symbols[i : i + some]
        stream.push(f[s], start[s])
    return stream.octets()


def decode(stream: Buffer, n: int, freqs: np.ndarray, lanes: int, values: np.ndarray) -> np.ndarray:
    """`rans.decode`."""
    freqs = freqs.astype(np.int64)
    if lanes > FEW or freqs.max() == TOTAL:
        return rans.decode(stream, n, freqs, lanes, values)
    if n > lanes * MAX_STEPS:
        raise StreamError(f"{n} symbols in {lanes} lanes: at most {MAX_STEPS} in each")
    symbol_of, pop_of = rans.slots_of(rans.checked(freqs))
    value_of = values[symbol_of]
    popper = _FewReader(stream, lanes, pop_of)
    out = np.empty(n, values.dtype)
    some = CHUNK // lanes * lanes
    for i in range(0, n, some):
        slot = np.zeros(min(some, n - i), np.intp)
        popper.pop(slot)
        value_of.take(slot, out=out[i : i + some], mode="clip")
    popper.end()
    return out


def writer(lanes: int, symbols: int) -> Any:
    """A stream that is written backwards: `push(f, start)` for each column from the last, then
    `octets()`.
    """
    return _FewWriter(lanes) if lanes <= FEW else _Writer(lanes, symbols)


def reader(buffer: Buffer, lanes: int, pop_of: NDArray[np.uint32]) -> Any:
    """A stream that is read: `pop(slot, lane)` for each column in order, or part of one, then
    `end()`.

    `slot` holds for each symbol the first slot of its table in `pop_of` (see `rans.slots_of`), and
    gets its own. A part of a column that begins in another lane than 0 may not go past the last.
    """
    return (_FewReader if lanes <= FEW else _Reader)(buffer, lanes, pop_of)


# --- many
# ---------------------------------------------------------------------------------------


class _Writer(rans.Stream):
    def push(self, f: NDArray[np.uint32], start: NDArray[np.uint32]) -> None:
        lanes = self.x.size
        for i in reversed(range(0, f.size, lanes)):
            super().push(f[i : i + lanes], start[i : i + lanes])


class _Reader:
    def __init__(self, buffer: Buffer, lanes: int, pop_of: NDArray[np.uint32]):
        self.x, self.words = rans.parsed(buffer, lanes)
        self.pop_of = pop_of
        self.taken = 0

    def pop(self, slot: NDArray[np.intp], lane: int = 0) -> None:
        lanes = self.x.size
        for i in range(0, slot.size, lanes):
            some = slot[i : i + lanes]
            x = self.x[lane : lane + some.size]
            some += x & rans.SLOT
            self.taken += rans.pop(
                x, self.pop_of.take(some), self.words[self.taken : self.taken + lanes]
            )

    def end(self) -> None:
        rans.check_end(self.x, self.words.size - self.taken)


# --- few
# ---------------------------------------------------------------------------------------


class _FewWriter:
    def __init__(self, lanes: int):
        self.states = [LOW] * lanes
        self.words = array.array("H")

    def push(self, f: NDArray[np.uint32], start: NDArray[np.uint32]) -> None:
        if not f.all():
            raise ValueError("a symbol has frequency 0: make the table from these symbols' counts")
        states = self.states
        lanes = len(self.states)
        leave = self.words.append
        lane = (f.size - 1) % lanes
        for freq, first in zip(f[::-1].tolist(), start[::-1].tolist()):
            x = states[lane]
            if x >> (32 - BITS) >= freq:
                leave(x & 0xFFFF)
                x >>= 16
            quotient, rest = divmod(x, freq)
            states[lane] = (quotient << BITS) + rest + first
            lane = (lane or lanes) - 1

    def octets(self) -> bytes:
        return np.array(self.states, "<u4").tobytes() + np.array(self.words, "<u2")[::-1].tobytes()


class _FewReader:
    def __init__(self, buffer: Buffer, lanes: int, pop_of: NDArray[np.uint32]):
        x, words = rans.parsed(buffer, lanes)
        self.states = x.tolist()
        self.left = _each(words)
        self.pop_of = pop_of.data

    def pop(self, slot: NDArray[np.intp], lane: int = 0) -> None:
        for i in range(0, slot.size, CHUNK):
            part = slot[i : i + CHUNK]
            part[:] = self._popped(part.tolist(), (lane + i) % len(self.states))

    def _popped(self, slots: list[int], lane: int) -> list[int]:
        states = self.states
        lanes = len(self.states)
        pop_of = self.pop_of
        left = self.left
        try:
            for i, slot in enumerate(slots):
                x = states[lane]
                slots[i] = slot = slot + (x & (TOTAL - 1))
                found = pop_of[slot]
                x = (found & 0xFFFF) * (x >> BITS) + (found >> 16)
                states[lane] = x if x >= LOW else x << 16 | next(left)
                lane = lane + 1 if lane + 1 < lanes else 0
        except StopIteration:
            raise StreamError("the stream is truncated") from None
        return slots

    def end(self) -> None:
        rans.check_end(np.array(self.states, np.uint32), sum(1 for _ in self.left))


def _each(words: NDArray[np.uint16]) -> Iterator[int]:
    """The words as Python's integers."""
    parts: Iterable[list[int]] = (
        words[i : i + CHUNK].tolist() for i in range(0, words.size, CHUNK)
    )
    return itertools.chain.from_iterable(parts)
