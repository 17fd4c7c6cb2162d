"""Textbook rANS: one lane, Python integers, renormalised by 16-bit words."""

import math

LOW = 1 << 16
TOTAL = 1 << 12


def start(freq, s):
    return sum(freq[:s])


def encode(symbols, freq):
    x = LOW
    words = []
    for s in reversed(symbols):
        if x >= freq[s] << 20:
            words.append(x & 0xFFFF)
            x >>= 16
        x = x // freq[s] * TOTAL + start(freq, s) + x % freq[s]
    return x, words[::-1]


def decode(x, words, n, freq):
    words = list(words)
    symbols = []
    for _ in range(n):
        s = next(
            s for s in range(len(freq)) if start(freq, s) <= x % TOTAL < start(freq, s) + freq[s]
        )
        x = freq[s] * (x // TOTAL) + x % TOTAL - start(freq, s)
        if x < LOW:
            x = x << 16 | words.pop(0)
        symbols.append(s)
    assert x == LOW and not words
    return symbols


def interleaved(symbols, freq, lanes):
    """`lanes` textbook coders that share one stream of words."""
    x = [LOW] * lanes
    words = []
    steps = -(-len(symbols) // lanes)
    for step in reversed(range(steps)):
        out = []
        for lane, s in enumerate(symbols[step * lanes : (step + 1) * lanes]):
            if x[lane] >= freq[s] << 20:
                out.append(x[lane] & 0xFFFF)
                x[lane] >>= 16
            x[lane] = x[lane] // freq[s] * TOTAL + start(freq, s) + x[lane] % freq[s]
        words = out + words
    return b"".join(v.to_bytes(4, "little") for v in x) + b"".join(
        w.to_bytes(2, "little") for w in words
    )


def cost(counts, freq):
    return sum(c * math.log2(TOTAL / f) for c, f in zip(counts, freq) if c)


def best_tables(counts, total, least=1):
    """Every table of the given sum that gives present symbols at least 1: for exhaustive search at
    a small total.
    """
    if len(counts) == 1:
        if (total > 0) == (counts[0] > 0):
            yield [total]
        return
    for f in range(1 if counts[0] else 0, total + 1 if counts[0] else 1):
        for rest in best_tables(counts[1:], total - f):
            yield [f, *rest]
