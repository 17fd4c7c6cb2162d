"""The closing table of a run: loss, accuracy and four sizes before and after each phase."""

from collections.abc import Callable
from typing import Any

from jaxprune.app.results import SIZES, mean_and_std

WIDTH = 100


def print_results(results: dict[str, Any], folder: Any) -> None:
    """Prints the table, the summary below it and where the files are."""
    out = console()
    out.print(phase_table(results))
    for line in closing_lines(results):
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    out.print(f"{folder}", highlight=False, markup=False, soft_wrap=True)


def console() -> Any:
    """Standard output; where it is no terminal, 100 columns."""
    from rich.console import Console

    out = Console()
    return out if out.is_terminal else Console(width=WIDTH)


def phase_table(results: dict[str, Any]) -> Any:
    """One row before and one after each phase; a phase that encodes and trains nothing has only the second."""
    from rich.table import Table

    seeds = results["seeds"]
    many = f", mean ± std of {len(seeds)} seeds" if len(seeds) > 1 else ""
    table = Table(title=f"{results['name']}: test split{many}", title_justify="left")
    table.add_column("phase", no_wrap=True)
    for name in ("loss", "accuracy %", *SIZES, "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for i, phase in enumerate(seeds[0]["phases"]):
        if phase["before"] is not None:
            table.add_row(f"{phase['name']}, before", *_cells([s["phases"][i]["before"] for s in seeds]))
        table.add_row(f"{phase['name']}", *_cells([s["phases"][i]["after"] for s in seeds]))
    table.add_section()
    table.add_row("the file", *_cells([s["final"] for s in seeds]))
    return table


def closing_lines(results: dict[str, Any]) -> list[str]:
    """The claim in words, the paper's count, the baselines."""
    accuracy, std = results["accuracy"], results["std"]["accuracy"]
    lost = 100 * (accuracy["dense"] - accuracy["final"])
    operations = results["flops"]
    lines = [
        f"{results['ratio']:.1f}x smaller on disk; accuracy {accuracy['dense']:.2%} -> {accuracy['final']:.2%}"
        f" ({-lost:+.2f} points, std {100 * std['final']:.2f})",
        f"{operations['dense']:,.0f} -> {operations['final']:,.0f} FLOPs an example, were zeros free",
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
    of = lambda f: mean_and_std([f(r) for r in rows])
    accuracy = of(lambda r: 100 * r["test"]["accuracy"])
    shown = f"{accuracy['mean']:.2f}" + (f" ± {accuracy['std']:.2f}" if len(rows) > 1 else "")
    cells = [f"{of(lambda r: r['test']['loss'])['mean']:.4f}", shown]
    cells += [size_text(of(lambda r, n=n: r["bytes"][n])["mean"]) for n in SIZES]
    return [*cells, f"{of(lambda r: r['ratio'])['mean']:.1f}x"]


def size_text(n: float) -> str:
    """A size in bytes, kB or MB (powers of ten).

    Example:
      >>> from jaxprune.app.tables import size_text
      >>> size_text(950), size_text(12345), size_text(1.066e6)
      ('950 B', '12.3 kB', '1.07 MB')
    """
    for unit, scale, digits in (("MB", 1e6, 2), ("kB", 1e3, 1)):
        if n >= scale:
            return f"{n / scale:.{digits}f} {unit}"
    return f"{n:.0f} B"


def plan_table(rows: list[dict[str, Any]]) -> Any:
    """What --dry-run prints: phases, and the leaves each rule takes."""
    from rich.table import Table

    table = Table(title="plan: sizes from untrained weights, nothing is trained", title_justify="left")
    for name in ("phase", "epochs", "rule", "leaves", "stored", "ratio"):
        number = name in ("epochs", "stored", "ratio")
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        rules = row["rules"] or [{"rule": ["(train only)"], "leaves": []}]
        for i, rule in enumerate(rules):
            ends: Callable[[str], str] = lambda text, i=i: text if i == 0 else ""
            size, ratio = size_text(row["bytes"]["stored"]), f"{row['ratio']:.1f}x"
            leaves = ", ".join(rule["leaves"]) or "-"
            text = "\n".join(rule["rule"])
            table.add_row(ends(row["name"]), ends(str(row["epochs"])), text, leaves, ends(size), ends(ratio))
    return table
