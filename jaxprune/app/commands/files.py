"""`jaxprune inspect | restore | diff | verify`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxprune.app.commands.common import (
    FOUND,
    Force,
    Json,
    MaxMemory,
    bytes_of,
    check_target,
    plain_errors,
    print_json,
)


def inspect(
    file: Annotated[Path, typer.Argument(help="A compressed file, or any checkpoint.")],
    as_json: Json = False,
) -> None:
    """Show what a file holds, from its headers alone: of a compressed one predicted against real
    bytes.
    """
    with plain_errors():
        from jaxprune.app.experiments.tables import console
        from jaxprune.storage.checkpoints.formats import open_checkpoint

        with open_checkpoint(file) as source:
            width = console().width
            said, table, lines = (
                _inspected(file, width) if source.kind == "jaxprune" else _listed(source, width)
            )
        if as_json:
            print_json(said)
        else:
            console().print(table)
            print("\n".join(lines))


def _inspected(file: Path, width: int) -> tuple[dict[str, Any], Any, list[str]]:
    """JSON, a table and closing lines for a compressed file."""
    from jaxprune.app.files.file_tables import inspection_table
    from jaxprune.app.files.fixed import fixed_bytes
    from jaxprune.storage.files import inspect as look

    found = look(file)
    fixed = fixed_bytes(file)
    said = found.to_dict()
    said["rows"] = [{**row, "fixed_bytes": fixed[row["path"]]} for row in said["rows"]]
    return said, inspection_table(found, fixed, width), str(found).splitlines()[-2:]


def _listed(source: Any, width: int) -> tuple[dict[str, Any], Any, list[str]]:
    """The same for any other checkpoint."""
    from jaxprune.app.files.file_tables import checkpoint_table

    def row(path, x):
        return {"path": path, "shape": list(x.shape), "dtype": x.dtype.name, "bytes": x.nbytes}

    rows = [row(path, x) for path, x in source.tensors.items()]
    said = {"kind": source.kind, "rows": rows, "notes": list(source.notes)}
    return said, checkpoint_table(source, width), list(source.notes)


def restore(
    file: Annotated[Path, typer.Argument(help="A compressed file, or any checkpoint.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            help="*.safetensors, *.npz, *.msgpack, or an Orbax folder.",
        ),
    ],
    shard_size: Annotated[
        str | None,
        typer.Option(
            "--shard-size",
            metavar="SIZE",
            help="Make OUT a folder of safetensors shards, as 5GB each.",
        ),
    ] = None,
    max_memory: MaxMemory = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write the dense arrays, under their names, in their layout and dtypes."""
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
        most = bytes_of(max_memory, "--max-memory")
        with open_checkpoint(file, most) as source, Bytes("restore", _dense(source)) as tick:

            def read(path: str) -> Any:
                x = source.read(path)
                tick(path, x.nbytes)
                return x

            write_checkpoint(out, source.tensors, read, source.about, shard_bytes=shard_bytes)
            report = {
                "file": str(out),
                "leaves": len(source.tensors),
                "dense_bytes": _dense(source),
            }
            notes = list(source.notes)
        if as_json:
            print_json({**report, "seconds": tick.seconds, "notes": notes})
        else:
            print("".join(f"{note}\n" for note in notes), end="")
            print(
                f"{out}: {report['leaves']} arrays, {report['dense_bytes']:,} bytes, in "
                f"{tick.seconds:.1f} s"
            )


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="Any checkpoint or compressed file.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    max_memory: MaxMemory = None,
    as_json: Json = False,
) -> None:
    """Compare two checkpoints leaf by leaf. Exit code 1 says that they differ."""
    with plain_errors("stopped"):
        from jaxprune.app.experiments.tables import console
        from jaxprune.app.files.compare import compare, total_of_different
        from jaxprune.app.files.file_tables import diff_lines, diff_table
        from jaxprune.app.progress import Bytes
        from jaxprune.storage.checkpoints.formats import open_checkpoint

        most = bytes_of(max_memory, "--max-memory")
        opened = open_checkpoint(a, most), open_checkpoint(b, most)
        with opened[0] as first, opened[1] as second, Bytes("diff", _dense(first)) as tick:
            rows = list(compare(first, second, tick))
        total = total_of_different(rows)
        if as_json:
            print_json({"total": total.to_dict(), "leaves": [row.to_dict() for row in rows]})
        else:
            if not total.same:
                screen = console()
                screen.print(diff_table([row for row in rows if not row.same], total, screen.width))
            print("\n".join(diff_lines(rows, total)))
        if not total.same:
            raise typer.Exit(FOUND)


def verify(
    file: Annotated[Path, typer.Argument(help="A compressed file.")],
    max_memory: MaxMemory = None,
    as_json: Json = False,
) -> None:
    """Check every checksum and decode every leaf. Exit code 1 says what is damaged."""
    with plain_errors("stopped"):
        from jaxprune.app.files.checks import check

        found = check(file, bytes_of(max_memory, "--max-memory"))
        if as_json:
            print_json(found.to_dict())
        else:
            print(found)
        if found.damaged:
            raise typer.Exit(FOUND)


def _dense(checkpoint: Any) -> int:
    return sum(tensor.nbytes for tensor in checkpoint.tensors.values())
