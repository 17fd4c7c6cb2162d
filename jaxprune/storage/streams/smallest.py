"""One array as bytes, by the codec that makes the fewest (the first of equals):

    0 raw    the words, little endian
    1 bits   base, u8 width, then each symbol in `width` bits, lowest bit first; the last byte is
             padded with zeros
    2 rans   base, lanes, 2 (k − 1) + d, the k frequencies (of 4096), then the stream of
             `numerics.rans`
    4 planes    words of 16 bits and more: see `planes`
    5 lzma      what repeats itself: see `repeats`
    6 escape    integers of which a few lie far from the others: see `escape`

Symbols are the words less `base`, their smallest. In streams, integers are varints (7 bits a byte,
the lowest first; `base` is zigzagged), and the table is deflated when d = 1. Floats of 16 bits and
more have bits of width 0 only (all alike, bit for bit), no rans, and codecs of their own. An empty
array is raw. NumPy and the standard library only.
"""

import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from ...coding import code_lengths as codes
from ...coding import lanes as coder
from ...coding import rans
from ..format.words import (
    BITS,
    DTYPES,
    ESCAPE,
    LZMA,
    MAX_ALPHABET,
    MAX_WIDTH,
    PLANES,
    RANS,
    RAW,
    Dtype,
    FormatError,
)
from . import escape, planes, repeats
from .integers import Buffer, inflated_first, leb, unzigzag, varint, zigzag

LEAST_ESCAPED = 1 << 8  # range of words from which escapes are tried
CHUNK = 1 << 16  # symbols packed at a time: whole bytes, and little memory
ABOUT = (RANS, ESCAPE)  # codecs whose plans' sizes are predictions
NAMED = (
    8  # bytes that a manifest takes to name a codec and a length: what planes have to save at least
)


class Plan(NamedTuple):
    """One way to write an array, and how long it will be: for rans a prediction, good to some
    bytes; for planes of many words one from a sample.
    """

    codec: int
    size: int
    write: Callable[[], Buffer | Iterable[Buffer]]


def encode(words: np.ndarray, dtype: Dtype) -> tuple[int, Iterable[Buffer], int]:
    """(codec, bytes in pieces, predicted length) of the words of one array; large pieces come one
    by one.
    """
    plans = _plans(words, dtype)
    codec, written, predicted = _smallest(plans)
    return codec, [written] if isinstance(written, bytes | memoryview) else written, predicted


def _smallest(plans: list[Plan]) -> tuple[int, Any, int]:
    """The smallest of the streams, those whose sizes are predictions being written to know
    theirs.
    """
    predicted = min(plan.size for plan in plans)
    best = min((plan for plan in plans if plan.codec not in ABOUT), key=lambda plan: plan.size)
    for plan in sorted((plan for plan in plans if plan.codec in ABOUT), key=lambda plan: plan.size):
        if plan.size <= 1.02 * predicted + 16:
            octets: Any = plan.write()
            if len(octets) < best.size:
                return plan.codec, octets, predicted
    return best.codec, best.write(), predicted


def predict(words: np.ndarray, dtype: Dtype) -> int:
    """The length that `encode` will come to, from counts alone."""
    return min(plan.size for plan in _plans(words, dtype))


