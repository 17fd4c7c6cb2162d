"""One array as bytes, by the codec that makes the fewest (the first of equals):

    0 raw       the words, little endian
    1 bits      base, then `bit_packing`
    2 rans      base, then `rans_stream`
    4 planes    words of 16 bits and more: `planes`
    5 lzma      words that repeat: `lzma_stream`
    6 escape    integers of which a few lie far from the others: `escape`

Symbols are the words less `base`, their smallest, which is a zigzagged varint. Floats of 16 bits
and more have bits of width 0 only (all alike, bit for bit), no rans, and codecs of their own. An
empty array is raw. NumPy and the standard library only.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

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
from . import bit_packing, escape, lzma_stream, planes, rans_stream
from .repeats import promises_gain
from .varints import Buffer, decode_varint, encode_varint, unzigzag, zigzag

CHUNK = 1 << 16  # words shifted at a time, to take little memory
PREDICTED = (RANS, ESCAPE)  # codecs whose plans' sizes are predictions, good to some bytes
PREDICTION_ERROR = (1.02, 16)  # factor and bytes within which such a prediction is
NAME_BYTES = 8  # of a manifest that names a codec and a length: what planes have to save at least
SMALL = 1 << 8  # bytes of a stream that need no better codec


class Plan(NamedTuple):
    """One way to write an array, and its size: exact, or a prediction for rans, escapes and many
    planes.
    """

    codec: int
    size: int
    write: Callable[[], Iterable[Buffer]]


class Encoded(NamedTuple):
    """The stream of an array: its codec, its bytes in pieces, and the size that was predicted."""

    codec: int
    pieces: Iterable[Buffer]
    predicted: int


def encode(words: np.ndarray, dtype: Dtype) -> Encoded:
    """The smallest stream of the words of one array; large pieces are made one by one."""
    plans = _plans(words, dtype)
    predicted = smallest_of(plans).size
    best = smallest_of(plan for plan in plans if plan.codec not in PREDICTED)
    factor, margin = PREDICTION_ERROR
    candidates = [plan for plan in plans if plan.codec in PREDICTED]
    for plan in sorted(candidates, key=lambda plan: plan.size):
        if plan.size > factor * predicted + margin:
            continue
        pieces = list(plan.write())
        if sum(map(len, pieces)) < best.size:
            return Encoded(plan.codec, pieces, predicted)
    return Encoded(best.codec, best.write(), predicted)


def predict_size(words: np.ndarray, dtype: Dtype) -> int:
    """The size that `encode` will come to, from counts alone."""
    return smallest_of(_plans(words, dtype)).size


def decode(stream: Buffer, num_words: int, codec: int, dtype: Dtype) -> np.ndarray:
    """The words of a stream.

    Raises:
      FormatError: not what `encode` writes for so many words of this dtype.
    """
    if num_words == 0 or codec == RAW:
        return _read_raw(stream, num_words, codec, dtype)
    if codec == PLANES and dtype.itemsize > 1:
        return planes.decode(stream, num_words, f"u{dtype.itemsize}").view(dtype.word)
    if codec == LZMA:
        return _read_lzma(stream, num_words, dtype)
    if codec == ESCAPE and dtype.discrete:
        return _read_escape(stream, num_words, dtype)
    if codec not in (BITS, RANS):
        raise FormatError(f"the codec {codec} is none of one array of {dtype.name}")
    zigzagged, end = decode_varint(stream, 0)
    base = unzigzag(zigzagged)
    rest = memoryview(stream)[end:]
    constant = codec == BITS and bytes(rest[:1]) == b"\0"
    if not dtype.discrete and not constant:
        raise FormatError(f"elements of {dtype.name} are raw, in planes, or all alike in 0 bits")
    if codec == BITS:
        return _add_base(bit_packing.unpack(rest, num_words), base, dtype)
    num_lanes, frequencies, coded = rans_stream.read_head(rest, num_words)
    word_of = _add_base(np.arange(frequencies.size), base, dtype)
    return rans_stream.decode(coded, num_words, frequencies, num_lanes, word_of)


def smallest_of(plans: Iterable[Plan]) -> Plan:
    """The plan of the fewest bytes, the first of equals."""
    return min(plans, key=lambda plan: plan.size)


# --- plans ---------------------------------------------------------------------------------------


def _plans(words: np.ndarray, dtype: Dtype) -> list[Plan]:
    plans = _word_plans(words, dtype)
    best_size = smallest_of(plans).size
    if best_size > SMALL and promises_gain(words, best_size, discrete=dtype.discrete):
        pieces = lzma_stream.encode(words, best_size)
        if pieces is not None:
            plans.append(_written(LZMA, pieces))
    return plans


def _word_plans(words: np.ndarray, dtype: Dtype) -> list[Plan]:
    """The plans that look at each word by itself."""
    plans = []
    if dtype.may_be_raw or not words.size:
        plans.append(Plan(RAW, words.size * dtype.itemsize, lambda: [_little_endian(words)]))
    if not words.size:
        return plans
    base = int(words.min())
    span = int(words.max()) - base
    if (dtype.discrete or span == 0) and span < 1 << MAX_WIDTH:
        plans += _integer_plans(words, base, span, dtype, plans)
    many_values = span > 0 and (not dtype.discrete or span >= MAX_ALPHABET)
    if dtype.itemsize > 1 and many_values:
        plan = _plane_plan(words.view(f"u{dtype.itemsize}"))
        if plan.size + NAME_BYTES < words.nbytes:
            plans.append(plan)
    return plans


def _integer_plans(
    words: np.ndarray, base: int, span: int, dtype: Dtype, raw: list[Plan]
) -> list[Plan]:
    """Bits, rans and escapes of words from `base` to `base + span`."""
    head = encode_varint(zigzag(base))
    symbols = _subtract_base(words, base, span)
    width = span.bit_length()

    def write_bits() -> list[Buffer]:
        return [head + bit_packing.pack(symbols, width)]

    size = len(head) + bit_packing.packed_size(words.size, width)
    plans = [Plan(BITS, size, write_bits)]
    if 0 < span < MAX_ALPHABET:
        best_size = smallest_of(raw + plans).size
        coded = rans_stream.plan(symbols, span + 1, best_size)
        if coded is not None:
            plans.append(_rans_plan(head, coded))
    if escape.MIN_RANGE <= span < escape.MAX_RANGE:
        counts = rans_stream.count_symbols(symbols, span + 1)
        best_size = smallest_of(raw + plans).size
        chosen = escape.choose_words(counts, base)
        if chosen is not None and chosen.bits / 8 < best_size:
            plans.append(_escape_plan(words, chosen.words, dtype))
    return plans


def _rans_plan(head: bytes, coded: rans_stream.RansStream) -> Plan:
    return Plan(RANS, len(head) + coded.size, lambda: [head + coded.write()])


def _escape_plan(words: np.ndarray, listed: np.ndarray, dtype: Dtype) -> Plan:
    head = escape.write_list(listed)
    symbols, escaped = escape.split_words(words, listed)
    coded = rans_stream.plan(symbols, listed.size + 1)
    assert coded is not None  # without a limit there is a stream
    symbol_plan = _rans_plan(encode_varint(0), coded)
    word_plans = _word_plans(escaped, dtype)
    escaped_plan = smallest_of(plan for plan in word_plans if plan.codec in (RAW, BITS))

    def write() -> list[Buffer]:
        stream = b"".join(symbol_plan.write())
        codec = bytes([escaped_plan.codec])
        return [head + encode_varint(len(stream)) + stream + codec, *escaped_plan.write()]

    return Plan(ESCAPE, len(head) + 4 + symbol_plan.size + escaped_plan.size, write)


def _plane_plan(words: np.ndarray) -> Plan:
    if words.size <= planes.EXACT_SIZE:
        return _written(PLANES, list(planes.encode(words)))
    return Plan(PLANES, planes.size(words), lambda: planes.encode(words))


def _written(codec: int, pieces: list[bytes]) -> Plan:
    """The plan of a stream that is known already."""
    return Plan(codec, sum(map(len, pieces)), lambda: pieces)


# --- words and symbols ---------------------------------------------------------------------------


def _subtract_base(words: np.ndarray, base: int, span: int) -> np.ndarray:
    """words − base, at most `span`, in as few bytes as hold it; a view where it can be one.

    Unsigned and modular, so that no word overflows, and in chunks: words may be wide and many.
    """
    unsigned = np.dtype(f"u{words.itemsize}")
    smallest_dtype = bit_packing.smallest_unsigned(span.bit_length())
    if base == 0 and smallest_dtype == unsigned:
        return words.view(unsigned)
    symbols = np.empty(words.size, smallest_dtype)
    offset = _modular(base, unsigned)
    for start in range(0, words.size, CHUNK):
        end = start + CHUNK
        symbols[start:end] = words[start:end].view(unsigned) - offset
    return symbols


def _add_base(symbols: np.ndarray, base: int, dtype: Dtype) -> np.ndarray:
    low, high = dtype.words
    if base < low or base + int(symbols.max()) > high:
        raise FormatError(f"symbols from {base} leave the range of {dtype.name}")
    unsigned = np.dtype(f"u{dtype.itemsize}")
    return (symbols.astype(unsigned) + _modular(base, unsigned)).view(dtype.word)


def _modular(number: int, unsigned: np.dtype) -> np.ndarray:
    """An integer of either sign as an unsigned word."""
    return np.array(number % (1 << 8 * unsigned.itemsize), unsigned)


def _little_endian(words: np.ndarray) -> Buffer:
    little = words.astype(words.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).data.cast("B") if words.size else b""


# --- reading -------------------------------------------------------------------------------------


def _read_raw(stream: Buffer, num_words: int, codec: int, dtype: Dtype) -> np.ndarray:
    fits = codec == RAW and len(stream) == num_words * dtype.itemsize
    if not fits or (num_words and not dtype.may_be_raw):
        raise FormatError(
            f"{len(stream)} bytes with the codec {codec} cannot be {num_words} raw elements of "
            f"{dtype.name}"
        )
    return np.frombuffer(stream, "<" + dtype.word).astype(dtype.word, copy=False)


def _read_lzma(stream: Buffer, num_words: int, dtype: Dtype) -> np.ndarray:
    words = lzma_stream.decode(stream, num_words, dtype.word)
    low, high = dtype.words
    if words.min() < low or words.max() > high:
        raise FormatError(
            f"elements from {words.min()} to {words.max()} leave the range of {dtype.name}"
        )
    return words


def _read_escape(stream: Buffer, num_words: int, dtype: Dtype) -> np.ndarray:
    listed, rest = escape.read_list(stream, *dtype.words)
    length, start = decode_varint(rest, 0)
    end = start + length
    symbol_stream = rest[start:end]
    rest = rest[end:]
    if not len(rest) or rest[0] not in (RAW, BITS):
        raise FormatError("the stream of escaped words is truncated, or neither raw nor bits")
    symbols = decode(symbol_stream, num_words, RANS, DTYPES["u2"])
    if symbols.max(initial=0) > listed.size:
        raise FormatError(f"the symbol {symbols.max()} of {listed.size} words and an escape")
    words = np.append(listed, 0).astype(dtype.word)[symbols]
    escaped = symbols == listed.size
    words[escaped] = decode(rest[1:], int(np.count_nonzero(escaped)), rest[0], dtype)
    return words
