"""Interleaved rANS: symbols in about as many bits as their entropy, coded in many lanes at once.

Duda 2013, arXiv:1311.2540; interleaving: Giesen 2014, arXiv:1402.3392. A lane is an integer x. With
frequencies f_s that sum to M = 4096 and C_s = f_0 + … + f_{s−1},

    push s   x <- ⌊x / f_s⌋ M + C_s + (x mod f_s)      x grows by a factor of about M / f_s: log2(M
                                                       / f_s) bits
    pop      s: C_s <= x mod M < C_s + f_s             x <- f_s ⌊x / M⌋ + (x mod M) − C_s

are inverse. Keep 2^16 <= x < 2^32: before a push that would leave this range the low 16 bits go to
the stream, after a pop that left it they come back. Symbol i belongs to lane i mod N; a push runs
through the symbols backwards, so that a pop runs forwards, N symbols a step, which is what NumPy is
good at.

    stream = u32[N] states | u16[…] words, little endian; the table is the caller's to store (2
    bytes a symbol)

Every lane starts at 2^16, so a decoder that does not end there has read a damaged stream: a free
check, though not a checksum. Integers only: the same bytes everywhere. NumPy and the standard
library only.
"""

import heapq
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

BITS = 12
TOTAL = 1 << BITS  # M
Buffer = bytes | memoryview
LOW = 1 << 16
# a table of one symbol costs 0 bits: without a bound, few bytes could ask for any amount of work
MAX_STEPS = 16384

# Made once: at a hundred lanes, making them takes a quarter of a step.
SHIFT = np.uint32(BITS)
WORD = np.uint32(16)
SLOT = np.uint32(TOTAL - 1)
LEAST = np.uint32(LOW)
LOWER = np.uint32(0xFFFF)


class StreamError(ValueError):
    """The bytes or the table are not what `encode` writes."""


def normalise(counts: ArrayLike) -> NDArray[np.uint16]:
    """Frequencies that sum to 4096, >= 1 where counts are, with the least coded size Σ c log2(4096
    / f).

    From 1 each, the next unit goes where it saves most; the savings c log((f + 1) / f) fall with f,
    so this is optimal.

    >>> normalise([3, 1, 0]).tolist()
    [3072, 1024, 0]
    """
    count = [int(c) for c in np.asarray(counts).ravel()]
    present = [s for s, c in enumerate(count) if c > 0]
    if min(count, default=0) < 0 or len(present) > TOTAL:
        raise ValueError(
            f"{len(present)} of {len(count)} counts are positive: at most {TOTAL} may be, and none "
            f"negative"
        )
    freq = np.zeros(max(1, len(count)), np.uint16)
    if not present:
        freq[0] = TOTAL  # nothing to code: any table will do
        return freq
    freq[present] = 1
    saving = [(-count[s] * math.log(2), s) for s in present]
    heapq.heapify(saving)
    for _ in range(TOTAL - len(present)):
        s = saving[0][1]
        f = int(freq[s]) + 1
        freq[s] = f
        heapq.heapreplace(saving, (-count[s] * math.log1p(1 / f), s))
    return freq


