"""What all commands share: --json, and errors as one message.

Exit codes: 0 all is well; 1 a difference or damage was found; 2 the user can mend it; 130 stopped by Ctrl-C.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
FOUND, BAD, STOPPED = 1, 2, 130


@contextlib.contextmanager
def plain_errors(stopped: str = "stopped: nothing was written") -> Iterator[None]:
    """What the user can mend is one message and exit code 2; anything else keeps its traceback."""
    try:
        yield
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        raise typer.Exit(BAD) from None
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        raise typer.Exit(STOPPED) from None


def print_json(found: Any) -> None:
    """JSON on stdout, and nothing else."""
    print(json.dumps(found, indent=2, allow_nan=False))


def check_target(out: Path, source: Path) -> None:
    """Refuses a place that nothing can be written to, before the work."""
    folder = Path(os.path.realpath(out)).parent
    if not folder.is_dir():
        raise ValueError(f"{out}: the folder {folder} does not exist. Make it first")
    if out.exists() and source.exists() and out.samefile(source):
        raise ValueError(f"{out} is the checkpoint itself: choose another name for the result")
