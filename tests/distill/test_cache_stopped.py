"""Writes that are stopped, killed, doubled, or find the disk full: nothing is lost, and the end is
the same.
"""

import errno
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import jaxprune as jp
from tests.distill.cache_toy import X, contents, teacher, write


@pytest.mark.parametrize("stop", range(8))
def test_a_write_that_stops_goes_on_where_it_was(stop, tmp_path):
    calls = []

    def stopping(x):
        if len(calls) == stop:
            raise KeyboardInterrupt
        return counted(x)

    def counted(x):
        calls.append(len(x))
        return teacher(x)

    write(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "stopped", stopping)
    kept = stop // 2  # two batches a shard
    calls.clear()
    seen = []
    write(tmp_path / "stopped", counted, progress=lambda *done: seen.append(done))
    assert sum(calls) == 23 - 6 * kept
    assert seen == [(d, 23) for d in [*range(6, 6 * kept + 1, 6), *range(6 * kept + 3, 23, 3), 23]]
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_a_cache_that_is_there_is_not_written_again(tmp_path):
    write(tmp_path)
    cache = write(tmp_path, lambda x: pytest.fail("the teacher was asked"))
    assert_array_equal(cache.whole(), teacher(X).astype(np.float16))


KILLED = """
import sys, time
from tests.distill import test_cache as t

def slow(x, calls=[]):
    calls.append(0)
    if len(calls) == 6:  # the sixth of eight batches
        print("there", flush=True)
        time.sleep(60)
    return t.teacher(x)

t.write(sys.argv[1], slow)
"""


def test_a_killed_process(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGKILL)
    left = sorted(os.listdir(tmp_path / "killed/augmentation-0"))
    assert left[1:] == ["shard-000000", "shard-000001"] and left[0].startswith(".shard-000002.")
    write(tmp_path / "killed"), write(tmp_path / "whole")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_two_writers_at_once(tmp_path):
    """The second writes everything while the first is within a batch, and tidies up the first one's
    file.
    """
    second = []

    def first(x):
        if not second:
            second.append(write(tmp_path / "both"))
        return teacher(x)

    write(tmp_path / "both", first), write(tmp_path / "one")
    assert contents(tmp_path / "both") == contents(tmp_path / "one")
    assert_array_equal(second[0].whole(), teacher(X).astype(np.float16))


def test_the_first_writer_outlives_the_tidying_of_the_second(tmp_path):
    calls = []

    def first(x):
        calls.append(0)
        if len(calls) == 2:  # its own temporary file is open
            write(tmp_path / "both")
        return teacher(x)

    write(tmp_path / "both", first), write(tmp_path / "one")
    assert contents(tmp_path / "both") == contents(tmp_path / "one")


def test_writers_in_threads(tmp_path):
    errors = []

    def run():
        try:
            write(tmp_path / "many", batch=1, shard=1)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=run) for _ in range(4)]
    [t.start() for t in threads], [t.join() for t in threads]
    write(tmp_path / "one", batch=1, shard=1)
    assert not errors and contents(tmp_path / "many") == contents(tmp_path / "one")


def test_two_teachers_start_at_once(tmp_path):
    """The second one's manifest replaces that of the first, which writes nothing then, and says
    so.
    """

    calls = []

    def first(x):
        calls.append(0)
        if len(calls) == 2:  # its manifest is there, its first shard is not
            os.unlink(tmp_path / "manifest.json")
            write(tmp_path, lambda x: teacher(x) + 1, fingerprint="second")
        return teacher(x)

    with pytest.raises(ValueError, match="another writer has put another cache here meanwhile"):
        write(tmp_path, first)
    found = jp.distill.Cache.open(tmp_path, fingerprint="second").whole()
    assert_array_equal(found, (teacher(X) + 1).astype(np.float16))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
def test_a_full_disk_keeps_what_was_written(tmp_path, monkeypatch):
    """A real ENOSPC, in the third shard."""
    real = open

    def full(name):
        return "shard-000002" in str(name)

    def failing(name, *a, **kw):
        return real("/dev/full", "wb") if full(name) else real(name, *a, **kw)

    monkeypatch.setattr("builtins.open", failing)
    with pytest.raises(
        OSError, match=r"No space left.*; 2 of 4 shards are kept, and the same call goes on"
    ) as caught:
        write(tmp_path / "full")
    assert caught.value.filename.endswith("shard-000002") and caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path / "full/augmentation-0")) == ["shard-000000", "shard-000001"]
    write(tmp_path / "full"), write(tmp_path / "whole")
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


def test_a_file_that_may_not_grow(tmp_path):
    resource = pytest.importorskip("resource")
    x = np.zeros((3000, 6), np.float32)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, old[1]))
    try:
        with pytest.raises(OSError, match="File too large; 0 of 1 shards are kept"):
            write(tmp_path, lambda x: x, x, shard=3000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert os.listdir(tmp_path / "augmentation-0") == []
