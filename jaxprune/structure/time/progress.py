"""What is said on stderr while times are measured: on a terminal a line that changes, else one
every ten seconds.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

EVERY = 10.0  # seconds between lines where there is no terminal
PATIENCE = 2.0  # seconds of silence at the start: what is over by then needs no words

Tell = Callable[[str], None]


@contextmanager
def progress() -> Iterator[Tell]:
    """A function that takes what is to be said now."""
    began = said = time.monotonic()
    status: Any = None

    def tell(text: str) -> None:
        nonlocal said, status
        now = time.monotonic()
        if now - began < PATIENCE:
            return
        if sys.stderr.isatty():
            status = status or _status()
            status.update(f"shrink: {text}")
        elif now - said > EVERY:
            said = now
            print(f"shrink: {text}", file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        if status is not None:
            status.stop()


def _status() -> Any:
    from rich.console import Console

    status = Console(stderr=True).status("shrink")
    status.start()
    return status
