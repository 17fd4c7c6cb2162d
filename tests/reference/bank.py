"""A bank read one symbol at a time, written from docs/format.md alone."""

import math
import struct
import zlib


class Octets:
    def __init__(self, octets):
        self.octets = bytes(octets)
        self.at = 0

    def take(self, n):
        self.at += n
        return self.octets[self.at - n : self.at]

    def varint(self):
        n = shift = 0
        while True:
            octet = self.take(1)[0]
            n = n | (octet & 127) << shift
            shift = shift + 7
            if octet < 128:
                return n

    def signed(self):
        n = self.varint()
        return -(n + 1) // 2 if n % 2 else n // 2


def bits_of(octets):
    return [octet >> i & 1 for octet in octets for i in range(8)]


def number(bits):
    return sum(bit << i for i, bit in enumerate(bits))


class Rans:
    def __init__(self, octets, lanes):
        self.states = list(struct.unpack(f"<{lanes}I", octets[: 4 * lanes]))
        self.words = list(struct.unpack(f"<{(len(octets) - 4 * lanes) // 2}H", octets[4 * lanes :]))

    def pop(self, lane, freqs):
        x = self.states[lane]
        slot = x % 4096
        start = 0
        for s, f in enumerate(freqs):
            if start <= slot < start + f:
                x = f * (x // 4096) + slot - start
                self.states[lane] = x * 65536 + self.words.pop(0) if x < 65536 else x
                return s
            start += f
        raise AssertionError("the frequencies do not sum to 4096")

    def ended(self):
        return not self.words and set(self.states) == {65536}


def stream(octets, n, codec):
    """The int8 elements of one array."""
    if codec == 0:
        return list(struct.unpack(f"{n}b", octets))
    take = Octets(octets)
    base = take.signed()
    if codec == 1:
        width = take.take(1)[0]
        bits = bits_of(take.octets[take.at :])
        return [base + number(bits[i * width : (i + 1) * width]) for i in range(n)]
    lanes = take.varint()
    head = take.varint()
    rest = take.octets[take.at :]
    if head % 2:
        inflate = zlib.decompressobj(-15)
        table = Octets(inflate.decompress(rest))
        freqs = [table.varint() for _ in range(head // 2 + 1)]
        rest = inflate.unused_data
    else:
        table = Octets(rest)
        freqs = [table.varint() for _ in range(head // 2 + 1)]
        rest = rest[table.at :]
    rans = Rans(rest, lanes)
    found = [base + rans.pop(i % lanes, freqs) for i in range(n)]
    assert rans.ended()
    return found


E = (
    *(0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362),
    *(512, 724, 1024, 1448, 2048, 2896),
)


def log2(x):
    e = x.bit_length() - 1
    return 8 * e + 8 * x // 2**e


def view(shape):
    """(K, I, O)"""
    if len(shape) < 2:
        return 1, 1, math.prod(shape)
    return math.prod(shape[:-2]), shape[-2], shape[-1]


def decode(octets, shapes):
    """The elements of each array of a bank, in C order."""
    take = Octets(octets)
    low = take.signed()
    width = take.varint() + 1
    tables = take.varint() + 1
    lanes = take.varint()
    said = [(take.signed(), take.signed()) for _ in shapes]
    codec = take.take(1)[0]
    classes = stream(take.take(take.varint()), sum(sum(view(shape)) for shape in shapes), codec)
    table_of, freqs = read_tables(take, tables, width)
    rans = Rans(take.octets[take.at :], lanes)
    arrays = []
    for shape, (level, centre) in zip(shapes, said):
        places, inputs, outputs = view(shape)
        output = classes[:outputs]
        classes = classes[outputs:]
        each_input = classes[:inputs]
        classes = classes[inputs:]
        place = classes[:places]
        classes = classes[places:]
        arrays.append((shape, level, centre, output, each_input, place, [0] * math.prod(shape)))
    decode_rows(rows_of(shapes), arrays, rans, lanes, low, table_of, freqs)
    assert rans.ended()
    return [array[-1] for array in arrays]


def read_tables(take, tables, width):
    plain = zlib.decompress(take.take(take.varint()), -15)
    table_of = plain[:256]
    lengths = plain[256:]
    size = sum(max(0, n - 1) for n in lengths)
    bits = bits_of(take.take(-(-size // 8)))
    assert not any(bits[size:])
    freqs = []
    for n in lengths:
        below = bits[: max(0, n - 1)]
        bits = bits[max(0, n - 1) :]
        freqs.append(number([*below, 1]) if n else 0)
    return table_of, [freqs[i * width : (i + 1) * width] for i in range(tables)]


def rows_of(shapes):
    """(array, output, first column, columns) of each row of the bank."""
    most = min(1024, max(16, sum(map(math.prod, shapes)) // 256))
    pieces = []
    for array, shape in enumerate(shapes):
        places, inputs, outputs = view(shape)
        n = places * inputs
        length = math.ceil(n / math.ceil(n / most))
        pieces += [(array, first, min(length, n - first), outputs) for first in range(0, n, length)]
    pieces = sorted(pieces, key=lambda piece: -piece[2])
    return [
        (array, o, first, length)
        for array, first, length, outputs in pieces
        for o in range(outputs)
    ]


def decode_rows(rows, arrays, rans, lanes, low, table_of, freqs):
    seen = [16] * len(rows)
    expected = [16] * len(rows)
    for j in range(rows[0][3]):
        for r, (array, o, first, length) in enumerate(rows):
            if j >= length:
                break
            shape, level, centre, output, each_input, place, out = arrays[array]
            places, inputs, outputs = view(shape)
            i, k = divmod(first + j, places)
            c = min(31, max(0, 16 + level + output[o] + each_input[i] + place[k]))
            g = min(3, max(-4, (log2(seen[r]) - log2(expected[r]) + 4) // 8))
            v = low + rans.pop(r % lanes, freqs[table_of[8 * c + g + 4]])
            expected[r] += E[c] + 4 - expected[r] // 4
            seen[r] += 16 * min(abs(v), 255) + 4 - seen[r] // 4
            out[(k * inputs + i) * outputs + o] = centre + v
