"""Contexts for the symbols of weight arrays: what a decoder knows of a symbol before it reads it.

Small integers v near 0, |v| large where the weights are. An array (…, in, out) is read as rows, one an output, whose
columns run through the inputs and, fastest, through the leading axes (the places of a kernel's window). Magnitudes are
uneven in all three, so a class is said for each output r, input i and place k, in half octaves, and a symbol's is

    c = 16 + level + r + i + k, within 0 … 31        |v| is expected to be λ(c) = 2^((c − 16) / 2)

What the classes miss shows in the neighbours: with a decay of 3/4 a column,

    seen <- ¾ seen + |v|,  expected <- ¾ expected + λ(c)        g = ⌊log2(seen + 1) − log2(expected + 1) + ½⌉, −4 … 3

The context is 8 c + g + 4, one of 256; it picks one of a few tables (`numerics.banks`). Many arrays are coded together.
Long rows are cut into pieces, the pieces of all arrays are sorted by length, and all advance by a column at a time:
long vectors for NumPy, and one state of the coder for many small arrays. All of it is integers in 1/16 and tables: the
same everywhere.

After the two-way classes of a Poisson model, and JPEG-LS's sum of neighbours (Weinberger, Seroussi, Sapiro 2000).
NumPy and the standard library only.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CLASSES, NEIGHBOURS = 32, 8
CONTEXTS = CLASSES * NEIGHBOURS
MIDDLE = 16  # the class of λ = 1
REACH = 15  # of the class of a row, an input or a place
ONE = 16  # fixed point
MOST = 255  # magnitudes above are counted as this
PIECE = 1024  # columns at most
LEAST_PIECE = 16
QUARTER = ONE // 4  # what keeps the 1 in seen + 1 as it decays

# ⌊2^((c − 16) / 2) · 16⌉, spelled out because √2 is not an integer
_ODD = (0, 0, 0, 1, 1, 3, 6, 11, 23, 45, 91, 181, 362, 724, 1448, 2896)
_EVEN = (0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
EXPECTED = np.array([x for pair in zip(_EVEN, _ODD) for x in pair], np.int32)


class Piece(NamedTuple):
    """Columns start … start + length of an array's rows, which are rows `row` … of the whole."""

    array: int
    start: int
    length: int
    row: int
    rows: int


class Band(NamedTuple):
    """Columns first … last of all pieces that have them: the first `pieces` pieces, with the first `rows` rows."""

    first: int
    last: int
    pieces: int
    rows: int
    offset: int  # of its first symbol

    def of(self, flat: NDArray) -> NDArray:
        """The band's symbols, by column and row."""
        end = self.offset + (self.last - self.first) * self.rows
        return flat[self.offset : end].reshape(-1, self.rows)


class Layout(NamedTuple):
    """The order in which the symbols of several arrays are coded."""

    views: tuple[tuple[int, int, int], ...]
    pieces: tuple[Piece, ...]
    bands: tuple[Band, ...]
    size: int

    @property
    def rows(self) -> int:
        return self.bands[0].rows

    def columns(self) -> Iterator[tuple[int, Band, int]]:
        """(number of the band, band, column in it), in order."""
        for i, band in enumerate(self.bands):
            yield from ((i, band, j) for j in range(band.last - band.first))