def decode(buffer: Buffer, n: int, codec: int, dtype: Dtype) -> np.ndarray:
    """The n words of a stream."""
    if n == 0 or codec == RAW:
        if codec != RAW or len(buffer) != n * dtype.itemsize or (n and not dtype.may_be_raw):
            raise FormatError(
                f"{len(buffer)} bytes with the codec {codec} cannot be {n} raw elements of "
                f"{dtype.name}"
            )
        return np.frombuffer(buffer, "<" + dtype.word).astype(dtype.word, copy=False)
    if codec == PLANES and dtype.itemsize > 1:
        return planes.decode(buffer, n, f"u{dtype.itemsize}").view(dtype.word)
    if codec == LZMA:
        return _read_lzma(buffer, n, dtype)
    if codec == ESCAPE and dtype.discrete:
        return _read_escape(buffer, n, dtype)
    if codec not in (BITS, RANS):
        raise FormatError(f"the codec {codec} is none of one array of {dtype.name}")
    base, at = varint(buffer, 0)
    rest = memoryview(buffer)[at:]
    base = unzigzag(base)
    if not dtype.discrete and (codec, bytes(rest[:1])) != (BITS, b"\0"):
        raise FormatError(f"elements of {dtype.name} are raw, in planes, or all alike in 0 bits")
    return (
        _shifted(_read_bits(rest, n), base, dtype)
        if codec == BITS
        else _read_rans(rest, n, base, dtype)
    )


# --- plans
# ---------------------------------------------------------------------------------------


def _plans(words: np.ndarray, dtype: Dtype) -> list[Plan]:
    plans = _word_plans(words, dtype)
    return plans + _repeats(words, min(plan.size for plan in plans), dtype)


def _word_plans(words: np.ndarray, dtype: Dtype) -> list[Plan]:
    """The plans that look at each word by itself."""
    plans = []
    if dtype.may_be_raw or not words.size:
        plans.append(Plan(RAW, words.size * dtype.itemsize, lambda: _raw(words)))
    if not words.size:
        return plans
    base = int(words.min())
    top = int(words.max()) - base
    if dtype.discrete or not top:
        plans += _integer_plans(words, base, top, dtype, plans)
    if dtype.itemsize > 1 and top and (not dtype.discrete or top >= MAX_ALPHABET):
        plans += _plane_plans(words.view(f"u{dtype.itemsize}"))
    return plans


