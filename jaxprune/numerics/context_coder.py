"""Interleaved rANS (`numerics.rans`) with a table for each context (`numerics.contexts`): many arrays in one stream.

A column of rows is coded in runs of N symbols, lane i taking the i-th of a run; the last run of a column is shorter. A
decoder knows the contexts of a whole column before it reads it. NumPy and the standard library only.
"""

import numpy as np
from numpy.typing import NDArray

from . import rans
from .banks import Bank
from .contexts import CONTEXTS, Classes, Contexts, Layout, magnitudes
from .rans import MAX_STEPS, TOTAL, Buffer, StreamError


def lanes_for(order: Layout, bits: float) -> int:
    """Lanes for these symbols in about `bits` bits; more lanes than rows would be idle.

    A lane's state has 32 bits, of which some 8 stand for symbols: the other 24 are 0.45% of the stream.
    """
    return min(order.rows, rans.lanes_for(order.size, 1.2 * bits))


def encode(ids: NDArray[np.uint8], values: NDArray, order: Layout, bank: Bank, lanes: int) -> bytes:
    """The stream of the symbols of `order`, of which `ids` are the contexts."""
    width = bank.freqs.shape[1]
    start = np.cumsum(bank.freqs, 1, np.uint32) - bank.freqs
    freq, start = bank.freqs.astype(np.uint32).ravel(), start.astype(np.uint32).ravel()
    first = bank.table_of.astype(np.int32) * width - bank.low
    stream = rans.Stream(lanes, order.size)
    for _, band, column in reversed(list(order.columns())):
        at = slice(band.offset + column * band.rows, band.offset + (column + 1) * band.rows)
        key = first.take(ids[at]) + values[at]
        f, c = freq.take(key), start.take(key)
        for i in reversed(range(0, band.rows, lanes)):
            stream.push(f[i : i + lanes], c[i : i + lanes])
    return stream.octets()


def decode(buffer: Buffer, order: Layout, classes: list[Classes], bank: Bank, lanes: int) -> NDArray[np.int16]:
    """The symbols of a stream, in the order of coding. Anything but a whole stream is a StreamError."""
    first, symbol_of, pop_of = _slots(bank)
    if not 1 <= lanes <= order.rows or order.size > lanes * MAX_STEPS:
        raise StreamError(f"{lanes} lanes for {order.size} symbols in {order.rows} rows")
    x, words = rans.parsed(buffer, lanes)
    size_of = magnitudes(symbol_of)
    flat, model = np.empty(order.size, np.int16), Contexts(order, classes)
    slots = np.empty(order.rows, np.intp)
    taken = 0
    for number, band, column in order.columns():
        slot = slots[: band.rows]
        first.take(model.at(number, band, column), out=slot, mode="clip")
        for i in range(0, band.rows, lanes):
            some = slot[i : i + lanes]
            taken += _pop(x[: some.size], some, pop_of, words[taken : taken + lanes])
        at = band.offset + column * band.rows
        symbol_of.take(slot, out=flat[at : at + band.rows], mode="clip")
        model.see(size_of.take(slot))
    rans.check_end(x, words.size - taken)
    return flat


def _pop(x: NDArray[np.uint32], slot: NDArray[np.intp], pop_of: NDArray[np.uint32], words: NDArray[np.uint16]) -> int:
    """`rans.pop`, where `slot` holds the first slot of each lane's table and gets the lane's own."""
    slot += x & rans.SLOT
    return rans.pop(x, pop_of.take(slot), words)


def _slots(bank: Bank) -> tuple[NDArray[np.intp], NDArray[np.int16], NDArray[np.uint32]]:
    """Of each context the first slot of its table; of each slot of all tables the symbol, and what `rans.pop` needs."""
    if bank.table_of.shape != (CONTEXTS,) or int(bank.table_of.max()) >= len(bank.freqs):
        raise StreamError(f"{bank.table_of.size} contexts, or one of a table that is not among the {len(bank.freqs)}")
    each = [rans.slots_of(rans.checked(row)) for row in bank.freqs]
    symbol = np.concatenate([symbols for symbols, _ in each]).astype(np.int16)
    symbol += np.int16(bank.low)
    return bank.table_of.astype(np.intp) * TOTAL, symbol, np.concatenate([pops for _, pops in each])
