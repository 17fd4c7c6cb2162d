"""`jaxprune compress IN -o OUT --recipe recipe.toml`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jaxprune.app.commands.common import (
    DIFFERENT,
    Force,
    Json,
    MaxMemory,
    bytes_of,
    check_target,
    plain_errors,
    print_json,
)


def compress(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="IN", help="A checkpoint: a file or a folder.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="The compressed file, as model.jpz.")
    ],
    recipe: Annotated[Path, typer.Option("--recipe", "-r", help="The rules, a TOML file.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan; write nothing.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read OUT back and check every array.")
    ] = False,
    in_memory: Annotated[
        bool, typer.Option("--in-memory", help="Hold all arrays in memory, which some rules need.")
    ] = False,
    max_memory: MaxMemory = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Compress a checkpoint by the rules of a recipe. Prints the plan, then writes the file."""
    with plain_errors(f"stopped: {out} is as it was", out):
        from jaxprune.app.files.compression_plan import plan
        from jaxprune.app.recipes.rules import read_recipe
        from jaxprune.storage.checkpoints.formats import open_checkpoint

        rules = read_recipe(recipe)
        check_target(out, {"the checkpoint": checkpoint, "the recipe": recipe}, force or dry_run)
        max_bytes = bytes_of(max_memory, "--max-memory")
        with open_checkpoint(checkpoint, max_bytes) as source:
            todo = plan(source, rules)
            if not as_json:
                _show_plan(source, todo)
            report = {"plan": todo.to_dict(), "notes": list(source.notes)}
            if not dry_run:
                report |= _write(source, todo, out, in_memory, verify)
        if as_json:
            print_json(report)
        elif not dry_run:
            _show_result(report, out)
        if report.get("verified", {}).get("damaged"):
            raise typer.Exit(DIFFERENT)


def _show_plan(source: Any, todo: Any) -> None:
    from jaxprune.app.experiments.tables import console
    from jaxprune.app.files.file_tables import layout_lines, plan_table

    screen = console()
    screen.print(plan_table(todo, screen.width))
    for line in (*layout_lines(todo, screen.width), *source.notes):
        print(line)


def _write(source: Any, todo: Any, out: Path, in_memory: bool, verify: bool) -> dict[str, Any]:
    from jaxprune.app.files.compress import compress as run
    from jaxprune.app.progress import Bytes
    from jaxprune.storage.files import inspect

    dense = sum(leaf.tensor.nbytes for leaf in todo.leaves)
    with Bytes("compress", dense) as tick:
        fingerprints = run(source, todo, out, tick, in_memory=in_memory, fingerprint=verify)
    sizes = inspect(out).bytes
    report = {
        "seconds": tick.seconds,
        "dense_bytes": dense,
        "bytes": sizes._asdict(),
        "ratio": dense / sizes.file,
    }
    if fingerprints is not None:
        report["verified"] = _verify(source, todo, out, fingerprints, dense)
    return report


def _verify(
    source: Any, todo: Any, out: Path, fingerprints: dict[str, bytes], dense: int
) -> dict[str, Any]:
    from jaxprune.app.files.compress import read_back
    from jaxprune.app.progress import Bytes
    from jaxprune.report.differences import together

    with Bytes("verify", dense) as tick:
        rows, damaged = read_back(source, out, fingerprints, tick)
    # Kept leaves are equal, and one large array among them would make any loss look small: they are
    # counted apart.
    changed_paths = {leaf.path for leaf in todo.leaves if todo.compresses(leaf)}
    compressed = [row for row in rows if row.path in changed_paths]
    kept = [row for row in rows if row.path not in changed_paths]
    loss = together("the compressed leaves", compressed).to_dict()
    return {
        "damaged": damaged,
        "exact": all(row.exact for row in rows),
        "sqnr_db": loss["sqnr_db"],
        "compressed": {"leaves": len(compressed), **loss},
        "kept": {"leaves": len(kept), "exact": all(row.exact for row in kept)},
        "leaves": [row.to_dict() for row in rows],
    }


def _show_result(report: dict[str, Any], out: Path) -> None:
    from jaxprune.app.experiments.tables import size_text
    from jaxprune.app.files.file_tables import verify_line

    sizes = report["bytes"]
    dense = report["dense_bytes"]
    speed = dense / report["seconds"]
    print(
        f"{out}: {size_text(dense)} in {size_text(sizes['file'])}, {report['ratio']:.1f}x smaller; "
        f"{report['seconds']:.1f} s, {size_text(speed)}/s"
    )
    print(f"its streams take {sizes['data']:,} bytes; counts predicted {sizes['predicted']:,}")
    if "verified" in report:
        print(verify_line(report["verified"]))
