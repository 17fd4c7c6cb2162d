"""Tables of the commands on files; 100 columns."""

import math
from typing import Any

from jaxprune.app.experiments.tables import fitted_table, size_text
from jaxprune.app.files.compare import remarks
from jaxprune.app.files.compression_plan import Plan
from jaxprune.report.differences import Difference
from jaxprune.report.tables import axes_lines
from jaxprune.storage.checkpoints.tensors import Checkpoint
from jaxprune.storage.inspection import Inspection

PATH = 34
ARRAY = 22
WORDS = 22
SHORT = (("bfloat", "bf"), ("float", "f"), ("uint", "u"), ("int", "i"), ("complex", "c"))


def plan_table(plan: Plan, width: int) -> Any:
    """One row a leaf: its rule, what that does, the bytes before and to expect."""
    columns = {
        "leaf": False,
        "array": False,
        "rule": True,
        "does": False,
        "dense": True,
        "predicted": True,
    }
    rows = []
    for leaf in plan.leaves:
        rule = "-" if leaf.rule is None else str(leaf.rule + 1)
        array = _array(leaf.tensor.dtype.name, leaf.tensor.shape)
        sizes = size_text(leaf.tensor.nbytes), _size(leaf.predicted)
        rows.append([leaf.path, array, rule, leaf.words, *sizes])
    known = [leaf.predicted for leaf in plan.leaves if leaf.predicted is not None]
    least = "" if len(known) == len(plan.leaves) else ">= "
    dense = sum(leaf.tensor.nbytes for leaf in plan.leaves)
    total = [
        f"{len(plan.leaves)} leaves",
        "",
        "",
        "",
        size_text(dense),
        least + size_text(sum(known)),
    ]
    return fitted_table("plan", columns, rows, [total], width, ("array", "dense"))


def inspection_table(found: Inspection, fixed: dict[str, int], width: int) -> Any:
    """One row a leaf of a jaxprune file: the bytes of the array, of its fixed-length code, and in
    the file.
    """
    columns = {
        "leaf": False,
        "stored as": False,
        "array": False,
        "dense": True,
        "fixed": True,
        "stored": True,
    }
    columns["codecs"] = False
    rows = []
    for row in found.rows:
        sizes = map(size_text, (row.dense_bytes, fixed[row.path], row.stored_bytes))
        rows.append(
            [row.path, row.kind, _array(row.dtype, row.shape), *sizes, "+".join(row.codecs)]
        )
    dense = sum(row.dense_bytes for row in found.rows)
    sizes = map(size_text, (dense, sum(fixed.values()), found.bytes.data))
    total = [f"{len(found.rows)} leaves", "", "", *sizes, ""]
    return fitted_table(
        "leaves", columns, rows, [total], width, ("codecs", "fixed", "array", "stored as")
    )


def checkpoint_table(checkpoint: Checkpoint, width: int) -> Any:
    """One row an array of any other checkpoint."""
    rows = [
        [path, _array(x.dtype.name, x.shape), size_text(x.nbytes)]
        for path, x in checkpoint.tensors.items()
    ]
    total = [
        f"{len(rows)} leaves",
        "",
        size_text(sum(x.nbytes for x in checkpoint.tensors.values())),
    ]
    columns = {"leaf": False, "array": False, "bytes": True}
    return fitted_table(f"{checkpoint.kind} checkpoint", columns, rows, [total], width)


def layout_lines(plan: Plan, width: int) -> list[str]:
    """The order of axes, and where it is from; then the kernels whose outputs are not on the last
    axis.
    """
    kernels = {
        leaf.path: str(leaf.axes)
        for leaf in plan.leaves
        if plan.compresses(leaf) and len(leaf.tensor.shape) >= 2
    }
    return [_layout_line(plan), *axes_lines(kernels, width)]


def _layout_line(plan: Plan) -> str:
    if not plan.guessed:
        return f"layout: {plan.layout}, as the recipe says"
    if plan.layout == "torch":
        return (
            'layout: torch, guessed from names that end in "weight"; for another put layout = '
            '"jax" in the recipe'
        )
    return 'layout: jax; for PyTorch\'s order of axes put layout = "torch" in the recipe'


