"""Contexts for the symbols of weight arrays: what a decoder knows of a symbol before it reads it.

Small integers v near 0, |v| large where the weights are. An array (…, in, out) is read as rows, one
an output, whose columns run through the inputs and, fastest, through the leading axes (the places
of a kernel's window). Magnitudes are uneven in all three, so a class is said for each output r,
input i and place k, in half octaves, and a symbol's is

    c = 16 + level + r + i + k, within 0 … 31        |v| is expected to be λ(c) = 2^((c − 16) / 2)

What the classes miss shows in the neighbours: with a decay of 3/4 a column,

    seen <- ¾ seen + |v|,  expected <- ¾ expected + λ(c)        g = ⌊log2(seen + 1) − log2(expected
        + 1) + ½⌉, −4 … 3

The context is 8 c + g + 4, one of 256; it picks one of a few tables (`numerics.banks`). Many arrays
are coded together. Long rows are cut into pieces, the pieces of all arrays are sorted by length,
and all advance by a column at a time: long vectors for NumPy, and one state of the coder for many
small arrays. All of it is integers in 1/16 and tables: the same everywhere. Work is linear in the
symbols, whatever the lengths of the pieces.

After the two-way classes of a Poisson model, and JPEG-LS's sum of neighbours (Weinberger, Seroussi,
Sapiro 2000). NumPy and the standard library only.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CLASSES = 32
NEIGHBOURS = 8
CONTEXTS = CLASSES * NEIGHBOURS
MIDDLE = 16  # the class of λ = 1
REACH = 15  # of the class of a row, an input or a place
ONE = 16  # fixed point
MOST = 255  # magnitudes above are counted as this
PIECE = 1024  # columns at most
LEAST_PIECE = 16
QUARTER = ONE // 4  # what keeps the 1 in seen + 1 as it decays
NARROW = 64  # rows of pieces that are moved at once, by index; wider ones go column by column

# ⌊2^((c − 16) / 2) · 16⌉, spelled out because √2 is not an integer
_ODD = (0, 0, 0, 1, 1, 3, 6, 11, 23, 45, 91, 181, 362, 724, 1448, 2896)
_EVEN = (0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
EXPECTED = np.array([x for pair in zip(_EVEN, _ODD) for x in pair], np.int16)


class Piece(NamedTuple):
    """Columns start … start + length of an array's rows, which are rows `row` … of the whole."""

    array: int
    start: int
    length: int
    row: int
    rows: int


class Band(NamedTuple):
    """Columns first … last of all pieces that have them: the first `pieces` pieces, with the first
    `rows` rows.
    """

    first: int
    last: int
    pieces: int
    rows: int
    offset: int  # of its first symbol


class Layout(NamedTuple):
    """The order in which the symbols of several arrays are coded."""

    views: tuple[tuple[int, int, int], ...]
    pieces: tuple[Piece, ...]
    bands: tuple[Band, ...]
    size: int

    @property
    def rows(self) -> int:
        return self.bands[0].rows

    def columns(self) -> Iterator[tuple[int, int, int]]:
        """(column, its rows, its first symbol), in order."""
        for band in self.bands:
            for j in range(band.last - band.first):
                yield band.first + j, band.rows, band.offset + j * band.rows


