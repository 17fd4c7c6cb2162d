"""A file appears whole or not at all: it is written beside its place, flushed to the disk, and
renamed.

The name beside it says which process of which machine writes it,
`.model.jpz.1f2e3d4c-4711.<random>.tmp`: what a killed process left is removed by the next one that
writes the same file.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import socket
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

FULL = (
    errno.ENOSPC,
    errno.EFBIG,
    getattr(errno, "EDQUOT", errno.ENOSPC),
)  # what a write says, without a name


@contextlib.contextmanager
def named(path: Any) -> Iterator[None]:
    """An error of a full disk says which file had no room."""
    try:
        yield
    except OSError as e:
        if e.errno not in FULL or e.filename is not None:
            raise
        raise OSError(
            e.errno, f"{e.strerror}; nothing is left of what was written", os.fspath(path)
        ) from e


@contextlib.contextmanager
def replacing(path: Any) -> Iterator[BinaryIO]:
    """A new file that takes the place of the one at `path` in one step: a crash leaves the old file
    or the new one.
    """
    target = os.path.realpath(path)  # a link stays, what it points at is replaced
    if os.path.exists(target) and not os.path.isfile(target):
        raise ValueError(f"{os.fspath(path)} is not a regular file, and is not replaced")
    folder, name = os.path.split(target)
    remove_leftovers(path)
    beside = os.path.join(
        folder, f"{_prefix(name)}{_machine()}-{os.getpid()}.{secrets.token_hex(8)}.tmp"
    )
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


@contextlib.contextmanager
def new_folder(path: Any) -> Iterator[str]:
    """A new folder at `path`, which must not exist: it is filled beside its place, and renamed when
    the block ends.
    """
    if os.path.lexists(path):
        raise ValueError(
            f"{os.fspath(path)} exists; a folder is not replaced: remove it, or choose another name"
        )
    folder, name = os.path.split(os.path.realpath(path))
    remove_leftovers(path)
    beside = os.path.join(
        folder, f"{_prefix(name)}{_machine()}-{os.getpid()}.{secrets.token_hex(8)}.tmp"
    )
    try:
        with named(path):
            os.mkdir(beside)
            yield beside
            _sync(beside)
        os.rename(beside, os.path.join(folder, name))
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    _sync(folder)


def remove_leftovers(path: Any, own: bool = False) -> None:
    """Removes what processes that have ended left of the file at `path`; with `own`, what this
    process has begun.
    """
    folder, name = os.path.split(os.path.realpath(path))
    pattern = re.compile(re.escape(_prefix(name)) + _machine() + r"-(\d+)\.[0-9a-f]{16}\.tmp")
    with contextlib.suppress(OSError):
        for other in os.listdir(folder):
            match = pattern.fullmatch(other)
            if match and ((own and int(match[1]) == os.getpid()) or not _is_alive(int(match[1]))):
                _remove(os.path.join(folder, other))


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        os.unlink(path)


def _prefix(name: str) -> str:
    return f".{name[:100]}."


def _machine() -> str:
    """A short name of this machine: the number of a process says nothing on another one that shares
    the folder.
    """
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _is_alive(process: int) -> bool:
    if os.name != "posix":
        return True  # asking would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _sync(folder: str) -> None:
    """Makes the new name last; not every system can."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
