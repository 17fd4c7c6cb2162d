"""SIGTERM, put off until there is a checkpoint."""

import signal
import threading
from typing import Any


class Terminated:
    """Within it, a SIGTERM is noted; `obey` lets it do what it did before. Nothing outside the main thread."""

    def __init__(self) -> None:
        self.came, self._before = False, None

    def __enter__(self) -> "Terminated":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def obey(self) -> None:
        """If it came: the handler from before runs; by default that ends the process."""
        if self.came:
            self.__exit__()
            signal.raise_signal(signal.SIGTERM)

    def _note(self, *_: Any) -> None:
        self.came = True