def diff_table(rows: list[Difference], total: Difference, width: int) -> Any:
    """One row for each leaf that differs."""
    names = ("max error", "relative", "SQNR dB", "new zeros", "lost zeros")
    columns = {"leaf": False} | dict.fromkeys(names, True)
    cells = []
    for row in rows:
        words = remarks(row)
        cells.append([f"{row.path}\n  {words}" if words else row.path, *_numbers(row)])
    closing = [["these together", *_numbers(total)]]
    return fitted_table(
        "leaves that differ", columns, cells, closing, width, ("lost zeros", "new zeros")
    )


def diff_lines(rows: list[Difference], total: Difference) -> list[str]:
    """The outcome in words."""
    different = sum(not row.same for row in rows)
    lines = []
    if different:
        lines.append(f"{different} of {len(rows)} leaves differ, {len(rows) - different} are equal")
    elif total.other_bits:
        lines.append(
            f"no value differs: {len(rows)} leaves, {sum(row.size for row in rows):,} numbers"
        )
    else:
        lines.append(
            f"no difference: {len(rows)} leaves, {sum(row.size for row in rows):,} numbers, bit "
            f"for bit"
        )
    if not any(row.compared for row in rows):
        lines.append("they have no leaf in common" if rows else "neither holds an array")
    if total.not_finite:
        lines.append(
            f"{total.not_finite:,} numbers that are NaN or infinite differ; the errors are of the "
            f"finite ones"
        )
    if total.other_bits:
        lines.append(
            f"{total.other_bits:,} numbers of equal value differ in bits: -0 for 0, or another NaN"
        )
    return lines


def verify_line(report: dict[str, Any]) -> str:
    """What `compress --verify` found, in words; `report` is the "verified" of its JSON."""
    if report["damaged"]:
        return f"DAMAGED: {', '.join(report['damaged'])}"
    good = f"verified: all {len(report['leaves'])} leaves read back bit for bit as they were meant"
    if report["exact"]:
        return f"{good}; nothing is lost"
    compressed = report["compressed"]
    kept = report["kept"]
    words = [_loss(compressed), f"over {compressed['leaves']} compressed leaves"]
    if kept["leaves"]:
        others = "kept exactly" if kept["exact"] else "not compressed, and DIFFER"
        words.append(f"the other {kept['leaves']} are {others}")
    return f"{good}; {', '.join(words)}"


def _loss(row: dict[str, Any]) -> str:
    """How compressed leaves differ from those of the checkpoint, in words."""
    words = []
    if row["sqnr_db"] is not None:
        words.append(f"SQNR {row['sqnr_db']:.2f} dB against the checkpoint")
    elif row["changed"] > row["not_finite"]:
        words.append("SQNR -inf dB against the checkpoint: only zeros became others")
    if row["not_finite"]:
        words.append(f"{row['not_finite']:,} numbers that are NaN or infinite differ")
    if row["other_bits"]:
        words.append(
            f"{row['other_bits']:,} of equal value differ in bits (-0 for 0, or another NaN)"
        )
    return ", ".join(words) or "no difference"


def _numbers(row: Difference) -> tuple[str, ...]:
    if not row.compared:
        return ("-",) * 5
    return (
        f"{row.max_error:.3g}",
        f"{row.relative:.3%}",
        _decibels(row),
        f"{row.new_zeros:,}",
        f"{row.lost_zeros:,}",
    )


def _decibels(row: Difference) -> str:
    if math.isfinite(row.sqnr):
        return f"{row.sqnr:.2f}"
    if row.sqnr < 0:
        return "-inf"
    return "exact" if row.exact else "-"


def _array(dtype: str, shape: tuple[int, ...]) -> str:
    for long, short in SHORT:
        if dtype.startswith(long):
            dtype = short + dtype.removeprefix(long)
            break
    return f"{dtype}[{','.join(map(str, shape))}]"


def _size(n: int | None) -> str:
    return "?" if n is None else size_text(n)
