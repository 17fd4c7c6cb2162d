"""Files that are damaged, cut, or made to harm: one `FormatError` each, in bounded time and memory."""

import contextlib
import cProfile
import json
import os
import pstats
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxprune.core.arrays import Clustered, Common, Masked
from jaxprune.storage import format as f
from jaxprune.storage import reader
from jaxprune.storage.files import inspect, load, save
from jaxprune.storage.format import FormatError
from tests.storage.hostile import GOOD, HOSTILE, file_of, lines_run, tree_of, versioned
from tests.storage.test_banks import model as banked
from tests.storage.trees import assert_same, codes, integers, mask, normal, quantized


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


def test_reading_needs_no_jax(path):
    """The reader's modules import NumPy and the standard library; the packages above them are stubs here."""
    save(path, {"w": Masked(Clustered(normal(4), integers(0, 4, 30)), mask(30))})
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    program = f"""
import sys, types
for name in ("jax", "jaxlib", "flax", "ml_dtypes"):
    sys.modules[name] = None
for name in ("jaxprune", "jaxprune.numerics", "jaxprune.storage"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [{root!r} + "/" + name.replace(".", "/")]
from jaxprune.storage import reader
with reader.open_regular({str(path)!r}) as file:
    found = reader.contents(file)
    print(reader.Decoder(file, found).read(found.leaves[0]).parts[0].words.sum())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == int(np.sum(load(path, as_="compressed")["w"].mask))


def test_work_is_linear(path):
    """Four times the leaves take four times the Python calls, which no noise of the machine can change."""

    def calls(n):
        save(path, {str(i): {"w": np.zeros(3, np.float32), "n": i} for i in range(n)})
        profile = cProfile.Profile()
        profile.runcall(load, path, as_="numpy")
        return pstats.Stats(profile).total_calls

    calls(10)
    assert calls(800) < 4.5 * calls(200)


# --- mutations -------------------------------------------------------------------------------------------------------


def small_files(folder):
    clustered = Masked(Clustered(normal(8), integers(0, 8, 900)), mask(900, keep=0.1))
    trees = [
        codes(),
        {"w": Masked(quantized(4, 30, 9), mask(30, 9))},
        Common(normal(8), [Clustered(None, integers(0, 8, 40)), {3: np.ones(2)}, None, 1.5]),
        {"m": clustered, "b": normal(3, dtype=jnp.bfloat16)},
        banked(),
    ]
    for i, tree in enumerate(trees):
        save(folder / str(i), tree, metadata={"i": i})
        yield (folder / str(i)).read_bytes()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return list(small_files(tmp_path_factory.mktemp("files")))


@st.composite
def mutations(draw):
    return draw(
        st.tuples(
            st.integers(0, 4),
            st.sampled_from(["flip", "cut", "insert", "delete", "zero", "swap", "double"]),
            st.floats(0, 1, exclude_max=True),
            st.floats(0, 1, exclude_max=True),
            st.integers(1, 255),
        )
    )


def mutated(files, mutation):
    which, how, a, b, x = mutation
    raw = bytearray(files[which])
    i, j = int(a * len(raw)), int(b * len(raw))
    i = i if x % 3 else i % 700  # headers and manifests are short: meet them often
    if how == "flip":
        raw[i] ^= x
    elif how == "cut":
        del raw[i:]
    elif how == "insert":
        raw[i:i] = bytes([x]) * (1 + x % 9)
    elif how == "delete":
        del raw[i : i + 1 + x % 9]
    elif how == "zero":
        raw[i : i + x] = bytes(len(raw[i : i + x]))
    elif how == "swap":
        raw[i], raw[j] = raw[j], raw[i]
    else:
        raw += raw[i:]
    return bytes(raw)


def survives(files, path, mutation):
    raw = mutated(files, mutation)
    if raw == files[mutation[0]]:
        return
    path.write_bytes(raw)
    with pytest.raises(FormatError):
        load(path, max_bytes=1 << 24)
    with contextlib.suppress(FormatError):
        inspect(path)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(mutations())
def test_any_mutation_is_found(files, tmp_path_factory, mutation):
    survives(files, tmp_path_factory.getbasetemp() / "mutated", mutation)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))
@given(mutations())
def test_many_mutations_are_found(files, tmp_path_factory, mutation):
    survives(files, tmp_path_factory.getbasetemp() / "mutated", mutation)


def unguarded(raw, payload):
    """The file with other bytes of data, and checksums that fit them: what a forger would write."""
    length = struct.unpack("<Q", raw[:8])[0]
    size = json.loads(raw[8 : 8 + length])["jp.manifest"]["shape"][0]
    body = raw[8 + length : 8 + length + size]
    inflate = zlib.decompressobj(-15, zdict=f.DICTIONARY)
    text = inflate.decompress(body[4:])
    return file_of(text, payload, crcs=[zlib.crc32(payload)])


@pytest.fixture(scope="module")
def lone_files(tmp_path_factory):
    """Files of one leaf each, in every codec."""
    folder = tmp_path_factory.mktemp("lone")
    found = []
    for name, code in codes().items():
        if not isinstance(code, Common):
            save(folder / "x", code)
            raw = (folder / "x").read_bytes()
            found.append((name, raw, raw[len(raw) - inspect(folder / "x").bytes.data :]))
    return found


def forged(lone_files, path, which, flips):
    """Forged data loads as something, or is a `FormatError`: never another exception, nor a wild index."""
    _, raw, data = lone_files[which % len(lone_files)]
    octets = bytearray(data)
    for at, x in flips:
        if octets:
            octets[int(at * len(octets))] ^= x
    path.write_bytes(unguarded(raw, bytes(octets)))
    try:
        back = load(path, max_bytes=1 << 24)
    except FormatError:
        return
    assert all(np.asarray(x).size < 1 << 20 for x in jax.tree.leaves(back))


flips = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 999), flips)
def test_forged_data(lone_files, tmp_path_factory, which, flips):
    forged(lone_files, tmp_path_factory.getbasetemp() / "forged", which, flips)


odd = ["l", "t", "i", "x", "G", "nan", "=f4", 0, 1, 2, -1, 4, 8, 2**63, True, None, 1.5]
lists_and_dicts = lambda kids: st.lists(kids, max_size=5) | st.dictionaries(st.text(max_size=3), kids, max_size=3)
json_nodes = st.recursive(st.sampled_from([*f.KINDS, *f.DTYPES, *odd]), lists_and_dicts, max_leaves=25)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(json_nodes, st.binary(max_size=16))
def test_forged_trees(tmp_path_factory, node, data):
    path = tmp_path_factory.getbasetemp() / "tree"
    path.write_bytes(tree_of(node, data))
    for read in (load, lambda p: load(p, as_="dense", max_bytes=1 << 20), inspect):
        with contextlib.suppress(FormatError):
            read(path)
