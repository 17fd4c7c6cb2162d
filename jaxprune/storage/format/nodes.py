"""The manifest's JSON as nodes: every entry is of a closed table and in range, and the parts of
every code fit.
"""

import math
from typing import Any

from . import words as f
from .shapes import Shape, Shaped, dense
from .words import DTYPES, KINDS, Code, FormatError, Group, Leaf, Row


def integer(x: Any, low: int, high: int, what: str) -> int:
    """x, if it is an integer in this range; True and 3.0 are none."""
    if type(x) is not int or not low <= x <= high:
        raise FormatError(f"the {what} must be an integer from {low} to {high}, not {str(x)[:40]}")
    return x


def grids(said: Any) -> list[tuple[float, ...]]:
    """The grids of all `Quantized` of a file, which name theirs by number."""
    rows: list[Any] = said if type(said) is list else [None]
    if not all(
        type(row) is list and 0 < len(row) <= 1 << 16 and all(type(x) is float for x in row)
        for row in rows
    ):
        raise FormatError("the grids are not lists of floats")
    return [tuple(row) for row in rows]


class Nodes:
    """Turns the manifest's JSON into nodes; offsets are running sums, checksums are taken in
    order.
    """

    def __init__(
        self,
        tables: list[tuple[float, ...]],
        banks: int,
        crcs: list[int],
        last_codec: int = f.LAST_CODEC[f.VERSION],
    ):
        self.grids = tables
        self.last_codec = last_codec
        self.untied: list[Leaf] = []  # the leaves that have arrays of their own
        self.banks: list[list[Row]] = [[] for _ in range(banks)]
        self.crcs = iter(crcs)
        self.offset = 0
        self.leaves: list[Leaf] = []

    def node(self, x: Any, keys: tuple[str | int, ...], shared: Shaped | None) -> Any:
        if len(keys) > f.MAX_DEPTH:
            raise FormatError(f"the tree is more than {f.MAX_DEPTH} levels deep")
        if type(x) is dict:
            return {key: self.node(kid, (*keys, key), shared) for key, kid in x.items()}
        if x is None:
            return None
        tag = x[0] if type(x) is list and x else None
        if tag in (f.LIST, f.TUPLE):
            kids = [self.node(kid, (*keys, i), shared) for i, kid in enumerate(x[1:])]
            return kids if tag == f.LIST else tuple(kids)
        if tag == f.INT_KEYS:
            return self.int_keys(x, keys, shared)
        return self.group(x, keys) if tag == f.GROUP else self.leaf(x, f.join(keys), shared)

    def int_keys(
        self, x: list[Any], keys: tuple[str | int, ...], shared: Shaped | None
    ) -> dict[int, Any]:
        own = x[1::2]
        fit = len(x) % 2 == 1 and all(type(key) is int and -(2**63) <= key < 2**63 for key in own)
        if not fit or sorted(set(own)) != own:
            raise FormatError(
                f"{f.join(keys)!r}: integer keys must be integers, in order, each with its node"
            )
        return {key: self.node(kid, (*keys, key), shared) for key, kid in zip(own, x[2::2])}

    def group(self, x: list[Any], keys: tuple[str | int, ...]) -> Group:
        path = f.join(keys)
        if len(x) != 3:
            raise FormatError(f"{path!r}: a Common has a codebook and a tree")
        codebook = self.leaf(x[1], f"{path}.codebook", None)
        if not isinstance(codebook.node, Row | Code):
            raise FormatError(f"{path!r}: the codebook of a Common is not an array")
        return Group(path, codebook, self.node(x[2], keys, dense(codebook.node)))

    def leaf(self, x: Any, path: str, shared: Shaped | None) -> Leaf:
        if type(x) is list and x[:1] == [f.TIED]:
            return self.tied(x, path, shared)
        start = self.offset
        crc: int | None = 0
        try:
            node = (
                self.part(x, None, 0) if type(x) is list and x[:1] != [f.NOT_FINITE] else _scalar(x)
            )
            if isinstance(node, Row | Code):
                crc = next(self.crcs, None)
                dense(node, shared)
            if crc is None:
                raise FormatError("there is no checksum for it")
        except FormatError as e:
            raise FormatError(f"leaf {path!r}: {e}") from None
        self.leaves.append(Leaf(path, node, start, self.offset - start, crc))
        if isinstance(node, Row | Code):
            self.untied.append(self.leaves[-1])
        return self.leaves[-1]

    def tied(self, x: list[Any], path: str, shared: Shaped | None) -> Leaf:
        """A leaf whose arrays are those of an earlier one."""
        try:
            if len(x) != 2 or self.last_codec < f.PLANES:
                raise FormatError(f"{str(x)[:40]} names no earlier leaf")
            first = self.untied[integer(x[1], 0, len(self.untied) - 1, "number of an earlier leaf")]
            dense(first.node, shared)
        except FormatError as e:
            raise FormatError(f"leaf {path!r}: {e}") from None
        self.leaves.append(
            Leaf(path, first.node, first.offset, first.length, first.crc, first.path)
        )
        return self.leaves[-1]

    def part(self, x: Any, mask: Shape | None, depth: int) -> Any:
        """A `Row`, a `Code`, None or `NONZERO`; `mask` is the shape of the mask above it."""
        if x is None and depth:
            return None
        if type(x) is not list or not x or type(x[0]) is not str or depth > f.MAX_DEPTH:
            raise FormatError(f"{str(x)[:40]} is neither an array nor a code")
        if x[0] not in KINDS:
            return self.row(x, mask)
        kind = KINDS[x[0]]
        if len(x) != 1 + len(kind.statics) + len(kind.fields):
            raise FormatError(f"{kind.name} has {len(x) - 1} entries")
        said = x[1:]
        statics = tuple(self.static(name, said.pop(0)) for name in kind.statics)
        if x[0] == "S" and mask is not None:
            mask = _stack_first(mask, *statics)
        parts: list[Any] = []
        for name, part in zip(kind.fields, said):
            if (
                x[0] == "M"
                and name == "mask"
                and part == f.NONZERO
                and type(part) is int
                and mask is None
            ):
                parts.append(f.NONZERO)
                continue
            parts.append(self.part(part, mask if name in kind.hidden else None, depth + 1))
            if x[0] == "M" and name == "mask":
                mask = dense(parts[0])[0]
        return Code(x[0], statics, tuple(parts))

    def static(self, name: str, x: Any) -> Any:
        if name in f.INT_STATICS:
            return integer(x, *f.INT_STATICS[name], name)
        if name == "grid":
            return (
                None
                if x == 0 and type(x) is int
                else self.grids[integer(x, 1, len(self.grids), "grid") - 1]
            )
        if type(x) is not str or len(x) > f.MAX_TEXT or (name == "dense_dtype" and x not in DTYPES):
            raise FormatError(f"{name} is {str(x)[:40]!r}")
        return x

    def row(self, x: list[Any], mask: Shape | None) -> Row:
        host = x[0].startswith(f.HOST)
        dtype = x[0].removeprefix(f.HOST)
        if dtype not in DTYPES or len(x) not in (2, 4):
            raise FormatError(
                f"{str(x)[:60]} is no array: {len(x)} entries, or an unknown dtype or kind of code"
            )
        hidden = x[1] == 0 and type(x[1]) is int
        if hidden and mask is None:
            raise FormatError("an array takes the shape of a mask, but there is none")
        shape = mask if hidden and mask is not None else _shape(x[1])
        n = math.prod(shape) * DTYPES[dtype].itemsize
        codec = f.RAW
        length = n
        if len(x) == 4:
            codec = integer(x[2], f.RAW, self.last_codec, "codec")
            length = integer(x[3], 0, 2**63, "length")
        if codec in f.BANKED:
            return self.banked(dtype, host, shape, hidden, codec, length)
        if hidden and len(x) == 2:
            raise FormatError("an array under a mask does not say how long it is")
        if codec == f.RAW and not hidden and length != n:
            raise FormatError(f"a raw array of shape {shape} has {n} bytes, not {length}")
        row = Row(dtype, host, shape, hidden, codec, self.offset, length)
        self.offset += length
        return row

    def banked(
        self, dtype: str, host: bool, shape: Shape, hidden: bool, codec: int, bank: int
    ) -> Row:
        size = math.prod(shape)
        if hidden or dtype[0] not in "?iu" or not 0 < size <= f.MOST_OF_ONE:
            raise FormatError(
                f"an array of {dtype}{list(shape)}, or one under a mask, cannot be in a bank"
            )
        if codec == f.CONTEXT_FIRST and len(shape) < 2:
            raise FormatError(
                f"an array of shape {shape} has no axis of outputs before another one"
            )
        rows = self.banks[integer(bank, 0, len(self.banks) - 1, "bank")]
        rows.append(Row(dtype, host, shape, False, codec, len(rows), 0, bank))
        return rows[-1]


def _shape(x: Any) -> Shape:
    if type(x) is not list or len(x) > f.MAX_RANK:
        raise FormatError(f"{str(x)[:40]} is not a shape")
    shape = tuple(integer(n, 0, f.MAX_SIZE, "length of an axis") for n in x)
    if math.prod(max(1, n) for n in shape) > f.MAX_SIZE:
        raise FormatError(f"an array of shape {shape} is too large")
    return shape


def _stack_first(mask: Shape, axis: int, rank: int) -> Shape | None:
    if not -axis <= len(mask) >= rank:
        return None
    rest = list(mask)
    stack = rest.pop(axis)
    rest.insert(len(mask) - rank, stack)
    return tuple(rest)


def _scalar(x: Any) -> Any:
    if type(x) is list and len(x) == 2 and x[1] in f.NOT_FINITE_TEXTS:
        return float(x[1])
    if type(x) is int:
        return integer(x, -(2**63), 2**63 - 1, "number")
    if type(x) in (bool, float):
        return x
    raise FormatError(f"{str(x)[:40]} is neither an array nor a number")
