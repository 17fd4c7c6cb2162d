"""Several arrays in one stream: the codecs `context` and `context first`. A bank is what its arrays
share.

    low, width − 1, tables − 1, lanes       varints; low zigzagged
    level, centre                           of each array, zigzagged varints
    classes                                 int8 of each array's outputs, inputs and places: u8
                                            codec, varint n, n bytes
    the tables                              see `_tables`
    the stream                              of `numerics.context_coder`

Symbols are the elements less their array's centre. NumPy and the standard library only.
"""

import math
import zlib
from typing import NamedTuple

import numpy as np

from ...coding import context_coder, contexts, rans
from ...coding.contexts import CONTEXTS, MIDDLE, REACH, Classes
from ...coding.table_banks import Bank
from ..format import words as f
from ..format.words import DTYPES, FormatError, Row
from . import integers, smallest

LENGTHS = rans.BITS + 2  # a frequency has 0 … 13 bits
CENTRES = (-(2**63), 2**64 - 1)


class Head(NamedTuple):
    """All that comes before the stream."""

    bank: Bank
    lanes: int
    classes: list[Classes]
    centres: list[int]


def write_head(head: Head) -> bytes:
    """The bytes before the stream."""
    bank = head.bank
    said = bytearray()
    for n in (integers.zigzag(bank.low), bank.freqs.shape[1] - 1, len(bank.freqs) - 1, head.lanes):
        said += integers.leb(n)
    for classes, centre in zip(head.classes, head.centres):
        said += integers.leb(integers.zigzag(classes.level)) + integers.leb(integers.zigzag(centre))
    every = np.concatenate([part for classes in head.classes for part in classes[1:]])
    codec, pieces, _ = smallest.encode(every, DTYPES["i1"])
    octets = b"".join(pieces)
    return bytes(said) + bytes([codec]) + integers.leb(len(octets)) + bytes(octets) + _tables(bank)


def decode(octets: memoryview, rows: list[Row]) -> list[np.ndarray]:
    """The words of a bank's arrays, in order."""
    shapes = [rows_shape(row.shape, row.codec) for row in rows]
    order = contexts.layout(shapes)
    head, stream = _head(octets, order)
    try:
        flat = context_coder.decode(stream, order, head.classes, head.bank, head.lanes)
    except rans.StreamError as e:
        raise FormatError(str(e)) from None
    arrays = contexts.scattered(flat, shapes, order)
    return [_words(values, centre, row) for values, centre, row in zip(arrays, head.centres, rows)]


def rows_shape(shape: tuple[int, ...], codec: int) -> tuple[int, int, int]:
    """(places, inputs, outputs) of an array whose outputs are its last axis or, by its codec, its
    first.
    """
    if codec == f.CONTEXT:
        return contexts.view_of(shape)
    outputs, inputs, *places = shape
    return math.prod(places), inputs, outputs


def rows_of(words: np.ndarray, codec: int) -> np.ndarray:
    """An array as (places, inputs, outputs), a view of it."""
    places, inputs, outputs = rows_shape(words.shape, codec)
    if codec == f.CONTEXT:
        return words.reshape(places, inputs, outputs)
    return words.reshape(outputs, inputs, places).transpose(2, 1, 0)


def _of_rows(words: np.ndarray, row: Row) -> np.ndarray:
    """The inverse of `rows_of`."""
    if row.codec == f.CONTEXT:
        return words.reshape(row.shape)
    return np.ascontiguousarray(words.transpose(2, 1, 0)).reshape(row.shape)


def working_bytes(rows: list[Row]) -> int:
    """What `decode` holds at once besides the arrays and the bank's bytes: symbols, contexts of
    rows, and an array twice as its axes change places.

    Not counted: tables, and what moves a piece; some 2 MB whatever the arrays.
    """
    order = contexts.layout([rows_shape(row.shape, row.codec) for row in rows])
    contexts_too = (
        10 * order.rows + 2 * len(order.pieces) + 40 * min(order.rows, context_coder.BLOCK)
    )
    largest = max(math.prod(row.shape) for row in rows)
    turned = [
        math.prod(row.shape) * DTYPES[row.dtype].itemsize
        for row in rows
        if row.codec == f.CONTEXT_FIRST
    ]
    return 2 * order.size + max(contexts_too, 2 * largest + max(turned, default=0))