def lanes_for(n: int, bits: float) -> int:
    """Lanes for n symbols in about `bits` bits: states of 4 bytes at most 0.5% of them, but never
    over 16384 steps.
    """
    return max(1, -(-n // MAX_STEPS), min(n, int(bits * 0.005) // 32))


def encode(symbols: ArrayLike, freqs: ArrayLike, lanes: int) -> bytes:
    """The stream of `symbols`, in C order."""
    freq = checked(freqs)
    symbol = np.asarray(symbols).ravel()
    n = symbol.size
    steps = steps_of(n, lanes)
    if n and (symbol.dtype.kind not in "bui" or symbol.min() < 0 or symbol.max() >= freq.size):
        raise ValueError(f"symbols must be integers from 0 to {freq.size - 1}")
    f_of = freq.astype(np.uint32)
    start_of = (np.cumsum(f_of) - f_of).astype(np.uint32)
    stream = Stream(lanes, n)
    for step in reversed(range(steps)):
        s = symbol[step * lanes : (step + 1) * lanes].astype(np.intp)
        stream.push(f_of[s], start_of[s])
    return stream.octets()


class Stream:
    """A stream that is written backwards, as its words come: at most one for each symbol.

    Room for all is asked for at once; what is never written takes no memory.
    """

    def __init__(self, lanes: int, symbols: int):
        self.x = np.full(lanes, LOW, np.uint32)
        self.words = np.empty(2 * lanes + symbols, "<u2")
        self.start = self.words.size

    def push(self, f: NDArray[np.uint32], start: NDArray[np.uint32]) -> None:
        """Pushes a symbol on each of the first lanes."""
        words = push(self.x[: f.size], f, start)
        self.start -= words.size
        self.words[self.start : self.start + words.size] = words

    def octets(self) -> bytes:
        """The states, then the words."""
        first = self.start - 2 * self.x.size
        self.words[first : self.start] = self.x.astype("<u4").view("<u2")
        return self.words[first:].tobytes()


def push(
    x: NDArray[np.uint32], f: NDArray[np.uint32], start: NDArray[np.uint32]
) -> NDArray[np.uint16]:
    """Pushes a symbol on each lane, in place; returns the words that had to leave."""
    if not f.all():
        raise ValueError("a symbol has frequency 0: make the table from these symbols' counts")
    full = np.flatnonzero(x >> np.uint32(32 - BITS) >= f)
    leaving = x[full]
    x[full] = leaving >> WORD
    quotient = x // f
    x += quotient * (np.uint32(TOTAL) - f) + start  # q M + (x − q f) + C
    return leaving.astype(np.uint16)


def decode(
    buffer: Buffer, n: int, freqs: ArrayLike, lanes: int, values: NDArray | None = None
) -> NDArray:
    """The n symbols of a stream (uint8 or uint16), or `values` of them, one for each symbol of the
    table.

    Anything but a whole stream that ends in the right state is a StreamError.
    """
    freq = checked(freqs)
    steps = steps_of(n, lanes)
    x, words = parsed(buffer, lanes)
    symbol_of, pop_of = slots_of(freq)
    value_of = symbol_of if values is None else values[symbol_of]
    decoded = np.empty(n, value_of.dtype)
    if freq.max() == TOTAL:  # a lone symbol takes no bits
        decoded.fill(value_of[0])
        steps = 0
    slots = np.empty(lanes, np.intp)
    taken = 0
    for step in range(steps):
        out = decoded[step * lanes : (step + 1) * lanes]
        slot = slots[: out.size]
        np.bitwise_and(x[: out.size], SLOT, out=slot, casting="unsafe")
        taken += pop(x[: out.size], pop_of.take(slot), words[taken : taken + lanes])
        value_of.take(
            slot, out=out, mode="clip"
        )  # slots are in range; "clip" spares a check and a copy
    check_end(x, words.size - taken)
    return decoded


def check_end(x: NDArray[np.uint32], left: int) -> None:
    """Whether a decoder has come to the end of its stream."""
    if left < 0:
        raise StreamError("the stream is truncated")
    if left:
        raise StreamError(f"{left} words are left over after the last symbol")
    if np.any(x != LOW):
        raise StreamError("the lanes do not end in their initial state: the stream is damaged")


def pop(x: NDArray[np.uint32], found: NDArray[np.uint32], words: NDArray[np.uint16]) -> int:
    """Pops each lane's slot, `found` in `slots_of`, in place; returns the number of words that came
    back.
    """
    x >>= SHIFT
    x *= found & LOWER
    found >>= WORD
    x += found
    low = (x < LEAST).nonzero()[0]
    if low.size > words.size:
        raise StreamError("the stream is truncated")
    back = x.take(low)
    back <<= WORD
    back |= words[: low.size]
    x[low] = back
    return low.size


def slots_of(freq: NDArray) -> tuple[NDArray, NDArray[np.uint32]]:
    """For each x mod M: its symbol, and f_s + 2^16 ((x mod M) − C_s), so that a pop needs one
    look-up.
    """
    symbol_of = np.repeat(np.arange(freq.size), freq)
    offset = np.arange(TOTAL) - (np.cumsum(freq) - freq)[symbol_of]
    pop_of = (freq[symbol_of] | offset << 16).astype(np.uint32)
    return symbol_of.astype(np.uint8 if freq.size <= 256 else np.uint16), pop_of


def parsed(buffer: Buffer, lanes: int) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """The states and the words of a stream."""
    if len(buffer) < 4 * lanes or len(buffer) % 2:
        raise StreamError(f"{len(buffer)} bytes cannot hold {lanes} states and whole words")
    x = np.frombuffer(buffer, "<u4", lanes).astype(np.uint32)
    if x.min() < LOW:
        raise StreamError("a lane's state is below 2^16")
    return x, np.frombuffer(buffer, "<u2", offset=4 * lanes)


def checked(freqs: ArrayLike) -> NDArray[np.int64]:
    """A table, if it is one."""
    freq = np.asarray(freqs)
    if freq.ndim != 1 or freq.dtype.kind not in "ui" or not 1 <= freq.size <= LOW:
        raise StreamError(
            f"a table is a vector of 1 to {LOW} integers, not {freq.dtype}{freq.shape}"
        )
    freq = freq.astype(np.int64)
    if freq.min() < 0 or freq.max() > TOTAL or freq.sum() != TOTAL:
        raise StreamError(f"the frequencies must be >= 0 and sum to {TOTAL}, not {freq.sum()}")
    return freq


def steps_of(n: int, lanes: int) -> int:
    steps = -(-n // lanes) if lanes >= 1 else -1
    if n < 0 or not 0 <= steps <= MAX_STEPS:
        raise StreamError(
            f"{n} symbols in {lanes} lanes: at least 1 lane, at most {MAX_STEPS} symbols in each"
        )
    return steps
