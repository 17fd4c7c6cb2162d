"""The context coder one symbol at a time, by Python's integers: the order, the contexts, and rANS
with their tables.
"""

import math
from collections import defaultdict
from typing import NamedTuple

LOW = 1 << 16
TOTAL = 1 << 12


class Symbol(NamedTuple):
    """An element of an array, and the row (of a piece) that it is in."""

    array: int
    place: int
    input: int
    output: int
    row: tuple[int, int]


def view_of(shape):
    shape = (1,) * (2 - len(shape)) + tuple(shape)
    return math.prod(shape[:-2]), shape[-2], shape[-1]


def columns_of(shapes):
    """The symbols in the order of coding: a list for each step, in which every row moves on by a
    column.
    """
    views = [view_of(shape) for shape in shapes]
    most = min(1024, max(16, sum(map(math.prod, views)) // 256))
    pieces = []
    for array, (places, inputs, _) in enumerate(views):
        columns = list(range(places * inputs))
        length = math.ceil(len(columns) / math.ceil(len(columns) / most))
        pieces += [(array, columns[i : i + length]) for i in range(0, len(columns), length)]
    pieces.sort(key=lambda piece: len(piece[1]), reverse=True)  # those of one length stay in order
    for step in range(len(pieces[0][1])):
        yield [
            Symbol(
                array,
                columns[step] % views[array][0],
                columns[step] // views[array][0],
                output,
                (n, output),
            )
            for n, (array, columns) in enumerate(pieces)
            if step < len(columns)
            for output in range(views[array][2])
        ]


def value_of(arrays, s):
    return int(arrays[s.array].reshape(view_of(arrays[s.array].shape))[s.place, s.input, s.output])


def gathered(arrays):
    return [value_of(arrays, s) for column in columns_of([x.shape for x in arrays]) for s in column]


def class_of(classes, s):
    level, outputs, inputs, places = classes[s.array]
    return min(
        31,
        max(0, 16 + level + int(outputs[s.output]) + int(inputs[s.input]) + int(places[s.place])),
    )


def eighths_of_log2(x):
    """8 log2 x, with the mantissa taken as linear, rounded down."""
    e = x.bit_length() - 1
    return 8 * e + (8 * (x - 2**e) >> e)


def contexts_of(arrays, classes):
    """Sums are in sixteenths, and carry the 1 that is added before the logarithm."""
    seen = defaultdict(lambda: 16)
    expected = defaultdict(lambda: 16)
    found = []
    for column in columns_of([x.shape for x in arrays]):
        for s in column:
            c = class_of(classes, s)
            g = (eighths_of_log2(seen[s.row]) - eighths_of_log2(expected[s.row]) + 4) // 8
            found.append(8 * c + min(3, max(-4, g)) + 4)
            size = min(255, abs(value_of(arrays, s)))
            seen[s.row] += -(seen[s.row] // 4) + 16 * size + 4
            expected[s.row] += -(expected[s.row] // 4) + round(16 * 2 ** ((c - 16) / 2)) + 4
    return found


def real_contexts_of(arrays, classes):
    """(class, g before it is cut to −4 … 3) as the formulas have them, in real numbers."""
    seen = defaultdict(float)
    expected = defaultdict(float)
    for column in columns_of([x.shape for x in arrays]):
        for s in column:
            c = class_of(classes, s)
            yield c, math.log2(seen[s.row] + 1) - math.log2(expected[s.row] + 1) + 0.5
            seen[s.row] = 0.75 * seen[s.row] + min(255, abs(value_of(arrays, s)))
            expected[s.row] = 0.75 * expected[s.row] + 2 ** ((c - 16) / 2)


def encode(arrays, classes, low, table_of, freqs, lanes):
    """`lanes` textbook coders that share a stream; every column begins with the first of them."""
    ids = contexts_of(arrays, classes)
    values = gathered(arrays)
    runs = []
    i = 0
    for column in columns_of([x.shape for x in arrays]):
        at = list(range(i, i + len(column)))
        runs += [at[j : j + lanes] for j in range(0, len(at), lanes)]
        i += len(column)
    x = [LOW] * lanes
    words = []
    for run in reversed(runs):
        out = []
        for lane, i in enumerate(run):
            table = freqs[table_of[ids[i]]]
            s = values[i] - low
            if x[lane] >= table[s] << 20:
                out.append(x[lane] & 0xFFFF)
                x[lane] >>= 16
            x[lane] = x[lane] // table[s] * TOTAL + sum(table[:s]) + x[lane] % table[s]
        words = out + words
    return b"".join(v.to_bytes(4, "little") for v in x) + b"".join(
        w.to_bytes(2, "little") for w in words
    )
