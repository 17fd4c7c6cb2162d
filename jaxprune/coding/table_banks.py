"""Choosing what a decoder is told: the classes of arrays, and a bank of tables for their contexts.

Both minimise bits, those of the telling included. A class c of a slice with sum x of magnitudes, e
of them not 0, and expected sum X(c), costs its own bits and, as for a Poisson variable, some

    (e / x) (X − x − x ln(X / x)) / (2 ln 2)        half: the neighbours make up for the rest

A table costs some 16 bits, and 9 a symbol. Contexts start with one each, in the order of their mean
magnitude, and neighbours are merged as long as that saves more than it loses, n H(a + b) − n_a H(a)
− n_b H(b). Writers only.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import contexts, rans
from .contexts import CONTEXTS, MIDDLE, REACH, Classes, Contexts, Layout

TABLE_BITS = 16
ENTRY_BITS = 9
MOST_TABLES = 64
CHUNK = 1 << 18  # symbols counted at a time: wider integers are made of them
ROUNDS = 3  # of pricing the classes by how often they are chosen


class Bank(NamedTuple):
    """Tables for every context: row `table_of[context]` of `freqs`, whose columns are the symbols
    less `low`.
    """

    low: int
    table_of: NDArray[np.uint8]
    freqs: NDArray[np.uint16]


# --- classes
# ---------------------------------------------------------------------------------------


class _Slices(NamedTuple):
    """What an array's outputs, inputs or places hold: sums of magnitudes, numbers of nonzeros, and
    entries of each.
    """

    total: NDArray[np.float64]
    nonzero: NDArray[np.float64]
    entries: float


def fit_classes(arrays: list[NDArray]) -> list[Classes]:
    """Classes for arrays of integers near 0, none of them empty."""
    levels = [float(np.abs(x).mean()) + 1e-3 for x in arrays]
    slices = [(part, level) for x, level in zip(arrays, levels) for part in _slices(x)]
    chosen: list[NDArray] = []
    price = np.zeros(2 * REACH + 1)
    losses = [_losses(part, level) for part, level in slices]
    for _ in range(ROUNDS):
        chosen = [(loss + price).argmin(1) for loss in losses]
        counts = np.bincount(np.concatenate(chosen), minlength=price.size) + 0.05
        price = -np.log2(counts / counts.sum())
    deviations = [(x - REACH).astype(np.int8) for x in chosen]
    level = [int(np.clip(np.rint(2 * np.log2(m)), -MIDDLE, MIDDLE)) for m in levels]
    return [Classes(level[i], *deviations[3 * i : 3 * i + 3]) for i in range(len(arrays))]


def _slices(array: NDArray) -> list[_Slices]:
    places, inputs, outputs = contexts.view_of(array.shape)
    size = np.abs(array.reshape(places, inputs, outputs))
    parts = []
    for axes, entries in (
        ((0, 1), places * inputs),
        ((0, 2), places * outputs),
        ((1, 2), inputs * outputs),
    ):
        total = size.sum(axes, dtype=np.float64)
        nonzero = np.count_nonzero(size, axes).astype(np.float64)
        parts.append(_Slices(total, nonzero, entries))
    return parts


def _losses(part: _Slices, level: float) -> NDArray[np.float64]:
    """Bits that each class loses, for each slice."""
    expected = part.entries * level * 2.0 ** (np.arange(-REACH, REACH + 1) / 2)
    total = np.maximum(part.total, 1e-9)[:, None]
    events = np.where(part.total > 0, part.nonzero / total[:, 0], 1)[:, None]
    return events * (expected - total - total * np.log(expected / total)) / (2 * np.log(2))


# --- tables
# ---------------------------------------------------------------------------------------


def contexts_of(values: NDArray, order: Layout, classes: list[Classes]) -> NDArray[np.uint8]:
    """The context of every symbol, in the order of coding; `values` are in that order too."""
    ids = np.empty(order.size, np.uint8)
    model = Contexts(order, classes)
    for column, rows, at in order.columns():
        for a in range(0, rows, CHUNK):
            some = slice(a, min(a + CHUNK, rows))
            places = slice(at + some.start, at + some.stop)
            ids[places] = model.at(column, some)
            model.see(some, contexts.magnitudes(values[places]))
    return ids


def fit_bank(ids: NDArray[np.uint8], values: NDArray) -> Bank:
    """Tables for symbols in these contexts."""
    low = int(values.min())
    width = int(values.max()) - low + 1
    counts = np.zeros(CONTEXTS * width, np.int64)
    for i in range(0, ids.size, CHUNK):
        key = ids[i : i + CHUNK].astype(np.int64) * width + (
            values[i : i + CHUNK].astype(np.int64) - low
        )
        counts += np.bincount(key, minlength=counts.size)
    counts = counts.reshape(CONTEXTS, width)
    used = np.flatnonzero(counts.any(1))
    mean = counts[used] @ np.abs(np.arange(width) + low) / counts[used].sum(1)
    groups, merged = _merged(counts, used[np.argsort(mean, kind="stable")])
    table_of = np.zeros(CONTEXTS, np.uint8)
    for number, group in enumerate(groups):
        table_of[group] = number
    absent = np.ones(CONTEXTS, bool)
    absent[used] = False
    before = np.maximum.accumulate(
        np.where(absent, 0, np.arange(CONTEXTS))
    )  # like the one before: cheap to write
    return Bank(low, table_of[before], np.stack([rans.normalise(row) for row in merged]))


def _merged(counts: NDArray[np.int64], order: NDArray) -> tuple[list[list[int]], NDArray[np.int64]]:
    """Runs of contexts that share a table, and the counts of each run."""
    groups = [[int(i)] for i in order]
    rows = counts[order]
    cost = _cost(rows)
    loss = _cost(rows[:-1] + rows[1:]) - cost[:-1] - cost[1:]
    while len(groups) > 1 and (loss.min() < 0 or len(groups) > MOST_TABLES):
        i = int(loss.argmin())
        groups[i : i + 2] = [groups[i] + groups[i + 1]]
        rows[i] += rows[i + 1]
        rows, cost, loss = (np.delete(x, i + 1, 0) for x in (rows, cost, np.append(loss, 0)))
        cost[i] = _cost(rows[i])
        loss = loss[: len(groups) - 1]
        for j in range(max(0, i - 1), min(i + 1, len(groups) - 1)):
            loss[j] = _cost(rows[j] + rows[j + 1]) - cost[j] - cost[j + 1]
    return groups, rows


def _cost(counts: NDArray[np.int64]) -> NDArray:
    """Bits of symbols with these counts, and of their table."""
    total = counts.sum(-1)
    information = _xlog2x(total) - _xlog2x(counts).sum(-1)
    return information + TABLE_BITS + ENTRY_BITS * np.count_nonzero(counts, -1)


def _xlog2x(x: NDArray[np.int64]) -> NDArray:
    return x * np.log2(np.maximum(x, 1))


def bits(ids: NDArray[np.uint8], values: NDArray, bank: Bank) -> NDArray[np.float32]:
    """Bits that each symbol takes: 12 − log2 f."""
    with np.errstate(divide="ignore"):
        price = (rans.BITS - np.log2(bank.freqs)).astype(np.float32)
    each = np.empty(ids.size, np.float32)
    for i in range(0, ids.size, CHUNK):
        part = slice(i, i + CHUNK)
        each[part] = price[bank.table_of[ids[part]], values[part].astype(np.intp) - bank.low]
    return each
