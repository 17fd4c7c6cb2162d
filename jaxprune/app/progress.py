"""What a run says while it works, on stderr: a bar with the time left on a terminal, plain lines elsewhere."""

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

    def epoch(self, seed: int, phase: str, done: int, epochs: int, loss: float, accuracy: float) -> None:
        """One more epoch; loss and accuracy are of the validation split."""
        if self._bar:
            now = f"loss {loss:.4f}  accuracy {accuracy:.2%}"
            self._bar.update(self._task, advance=1, description=f"seed {seed}  {phase} {done}/{epochs}", now=now)

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
