"""Banks made to harm, by name, each with the reason that its error must give. Checksums are
right."""

import struct
import zlib

import numpy as np

from jaxprune.storage.format import words as f
from tests.storage.hostile import file_of, varint

SHAPE = (64, 64)  # the fewest symbols that a bank may have; 4 pieces of 16 columns and 64 rows
ROWS = 256
LOW = 1 << 16
ROW = ["i1", list(SHAPE), f.CONTEXT, 0]
FIRST_ROW = ["i1", list(SHAPE), f.CONTEXT_FIRST, 0]
ZERO = (0, 0)  # level and centre of an array


def deflated(octets):
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    return deflate.compress(octets) + deflate.flush()


def zigzag(n):
    return varint(2 * n if n >= 0 else -2 * n - 1)


def said(octets):
    return varint(len(octets)) + octets


def coded_tables(freqs, table_of=bytes(256)):
    """Frequencies, table by table, as a bank has them: lengths in bits, and the bits below the top
    one."""
    lengths = bytes(x.bit_length() for x in freqs)
    bits = [x >> i & 1 for x in freqs for i in range(x.bit_length() - 1)]
    return (
        said(deflated(table_of + lengths))
        + np.packbits(np.array(bits, np.uint8), bitorder="little").tobytes()
    )


def stream(states=(LOW,) * ROWS, words=()):
    return struct.pack(f"<{len(states)}I", *states) + struct.pack(f"<{len(words)}H", *words)


LONE = coded_tables([4096])  # every symbol is `low`
EVEN = bytes([f.BITS]) + said(bytes([0, 0]))  # classes of 0


def bank(low=0, width=1, tables=1, lanes=ROWS, each=(ZERO,), classes=EVEN, coded=LONE, tail=None):
    """The bytes of a bank; as it is here, of one array of zeros."""
    head = zigzag(low) + varint(width - 1) + varint(tables - 1) + varint(lanes)
    head += b"".join(zigzag(level) + zigzag(centre) for level, centre in each)
    return head + classes + coded + (stream() if tail is None else tail)


def leaves(tree, *banks, crcs=None, lengths=None, version=f.FIRST):
    """A file of a tree, none of whose arrays has bytes of its own, and its banks."""
    crcs = [0] * len(tree) + [zlib.crc32(x) for x in banks] if crcs is None else crcs
    text = {"t": tree, "b": list(map(len, banks)) if lengths is None else lengths, "p": 0}
    return file_of(text, b"".join(banks), crcs=crcs, version=version)


def one(dtype="i1", shape=SHAPE, **kw):
    return leaves({"w": [dtype, list(shape), f.CONTEXT, 0]}, bank(**kw))


def i1(*bits):
    """Classes as bits of a codec."""
    return bytes([f.BITS]) + said(bytes(bits))


def rans(freqs, base=0, deflate=None):
    """Classes by the codec rans, in one lane; `deflate` is the table's bytes, deflated."""
    head = zigzag(base) + varint(1) + varint(2 * (len(freqs) - 1) + (deflate is not None))
    table = b"".join(map(varint, freqs)) if deflate is None else deflate
    return bytes([f.RANS]) + said(head + table + struct.pack("<I", LOW))


TWO = bank(each=(ZERO, ZERO), lanes=2 * ROWS, tail=stream((LOW,) * 2 * ROWS))
GOOD = one()
HALVES = coded_tables([2048, 2048])
U1_OF_ONE = ["u1", [1, f.MOST_OF_ONE], f.CONTEXT, 0]

