"""Interleaved rANS (`numerics.rans`) with a table for each context (`numerics.contexts`): many
arrays in one stream.

A column of rows is coded in runs of N symbols, lane i taking the i-th of a run; the last run of a
column is shorter. A decoder knows the contexts of a whole column before it reads it. NumPy and the
standard library only.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from . import lanes as coder
from . import rans
from .contexts import CONTEXTS, Classes, Contexts, Layout, magnitudes
from .rans import MAX_STEPS, TOTAL, Buffer, StreamError
from .table_banks import Bank

BLOCK = 1 << 16  # rows of a column that are decoded at once: integers of 8 bytes are made of them


def lanes_for(order: Layout, bits: float) -> int:
    """Lanes for these symbols in about `bits` bits; more lanes than rows would be idle.

    A lane's state has 32 bits, of which some 8 stand for symbols: the other 24 are 0.45% of the
    stream.
    """
    return min(order.rows, rans.lanes_for(order.size, 1.2 * bits))


def encode(ids: NDArray[np.uint8], values: NDArray, order: Layout, bank: Bank, lanes: int) -> bytes:
    """The stream of the symbols of `order`, of which `ids` are the contexts."""
    width = bank.freqs.shape[1]
    start = np.cumsum(bank.freqs, 1, np.uint32) - bank.freqs
    freq = bank.freqs.astype(np.uint32).ravel()
    start = start.astype(np.uint32).ravel()
    first = bank.table_of.astype(np.int32) * width - bank.low
    stream = coder.writer(lanes, order.size)
    for _, rows, at in reversed(list(order.columns())):
        key = first.take(ids[at : at + rows]) + values[at : at + rows]
        stream.push(freq.take(key), start.take(key))
    return stream.octets()


def decode(
    buffer: Buffer, order: Layout, classes: list[Classes], bank: Bank, lanes: int
) -> NDArray[np.int16]:
    """The symbols of a stream, in the order of coding. Anything but a whole stream is a
    StreamError.
    """
    first, symbol_of, pop_of = _slots(bank)
    if not 1 <= lanes <= order.rows or order.size > lanes * MAX_STEPS:
        raise StreamError(f"{lanes} lanes for {order.size} symbols in {order.rows} rows")
    stream = coder.reader(buffer, lanes, pop_of)
    size_of = magnitudes(symbol_of)
    flat = np.empty(order.size, np.int16)
    model = Contexts(order, classes)
    room = np.empty(min(order.rows, BLOCK), np.intp)
    for column, rows, at in order.columns():
        for some in _spans(rows, lanes):
            slot = room[: some.stop - some.start]
            first.take(model.at(column, some), out=slot, mode="clip")
            stream.pop(slot, some.start % lanes)
            symbol_of.take(slot, out=flat[at + some.start : at + some.stop], mode="clip")
            model.see(some, size_of.take(slot))
    stream.end()
    return flat


def _spans(rows: int, lanes: int) -> Iterator[slice]:
    """A column in parts of at most `BLOCK` rows: whole runs of all lanes, or parts of one run."""
    runs = max(1, BLOCK // lanes) * lanes
    for a in range(0, rows, runs):
        end = min(a + runs, rows)
        yield from (slice(i, min(i + BLOCK, end)) for i in range(a, end, BLOCK))


def _slots(bank: Bank) -> tuple[NDArray[np.intp], NDArray[np.int16], NDArray[np.uint32]]:
    """Of each context the first slot of its table; of each slot of all tables the symbol, and what
    `rans.pop` needs.
    """
    if bank.table_of.shape != (CONTEXTS,) or int(bank.table_of.max()) >= len(bank.freqs):
        raise StreamError(
            f"{bank.table_of.size} contexts, or one of a table that is not among the "
            f"{len(bank.freqs)}"
        )
    each = [rans.slots_of(rans.checked(row)) for row in bank.freqs]
    symbol = np.concatenate([symbols for symbols, _ in each]).astype(np.int16)
    symbol += np.int16(bank.low)
    return bank.table_of.astype(np.intp) * TOTAL, symbol, np.concatenate([pops for _, pops in each])
