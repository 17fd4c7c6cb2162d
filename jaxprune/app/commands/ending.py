"""Signals of a command: Ctrl-C, SIGTERM and SIGHUP end it at once, and leave nothing half written.

A KeyboardInterrupt is raised between any two steps of Python: in a callback of the garbage
collector it is lost, and in the middle of JAX or Orbax it leaves threads that crash while Python
shuts down. So the handler itself removes what is half written, and ends the process.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # not every system has all of them
SHOW_CURSOR = "\x1b[?25h"


class Stopped(Exception):
    """A signal that a command has obeyed where it could stop.

    Args:
      number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextlib.contextmanager
def ends_at_once(message: str, clean_up: Callable[[], Any]) -> Iterator[None]:
    """Within it, a signal calls `clean_up`, prints a message and ends the process with 128 + its
    number.

    Signals that are ignored (as under nohup) stay so, and nothing changes outside the main thread.
    """

    def end(number: int, frame: Any) -> None:
        with contextlib.suppress(Exception):
            clean_up()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        say(message)
        os._exit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
        listening = [n for n in numbers if signal.getsignal(n) not in (signal.SIG_IGN, None)]
        before = {number: signal.signal(number, end) for number in listening}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(text: str) -> None:
    """A line on stderr, past the buffer that the code which a signal interrupts may be writing
    to.
    """
    start = "\r" + SHOW_CURSOR if sys.stderr is not None and sys.stderr.isatty() else ""
    with contextlib.suppress(OSError):
        os.write(2, f"{start}{text}\n".encode())