BANKS = {
    # the head
    "a bank of one byte": (leaves({"w": ROW}, b"\0"), "an integer is truncated"),
    "a least symbol of -1024": (one(low=-1024), "least symbol of a bank is -1024"),
    "a least symbol of 1024": (one(low=1024), "least symbol of a bank is 1024"),
    "a width of 1025": (one(width=1025), "1024 where at most 1023"),
    "65 tables": (one(tables=65), "64 where at most 63"),
    "a table more than is said": (one(coded=coded_tables([4096, 4096])), "too long"),
    "a table fewer than is said": (one(tables=2), "tables do not fit"),
    "a context of a table that is not there": (
        one(coded=coded_tables([4096], bytes(255) + b"\1")),
        "do not fit",
    ),
    "a frequency of 14 bits": (
        one(coded=said(deflated(bytes(256) + b"\x0e")) + bytes(2)),
        "do not fit",
    ),
    "frequencies of 4095": (one(coded=coded_tables([4095])), "sum to 4096"),
    "frequencies of 8191": (one(coded=coded_tables([8191])), "sum to 4096"),
    "a table that sums right with the next": (
        one(tables=2, coded=coded_tables([4095, 4097])),
        "sum to 4096",
    ),
    "no frequency": (one(coded=coded_tables([0])), "sum to 4096"),
    "bits missing": (one(coded=LONE[:-2], tail=b""), "truncated"),
    "bits that pad": (one(coded=LONE[:-1] + b"\x10"), "padding of the tables"),
    "tables that do not inflate": (one(coded=said(b"\xff" * 20)), "does not inflate"),
    "tables cut": (one(coded=said(deflated(bytes(257))[:-2])), "truncated or too long"),
    "tables with a tail": (
        one(coded=said(deflated(bytes(256) + b"\x0d") + b"\0") + bytes(2)),
        "1 bytes are left over",
    ),
    "tables that inflate to a bomb": (
        one(coded=said(deflated(bytes(64 << 20)))),
        "truncated or too long",
    ),
    "tables of 2^60 bytes": (one(coded=varint(2**60), tail=b""), f"{2**60} bytes are announced"),
    "a level of 17": (one(each=[(17, 0)]), "level or centre"),
    "a level of -17": (one(each=[(-17, 0)]), "level or centre"),
    "a centre of 65 bits": (one(each=[(0, 2**64)]), "level or centre"),
    "a centre of -2^63 - 1": (one(each=[(0, -(2**63) - 1)]), "level or centre"),
    "outputs first in version 1": (
        leaves({"w": FIRST_ROW}, bank()),
        "codec must be an integer from 0 to 3",
    ),
    "outputs first of one axis": (
        leaves({"w": ["i1", [4096], f.CONTEXT_FIRST, 0]}, bank(), version=2),
        "no axis of outputs",
    ),
    "an array's level missing": (
        leaves({"v": ROW, "w": ROW}, bank()),
        "cannot be 258 raw elements",
    ),
    # the classes
    "classes of 16": (one(classes=i1(32, 0)), "classes run from 16 to 16"),
    "classes of -16": (one(classes=i1(31, 0)), "classes run from -16 to -16"),
    "classes below int8": (one(classes=i1(0x81, 2, 0)), "range of int8"),
    "too few classes": (one(classes=i1(0, 1, *bytes(16))), "cannot hold 129 symbols of 1 bits"),
    "too many classes": (one(classes=i1(0, 1, *bytes(18))), "cannot hold 129 symbols of 1 bits"),
    "raw classes, too few": (
        one(classes=bytes([f.RAW]) + said(bytes(128))),
        "raw elements of int8",
    ),
    "classes that end nowhere": (
        one(classes=bytes([f.RAW]) + varint(2**40)),
        f"{2**40} bytes are announced",
    ),
    "classes in a bank": (one(classes=bytes([f.CONTEXT]) + said(bytes([0, 0]))), "codec 3"),
    "classes of an unknown codec": (one(classes=bytes([77]) + rans([4096])[1:]), "codec 77"),
    "classes with a bomb": (
        one(classes=rans([4096], deflate=deflated(bytes(64 << 20)))),
        "too long",
    ),
    "classes of a bad table": (one(classes=rans([4000])), "sum to 4096"),
    # the stream
    "no lanes": (one(lanes=0, tail=b""), "0 lanes"),
    "more lanes than rows": (one(lanes=257, tail=stream([LOW] * 257)), "257 lanes"),
    "lanes of 2^60": (one(lanes=2**60), f"{2**60} lanes"),
    "a step too many a lane": (
        one(shape=(129, 128), lanes=1, tail=stream([LOW])),
        "1 lanes for 16512",
    ),
    "states cut": (one(tail=stream()[:-2]), "cannot hold 256 states"),
    "no stream": (one(tail=b""), "cannot hold 256 states"),
    "an odd byte": (one(tail=stream() + b"\0"), "whole words"),
    "a word left over": (one(tail=stream(words=[7])), "1 words are left over"),
    "words missing": (one(width=2, coded=coded_tables([1, 4095])), "the stream is truncated"),
    "words cut": (
        one(width=2, coded=coded_tables([1, 4095]), tail=stream(words=[0] * 255)),
        "truncated",
    ),
    "a state below 2^16": (one(tail=stream([LOW] * 255 + [LOW - 1])), "below 2"),
    "a state not at rest": (one(tail=stream([LOW] * 255 + [LOW + 1])), "initial state"),
    # the symbols
    "symbols above int8": (one(each=[(0, 128)]), "symbols from 128 to 128 leave the range of int8"),
    "symbols below int8": (one(low=-1, each=[(0, -128)]), "-129 to -129 leave the range of int8"),
    "symbols below uint8": (one("u1", low=-1), "-1 to -1 leave the range of uint8"),
    "symbols below a uint64": (one("u8", low=-1), "-1 to -1 leave the range of uint64"),
    "symbols above a uint64": (
        one("u8", low=1, each=[(0, 2**64 - 1)]),
        "leave the range of uint64",
    ),
    "symbols above an int64": (one("i8", low=1, each=[(0, 2**63 - 1)]), "leave the range of int64"),
    "a mask of 2": (one("?", low=2), "leave the range of bool"),
    "an int4 of 8": (one("int4", low=8), "leave the range of int4"),
    # the manifest
    "a bank that is not there": (
        leaves({"w": [*ROW[:3], 1]}, bank()),
        "bank must be an integer from 0 to 0, not 1",
    ),
    "no banks at all": (
        file_of({"t": {"w": ROW}, "p": 0}, crcs=[0]),
        "bank must be an integer from 0 to -1",
    ),
    "a bank of -1": (leaves({"w": [*ROW[:3], -1]}, bank()), "not -1"),
    "a bank of true": (leaves({"w": [*ROW[:3], True]}, bank()), "not True"),
    "a bank that nobody is in": (leaves({"w": ROW}, bank(), bank()), "bank 1 has 0 arrays"),
    "only a bank": (leaves({}, bank()), "bank 0 has 0 arrays"),
    "a bank of 4095 symbols": (one(shape=(63, 65)), "bank 0 has 1 arrays of 4095 symbols"),
    "two arrays of 2^22 + 1": (
        leaves({"v": ["i1", [2**21, 2], 3, 0], "w": ["i1", [1, 1], 3, 0]}, TWO),
        f"bank 0 has 2 arrays of {2**22 + 1} symbols",
    ),
    "an array of 2^24 + 1": (one(shape=(1, 2**24 + 1)), "cannot be in a bank"),
    "an empty array": (
        leaves({"v": ["i1", [0, 3], 3, 0], "w": ROW}, bank()),
        "cannot be in a bank",
    ),
    "floats": (one("f4"), "cannot be in a bank"),
    "float8": (one("float8_e5m2"), "cannot be in a bank"),
    "under a mask": (
        leaves({"w": ["M", ["?", [64, 64], 3, 0], ["i1", 0, 3, 0]]}, TWO, crcs=[0, 0]),
        "cannot be in a bank",
    ),
    "lengths that are no list": (leaves({"w": ROW}, bank(), lengths=len(bank())), "not a list"),
    "a length of true": (leaves({"w": ROW}, bank(), lengths=[True]), "length of a bank"),
    "a length of 0": (leaves({"w": ROW}, bank(), lengths=[0]), "length of a bank"),
    "a length of a float": (
        leaves({"w": ROW}, bank(), lengths=[float(len(bank()))]),
        "length of a bank",
    ),
    "a length past the end": (
        leaves({"w": ROW}, bank(), lengths=[len(bank()) + 1]),
        "streams cover",
    ),
    "a length before the end": (
        leaves({"w": ROW}, bank(), lengths=[len(bank()) - 1]),
        "streams cover",
    ),
    "lengths of 2^62": (
        leaves({"v": ROW, "w": [*ROW[:3], 1]}, bank(), lengths=[2**62] * 2, crcs=[0] * 4),
        "streams cover",
    ),
    "a checksum too few": (leaves({"w": ROW}, bank(), crcs=[0]), "no checksum"),
    "a checksum too many": (
        leaves({"w": ROW}, bank(), crcs=[0, zlib.crc32(bank()), 0]),
        "left over",
    ),
    "a wrong checksum": (leaves({"w": ROW}, bank(), crcs=[0, 1]), "checksum is wrong"),
    # masks that follow from integers
    "a mask of floats": (
        file_of({"t": {"w": ["M", 0, ["f4", [2]]]}, "p": 0}, bytes(8)),
        "there are none",
    ),
    "a mask of float8": (
        file_of({"t": {"w": ["M", 0, ["float8_e5m2", [2], 1, 2]]}, "p": 0}, bytes(2)),
        "are none",
    ),
    "a mask of factors": (
        file_of({"t": ["M", 0, ["L", ["i1", [2, 1]], ["i1", [1, 2]]]], "p": 0}, bytes(4)),
        "none",
    ),
    "a mask of a stack": (
        file_of({"t": ["M", 0, ["S", -1, 1, ["i1", [2]]]], "p": 0}, bytes(2)),
        "there are none",
    ),
    "a mask of a mask": (leaves({"w": ["M", 0, ["M", 0, ROW]]}, bank()), "there are none"),
    "a mask of a mask that is stored": (
        file_of(
            {"t": ["M", 0, ["M", ["?", [2], 1, 3], ["i1", 0, 0, 2]]], "p": 0},
            bytes([0, 1, 3, 0, 0]),
        ),
        "there are none",
    ),
    "a mask below a mask": (
        file_of(
            {"t": ["M", ["?", [2], 1, 3], ["M", 0, ["i1", [2]]]], "p": 0}, bytes([0, 1, 3, 0, 0])
        ),
        "neither an array nor a code",
    ),
    "a mask of nothing": (file_of({"t": ["M", 0, None], "p": 0}), "a part is missing"),
    "a mask without values": (file_of({"t": ["M", 0], "p": 0}), "1 entries"),
    "a mask of what has its shape": (
        file_of({"t": ["M", 0, ["i1", 0, 0, 2]], "p": 0}, bytes(2)),
        "there is none",
    ),
    "a mask of 1": (
        file_of({"t": ["M", 1, ["i1", [2]]], "p": 0}, bytes(2)),
        "neither an array nor a code",
    ),
    "a mask of false": (
        file_of({"t": ["M", False, ["i1", [2]]], "p": 0}, bytes(2)),
        "neither an array nor a code",
    ),
    "a mask of 0.0": (
        file_of({"t": ["M", 0.0, ["i1", [2]]], "p": 0}, bytes(2)),
        "neither an array nor a code",
    ),
}
