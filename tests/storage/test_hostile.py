"""Files that are damaged, cut, or made to harm: one `FormatError` each, in bounded time and
memory.
"""

import cProfile
import os
import pstats
import threading
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.core.arrays import Clustered, Masked, materialize
from jaxprune.core.quantized import Quantized
from jaxprune.storage.decoder import Decoder
from jaxprune.storage.files import inspect, load, save
from jaxprune.storage.format.words import FormatError
from tests.storage.hostile import GOOD, HOSTILE, lines_run, tree_of, versioned
from tests.storage.trees import assert_same, integers, mask, normal, same


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
    path.write_bytes(versioned("3"))
    for read in (load, inspect):
        with pytest.raises(
            FormatError, match="needs version 3 of the format; this library reads up to 2: upgrade"
        ):
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
    save(
        path,
        {
            "a": jnp.zeros(1 << 20, jnp.uint8),
            "b": Clustered(jnp.zeros(2), jnp.zeros(1 << 20, jnp.uint8)),
        },
    )
    tracemalloc.start()
    for most, as_ in (
        ((2 << 20) + 7, "compressed"),
        ((6 << 20) + 7, "dense"),
        ((6 << 20) + 7, "numpy"),
    ):
        with pytest.raises(
            FormatError, match=f"{most + 1} bytes decoded, more than max_bytes={most}"
        ):
            load(path, max_bytes=most, as_=as_)
    assert tracemalloc.get_traced_memory()[1] < 1 << 18
    tracemalloc.stop()
    assert load(path, max_bytes=(2 << 20) + 8)["a"].size == 1 << 20
    assert load(path, max_bytes=1 << 20, only="a")["a"].size == 1 << 20
    path.write_bytes(
        tree_of({"w": ["M", 0, ["i1", [1000], 1, 2]]}, bytes(2))
    )  # a mask that is made, not stored
    with pytest.raises(FormatError, match="2000 bytes decoded, more than max_bytes=1999"):
        load(path, max_bytes=1999)
    assert not load(path, max_bytes=2000)["w"].mask.any()


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
    read = Decoder.read

    def shrinking(self, *args):
        os.truncate(path, path.stat().st_size - 10)
        return read(self, *args)

    monkeypatch.setattr(Decoder, "read", shrinking)
    with pytest.raises(FormatError, match="truncated"):
        load(path)


@pytest.mark.parametrize("at", [None, -1])
def test_a_file_that_is_written_while_it_is_read(at, path, monkeypatch):
    """What is appended is not read; a byte that is changed is found."""
    tree = {"a": normal(50_000), "b": normal(500)}
    save(path, tree)
    read = Decoder.read

    def writing(self, *args):
        with open(path, "r+b") as file:
            file.seek(at or 0, os.SEEK_END)
            file.write(b"x" if at else b"more")
        return read(self, *args)

    monkeypatch.setattr(Decoder, "read", writing)
    if at is None:
        assert_same(load(path), tree)
    else:
        with pytest.raises(FormatError, match=r"leaf 'b', byte \d+: the checksum is wrong"):
            load(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e-45, -1.0, -0.0, 0.0, 3e38])
def test_any_float_is_a_scale_or_a_centroid(value, path):
    """They are the user's, and come back bit for bit; what does not fit the dense dtype overflows
    as a cast does.
    """
    floats = np.array([[value, 1.0]], np.float32)
    tree = {
        "q": Quantized(integers(1, 9, 3, 2), jnp.asarray(floats), None, 8, jnp.dtype("float16"))
    }
    tree["c"] = Clustered(jnp.asarray(floats[0]), integers(0, 2, 7))
    save(path, tree)
    assert_same(load(path), tree)
    assert_same(load(path, as_="dense"), materialize(tree))
    assert_same(load(path, as_="numpy"), jax.tree.map(np.asarray, materialize(tree)))


def test_any_text_is_a_name(path):
    """Names are places in a tree, and nothing else: no path of a file, no attribute, no number."""
    names = [
        "",
        "/",
        "//",
        "a",
        "a/b",
        "a//b",
        ".",
        "..",
        "../x",
        "\0",
        "\n",
        "__class__",
        "__init__",
        "#-1",
        "-1",
        "0",
        "é",
        "e\u0301",
    ]
    tree = {
        **{name: {"x": i, "y": np.full(2, i)} for i, name in enumerate(names)},
        "n" * (1 << 20): np.ones(1),
    }
    tree["deep"] = {"/": {"": {"..": np.ones(3)}}}
    save(path, tree)
    assert_same(load(path), tree)
    assert_same(load(path, like=tree), tree)


def test_keys_with_slashes_and_backslashes_have_paths_of_their_own(path):
    tree = {
        "a\\": {"b": np.ones(2)},
        "a/b": np.zeros(3),
        "a": {"b": np.ones(4)},
        "a\\/b": np.ones(5),
    }
    save(path, tree)
    assert [row.path for row in inspect(path).rows] == ["a/b", r"a\/b", r"a\\/b", r"a\\\/b"]
    assert_same(load(path), tree)
    assert_same(load(path, like=tree), tree)


@pytest.mark.parametrize("key", ["\ud800", "a\udfff", "\udc80b"])
def test_half_of_a_surrogate_pair_is_not_saved(key, path):
    with pytest.raises(ValueError, match=r"the key .* half of a surrogate pair"):
        save(path, {"a": {key: np.ones(2)}})
    with pytest.raises(ValueError, match="metadata must be"):
        save(path, {"a": np.ones(2)}, metadata={"about": {key: "x"}})
    assert not path.exists()


def test_leaves_that_are_one_array(path):
    x = normal(30)
    code = Masked(normal(30), mask(30))
    save(path, {"a": x, "b": [x, code], "c": code})
    back = load(path)
    assert_same(back, {"a": x, "b": [x, back["c"]], "c": back["c"]})
    assert same(back["a"], x) and same(back["c"].mask, code.mask)


def test_eight_threads_load_one_file(path):
    tree = {"a": normal(500), "b": Masked(normal(40, 40), mask(40, 40))}
    save(path, tree)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(load(path, as_="numpy"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(
        x["a"].tobytes() == np.asarray(tree["a"]).tobytes() for x in found
    )


def test_work_is_linear(path):
    """Four times the leaves take four times the Python calls, which no noise of the machine can
    change.
    """

    def calls(n):
        save(path, {str(i): {"w": np.zeros(3, np.float32), "n": i} for i in range(n)})
        profile = cProfile.Profile()
        profile.runcall(load, path, as_="numpy")
        return pstats.Stats(profile).total_calls

    calls(10)
    assert calls(800) < 4.5 * calls(200)
