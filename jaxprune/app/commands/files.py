"""`jaxprune inspect | restore | diff | verify`."""

import sys
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


def inspect(
    file: Annotated[Path, typer.Argument(help="A compressed file or any checkpoint.")],
    as_json: Json = False,
) -> None:
    """List a checkpoint's arrays and sizes; of a compressed file, its stored and predicted bytes
    too."""
    with plain_errors():
        from jaxprune.app.experiments.tables import console
        from jaxprune.storage.checkpoints.formats import open_checkpoint

        with open_checkpoint(file) as source:
            width = console().width
            if source.kind == "jaxprune":
                report, table, lines = _inspect_compressed(file, width)
            else:
                report, table, lines = _inspect_checkpoint(source, width)
        if as_json:
            print_json(report)
        else:
            console().print(table)
            print("\n".join(lines))


def _inspect_compressed(file: Path, width: int) -> tuple[dict[str, Any], Any, list[str]]:
    """JSON, a table and closing lines for a compressed file."""
    from jaxprune.app.files.file_tables import inspection_table
    from jaxprune.app.files.fixed import fixed_bytes
    from jaxprune.storage.files import inspect as inspect_file

    inspection = inspect_file(file)
    fixed = fixed_bytes(file)
    report = inspection.to_dict()
    for row in report["rows"]:
        row["fixed_bytes"] = fixed[row["path"]]
    closing_lines = str(inspection).splitlines()[-2:]
    return report, inspection_table(inspection, fixed, width), closing_lines


def _inspect_checkpoint(source: Any, width: int) -> tuple[dict[str, Any], Any, list[str]]:
    """The same for any other checkpoint."""
    from jaxprune.app.files.file_tables import checkpoint_table

    rows = [
        {
            "path": path,
            "shape": list(tensor.shape),
            "dtype": tensor.dtype.name,
            "bytes": tensor.nbytes,
        }
        for path, tensor in source.tensors.items()
    ]
    report = {"kind": source.kind, "rows": rows, "notes": list(source.notes)}
    return report, checkpoint_table(source, width), list(source.notes)


def restore(
    file: Annotated[Path, typer.Argument(help="A compressed file or any checkpoint.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            help="*.safetensors, *.npz or *.msgpack; a new folder is Orbax's.",
        ),
    ],
    shard_size: Annotated[
        str | None,
        typer.Option(
            "--shard-size",
            metavar="SIZE",
            help="Write a folder of safetensors shards of this size, as 5GB.",
        ),
    ] = None,
    max_memory: MaxMemory = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write the dense arrays of a compressed file as a checkpoint, with their names, layout and
    dtypes."""
    with plain_errors(f"stopped: {out} is as it was", out):
        from jaxprune.app.progress import Bytes
        from jaxprune.storage.checkpoints.formats import (
            format_of,
            open_checkpoint,
            write_checkpoint,
        )

        check_target(out, {"the checkpoint": file}, force)
        shard_bytes = bytes_of(shard_size, "--shard-size")
        if shard_bytes is None and not format_of(out):
            print(
                "Orbax writes a folder from one tree: all arrays are held in memory at once",
                file=sys.stderr,
            )
        max_bytes = bytes_of(max_memory, "--max-memory")
        with open_checkpoint(file, max_bytes) as source, Bytes("restore", source.nbytes) as tick:

            def read(path: str) -> Any:
                array = source.read(path)
                tick(path, array.nbytes)
                return array

            write_checkpoint(out, source.tensors, read, source.about, shard_bytes=shard_bytes)
            report = {"file": str(out), "leaves": len(source.tensors), "dense_bytes": source.nbytes}
            notes = list(source.notes)
        if as_json:
            print_json({**report, "seconds": tick.seconds, "notes": notes})
        else:
            for note in notes:
                print(note)
            print(
                f"{out}: {report['leaves']} arrays, {report['dense_bytes']:,} bytes, in "
                f"{tick.seconds:.1f} s"
            )


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A compressed file or any checkpoint.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The checkpoint to compare it with.")],
    max_memory: MaxMemory = None,
    as_json: Json = False,
) -> None:
    """Compare two checkpoints array by array. Exit code 1: they differ."""
    with plain_errors("stopped"):
        from jaxprune.app.experiments.tables import console
        from jaxprune.app.files.compare import compare, total_of_different
        from jaxprune.app.files.file_tables import diff_lines, diff_table
        from jaxprune.app.progress import Bytes
        from jaxprune.storage.checkpoints.formats import open_checkpoint

        max_bytes = bytes_of(max_memory, "--max-memory")
        with (
            open_checkpoint(a, max_bytes) as first,
            open_checkpoint(b, max_bytes) as second,
            Bytes("diff", first.nbytes) as tick,
        ):
            rows = list(compare(first, second, tick))
        total = total_of_different(rows)
        if as_json:
            print_json({"total": total.to_dict(), "leaves": [row.to_dict() for row in rows]})
        else:
            if not total.same:
                screen = console()
                different = [row for row in rows if not row.same]
                screen.print(diff_table(different, total, screen.width))
            print("\n".join(diff_lines(rows, total)))
        if not total.same:
            raise typer.Exit(DIFFERENT)


def verify(
    file: Annotated[Path, typer.Argument(help="A compressed file.")],
    max_memory: MaxMemory = None,
    as_json: Json = False,
) -> None:
    """Check all checksums of a compressed file and decode all its arrays. Exit code 1: damage."""
    with plain_errors("stopped"):
        from jaxprune.app.files.checks import check

        result = check(file, bytes_of(max_memory, "--max-memory"))
        if as_json:
            print_json(result.to_dict())
        else:
            print(result)
        if result.damaged:
            raise typer.Exit(DIFFERENT)