def _integer_plans(
    words: np.ndarray, base: int, top: int, dtype: Dtype, raw: list[Plan]
) -> list[Plan]:
    """Bits, rans and escapes of words from `base` to `base + top`."""
    if top >= 1 << MAX_WIDTH:
        return []
    head = leb(zigzag(base))
    symbols = _less(words, base, top)
    width = top.bit_length()
    plans = [
        Plan(
            BITS, len(head) + 1 + -(-words.size * width // 8), lambda: head + _bits(symbols, width)
        )
    ]
    if 0 < top < MAX_ALPHABET:
        plans += _rans(head, symbols, top, min(plan.size for plan in raw + plans))
    if LEAST_ESCAPED <= top < escape.MOST_RANGE:
        plans += _escape(words, symbols, base, top, dtype, min(plan.size for plan in raw + plans))
    return plans


def _plane_plans(words: np.ndarray) -> list[Plan]:
    """Planes, where they save more than their name takes."""
    if words.size <= planes.EXACT_SIZE:
        pieces = list(planes.encode(words))
        plan = Plan(PLANES, sum(map(len, pieces)), lambda: pieces)
    else:
        plan = Plan(PLANES, planes.size(words), lambda: planes.encode(words))
    return [plan] if plan.size + NAMED < words.nbytes else []


def _repeats(words: np.ndarray, best: int, dtype: Dtype) -> list[Plan]:
    """The plan for LZMA, if it is smaller by far than the best without. Of integers, which entropy
    coders know well, only copies promise that.
    """
    if best <= repeats.SMALL:
        return []
    promising = repeats.found_again(words) or (
        not dtype.discrete and repeats.sample_gains(words, best)
    )
    pieces = repeats.encode(words, best) if promising else None
    if pieces is None:
        return []
    stream = b"".join(pieces)
    return [Plan(LZMA, len(stream), lambda: stream)]


def _read_lzma(buffer: Buffer, n: int, dtype: Dtype) -> np.ndarray:
    words = repeats.decode(buffer, n, dtype.word)
    low, high = dtype.words
    if words.min() < low or words.max() > high:
        raise FormatError(
            f"elements from {words.min()} to {words.max()} leave the range of {dtype.name}"
        )
    return words


def _less(words: np.ndarray, base: int, top: int) -> np.ndarray:
    """words − base, at most `top`, in as few bytes as hold it; a view where it can be one.

    Unsigned and modular, so that no word overflows, and in chunks: words may be wide and many.
    """
    unsigned = np.dtype(f"u{words.itemsize}")
    least = np.dtype("u1" if top < 1 << 8 else "u2" if top < 1 << 16 else "u4")
    if not base and least == unsigned:
        return words.view(unsigned)
    symbols = np.empty(words.size, least)
    less = np.array(base % (1 << 8 * words.itemsize), unsigned)
    for i in range(0, words.size, CHUNK):
        symbols[i : i + CHUNK] = words[i : i + CHUNK].view(unsigned) - less
    return symbols


def _shifted(symbols: np.ndarray, base: int, dtype: Dtype) -> np.ndarray:
    low, high = dtype.words
    if base < low or base + int(symbols.max()) > high:
        raise FormatError(f"symbols from {base} leave the range of {dtype.name}")
    unsigned = np.dtype(f"u{dtype.itemsize}")
    return (symbols.astype(unsigned) + np.array(base % (1 << 8 * dtype.itemsize), unsigned)).view(
        dtype.word
    )


def _raw(words: np.ndarray) -> Buffer:
    little = np.ascontiguousarray(words.astype(words.dtype.newbyteorder("<"), copy=False))
    return little.data.cast("B") if little.size else b""


def _rans(head: bytes, symbols: np.ndarray, top: int, best: int) -> list[Plan]:
    """The plan for rans, unless its entropy alone is more than the best without."""
    counts = _counts(symbols, top + 1)
    entropy = codes.entropy_bits(counts)
    if entropy / 8 + np.count_nonzero(counts) // 4 + 8 >= best:
        return []
    freqs = rans.normalise(counts)
    lanes = rans.lanes_for(symbols.size, entropy)
    head += leb(lanes) + _table(freqs)
    used = counts > 0
    information = float(counts[used] @ (rans.BITS - np.log2(freqs[used].astype(np.float64))))
    # A lane's state of 32 bits starts with 16 that say nothing, and ends with 8 on average that
    # filled no word.
    size = len(head) + 4 * lanes + round(max(0.0, information - 8 * lanes) / 8)
    return [Plan(RANS, size, lambda: head + coder.encode(symbols, freqs, lanes))]


def _escape(
    words: np.ndarray, symbols: np.ndarray, base: int, top: int, dtype: Dtype, best: int
) -> list[Plan]:
    """The plan for escapes, unless it takes more than the best without."""
    listed = escape.listed(_counts(symbols, top + 1), base)
    if listed is None or listed.bits / 8 >= best:
        return []
    head = escape.write_list(listed.words)
    symbols, escaped = escape.split(words, listed.words)
    coded = _rans(leb(0), symbols, listed.words.size, 1 << 62)[0]
    apart = min(
        (plan for plan in _word_plans(escaped, dtype) if plan.codec in (RAW, BITS)),
        key=lambda plan: plan.size,
    )

    def write() -> bytes:
        stream: Any = coded.write()
        rest: Any = apart.write()
        return head + leb(len(stream)) + bytes(stream) + bytes([apart.codec]) + bytes(rest)

    return [Plan(ESCAPE, len(head) + 4 + coded.size + apart.size, write)]


def _read_escape(buffer: Buffer, n: int, dtype: Dtype) -> np.ndarray:
    listed, rest = escape.read_list(buffer, *dtype.words)
    length, at = varint(rest, 0)
    stream = rest[at : at + length]
    rest = rest[at + length :]
    if not len(rest) or rest[0] not in (RAW, BITS):
        raise FormatError("the stream of escaped words is truncated, or neither raw nor bits")
    symbols = decode(stream, n, RANS, DTYPES["u2"])
    if symbols.max(initial=0) > listed.size:
        raise FormatError(f"the symbol {symbols.max()} of {listed.size} words and an escape")
    words = np.append(listed, 0).astype(dtype.word)[symbols]
    outside = symbols == listed.size
    words[outside] = decode(rest[1:], int(np.count_nonzero(outside)), rest[0], dtype)
    return words


def _counts(symbols: np.ndarray, k: int) -> np.ndarray:
    """How often each symbol occurs; in chunks, of which `bincount` makes intp."""
    counts = np.zeros(k, np.intp)
    for i in range(0, symbols.size, CHUNK):
        counts += np.bincount(symbols[i : i + CHUNK], minlength=k)
    return counts


# --- bits
# ---------------------------------------------------------------------------------------


def _bits(symbols: np.ndarray, width: int) -> bytes:
    parts = [bytes([width])]
    for i in range(0, symbols.size if width else 0, CHUNK):
        octets = symbols[i : i + CHUNK].astype("<u4").view(np.uint8).reshape(-1, 4)
        each = np.unpackbits(octets, axis=1, count=width, bitorder="little")
        parts.append(np.packbits(each, bitorder="little").tobytes())
    return b"".join(parts)


def _read_bits(rest: memoryview, n: int) -> np.ndarray:
    width = rest[0] if len(rest) else 255
    if width > MAX_WIDTH or len(rest) != 1 + -(-n * width // 8):
        raise FormatError(f"{len(rest)} bytes cannot hold {n} symbols of {width} bits")
    if n * width % 8 and rest[-1] >> (n * width % 8):
        raise FormatError("the padding of the last byte is not zero")
    kind = "u1" if width <= 8 else "u2" if width <= 16 else "u4"
    out = np.zeros(n, kind)
    octets = np.frombuffer(rest, np.uint8, offset=1)
    for i in range(0, n if width else 0, CHUNK):
        m = min(CHUNK, n - i)
        each = np.unpackbits(
            octets[i * width // 8 :][: -(-m * width // 8)], count=m * width, bitorder="little"
        )
        wide = np.zeros((m, 8 * int(kind[1:])), np.uint8)
        wide[:, :width] = each.reshape(m, width)
        out[i : i + m] = np.packbits(wide, bitorder="little").view("<" + kind)
    return out


# --- rans
# ---------------------------------------------------------------------------------------


def _table(freqs: np.ndarray) -> bytes:
    plain = b"".join(leb(int(f)) for f in freqs)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    small = deflate.compress(plain) + deflate.flush()
    k = 2 * (len(freqs) - 1)
    return leb(k + 1) + small if len(small) < len(plain) else leb(k) + plain


def _read_table(rest: memoryview, at: int) -> tuple[np.ndarray, memoryview]:
    head, at = varint(rest, at)
    k = head // 2 + 1
    rest = rest[at:]
    if k > MAX_ALPHABET:
        raise FormatError(f"a table of {k} symbols; at most {MAX_ALPHABET} are allowed")
    plain, after = inflated_first(rest, 2 * k) if head & 1 else (rest, None)
    freqs = np.zeros(k, np.int64)
    at = 0
    for i in range(k):
        freqs[i], at = varint(plain, at, 2)
    if after is None:
        return freqs, rest[at:]
    if at != len(plain):
        raise FormatError("bytes are left over after the table")
    return freqs, after


def _read_rans(rest: memoryview, n: int, base: int, dtype: Dtype) -> np.ndarray:
    lanes, at = varint(rest, 0)
    freqs, stream = _read_table(rest, at)
    if not 1 <= lanes <= n:
        raise FormatError(f"{lanes} lanes for {n} symbols")
    try:
        return coder.decode(stream, n, freqs, lanes, _shifted(np.arange(freqs.size), base, dtype))
    except rans.StreamError as e:
        raise FormatError(str(e)) from None
