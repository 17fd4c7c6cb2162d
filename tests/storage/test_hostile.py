"""Files that are damaged, cut, or made to harm: one `FormatError` each, in bounded time and memory."""

import cProfile
import os
import pstats
import threading
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.core.arrays import Clustered, Masked
from jaxprune.storage import reader
from jaxprune.storage.files import inspect, load, save
from jaxprune.storage.format import FormatError
from tests.storage.hostile import GOOD, HOSTILE, lines_run, versioned
from tests.storage.trees import assert_same, mask, normal


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.jp"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name, path):
    path.write_bytes(HOSTILE[name])
    with pytest.raises(FormatError) as caught, lines_run() as lines:
        load(path, max_bytes=1 << 28)
    assert lines[0] < 20 * len(HOSTILE[name]) + 2000
    assert str(path) in str(caught.value) and len(str(caught.value)) < 500


def test_the_good_file_is_good(path):
    path.write_bytes(GOOD)
    assert load(path, as_="numpy")["w"].tolist() == [1.0, 2.0]


def test_a_newer_version_says_which(path):
    path.write_bytes(versioned("2"))
    for read in (load, inspect):
        with pytest.raises(FormatError, match="needs version 2 of the format; this library reads up to 1: upgrade"):
            read(path)


def test_inspect_refuses_the_same_manifests(path):
    for raw in HOSTILE.values():
        path.write_bytes(raw)
        try:
            str(inspect(path))
        except FormatError:
            continue
        with pytest.raises(FormatError):  # only the data can show it
            load(path, max_bytes=1 << 28)


def test_memory_is_checked_before_it_is_taken(path):
    save(path, {"a": jnp.zeros(1 << 20, jnp.uint8), "b": Clustered(jnp.zeros(2), jnp.zeros(1 << 20, jnp.uint8))})
    tracemalloc.start()
    for most, as_ in (((2 << 20) + 7, "compressed"), ((6 << 20) + 7, "dense"), ((6 << 20) + 7, "numpy")):
        with pytest.raises(FormatError, match=f"{most + 1} bytes decoded, more than max_bytes={most}"):
            load(path, max_bytes=most, as_=as_)
    assert tracemalloc.get_traced_memory()[1] < 1 << 18
    tracemalloc.stop()
    assert load(path, max_bytes=(2 << 20) + 8)["a"].size == 1 << 20
    assert load(path, max_bytes=1 << 20, only="a")["a"].size == 1 << 20


def test_only_regular_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        for read in (load, inspect):
            with pytest.raises(FormatError, match="not a regular file"):
                read(path)
        with pytest.raises(ValueError, match="not a regular file"):
            save(path, {})
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing")


def test_a_damaged_leaf_leaves_the_others(path):
    tree = {"a": normal(50), "b": normal(50)}
    save(path, tree)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert_same(load(path, only="a"), {"a": tree["a"]})
    with pytest.raises(FormatError, match=r"leaf 'b', byte \d+: the checksum is wrong"):
        load(path)


def test_a_file_that_shrinks_while_it_is_read(path, monkeypatch):
    save(path, {"a": normal(50_000)})
    read = reader.Decoder.read

    def shrinking(self, *args):
        os.truncate(path, path.stat().st_size - 10)
        return read(self, *args)

    monkeypatch.setattr(reader.Decoder, "read", shrinking)
    with pytest.raises(FormatError, match="truncated"):
        load(path)


def test_eight_threads_load_one_file(path):
    tree = {"a": normal(500), "b": Masked(normal(40, 40), mask(40, 40))}
    save(path, tree)
    found = []
    threads = [threading.Thread(target=lambda: found.append(load(path, as_="numpy"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(x["a"].tobytes() == np.asarray(tree["a"]).tobytes() for x in found)


def test_work_is_linear(path):
    """Four times the leaves take four times the Python calls, which no noise of the machine can change."""

    def calls(n):
        save(path, {str(i): {"w": np.zeros(3, np.float32), "n": i} for i in range(n)})
        profile = cProfile.Profile()
        profile.runcall(load, path, as_="numpy")
        return pstats.Stats(profile).total_calls

    calls(10)
    assert calls(800) < 4.5 * calls(200)
