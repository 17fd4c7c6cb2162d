"""SIGTERM and Ctrl-C, put off until there is a checkpoint.

A handler that raises would do so between any two steps of Python: inside a callback of the garbage
collector, where the exception is lost, or in the middle of a checkpoint. So the first signal is
noted, and the loop looks at the note where it can stop. The second does at once what it did before.
"""

import signal
import threading
from collections.abc import Callable
from typing import Any

NUMBERS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Within it, the first SIGTERM or SIGINT is noted; `obey` lets it do what it did before.

    Nothing happens outside the main thread, nor to a signal that is ignored.

    Args:
      on_first: called when the first one comes.
    """

    def __init__(self, on_first: Callable[[], Any] = lambda: None) -> None:
        self.came: int | None = None
        self._on_first = on_first
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in NUMBERS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def obey(self) -> None:
        """If one came: the handler from before runs. By default SIGTERM ends the process, SIGINT
        raises.
        """
        if self.came is not None:
            self.__exit__()
            signal.raise_signal(self.came)

    def _note(self, number: int, frame: Any) -> None:
        if self.came is not None:
            self.__exit__()
            signal.raise_signal(number)
            return
        self.came = number
        self._on_first()
