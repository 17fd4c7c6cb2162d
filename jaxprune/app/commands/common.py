"""What all commands share: --json, --force, errors as one message, signals, and what an output may
be.

Exit codes: 0 success; 1 a difference or damage; 2 a bad input or option; 130 stopped by Ctrl-C, 143
by SIGTERM.
"""

import contextlib
import difflib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxprune.app.commands.ending import Stopped, ends_at_once

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace OUT if it exists.")]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        help="The most memory that reading one array may take, as 8GB. "
        "Default: 1 GiB plus 1,024 bytes for each byte of the checkpoint.",
    ),
]
UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
SIZE = r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?((?:[kmgt]i?)?)b?"
DIFFERENT = 1  # exit codes: a difference or damage
BAD_INPUT = 2
STOPPED = 130


@contextlib.contextmanager
def plain_errors(
    stopped: str = "stopped: nothing was written", out: Path | None = None
) -> Iterator[None]:
    """An error that the user can fix is one message and exit code 2; any other keeps its traceback.

    Args:
      stopped: what a signal prints before the process ends.
      out: the file or folder that the command writes: what is half written of it is removed.
    """
    try:
        with ends_at_once(stopped, lambda: _remove_half_written(out)):
            yield
    except Stopped as e:
        print(stopped, file=sys.stderr)
        raise typer.Exit(e.exit_code) from None
    except BrokenPipeError:
        # The reader of the output has closed the pipe. Python would report it again when it closes
        # stdout.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except FileNotFoundError as e:
        print(f"error: {_missing(e)}", file=sys.stderr)
        raise typer.Exit(BAD_INPUT) from None
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        raise typer.Exit(BAD_INPUT) from None
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        raise typer.Exit(STOPPED) from None


def _missing(error: FileNotFoundError) -> str:
    """The error of a file that is not there, with the names in its folder that are most like it."""
    if not isinstance(error.filename, str | os.PathLike):
        return str(error)
    path = Path(error.filename)
    if not path.parent.is_dir():
        return f"{path} does not exist, nor does its folder {path.parent}"
    names = difflib.get_close_matches(path.name, os.listdir(path.parent), n=3)
    if not names:
        return f"{path} does not exist; {path.parent} holds nothing of a like name"
    nearest = ", ".join(str(path.with_name(name)) for name in names)
    return f"{path} does not exist. Nearest: {nearest}"


def _remove_half_written(out: Path | None) -> None:
    if out is None:
        return
    from jaxprune.storage import atomic
    from jaxprune.storage.checkpoints import orbax

    atomic.remove_leftovers(out, own=True)
    orbax.remove_leftovers(out)


def bytes_of(text: str | None, option: str) -> int | None:
    """A size that was typed, in bytes; None where none was.

    >>> bytes_of("2GiB", "--max-memory"), bytes_of("1.5 kB", "--max-memory"), bytes_of("300",
    ...     "--max-memory")
    (2147483648, 1500, 300)
    """
    if text is None:
        return None
    match = re.fullmatch(SIZE, text.strip().lower())
    size = 0
    if match:
        number, unit = match.groups()
        size = int(float(number) * UNITS[unit])
    if size < 1:
        raise ValueError(f"{option} {text[:40]}: give a size above 0, as 500MB, 8GB or 2GiB")
    return size


def print_json(report: Any) -> None:
    """Prints JSON on stdout, and nothing else."""
    print(json.dumps(report, indent=2, allow_nan=False))


def check_target(out: Path, inputs: dict[str, Path], force: bool = False) -> None:
    """Refuses a place that nothing can be written to, before the work.

    Args:
      out: the file or folder to be written.
      inputs: what the command reads: a name for the message, and the path.
      force: an existing file may be replaced; an input never.

    Raises:
      ValueError: what `out` is, and what to do.
    """
    folder = Path(os.path.realpath(out)).parent
    if not folder.is_dir():
        raise ValueError(f"{out}: the folder {folder} does not exist. Make it first")
    for name, path in inputs.items():
        relation = _overlap(out, path)
        if relation:
            other_name = "" if path == out else f" ({path})"
            raise ValueError(f"{out} {relation} {name}{other_name}: choose another name")
    if out.is_dir():
        raise ValueError(
            f"{out} is a folder, and is not replaced: remove it, or choose another name"
        )
    if os.path.lexists(out) and not force:
        raise ValueError(f"{out} exists. Add --force to replace it, or choose another name")


def _overlap(out: Path, source: Path) -> str:
    """How an output overlaps an input, by whatever links and names both are reached; "" when it
    does not."""
    if not source.exists():
        return ""
    if out.exists() and out.samefile(source):
        return "is"
    if is_inside(out, source):
        return "is a file inside"
    if is_inside(source, out):
        return "is a folder that contains"
    has_other_names = out.is_file() and out.stat().st_nlink > 1
    if source.is_dir() and has_other_names and _is_linked_inside(out, source):
        return "is a hard link to a file inside"
    return ""


def is_inside(path: Path, folder: Path) -> bool:
    """Whether `path`, which need not exist, lies in a folder. Asks the file system: names may
    differ in case alone."""
    if not folder.is_dir():
        return False
    parents = Path(os.path.realpath(path)).parents
    return any(parent.exists() and parent.samefile(folder) for parent in parents)


def _is_linked_inside(file: Path, folder: Path) -> bool:
    """Whether a file has another name below a folder."""
    for root, _, names in os.walk(folder):
        if any(os.path.samefile(file, os.path.join(root, name)) for name in names):
            return True
    return False
