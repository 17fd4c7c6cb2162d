"""A tree as a table: what was done to each leaf, and what it costs now."""

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune.core import where as w
from jaxprune.core.arrays import Dense, is_code
from jaxprune.core.leaves.layout import Axes, axes_of
from jaxprune.core.pieces import Leaf, dense, kept, leaves, pieces, select
from jaxprune.report.describe import describe, percent
from jaxprune.report.measure import leaf_sizes
from jaxprune.report.stored import stored_bytes

WIDTH = 100
LAST = str(Axes((-1,), (-2,)))  # what goes without saying


class Row(NamedTuple):
    """One leaf of the user's tree, or the total.

    Attributes:
      path: its name.
      shape: of the dense array.
      dtype: of the dense array.
      code: what was done, as "Masked 8% · Clustered 32 · codebook int8"; "" for a plain array.
      density: the fraction of weights kept.
      bits: of the fixed-length code, a weight (of a shared codebook, a centroid).
      dense: bytes, as the three that follow: see `measure.Sizes`.
      nonzero: of the kept weights, places free.
      stored: of the payload that `save` writes.
      entropy: the least of a coder of single symbols.
      note: why the leaf is dense; values that are not finite.
      axes: which axes of a kernel are its outputs, as its name, shape and bias tell; "" of what is
        no kernel.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    code: str
    density: float
    bits: float
    dense: int
    nonzero: int
    stored: int
    entropy: int
    note: str
    axes: str = ""


class Summary(NamedTuple):
    """A table of a tree. `print` shows 100 columns of it, rich all, `to_json` the numbers.

    Attributes:
      rows: one a leaf.
      totals: their sum.
    """

    rows: tuple[Row, ...]
    totals: Row

    @property
    def ratio(self) -> float:
        """Bytes dense over bytes stored."""
        return self.totals.dense / self.totals.stored if self.totals.stored else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Lists, dicts, strings and numbers only."""

        def plain(row):
            return {**row._asdict(), "shape": list(row.shape)}

        return {
            "rows": [plain(r) for r in self.rows],
            "totals": plain(self.totals),
            "ratio": self.ratio,
        }

    def to_json(self, **kw: Any) -> str:
        """`to_dict` as JSON; keywords go to `json.dumps`."""
        return json.dumps(self.to_dict(), **{"ensure_ascii": False, "allow_nan": False, **kw})

    def __str__(self) -> str:
        return _text(self)

    def __rich__(self) -> Any:
        return _rich(self)


def summary(tree: Any, *, where: Any = None) -> Summary:
    """One row a leaf: what was done to it, what is kept, what it costs, and why it was left alone.

    Args:
      tree: any pytree of concrete arrays, compressed or not.
      where: which leaves; all by default.

    Returns:
      `Summary`, which prints as text and as a table in rich; its numbers are in `rows`, `totals`,
      `to_dict`, `to_json`. A codebook for a whole tree has a row of its own, which stands for no
      weights.

    Raises:
      ValueError: arrays are traced, or `where` selects nothing.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> code = jp.Masked(jnp.arange(64.0).reshape(8, 8), jnp.zeros((8, 8), bool).at[0].set(True))
      >>> print(jp.summary({"kernel": code, "bias": jnp.arange(8.0)}))
      leaf   array      what          kept  bits dense stored entropy
      bias   f32[8]     dense (1-D)  87.5% 32.00    32     32      32
      kernel f32[8,8]   Masked 12.5% 12.5%  5.00   256     42      37
      total  72 weights              20.8%  8.00   288     74      69
      3.9x smaller: 288 B of weights in 74 B
    """
    chosen = select(tree, where)
    found = leaves(tree)
    stored = dict(zip((leaf.path for leaf in found), stored_bytes(found)))
    rows = tuple(_row(leaf, stored[leaf.path]) for leaf in chosen)
    return Summary(rows, _total(rows))


def _row(leaf: Leaf, stored: int) -> Row:
    array = dense(leaf)
    size = leaf_sizes(leaf, stored)
    bits = sum(p.symbols.size * p.bits for p in pieces(leaf))
    here = np.zeros(0, bool) if leaf.side else kept(leaf)
    return Row(
        path=leaf.path,
        shape=array.shape,
        dtype=array.dtype.name,
        code=" · ".join(
            filter(None, ("shared codebook" if leaf.side else "", describe(leaf.code)))
        ),
        density=float(here.mean()) if here.size else 1.0,
        bits=bits / max(array.size, 1),
        **size._asdict(),
        note=", ".join(filter(None, (_why_dense(leaf), _not_finite(array)))),
        axes=_axes(leaf, array),
    )


def _axes(leaf: Leaf, array: np.ndarray) -> str:
    """Which axes of a kernel its outputs are, as `quantize` and the patterns take them."""
    if leaf.slot is None:
        return ""
    slot = leaf.slot._replace(value=array)
    return "" if w.why_not(slot) else str(axes_of(slot.place))