def view_of(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(places, inputs, outputs) of an array."""
    *places, inputs, outputs = (1, 1, *shape)[-max(2, len(shape)) :]
    return math.prod(places), inputs, outputs


def layout(shapes: list[tuple[int, ...]]) -> Layout:
    """The order for arrays of these shapes, none of them empty: the same for a writer and a reader.

    A piece has at most 1024 columns, and fewer when there are few symbols, so that no small array
    takes many steps.
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
    pieces = tuple(
        Piece(array, start, length, row, n) for (array, start, length, n), row in zip(cut, rows)
    )
    return Layout(views, pieces, _bands(pieces), size)


def _bands(pieces: tuple[Piece, ...]) -> tuple[Band, ...]:
    lengths = [piece.length for piece in pieces]
    bands = []
    first = 0
    offset = 0
    active = len(pieces)
    for last in sorted(set(lengths)):
        while lengths[active - 1] < last:
            active -= 1
        rows = pieces[active - 1].row + pieces[active - 1].rows
        bands.append(Band(first, last, active, rows, offset))
        first, offset = last, offset + (last - first) * rows
    return tuple(bands)


def gathered(arrays: list[NDArray], order: Layout) -> NDArray:
    """The symbols of all arrays, in the order of coding."""
    flat = np.empty(order.size, arrays[0].dtype)
    matrices = [x.reshape(-1, outputs) for x, (_, _, outputs) in zip(arrays, order.views)]
    for piece, lines, places in _parts(order, order.pieces):
        flat[places] = matrices[piece.array][lines]
    return flat


def scattered(flat: NDArray, shapes: list[tuple[int, ...]], order: Layout) -> Iterator[NDArray]:
    """The arrays again, one after another: the inverse of `gathered`."""
    parts = _parts(order, sorted(order.pieces, key=lambda piece: piece.array))
    of_each = itertools.groupby(parts, lambda part: part[0].array)
    for (_, some), shape, (places, inputs, outputs) in zip(of_each, shapes, order.views):
        matrix = np.empty((places * inputs, outputs), flat.dtype)
        for _, lines, at in some:
            matrix[lines] = flat[at]
        yield matrix.reshape(shape)


def sums(flat: NDArray, order: Layout) -> NDArray[np.float64]:
    """Σ over the symbols of each array."""
    total = np.zeros(len(order.views))
    for piece, _, places in _parts(order, order.pieces):
        total[piece.array] += flat[places].sum(dtype=np.float64)
    return total


def _parts(order: Layout, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, Any, Any]]:
    """Pieces, or columns of them: (piece, lines of its array as a matrix of outputs, their symbols
    in the order).

    Column c of an array is place c mod places of input ⌊c / places⌋: a line of outputs.
    """
    first = np.array([at for _, _, at in order.columns()])
    for piece in pieces:
        places, inputs, _ = order.views[piece.array]
        column = np.arange(piece.start, piece.start + piece.length)
        lines = column % places * inputs + column // places
        start = first[: piece.length] + piece.row
        if piece.rows < NARROW:
            yield piece, lines, start[:, None] + np.arange(piece.rows)
            continue
        for line, at in zip(lines.tolist(), start.tolist()):
            yield piece, line, slice(at, at + piece.rows)


class Classes(NamedTuple):
    """The classes of one array: its level, and int8 of each output, input and place, −15 … 15."""

    level: int
    outputs: NDArray[np.int8]
    inputs: NDArray[np.int8]
    places: NDArray[np.int8]


class Contexts:
    """Goes through the columns with the decoder: `at` gives contexts of a column's rows, `see`
    takes their magnitudes.

    It holds 10 bytes a row, and 2 for each column of each piece.
    """

    def __init__(self, order: Layout, classes: list[Classes]):
        column = [(c.inputs[:, None].astype(np.int8) + c.places).ravel() for c in classes]
        self.row = np.empty(order.rows, np.int16)
        self.piece = np.empty(order.rows, np.int32)
        pieces = np.repeat(
            [band.pieces for band in order.bands], [band.last - band.first for band in order.bands]
        )
        self.first = np.cumsum(pieces) - pieces  # of each column, its first piece in `column`
        self.column = np.empty(pieces.sum(), np.int16)
        for number, piece in enumerate(order.pieces):
            rows = slice(piece.row, piece.row + piece.rows)
            of = classes[piece.array]
            self.piece[rows] = number
            np.add(of.outputs, np.int16(MIDDLE + of.level), out=self.row[rows])
            some = column[piece.array][piece.start : piece.start + piece.length]
            self.column[self.first[: piece.length] + number] = some
        self.seen = np.full(order.rows, ONE, np.int16)  # at most 4 · 16 · 255, and some
        self.expected = np.full(order.rows, ONE, np.int16)

    def at(self, column: int, rows: slice) -> NDArray[np.int32]:
        """The contexts of some rows of one column, which are asked for once."""
        classes = self.column[self.first[column] :].take(self.piece[rows])
        classes += self.row[rows]
        np.clip(classes, 0, CLASSES - 1, out=classes)
        ratio = _log2(self.seen[rows])
        ratio -= _log2(self.expected[rows])
        ratio += 4
        ratio >>= 3
        np.clip(ratio, -4, 3, out=ratio)
        _decay(self.expected[rows], EXPECTED.take(classes))
        classes <<= 3
        ratio += classes
        ratio += 4
        return ratio

    def see(self, rows: slice, magnitudes: NDArray[np.int16]) -> None:
        """Adds the rows' magnitudes, in 1/16 and at most 255, to what was seen."""
        _decay(self.seen[rows], magnitudes)


def magnitudes(values: NDArray) -> NDArray[np.int16]:
    """|v| as `Contexts.see` takes it."""
    return np.minimum(np.abs(values), MOST).astype(np.int16) * np.int16(ONE)


def _decay(x: NDArray[np.int16], more: NDArray[np.int16]) -> None:
    x -= x >> 2
    x += more
    x += QUARTER


def _log2(x: NDArray[np.int16]) -> NDArray[np.int32]:
    """8 log2 x to one eighth, the mantissa taken as linear: the bits of x as a float32, which holds
    it exactly.
    """
    bits = x.astype(np.float32).view(np.int32)
    bits >>= 20
    return bits
