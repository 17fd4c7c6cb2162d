"""The file format's constants and words: what a file may say, and nothing else. Specified in
docs/format.md.

    u64 header length | JSON header | jp.manifest: u32 CRC, deflated JSON, u32 CRC of each leaf |
    jp.data: streams

The header makes the file a valid safetensors file of two U8 tensors. The JSON holds the tree, whose
leaves name their arrays' dtypes, shapes, codecs and lengths; offsets are running sums, so gaps and
overlaps cannot be said. Every table here is closed: nothing in a file is imported, evaluated or
looked up by name anywhere else.
"""

import dataclasses
import json
import struct
from typing import Any, NamedTuple

import numpy as np

from ...core.leaves.keys import joined

VERSION = 2  # the newest that is read
FIRST = 1  # what a file says that has none of the codecs of version 2

MAX_HEADER = 1 << 12
MAX_MANIFEST = 16 << 20  # bytes of JSON
MAX_TOKENS = 2 << 20  # brackets and commas of JSON: bounds what the parser may build
MAX_DEPTH = 64
MAX_RANK = 32
MAX_SIZE = 1 << 48  # elements of one array, counting axes of length 0 as 1
MAX_TEXT = 1000

RAW, BITS, RANS, CONTEXT, PLANES, LZMA, ESCAPE, CONTEXT_FIRST = range(8)
CODECS = ("raw", "bits", "rans", "context", "planes", "lzma", "escape", "context first")
BANKED = (CONTEXT, CONTEXT_FIRST)  # the outputs of an array are its last axis, or its first
LAST_CODEC = {1: CONTEXT, 2: CONTEXT_FIRST}  # of each version
MAX_WIDTH = 32  # of the bits codec
MAX_ALPHABET = 4096  # of the rans codec
MAX_TABLES = 64  # of a bank of the context codec
MAX_WIDTH_OF_BANK = 1024  # symbols of its tables
# symbols of a bank of several arrays; a larger array has one of its own
LEAST_BANK = 1 << 12
MOST_BANK = 1 << 22
MOST_OF_ONE = 1 << 24  # symbols of one array in a bank


class FormatError(ValueError):
    """A file that is not what `save` writes: damaged, truncated, hostile, or newer than this
    library.
    """


@dataclasses.dataclass(frozen=True)
class Dtype:
    """How an element is stored: as a little-endian NumPy word; a discrete one has a range and may
    be a symbol.
    """

    name: str
    word: str
    low: int | None = None
    high: int | None = None

    @property
    def itemsize(self) -> int:
        return int(self.word[1:])

    @property
    def discrete(self) -> bool:
        return self.low is not None

    @property
    def words(self) -> tuple[int, int]:
        """The least and the greatest word; those of floats of 16 bits and more are unsigned."""
        return (
            (0, (1 << 8 * self.itemsize) - 1)
            if self.low is None or self.high is None
            else (self.low, self.high)
        )

    @property
    def may_be_raw(self) -> bool:
        """False where a byte has more values than the dtype."""
        low, high = self.words
        return high - low + 1 == 1 << 8 * self.itemsize