def _why_dense(leaf: Leaf) -> str:
    if isinstance(leaf.code, Dense):
        return f"dense ({leaf.code.why})" if leaf.code.why else "dense"
    if is_code(leaf.code) or leaf.side:
        return ""
    why = "" if leaf.slot is None else w.why_not(leaf.slot)
    return f"dense ({why})" if why else "dense"


def _not_finite(array: np.ndarray) -> str:
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return ""
    wide = array.astype(np.float64) if array.dtype.kind == "V" else array
    counts = {"NaN": int(np.isnan(wide).sum()), "Inf": int(np.isinf(wide).sum())}
    return ", ".join(f"{n} {name}" for name, n in counts.items() if n)


def _total(rows: tuple[Row, ...]) -> Row:
    weights = [math.prod(r.shape) if r.dense else 0 for r in rows]
    n = max(sum(weights), 1)
    density = sum(r.density * k for r, k in zip(rows, weights)) / n if sum(weights) else 1.0
    bits = sum(r.bits * math.prod(r.shape) for r in rows) / n
    size = {
        name: sum(getattr(r, name) for r in rows)
        for name in ("dense", "nonzero", "stored", "entropy")
    }
    return Row("total", (sum(weights),), "", "", density, bits, **size, note="", axes="")


COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("kept", lambda r: percent(r.density)),
    ("bits", lambda r: f"{r.bits:.2f}"),
    ("dense", lambda r: size(r.dense)),
    ("nonzero", lambda r: size(r.nonzero)),
    ("stored", lambda r: size(r.stored)),
    ("entropy", lambda r: size(r.entropy)),
)


def _text(table: Summary) -> str:
    columns = [c for c in COLUMNS if c[0] != "nonzero"]  # kept · dense: rich has the room to say so
    numbers = [
        [name for name, _ in columns],
        *([show(r) for _, show in columns] for r in (*table.rows, table.totals)),
    ]
    words = [
        ["leaf", "array", "what"],
        *map(_words, table.rows),
        ["total", f"{table.totals.shape[0]} weights", ""],
    ]
    right = [max(map(len, column)) for column in zip(*numbers)]
    left = _fit(
        [max(map(len, column)) for column in zip(*words)], WIDTH - sum(right) - len(right) - 2
    )
    lines = [
        " ".join(
            [
                *(elide(x, n).ljust(n) for x, n in zip(word, left)),
                *(x.rjust(n) for x, n in zip(number, right)),
            ]
        )
        for word, number in zip(words, numbers)
    ]
    return "\n".join(
        [*lines, _closing(table), *axes_lines({row.path: row.axes for row in table.rows})]
    )


def axes_lines(axes: dict[str, str], width: int = WIDTH) -> list[str]:
    """Which kernels have their outputs elsewhere than on the last axis alone: a line for each kind
    of them.

    Args:
      axes: path -> `str(axes_of(…))`, "" for what is no kernel.
      width: columns.
    """
    paths: dict[str, list[str]] = {}
    for path, text in axes.items():
        if text and text != LAST:
            paths.setdefault(text, []).append(path or "the array")
    return [elide(f"{text}: {', '.join(some)}", width) for text, some in paths.items()]


def _words(row: Row) -> list[str]:
    array = f"{_short(row.dtype)}[{','.join(map(str, row.shape))}]"
    return [row.path or "(the array)", array, ", ".join(filter(None, (row.code, row.note)))]


def _short(dtype: str) -> str:
    for long, short in (("bfloat", "bf"), ("uint", "u"), ("float", "f"), ("int", "i")):
        if dtype.startswith(long):
            return short + dtype.removeprefix(long)
    return dtype


def _fit(widths: list[int], room: int) -> list[int]:
    """The widest columns give way until all fit, but none below 8."""
    widths = list(widths)
    while sum(widths) > room and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1
    return widths


def elide(text: str, width: int) -> str:
    """The text in `width` columns: the middle of a longer one becomes "…"."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return text[:head] + "…" + text[len(text) - (width - 1 - head) :]


def size(n: int) -> str:
    """Bytes in 6 columns: 941, 26.8k, 1.07M."""
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= (1e4 if unit == "k" else scale):
            return f"{n / scale:.4g}{unit}"
    return str(n)


def _closing(table: Summary) -> str:
    return (
        f"{table.ratio:.1f}x smaller: {table.totals.dense:,} B of weights in "
        f"{table.totals.stored:,} B"
    )


def _rich(table: Summary) -> Any:
    from rich.table import Table

    axes = axes_lines({row.path: row.axes for row in table.rows})
    out = Table(caption="\n".join([_closing(table), *axes]), caption_justify="left")
    for name in ("leaf", "array", "what"):
        out.add_column(name, overflow="fold")
    for name, _ in COLUMNS:
        out.add_column(name, justify="right", no_wrap=True)
    for row in table.rows:
        out.add_row(*map(_plain, _words(row)), *(show(row) for _, show in COLUMNS))
    totals = table.totals
    out.add_section()
    out.add_row("total", f"{totals.shape[0]} weights", "", *(show(totals) for _, show in COLUMNS))
    return out


def _plain(text: str) -> Any:
    """Text in which brackets are no markup."""
    from rich.text import Text

    return Text(text)
