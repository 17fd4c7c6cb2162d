"""What `fit` says while it works, on stderr: a bar with steps/s and the time left, or a line every
ten seconds.
"""

import sys
import time
from collections.abc import Mapping
from typing import Any

EVERY = 10.0  # seconds between lines where there is no terminal
PATIENCE = 2.0  # seconds of silence at the start: what is over by then needs no bar


class Progress:
    """Counts steps.

    Args:
      steps: in all.
      start: how many a checkpoint holds.
      shown: False for none.
      note: what to say first: operations of a step, which inner loop runs.
    """

    def __init__(self, steps: int, start: int, shown: bool, note: str) -> None:
        self._steps = steps
        self._first = start
        self._done = start
        self._shown = shown
        self._note = note
        self._began = self._said = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def advance(self, done: int, metrics: Mapping[str, float]) -> None:
        """Steps that are done by now, and the newest metrics."""
        self._done = done
        now = time.monotonic()
        if not self._shown or now - self._began < PATIENCE:
            return
        if self._note:
            self.line(self._note)
            self._note = ""
        if sys.stderr.isatty():
            self._draw(self._text(metrics))
        elif now - self._said > EVERY:
            self._said = now
            left = (self._steps - done) / max(self.speed, 1e-9)
            print(
                f"step {done}/{self._steps}  {self._text(metrics)}  {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def line(self, text: str) -> None:
        """A line above the bar, or on its own."""
        if self._shown and self._bar:
            self._bar.console.print(text, highlight=False, markup=False)
        elif self._shown:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar:
            self._bar.stop()

    @property
    def speed(self) -> float:
        """Steps a second, over the whole run."""
        return (self._done - self._first) / max(time.monotonic() - self._began, 1e-9)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began

    def _text(self, metrics: Mapping[str, float]) -> str:
        named = [f"{n} {metrics[n]:.4g}" for n in ("loss", "agreement", "accuracy") if n in metrics]
        return "  ".join([f"{self.speed:.1f} steps/s", *named])

    def _draw(self, text: str) -> None:
        if self._bar is None:
            from rich import progress as p
            from rich.console import Console

            columns = (
                p.TextColumn("step"),
                p.BarColumn(24),
                p.MofNCompleteColumn(),
                p.TextColumn("{task.fields[now]}"),
            )
            self._bar = p.Progress(*columns, p.TimeRemainingColumn(), console=Console(stderr=True))
            self._task = self._bar.add_task("", total=self._steps, now=text)
            self._bar.start()
        self._bar.update(self._task, completed=self._done, now=text)