def view_of(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(places, inputs, outputs) of an array."""
    *places, inputs, outputs = (1, 1, *shape)[-max(2, len(shape)) :]
    return math.prod(places), inputs, outputs


def layout(shapes: list[tuple[int, ...]]) -> Layout:
    """The order for arrays of these shapes, none of them empty: the same for a writer and a reader.

    A piece has at most 1024 columns, and fewer when there are few symbols, so that no small array takes many steps.
    """
    views = tuple(map(view_of, shapes))
    size = sum(map(math.prod, views))
    most = min(PIECE, max(LEAST_PIECE, size // 256))
    cut = []
    for array, (places, inputs, outputs) in enumerate(views):
        columns = places * inputs
        length = -(-columns // -(-columns // most))
        starts = range(0, columns, length)
        cut += [(array, start, min(length, columns - start), outputs) for start in starts]
    cut.sort(key=lambda piece: -piece[2])
    rows = np.cumsum([0, *(piece[3] for piece in cut)]).tolist()
    pieces = tuple(Piece(array, start, length, row, n) for (array, start, length, n), row in zip(cut, rows))
    return Layout(views, pieces, _bands(pieces), size)


def _bands(pieces: tuple[Piece, ...]) -> tuple[Band, ...]:
    lengths = [piece.length for piece in pieces]
    bands, first, offset, active = [], 0, 0, len(pieces)
    for last in sorted(set(lengths)):
        while lengths[active - 1] < last:
            active -= 1
        rows = pieces[active - 1].row + pieces[active - 1].rows
        bands.append(Band(first, last, active, rows, offset))
        first, offset = last, offset + (last - first) * rows
    return tuple(bands)


def rows_of(array: NDArray) -> NDArray:
    """An array's rows, as a view."""
    places, inputs, outputs = view_of(array.shape)
    return array.reshape(places, inputs, outputs).transpose(2, 1, 0).reshape(outputs, inputs * places)


def gathered(arrays: list[NDArray], order: Layout) -> NDArray:
    """The symbols of all arrays, in the order of coding."""
    flat = np.empty(order.size, arrays[0].dtype)
    rows = list(map(rows_of, arrays))
    for piece, band in _parts(order):
        cut = rows[piece.array][:, piece.start + band.first : piece.start + band.last]
        band.of(flat)[:, piece.row : piece.row + piece.rows] = cut.T
    return flat


def scattered(flat: NDArray, shapes: list[tuple[int, ...]], order: Layout) -> list[NDArray]:
    """The arrays again: the inverse of `gathered`."""
    rows = [np.empty((outputs, inputs * places), flat.dtype) for places, inputs, outputs in order.views]
    for piece, band in _parts(order):
        cut = band.of(flat)[:, piece.row : piece.row + piece.rows]
        rows[piece.array][:, piece.start + band.first : piece.start + band.last] = cut.T
    views = zip(rows, order.views, shapes)
    return [x.reshape(out, i, k).transpose(2, 1, 0).reshape(shape) for x, (k, i, out), shape in views]


def sums(flat: NDArray, order: Layout) -> NDArray[np.float64]:
    """Σ over the symbols of each array."""
    total = np.zeros(len(order.views))
    for piece, band in _parts(order):
        total[piece.array] += band.of(flat)[:, piece.row : piece.row + piece.rows].sum(dtype=np.float64)
    return total


def _parts(order: Layout) -> Iterator[tuple[Piece, Band]]:
    for piece in order.pieces:
        for band in order.bands:
            if band.last > piece.length:
                break
            yield piece, band


class Classes(NamedTuple):
    """The classes of one array: its level, and int8 of each output, input and place, −15 … 15."""

    level: int
    outputs: NDArray[np.int8]
    inputs: NDArray[np.int8]
    places: NDArray[np.int8]


class Contexts:
    """Goes through the columns with the decoder: `at` gives a column's contexts, `see` takes its magnitudes."""

    def __init__(self, order: Layout, classes: list[Classes]):
        column = [(c.inputs[:, None].astype(np.int8) + c.places).ravel() for c in classes]
        row = [c.outputs.astype(np.int16) + MIDDLE + c.level for c in classes]
        self.row = np.concatenate([row[piece.array] for piece in order.pieces])
        self.piece = np.repeat(np.arange(len(order.pieces)), [piece.rows for piece in order.pieces])
        self.column = [np.empty((band.last - band.first, band.pieces), np.int16) for band in order.bands]
        for number, piece in enumerate(order.pieces):
            for band, matrix in zip(order.bands, self.column):
                if band.last > piece.length:
                    break
                matrix[:, number] = column[piece.array][piece.start + band.first : piece.start + band.last]
        self.seen = np.full(order.rows, ONE, np.int32)
        self.expected = np.full(order.rows, ONE, np.int32)

    def at(self, number: int, band: Band, column: int) -> NDArray[np.int32]:
        """The contexts of one column's rows."""
        n = band.rows
        classes = self.column[number][column].take(self.piece[:n])
        classes += self.row[:n]
        np.clip(classes, 0, CLASSES - 1, out=classes)
        ratio = _log2(self.seen[:n])
        ratio -= _log2(self.expected[:n])
        ratio += 4
        ratio >>= 3
        np.clip(ratio, -4, 3, out=ratio)
        _decay(self.expected[:n], EXPECTED.take(classes))
        classes <<= 3
        ratio += classes
        ratio += 4
        return ratio

    def see(self, magnitudes: NDArray[np.int32]) -> None:
        """Adds a column's magnitudes, in 1/16 and at most 255, to what was seen."""
        _decay(self.seen[: magnitudes.size], magnitudes)


def magnitudes(values: NDArray) -> NDArray[np.int32]:
    """|v| as `Contexts.see` takes it."""
    return np.minimum(np.abs(values), MOST).astype(np.int32) * ONE


def _decay(x: NDArray[np.int32], more: NDArray[np.int32]) -> None:
    x -= x >> 2
    x += more
    x += QUARTER


def _log2(x: NDArray[np.int32]) -> NDArray[np.int32]:
    """8 log2 x to one eighth, the mantissa taken as linear: the bits of x as a float32, which holds it exactly."""
    bits = x.astype(np.float32).view(np.int32)
    bits >>= 20
    return bits
