"""What commands say while they work, on stderr: a bar with the time left on a terminal, plain lines
elsewhere.
"""

import sys
import time
from typing import Any


class Progress:
    """Counts epochs over all seeds and phases. Use it as a context manager."""

    def __init__(self, epochs: int) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._bar: Any = _bar(self._console) if self._console.is_terminal else None
        self._task = self._bar.add_task("", total=max(epochs, 1), now="") if self._bar else None
        self._started = time.monotonic()

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar:
            self._bar.stop()

    def epoch(
        self, seed: int, phase: str, done: int, epochs: int, loss: float, accuracy: float
    ) -> None:
        """One more epoch; loss and accuracy are of the validation split."""
        if self._bar:
            now = f"loss {loss:.4f}  accuracy {accuracy:.2%}"
            self._bar.update(
                self._task, advance=1, description=f"seed {seed}  {phase} {done}/{epochs}", now=now
            )

    def skip(self, epochs: int) -> None:
        """Epochs that a checkpoint holds already."""
        if self._bar:
            self._bar.update(self._task, advance=epochs)

    def line(self, text: str) -> None:
        """A line above the bar, or on its own."""
        if self._bar:
            self._console.print(text, highlight=False, markup=False)
        else:
            print(f"{time.monotonic() - self._started:7.1f} s  {text}", file=sys.stderr, flush=True)


class Bytes:
    """Counts the bytes that went through: a bar with the speed and the time left, or a line every
    ten seconds.
    """

    EVERY = 10.0  # seconds between lines where there is no terminal

    def __init__(self, what: str, total: int) -> None:
        from rich.console import Console

        console = Console(stderr=True)
        self._bar: Any = _byte_bar(console) if console.is_terminal else None
        self._task = self._bar.add_task(what, total=max(total, 1), leaf="") if self._bar else None
        self._what = what
        self._total = total
        self._done = 0
        self._started = self._said = time.monotonic()

    def __enter__(self) -> "Bytes":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, path: str, n: int) -> None:
        """A leaf of n bytes is done."""
        self._done += n
        now = time.monotonic()
        if self._bar:
            self._bar.update(self._task, advance=n, leaf=path[-32:])
        elif now - self._said > self.EVERY:
            self._said = now
            speed = self._done / (now - self._started)
            left = (self._total - self._done) / max(speed, 1)
            share = self._done / max(self._total, 1)
            print(
                f"{self._what} {share:4.0%}  {speed / 1e6:.1f} MB/s  {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started


def _byte_bar(console: Any) -> Any:
    from rich import progress as p

    columns = (
        p.TextColumn("{task.description}"),
        p.BarColumn(bar_width=20),
        p.DownloadColumn(),
        p.TransferSpeedColumn(),
        p.TimeRemainingColumn(),
        p.TextColumn("{task.fields[leaf]}", markup=False),
    )
    return p.Progress(*columns, console=console, transient=True)


def _bar(console: Any) -> Any:
    from rich import progress as p

    columns = (
        p.TextColumn("{task.description}"),
        p.BarColumn(bar_width=24),
        p.TaskProgressColumn(),
        p.TimeElapsedColumn(),
        p.TextColumn("left"),
        p.TimeRemainingColumn(),
        p.TextColumn("{task.fields[now]}"),
    )
    return p.Progress(*columns, console=console)
