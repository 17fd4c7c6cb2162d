"""What a file holds and what each leaf takes in it, from the manifest alone."""

import dataclasses
from typing import Any, NamedTuple

from .accounting import dense_bytes, leaves, rows, shared, stored_bytes
from .format.manifest import Contents
from .format.shapes import dense
from .format.words import CODECS, DTYPES, KINDS, VERSION, Code, Group, Leaf, Row

WIDTH = 100
# columns of the table; two of 10 for sizes, and 4 spaces
PATH = 24
KIND = 22
ARRAY = 16
CODEC = 13


class LeafInfo(NamedTuple):
    """One leaf: the code that it is stored as, the array that it stands for, and its bytes as each.

    Arrays that share a bank have each a part of its bytes, by their number of symbols.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    dense_bytes: int
    stored_bytes: int
    codecs: tuple[str, ...]


class FileBytes(NamedTuple):
    """Sizes: the whole file, its streams, its manifest, and what the streams were predicted to
    take.
    """

    file: int
    data: int
    manifest: int
    predicted: int


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What `inspect` found."""

    rows: tuple[LeafInfo, ...]
    bytes: FileBytes
    metadata: dict[str, Any]
    version: int = VERSION

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dicts and lists, for JSON."""
        rows = [
            {**r._asdict(), "shape": list(r.shape), "codecs": list(r.codecs)} for r in self.rows
        ]
        return {
            "version": self.version,
            "bytes": self.bytes._asdict(),
            "metadata": self.metadata,
            "rows": rows,
        }

    def __str__(self) -> str:
        total = sum(row.dense_bytes for row in self.rows)
        lines = [_line("path", "kind", "array", "dense", "stored", "codecs"), "─" * WIDTH]
        for r in self.rows:
            array = f"{_short(r.dtype)}{list(r.shape)}".replace(" ", "")
            lines.append(
                _line(
                    r.path, r.kind, array, f"{r.dense_bytes:,}", f"{r.stored_bytes:,}", _codecs(r)
                )
            )
        ratio = f"{total / self.bytes.file:.1f}x smaller; " if total else ""
        lines.append("─" * WIDTH)
        lines.append(
            f"{total:,} bytes dense, {self.bytes.file:,} in the file ({ratio}data "
            f"{self.bytes.data:,}, manifest {self.bytes.manifest:,})"
        )
        lines.append(f"counts predicted {self.bytes.predicted:,} bytes of data")
        return "\n".join(lines)


def summary(contents: Contents) -> Inspection:
    """The inspection of a file's contents."""
    found = zip(leaves(contents.tree), stored_bytes(contents))
    infos = tuple(_row(leaf, group, stored) for (leaf, group), stored in found)
    sizes = FileBytes(
        contents.start + contents.data, contents.data, contents.manifest, contents.predicted
    )
    return Inspection(infos, sizes, contents.metadata)


def _row(leaf: Leaf, group: Group | None, stored: int) -> LeafInfo:
    node = leaf.node
    if not isinstance(node, Row | Code):
        return LeafInfo(leaf.path, type(node).__name__, (), type(node).__name__, 0, 0, ())
    shape, dtype = dense(node, shared(group))
    codecs = tuple(dict.fromkeys(CODECS[row.codec] for row in rows(node)))
    if leaf.tied is not None:
        codecs = (f"= {leaf.tied}",)
    return LeafInfo(
        leaf.path, _kind(node), shape, DTYPES[dtype].name, dense_bytes(node, group), stored, codecs
    )


def _kind(node: Any) -> str:
    """Masked(Clustered(Quantized)): a code, and the codes among its parts."""
    if not isinstance(node, Code):
        return "array"
    inner = ", ".join(_kind(part) for part in node.parts if isinstance(part, Code))
    return KINDS[node.tag].name + (f"({inner})" if inner else "")


def _short(dtype: str) -> str:
    """f32 for float32, as jaxprs say."""
    return (
        dtype.replace("float", "f").replace("uint", "u").replace("int", "i").replace("complex", "c")
    )


def _codecs(row: LeafInfo) -> str:
    return "+".join(row.codecs)


def _line(path: str, kind: str, array: str, dense: str, stored: str, codec: str) -> str:
    left = f"{_cut(path, PATH):{PATH}} {_cut(kind, KIND):{KIND}} {_cut(array, ARRAY):{ARRAY}}"
    return f"{left} {dense:>10} {stored:>10} {_cut(codec, CODEC)}".rstrip()


def _cut(text: str, width: int) -> str:
    """The text in `width` columns; of a long one, both ends."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return (
        text
        if len(text) <= width
        else f"{text[: width // 2 - 1]}…{text[len(text) - width + width // 2 :]}"
    )
