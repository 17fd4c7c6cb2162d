"""The streams of `numerics.rans` in few lanes, by plain integers: the same bytes, symbol by symbol.

Arrays in lanes are fast from about 64 lanes on; a small stream has few, since every lane costs some 3 bytes, and
there one symbol at a time is 10 to 50 times faster. `encode` and `decode` choose.
"""

import numpy as np

from ..numerics import rans
from ..numerics.rans import BITS, LOW, MAX_STEPS, TOTAL, Buffer, StreamError

FEW = 64


def encode(symbols: np.ndarray, freqs: np.ndarray, lanes: int) -> bytes:
    """`rans.encode`."""
    if lanes > FEW:
        return rans.encode(symbols, freqs, lanes)
    freq = [int(f) for f in freqs]
    start = [int(s) for s in np.cumsum(freqs, dtype=np.int64) - freqs]
    full = [f << (32 - BITS) for f in freq]
    states, words = [LOW] * lanes, []
    lane = (symbols.size - 1) % lanes
    for s in symbols[::-1].tolist():
        x = states[lane]
        if x >= full[s]:
            words.append(x & 0xFFFF)
            x >>= 16
        quotient, rest = divmod(x, freq[s])
        states[lane] = (quotient << BITS) + rest + start[s]
        lane = (lane or lanes) - 1
    return np.array(states, "<u4").tobytes() + np.array(words[::-1], "<u2").tobytes()


def decode(stream: Buffer, n: int, freqs: np.ndarray, lanes: int, values: np.ndarray) -> np.ndarray:
    """`rans.decode`."""
    freqs = freqs.astype(np.int64)
    if lanes > FEW or freqs.max() == TOTAL:
        return rans.decode(stream, n, freqs, lanes, values)
    states, words = _parsed(stream, n, freqs, lanes)
    symbol, freq, offset = _slots(freqs)
    out, taken, lane = [0] * n, 0, 0
    try:
        for i in range(n):
            x = states[lane]
            slot = x & (TOTAL - 1)
            x = freq[slot] * (x >> BITS) + offset[slot]
            if x < LOW:
                x = x << 16 | words[taken]
                taken += 1
            states[lane] = x
            out[i] = symbol[slot]
            lane = lane + 1 if lane + 1 < lanes else 0
    except IndexError:
        raise StreamError("the stream is truncated") from None
    if taken != len(words) or any(x != LOW for x in states):
        raise StreamError("the stream does not end in its initial state, or words are left over: it is damaged")
    return values[np.array(out, np.intp)]


def _parsed(stream: Buffer, n: int, freqs: np.ndarray, lanes: int) -> tuple[list[int], list[int]]:
    if freqs.min() < 0 or freqs.sum() != TOTAL:
        raise StreamError(f"the frequencies must be >= 0 and sum to {TOTAL}, not {freqs.sum()}")
    if len(stream) < 4 * lanes or len(stream) % 2 or n > lanes * MAX_STEPS:
        raise StreamError(f"{len(stream)} bytes cannot hold {n} symbols in {lanes} lanes")
    states = np.frombuffer(stream, "<u4", lanes)
    if states.min() < LOW:
        raise StreamError("a lane's state is below 2^16")
    return states.tolist(), np.frombuffer(stream, "<u2", offset=4 * lanes).tolist()


def _slots(freqs: np.ndarray) -> tuple[list[int], list[int], list[int]]:
    symbol = np.repeat(np.arange(freqs.size), freqs)
    offset = np.arange(TOTAL) - (np.cumsum(freqs) - freqs)[symbol]
    return symbol.tolist(), freqs[symbol].tolist(), offset.tolist()
