"""The codecs `context` and `context first`: the stream of a bank, which is several arrays with
tables in common.

    low, width − 1, tables − 1, lanes       varints; low zigzagged
    level, centre                           of each array, zigzagged varints
    classes                                 int8 of each array's outputs, inputs and places:
                                            u8 codec, varint n, n bytes
    the tables                              see `frequency_tables`
    the stream                              of `coding.context_coder`

Symbols are the elements less their array's centre. NumPy and the standard library only.
"""

import math
from typing import NamedTuple

import numpy as np

from ...coding import context_coder, contexts, rans
from ...coding.contexts import MIDDLE, REACH, Classes, Layout
from ...coding.table_banks import Bank
from ..format.words import (
    BITS,
    CONTEXT,
    CONTEXT_FIRST,
    DTYPES,
    MAX_TABLES,
    MAX_WIDTH_OF_BANK,
    RANS,
    RAW,
    FormatError,
    Row,
)
from . import smallest
from .frequency_tables import read_tables, write_tables
from .varints import ByteReader, encode_varint, zigzag

MIN_CENTRE = -(2**63)
MAX_CENTRE = 2**64 - 1


class Head(NamedTuple):
    """All that comes before the stream."""

    bank: Bank
    lanes: int
    classes: list[Classes]
    centres: list[int]


def write_head(head: Head) -> bytes:
    """The bytes before the stream."""
    bank = head.bank
    num_tables, width = bank.freqs.shape
    written = bytearray()
    for number in (zigzag(bank.low), width - 1, num_tables - 1, head.lanes):
        written += encode_varint(number)
    for classes, centre in zip(head.classes, head.centres):
        written += encode_varint(zigzag(classes.level))
        written += encode_varint(zigzag(centre))
    all_classes = np.concatenate([part for classes in head.classes for part in classes[1:]])
    encoded = smallest.encode(all_classes, DTYPES["i1"])
    class_stream = b"".join(encoded.pieces)
    written += bytes([encoded.codec]) + encode_varint(len(class_stream)) + class_stream
    return bytes(written) + write_tables(bank)


def decode(stream: memoryview, rows: list[Row]) -> list[np.ndarray]:
    """The words of a bank's arrays, in order.

    Raises:
      FormatError: not what a writer makes for arrays of these shapes.
    """
    views = [view_shape(row.shape, row.codec) for row in rows]
    layout = contexts.layout(views)
    head, coded = _read_head(stream, layout)
    try:
        flat = context_coder.decode(coded, layout, head.classes, head.bank, head.lanes)
    except rans.StreamError as e:
        raise FormatError(str(e)) from None
    arrays = contexts.scattered(flat, views, layout)
    return [_words(values, centre, row) for values, centre, row in zip(arrays, head.centres, rows)]


# --- axes ----------------------------------------------------------------------------------------


def view_shape(shape: tuple[int, ...], codec: int) -> tuple[int, int, int]:
    """(places, inputs, outputs) of an array whose outputs are its last axis or, by its codec, its
    first.
    """
    if codec == CONTEXT:
        return contexts.view_of(shape)
    outputs, inputs, *places = shape
    return math.prod(places), inputs, outputs


def to_view(words: np.ndarray, codec: int) -> np.ndarray:
    """An array as (places, inputs, outputs), a view of it."""
    places, inputs, outputs = view_shape(words.shape, codec)
    if codec == CONTEXT:
        return words.reshape(places, inputs, outputs)
    return words.reshape(outputs, inputs, places).transpose(2, 1, 0)


def _from_view(view: np.ndarray, row: Row) -> np.ndarray:
    """The inverse of `to_view`."""
    if row.codec == CONTEXT:
        return view.reshape(row.shape)
    return np.ascontiguousarray(view.transpose(2, 1, 0)).reshape(row.shape)


# --- sizes ---------------------------------------------------------------------------------------


def num_symbols(rows: list[Row]) -> int:
    """Symbols of a bank."""
    return sum(math.prod(row.shape) for row in rows)


def working_bytes(rows: list[Row]) -> int:
    """What `decode` holds at once besides the arrays and the bank's bytes: symbols, contexts of
    rows, and an array twice as its axes change places.

    Not counted: tables, and what moves a piece; some 2 MB whatever the arrays.
    """
    layout = contexts.layout([view_shape(row.shape, row.codec) for row in rows])
    context_bytes = 10 * layout.rows + 2 * len(layout.pieces)
    context_bytes += 40 * min(layout.rows, context_coder.BLOCK)
    largest = max(math.prod(row.shape) for row in rows)
    transposed = [_decoded_bytes(row) for row in rows if row.codec == CONTEXT_FIRST]
    array_bytes = 2 * largest + max(transposed, default=0)
    return 2 * layout.size + max(context_bytes, array_bytes)


def _decoded_bytes(row: Row) -> int:
    return math.prod(row.shape) * DTYPES[row.dtype].itemsize


# --- reading -------------------------------------------------------------------------------------


def _words(values: np.ndarray, centre: int, row: Row) -> np.ndarray:
    dtype = DTYPES[row.dtype]
    low = centre + int(values.min())
    high = centre + int(values.max())
    least, most = dtype.words
    if low < least or high > most:
        raise FormatError(f"symbols from {low} to {high} leave the range of {dtype.name}")
    # Unsigned and modular: the centre may be larger than a signed word.
    unsigned = np.dtype(f"u{dtype.itemsize}")
    words = values.astype(unsigned)
    words += np.array(centre % (1 << 8 * dtype.itemsize), unsigned)
    return _from_view(words.view(dtype.word), row)


def _read_head(stream: memoryview, layout: Layout) -> tuple[Head, memoryview]:
    """(head, the coder's stream)."""
    reader = ByteReader(stream)
    low = reader.signed()
    width = reader.below(MAX_WIDTH_OF_BANK) + 1
    num_tables = reader.below(MAX_TABLES) + 1
    lanes = reader.varint()
    if not -MAX_WIDTH_OF_BANK < low < MAX_WIDTH_OF_BANK:
        raise FormatError(f"the least symbol of a bank is {low}")
    levels = []
    centres = []
    for _ in layout.views:
        levels.append(reader.signed())
        centres.append(reader.signed())
    levels_fit = all(-MIDDLE <= level <= MIDDLE for level in levels)
    centres_fit = all(MIN_CENTRE <= centre <= MAX_CENTRE for centre in centres)
    if not levels_fit or not centres_fit:
        raise FormatError("an array's level or centre is out of range")
    classes = _read_classes(reader, layout, levels)
    table_of, frequencies = read_tables(reader, num_tables, width)
    return Head(Bank(low, table_of, frequencies), lanes, classes, centres), reader.rest


def _read_classes(reader: ByteReader, layout: Layout, levels: list[int]) -> list[Classes]:
    codec = reader.bytes(1)[0]
    if codec not in (RAW, BITS, RANS):
        raise FormatError(f"the classes of a bank have the codec {codec}")
    class_stream = reader.bytes(reader.varint())
    counts = [n for places, inputs, outputs in layout.views for n in (outputs, inputs, places)]
    all_classes = smallest.decode(class_stream, sum(counts), codec, DTYPES["i1"])
    if all_classes.min() < -REACH or all_classes.max() > REACH:
        raise FormatError(f"classes run from {all_classes.min()} to {all_classes.max()}")
    parts = iter(np.split(all_classes, np.cumsum(counts)[:-1]))
    return [Classes(level, next(parts), next(parts), next(parts)) for level in levels]
