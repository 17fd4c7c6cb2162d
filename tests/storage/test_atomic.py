"""A save that fails leaves the old file, and nothing beside it."""

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxprune.storage import files
from jaxprune.storage.files import load, save

OLD = {"w": np.arange(3)}
NEW = {"w": np.arange(3) + 1, "v": np.ones(100_000)}


@pytest.fixture
def path(tmp_path):
    save(tmp_path / "model.jp", OLD)
    return tmp_path / "model.jp"


def assert_old(path):
    assert os.listdir(path.parent) == ["model.jp"]
    assert load(path)["w"].tolist() == [0, 1, 2]


FAILURES = [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), MemoryError()]


class FailingFile:
    """Writes some pieces, and fails in the midst of the next one."""

    def __init__(self, file, after, failure):
        self.file = file
        self.after = after
        self.failure = failure
        self.num_written = 0

    def write(self, piece):
        if self.num_written == self.after:
            self.file.write(bytes(piece)[:3])
            raise self.failure
        self.num_written += 1
        self.file.write(piece)

    def flush(self):
        self.file.flush()


@pytest.mark.parametrize("failure", FAILURES, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_write_fails(failure, after, path, monkeypatch):
    replacing = files.replacing

    @contextlib.contextmanager
    def failing(path):
        with replacing(path) as file:
            yield FailingFile(file, after, failure)

    monkeypatch.setattr(files, "replacing", failing)
    with pytest.raises(type(failure)):
        save(path, NEW)
    assert_old(path)


@pytest.mark.parametrize("failure", FAILURES, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_the_end_fails(failure, call, path, monkeypatch):
    def failing(*_):
        raise failure

    monkeypatch.setattr(files.os, call, failing)
    with pytest.raises(type(failure)):
        save(path, NEW)
    monkeypatch.undo()
    assert_old(path)


def test_an_encoder_fails(path):
    with pytest.raises(ValueError, match="v: a str"):
        save(path, {**NEW, "v": "text"})
    assert_old(path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
def test_a_full_disk(path, monkeypatch):
    """A real ENOSPC, at the flush."""
    real = open
    monkeypatch.setattr(
        "builtins.open",
        lambda name, *a, **kw: real(name, *a, **kw).close() or real("/dev/full", "wb"),
    )
    with pytest.raises(OSError, match="No space left"):
        save(path, NEW)
    monkeypatch.undo()
    assert_old(path)


KILLED = """
import os, signal, sys, time
import numpy as np
from jaxprune.storage import files

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

def slow(file):
    print("written", flush=True)
    time.sleep(60)

os.fsync = slow
files.save(sys.argv[1], {"w": np.ones(1000)})
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process(how, path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "written\n"
    process.send_signal(how)
    assert process.wait(30) != 0
    process.stdout.close()
    assert load(path)["w"].tolist() == [0, 1, 2]
    left = [name for name in os.listdir(path.parent) if name != "model.jp"]
    assert len(left) == (how == signal.SIGKILL) and all(
        name.startswith(".model.jp.") for name in left
    )
    save(path, NEW)
    assert load(path)["v"].size == 100_000


def test_a_reader_of_the_old_file_keeps_it(path):
    with open(path, "rb") as old:
        before = old.read(10)
        save(path, NEW)
        assert before + old.read() != path.read_bytes()
    assert load(path)["v"].size == 100_000


def test_a_link_stays_a_link(path):
    link = path.parent / "link"
    link.symlink_to(path)
    save(link, NEW)
    assert link.is_symlink() and load(path)["v"].size == 100_000


def test_permissions_are_those_of_any_new_file(path):
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_relative_paths_and_long_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model", "é" * 100):
        save(name, OLD)
        assert load(name)["w"].tolist() == [0, 1, 2]
    began = time.time_ns()
    save("model", OLD)
    assert began // 10**9 <= os.stat("model").st_mtime + 1