def _integers() -> dict[str, Dtype]:
    table = {"?": Dtype("bool", "u1", 0, 1)}
    for bits in (8, 16, 32, 64):
        table[f"i{bits // 8}"] = Dtype(
            f"int{bits}", f"i{bits // 8}", -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        )
        table[f"u{bits // 8}"] = Dtype(f"uint{bits}", f"u{bits // 8}", 0, 2**bits - 1)
    for bits in (2, 4):
        table[f"int{bits}"] = Dtype(f"int{bits}", "i1", -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        table[f"uint{bits}"] = Dtype(f"uint{bits}", "u1", 0, 2**bits - 1)
    return table


_FLOAT8 = ("e3m4", "e4m3", "e4m3b11fnuz", "e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")

DTYPES: dict[str, Dtype] = {
    **_integers(),
    "f2": Dtype("float16", "u2"),
    "f4": Dtype("float32", "u4"),
    "f8": Dtype("float64", "u8"),
    "c8": Dtype("complex64", "u8"),
    "bf": Dtype("bfloat16", "u2"),
    **{f"float8_{x}": Dtype(f"float8_{x}", "u1", 0, 255) for x in _FLOAT8},
    "float4_e2m1fn": Dtype("float4_e2m1fn", "u1", 0, 15),
}
CODE_OF = {dtype.name: code for code, dtype in DTYPES.items()}
HOST = "="  # before a dtype: a NumPy array, not a JAX one


class Kind(NamedTuple):
    """A compressed type: its fields in file order, its static fields, and the fields that a mask
    above it hides.
    """

    name: str
    fields: tuple[str, ...]
    statics: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()


KINDS = {
    "M": Kind(
        "Masked", ("mask", "values"), hidden=("mask", "values")
    ),  # the mask says how many values follow it
    "C": Kind("Clustered", ("codebook", "indices"), hidden=("indices",)),
    "D": Kind("Dense", ("values",), ("why",), hidden=("values",)),
    "S": Kind("Stacked", ("each",), ("axis", "rank"), hidden=("each",)),
    "P": Kind(
        "Packed", ("words",), ("bits", "signed"), hidden=("words",)
    ),  # stored as integers, not as bit planes
    "Q": Kind(
        "Quantized", ("q", "scale", "zero_point"), ("bits", "dense_dtype", "grid"), hidden=("q",)
    ),
    "B": Kind("Binary", ("signs", "scale"), ("dense_dtype",), hidden=("signs",)),
    "R": Kind("Shared", ("prototypes", "assignment", "scale"), ("axis",)),
    "L": Kind("LowRank", ("u", "v")),
    "T": Kind("Tucker", ("core", "u", "v")),
}
NONZERO = 0  # in the place of a mask: it is True where the integers below it are not 0
ALIGNED = "CDPQB"  # kinds between such a mask and its integers
GROUP = "G"  # Common: a codebook, and the tree whose leaves share it
LIST = "l"
TUPLE = "t"
INT_KEYS = "i"
NOT_FINITE = "x"
TIED = "@"  # a leaf that is an earlier one (of version 2)
NOT_FINITE_TEXTS = ("nan", "inf", "-inf")
INT_STATICS = {"axis": (-MAX_RANK, -1), "rank": (1, MAX_RANK), "bits": (1, 64), "signed": (0, 1)}

# What a small manifest is likely to say. Part of version 1: never to be edited.
DICTIONARY = (
    b'"mean":["f4",[128]],"var":["f4",[256]],"embedding":["bf",[1024]],"params":{"layers":["l",{"attention":{"out":{"mlp":{"'
    b'"BatchNorm_0":{"block0_1":{"layers_1":{"Dense_0":{"Conv_0":{"dense1":{"linear1":{"conv2":{"weight":["f4",["Q",8,"f4",0,'
    b'["u1",0,1,["B",["P",4,1,["T",["R",["S",-1,["bf",[512]],"scale":["i1",0,2,["i1",[64,10],2,["f2",[64]],["M",["?",[1,1,'
    b'"kernel":["M",["?",[3,3,16,32],2,["C",["f2",[16]],["u1",0,2,["C",["f4",[32]],["u1",0,2,{"t":{"fc1":{"bias":["f4",[300]],'
    b'"kernel":["M",["?",[100,10],2,]]]}},"p":0,"m":{"'
)


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One array in a file. `hidden`: it has the shape of the mask above, and only the kept entries
    are stored.

    In a bank, `offset` counts the arrays before it there, and `length` is 0.
    """

    dtype: str
    host: bool
    shape: tuple[int, ...]
    hidden: bool
    codec: int
    offset: int
    length: int
    bank: int = -1


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """The arrays that share tables and a stream, and where its bytes are."""

    rows: list[Row]
    offset: int
    length: int
    crc: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Array:
    """One array in memory, as words (see `Dtype`); `mask`, of its shape, is what a file keeps of
    it.
    """

    dtype: str
    host: bool
    words: np.ndarray
    mask: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.words.shape

    def kept(self) -> np.ndarray:
        """The entries that a file holds, on one axis."""
        return self.words.reshape(-1) if self.mask is None else self.words[self.mask]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Code:
    """A compressed array: the parts in the order of `KINDS[tag].fields`; each a `Code`, a `Row` or
    `Array`, or None.
    """

    tag: str
    statics: tuple[Any, ...]
    parts: tuple[Any, ...]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """A leaf of the user's tree: a `Code`, a `Row` or `Array`, or a number; in a file, also where
    its bytes are, and the path of the earlier leaf whose bytes they are, if there is one.
    """

    path: str
    node: Any
    offset: int = 0
    length: int = 0
    crc: int = 0
    tied: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Group:
    """A codebook and the tree below it."""

    path: str
    codebook: Leaf
    tree: Any


def join(keys: tuple[str | int, ...]) -> str:
    """The path of a leaf, as `core.paths.leaf_path` writes it."""
    return joined(keys)


def header(manifest: int, data: int, version: int = FIRST) -> bytes:
    """The safetensors header of a file with so many bytes: the only one a reader accepts."""

    def tensor(a, b):
        return {"dtype": "U8", "shape": [b - a], "data_offsets": [a, b]}

    text = {
        "__metadata__": {"jaxprune": str(version)},
        "jp.manifest": tensor(0, manifest),
        "jp.data": tensor(manifest, manifest + data),
    }
    raw = json.dumps(text, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw
