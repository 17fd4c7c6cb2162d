"""A file appears whole or not at all: it is written beside its place, flushed to the disk, and renamed."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from typing import Any, BinaryIO

FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))  # what a write says, without a name


@contextlib.contextmanager
def named(path: Any) -> Iterator[None]:
    """An error of a full disk says which file had no room."""
    try:
        yield
    except OSError as e:
        if e.errno not in FULL or e.filename is not None:
            raise
        raise OSError(e.errno, f"{e.strerror}; nothing is left of what was written", os.fspath(path)) from e


@contextlib.contextmanager
def replacing(path: Any) -> Iterator[BinaryIO]:
    """A new file that takes the place of the one at `path` in one step: a crash leaves the old file or the new one."""
    target = os.path.realpath(path)  # a link stays, what it points at is replaced
    if os.path.exists(target) and not os.path.isfile(target):
        raise ValueError(f"{os.fspath(path)} is not a regular file, and is not replaced")
    folder, name = os.path.split(target)
    beside = os.path.join(folder, f".{name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        with named(path), open(beside, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    _sync(folder)


def _sync(folder: str) -> None:
    """Makes the new name last; not every system can."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
