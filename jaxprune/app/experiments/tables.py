"""The closing table of a run: loss, accuracy and four sizes before and after each phase."""

import os
from collections.abc import Sequence
from typing import Any

from jaxprune.app.experiments.results import SIZES, mean_and_std

WIDTH = 100
LEAST = 20  # columns of which COLUMNS may speak
NARROWEST = 12  # letters in a line of a cell that wraps


def print_results(results: dict[str, Any], folder: Any) -> None:
    """Prints the table, the summary below it and where the files are."""
    out = console()
    out.print(phase_table(results, out.width))
    for line in closing_lines(results):
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    out.print(f"{folder}", highlight=False, markup=False, soft_wrap=True)


def console() -> Any:
    """Standard output; where it is no terminal, 100 columns or as many as COLUMNS says."""
    from rich.console import Console

    out = Console()
    return out if out.is_terminal else Console(width=_columns())


def _columns() -> int:
    text = os.environ.get("COLUMNS", "")
    return int(text) if text.isdigit() and int(text) >= LEAST else WIDTH


def fitted_table(
    title: str,
    columns: dict[str, bool],
    rows: list[list[str]],
    closing: list[list[str]],
    width: int,
    optional: Sequence[str] = (),
) -> Any:
    """A table that fits: text wraps, columns that matter less are left out, and no number is ever
    cut.

    Args:
      columns: name -> whether it holds numbers.
      rows: cells, one for each column.
      closing: rows below a line.
      width: of the console.
      optional: names of columns, the one to leave out first first.
    """
    from rich.table import Table
    from rich.text import Text

    left_out = _left_out(columns, [*rows, *closing], width, optional)
    table = Table(title=title, title_justify="left")
    if left_out:
        table.caption = f"{', '.join(left_out)}: left out; a wider window or --json has them"
        table.caption_justify = "left"
    for name, is_number in columns.items():
        if name not in left_out:
            table.add_column(
                name, justify="right" if is_number else "left", overflow="fold", no_wrap=is_number
            )

    def add(cells: list[str]) -> None:
        table.add_row(*(Text(cell) for name, cell in zip(columns, cells) if name not in left_out))

    for cells in rows:
        add(cells)
    table.add_section()
    for cells in closing:
        add(cells)
    return table


def _left_out(
    columns: dict[str, bool], rows: list[list[str]], width: int, optional: Sequence[str]
) -> list[str]:
    """The columns without which the others fit."""
    longest = [max([len(name), *(len(row[i]) for row in rows)]) for i, name in enumerate(columns)]
    # A space on either side and a line; text may wrap, but not to less than a few letters.
    needed = {
        name: 3 + (longest[i] if is_number else min(longest[i], NARROWEST))
        for i, (name, is_number) in enumerate(columns.items())
    }
    left_out: list[str] = []
    for name in optional:
        if 1 + sum(needed.values()) <= width:
            break
        del needed[name]
        left_out.append(name)
    return left_out


def phase_table(results: dict[str, Any], width: int = WIDTH) -> Any:
    """One row before and one after each phase; a phase that encodes and trains nothing has only the
    second.
    """
    seeds = results["seeds"]
    many = f", mean ± std of {len(seeds)} seeds" if len(seeds) > 1 else ""
    columns = {"phase": False} | dict.fromkeys(("loss", "accuracy %", *SIZES, "ratio"), True)
    rows = []
    for i, phase in enumerate(seeds[0]["phases"]):
        if phase["before"] is not None:
            rows.append(
                [f"{phase['name']}, before", *_cells([s["phases"][i]["before"] for s in seeds])]
            )
        rows.append([f"{phase['name']}", *_cells([s["phases"][i]["after"] for s in seeds])])
    closing = [["the file", *_cells([s["final"] for s in seeds])]]
    title = f"{results['name']}: test split{many}"
    return fitted_table(
        title, columns, rows, closing, width, ("nonzero", "entropy", "dense", "loss")
    )


def closing_lines(results: dict[str, Any]) -> list[str]:
    """The claim in words, the paper's count, the baselines."""
    accuracy = results["accuracy"]
    std = results["std"]["accuracy"]
    lost = 100 * (accuracy["dense"] - accuracy["final"])
    operations = results["flops"]
    lines = [
        f"{results['ratio']:.1f}x smaller on disk; accuracy {accuracy['dense']:.2%} -> "
        f"{accuracy['final']:.2%} ({-lost:+.2f} points, std {100 * std['final']:.2f})",
        f"{operations['dense']:,.0f} -> {operations['final']:,.0f} FLOPs an example, were zeros "
        f"free",
    ]
    if coded := results["deep_compression"]:
        both = f"{coded['fixed']:.1f}x at fixed width, {coded['huffman']:.1f}x with Huffman codes"
        lines.append(f"counted as Deep Compression does: {both}")
    for name in seeds_with_baselines(results):
        found = mean_and_std([s["baselines"][name]["test"]["accuracy"] for s in results["seeds"]])
        lines.append(f"{name} at the same density, no retraining: accuracy {found['mean']:.2%}")
    return lines


def seeds_with_baselines(results: dict[str, Any]) -> list[str]:
    """The names of the baselines, which a run may leave out."""
    return list(results["seeds"][0]["baselines"])


def _cells(rows: list[dict[str, Any]]) -> list[str]:
    def of(f):
        return mean_and_std([f(r) for r in rows])

    accuracy = of(lambda r: 100 * r["test"]["accuracy"])
    shown = f"{accuracy['mean']:.2f}" + (f" ± {accuracy['std']:.2f}" if len(rows) > 1 else "")
    cells = [f"{of(lambda r: r['test']['loss'])['mean']:.4f}", shown]
    cells += [size_text(of(lambda r, n=n: r["bytes"][n])["mean"]) for n in SIZES]
    return [*cells, f"{of(lambda r: r['ratio'])['mean']:.1f}x"]


def size_text(n: float) -> str:
    """A size in bytes, kB or MB (powers of ten).

    Example:
      >>> from jaxprune.app.experiments.tables import size_text
      >>> size_text(950), size_text(12345), size_text(1.066e6)
      ('950 B', '12.3 kB', '1.07 MB')
    """
    for unit, scale, digits in (("MB", 1e6, 2), ("kB", 1e3, 1)):
        if n >= scale:
            return f"{n / scale:.{digits}f} {unit}"
    return f"{n:.0f} B"


def plan_table(rows: list[dict[str, Any]], width: int = WIDTH) -> Any:
    """What --dry-run shows: phases, and the leaves each rule takes."""
    columns = {
        "phase": False,
        "epochs": True,
        "rule": False,
        "leaves": False,
        "stored": True,
        "ratio": True,
    }
    cells = []
    for row in rows:
        rules = row["rules"] or [{"rule": ["(train only)"], "leaves": []}]
        size = size_text(row["bytes"]["stored"])
        ratio = f"{row['ratio']:.1f}x"
        for i, rule in enumerate(rules):
            ends = [row["name"], str(row["epochs"]), size, ratio] if i == 0 else [""] * 4
            leaves = ", ".join(rule["leaves"]) or "-"
            cells.append([ends[0], ends[1], "\n".join(rule["rule"]), leaves, ends[2], ends[3]])
    title = "plan: sizes from untrained weights, nothing is trained"
    return fitted_table(title, columns, cells, [], width, ("epochs", "ratio"))