def _words(values: np.ndarray, centre: int, row: Row) -> np.ndarray:
    dtype = DTYPES[row.dtype]
    low = centre + int(values.min())
    high = centre + int(values.max())
    least, most = dtype.words
    if low < least or high > most:
        raise FormatError(f"symbols from {low} to {high} leave the range of {dtype.name}")
    unsigned = np.dtype(f"u{dtype.itemsize}")
    words = values.astype(unsigned)
    words += np.array(centre % (1 << 8 * dtype.itemsize), unsigned)
    return _of_rows(words.view(dtype.word), row)


def _head(octets: memoryview, order: contexts.Layout) -> tuple[Head, memoryview]:
    take = integers.Reader(octets)
    low = take.signed()
    width = take.below(f.MAX_WIDTH_OF_BANK)
    tables = take.below(f.MAX_TABLES)
    lanes = take.varint()
    if not -f.MAX_WIDTH_OF_BANK < low < f.MAX_WIDTH_OF_BANK:
        raise FormatError(f"the least symbol of a bank is {low}")
    said = [(take.signed(), take.signed()) for _ in order.views]
    if not all(
        -MIDDLE <= level <= MIDDLE and CENTRES[0] <= centre <= CENTRES[1] for level, centre in said
    ):
        raise FormatError("an array's level or centre is out of range")
    classes = _classes(take, order, [level for level, _ in said])
    bank = Bank(low, *_read_tables(take, tables + 1, width + 1))
    return Head(bank, lanes, classes, [centre for _, centre in said]), take.rest


def _classes(take: integers.Reader, order: contexts.Layout, levels: list[int]) -> list[Classes]:
    codec = take.octets(1)[0]
    if codec not in (f.RAW, f.BITS, f.RANS):
        raise FormatError(f"the classes of a bank have the codec {codec}")
    octets = take.octets(take.varint())
    counts = [(outputs, inputs, places) for places, inputs, outputs in order.views]
    every = smallest.decode(octets, sum(map(sum, counts)), codec, DTYPES["i1"])
    if every.min() < -REACH or every.max() > REACH:
        raise FormatError(f"classes run from {every.min()} to {every.max()}")
    ends = np.cumsum([n for three in counts for n in three])[:-1]
    parts = np.split(every, ends)
    return [Classes(level, *parts[3 * i : 3 * i + 3]) for i, level in enumerate(levels)]


# --- tables
# ---------------------------------------------------------------------------------------


def _tables(bank: Bank) -> bytes:
    """varint n, n bytes of raw deflate of (the table of each context, the number of bits of each
    frequency), and the bits of each frequency but the top one, from the lowest.
    """
    freqs = bank.freqs.astype(np.int64).ravel()
    length = np.ceil(np.log2(freqs + 1)).astype(np.uint8)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    small = deflate.compress(bank.table_of.tobytes() + length.tobytes()) + deflate.flush()
    rest = (freqs[:, None] >> np.arange(rans.BITS) & 1)[_below(length)]
    return (
        integers.leb(len(small))
        + small
        + np.packbits(rest.astype(np.uint8), bitorder="little").tobytes()
    )


def _below(length: np.ndarray) -> np.ndarray:
    """Which of 12 bits lie below the top one."""
    return np.arange(rans.BITS) < length[:, None].astype(np.int64) - 1


def _read_tables(take: integers.Reader, tables: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    most = CONTEXTS + tables * width
    plain = np.frombuffer(integers.inflated(take.octets(take.varint()), most), np.uint8)
    table_of = plain[:CONTEXTS]
    length = plain[CONTEXTS:]
    if plain.size != most or table_of.max() >= tables or length.max() >= LENGTHS:
        raise FormatError(
            "a bank's tables do not fit: their number, a context's table, or a frequency"
        )
    below = _below(length)
    count = int(np.count_nonzero(below))
    octets = np.frombuffer(take.octets(-(-count // 8)), np.uint8)
    bits = np.unpackbits(octets, bitorder="little")
    if bits[count:].any():
        raise FormatError("the padding of the tables is not zero")
    freqs = np.zeros((length.size, rans.BITS + 1), np.int64)
    freqs[:, :-1][below] = bits[:count]
    used = length > 0
    freqs[used, length[used] - 1] = 1
    freqs = freqs @ (1 << np.arange(rans.BITS + 1))
    if (freqs.reshape(tables, width).sum(1) != rans.TOTAL).any():
        raise FormatError(f"the frequencies of a table do not sum to {rans.TOTAL}")
    return table_of, freqs.reshape(tables, width).astype(np.uint16)


def symbols(rows: list[Row]) -> int:
    """Symbols of a bank."""
    return sum(math.prod(row.shape) for row in rows)
