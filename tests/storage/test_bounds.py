"""Files of other tools that were changed, or made to harm: a `FormatError` of one short line, in
bounded memory.
"""

import contextlib
import json
import os
import pathlib
import struct
import subprocess
import sys
import zipfile

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxprune as jp
from jaxprune.storage import limits
from jaxprune.storage.checkpoints import orbax, shards
from jaxprune.storage.checkpoints.formats import open_checkpoint, write_checkpoint
from jaxprune.storage.checkpoints.tensors import Tensor
from jaxprune.storage.format.words import FormatError
from tests.storage.hostile import coded
from tests.storage.test_checkpoints import SUFFIXES, write_foreign
from tests.storage.test_fuzz import changed, changes

few = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
F4 = np.dtype("float32")


def read_all(path, max_bytes=1 << 24):
    with open_checkpoint(path, max_bytes) as checkpoint:
        return {tensor.keys: checkpoint.read(path) for path, tensor in checkpoint.tensors.items()}


def refused(path, message=""):
    with pytest.raises(FormatError, match=message) as error:
        read_all(path)
    assert len(str(error.value)) < 1000 and "\n" not in str(error.value)


# --- files that were changed
# ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    files = {s: write_foreign(folder / f"m{s}", SUFFIXES[s]).read_bytes() for s in SUFFIXES if s}
    np.savez_compressed(folder / "z.npz", **SUFFIXES[".npz"])
    np.save(folder / "one.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    weight_map = {
        "weight_map": {"a.weight": "m-1.safetensors", "b.weight": "m-2.safetensors"},
        "metadata": {},
    }
    index = json.dumps(weight_map, indent=1).encode()
    return {
        **files,
        "z.npz": (folder / "z.npz").read_bytes(),
        ".npy": (folder / "one.npy").read_bytes(),
        "i": index,
    }


@few
@given(st.sampled_from([".safetensors", ".npz", "z.npz", ".msgpack", ".npy", "i"]), changes)
def test_a_changed_file_is_read_or_refused(originals, tmp_path_factory, which, change):
    how, a, b, x = change
    raw = originals[which]
    a = a if x % 2 else a * min(1, 300 / len(raw))  # headers are at the front: meet them often
    name = "x.safetensors.index.json" if which == "i" else "x"
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(changed(raw, (how, a, b, x)))
    with contextlib.suppress(FormatError):
        read_all(path)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Orbax leaves coroutines behind
@few
@given(changes)
def test_changed_metadata_of_orbax_is_read_or_refused(tmp_path_factory, change):
    folder = tmp_path_factory.getbasetemp() / "orbax_to_change"
    if not folder.exists():
        with ocp.StandardCheckpointer() as store:
            store.save(folder, {"a": {"b": np.ones(3)}, "c": np.ones(2)})
        (folder / "_METADATA").rename(folder / "original")
    (folder / "_METADATA").write_bytes(changed((folder / "original").read_bytes(), change))
    with contextlib.suppress(FormatError), open_checkpoint(folder):
        pass


# --- zip archives
# ---------------------------------------------------------------------------------------


def npy_of(shape, descr="<f4", data=b""):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, octets in members:
            file.writestr(name, octets)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "members, compression, message",
    [
        ([("a.npy", npy_of((10**10,)))], 0, "speaks of 40000000000 bytes, 0 follow"),
        ([("a.npy", npy_of((2,), data=bytes(9)))], 0, "speaks of 8 bytes, 9 follow"),
        ([("a.npy", npy_of((2,), data=bytes(8)))], zipfile.ZIP_BZIP2, "has the compression 12"),
        ([("a.npy", npy_of((2,), data=bytes(8)))], zipfile.ZIP_LZMA, "has the compression 14"),
        ([("a.npy", npy_of((2,), data=bytes(8)))] * 2, 0, "two members of one name"),
        ([("a.npy", npy_of((1,) * 40, data=bytes(4)))], 0, "40 axes"),
        ([("a.npy", npy_of((2,), ">zz", bytes(8)))], 0, "'>zz'"),
        ([("a" * 40_000 + ".npy", npy_of((2,), data=bytes(8)))], 0, "longer than 32768 bytes"),
        ([("/".join("a" * 70) + ".npy", npy_of((2,), data=bytes(8)))], 0, "more than 64 keys"),
        ([("readme.txt", b"hello")], 0, r"no \.npy members"),
    ],
)
def test_archives_that_lie_or_are_unusual(members, compression, message, tmp_path):
    refused(archive(tmp_path / "x.npz", members, compression), message)


def test_an_encrypted_archive(tmp_path):
    path = archive(tmp_path / "x.npz", [("a.npy", npy_of((2,), data=bytes(8)))])
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(raw)
    refused(path, "'a' is encrypted")


def test_a_member_that_says_more_than_it_can_hold(tmp_path):
    path = archive(
        tmp_path / "x.npz", [("a.npy", npy_of((2,), data=bytes(8)))], zipfile.ZIP_DEFLATED
    )
    raw = bytearray(path.read_bytes())
    place = raw.index(b"PK\1\2") + 24
    raw[place : place + 4] = struct.pack("<I", 2**31)
    path.write_bytes(raw)
    refused(path, "become 2147483648: that cannot be")


def test_what_an_archive_cannot_give_is_left_out_and_noted(tmp_path):
    np.savez(
        tmp_path / "x.npz",
        w=np.ones(2),
        o=np.array([{}], object),
        t=np.array(["a"]),
        d=np.zeros(1, "M8[s]"),
    )
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as file:
        file.writestr("about.txt", "hello")
        file.writestr("r.npy", npy_of((1,), [("x", "<f4")], bytes(4)))
    with open_checkpoint(tmp_path / "x.npz") as checkpoint:
        assert list(checkpoint.tensors) == ["w"] and len(checkpoint.notes) == 5
        assert all("left out" in note for note in checkpoint.notes)


# --- JSON
# ---------------------------------------------------------------------------------------


def safetensors_of(header, data=bytes(8)):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header, message",
    [
        ({"\ud800": ENTRY}, "not JSON: UnicodeEncodeError"),
        (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', "the number NaN"),
        (b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,8]}}', "the number 1e999"),
        (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "not JSON: RecursionError|list of 1"),
        (b'{"a":[' + b"[]," * 5_000_000 + b"0]}", "more than 4194304 parts"),
        ({"a": ENTRY, "__metadata__": {"x": 1}}, "not an object of strings"),
        ({"a": ENTRY, "__metadata__": []}, "not an object of strings"),
        ({"a": {**ENTRY, "shape": [2.0]}}, "its shape"),
        ({"a": {**ENTRY, "shape": [2**70]}}, "its shape"),
        ({"a": {**ENTRY, "data_offsets": [0, 2**80]}}, "data_offsets"),
        ({"a": [1] * 100_000}, "list of 100000"),
        (b'{"a":' + b"[" * 800 + b"]" * 800 + b"}", "list of 1"),
        (b'{"a":' + b'{"a":' * 800 + b"1" + b"}" * 800 + b"}", "dict of 1"),
    ],
)
def test_headers_of_json(header, message, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(safetensors_of(header))
    refused(tmp_path / "x.safetensors", message)


@pytest.mark.parametrize(
    "metadata, message",
    [
        (b"[]", "no tree_metadata"),
        (b'{"tree_metadata": {"a": 1}}', "no tree_metadata"),
        (b"{" * 3000, "not JSON"),
        (
            json.dumps({"tree_metadata": {"a": {"key_metadata": [{}] * 70}}}).encode(),
            "more than 64 keys",
        ),
        (json.dumps({"tree_metadata": {"a" * 70_000: {}}}).encode(), "too long"),
    ],
)
def test_hostile_metadata_of_orbax(metadata, message, tmp_path):
    (tmp_path / "_METADATA").write_bytes(metadata)
    refused(tmp_path, message)


def test_msgpack_of_many_values_or_of_no_map(tmp_path, monkeypatch):
    (tmp_path / "x.msgpack").write_bytes(b"\x93\x01\x02\x03")
    refused(tmp_path / "x.msgpack", "no map of names")
    monkeypatch.setattr("jaxprune.storage.checkpoints.msgpack_walker.MAX_VALUES", 1000)
    (tmp_path / "y.msgpack").write_bytes(b"\x81\xa1a\xdc\x0f\xff" + b"\x01" * 4095)
    refused(tmp_path / "y.msgpack", "more than 1000 values")


# --- memory
# ---------------------------------------------------------------------------------------

BOMB = coded(
    bytes([0, 0]), dtype="f4", codec=1, shape=[2**30]
)  # 4 GiB of one number, in some 200 bytes


def test_one_limit_for_every_format(tmp_path):
    np.savez_compressed(tmp_path / "z.npz", w=np.zeros(1 << 20, np.float32))
    jp.save(tmp_path / "j.jpz", {"w": jnp.zeros(1 << 20)})
    write_foreign(tmp_path / "m.msgpack", {"w": np.zeros(1 << 20, np.float32)})
    for name in ("z.npz", "j.jpz", "m.msgpack"):
        with pytest.raises(
            FormatError, match=r"'w' takes \d+ bytes decoded, more than max_bytes=4000000"
        ):
            read_all(tmp_path / name, 4_000_000)
        assert len(read_all(tmp_path / name, 16_000_000)) == 1
    assert limits.allowance(200) < 1.01 * 2**30


def test_a_small_file_cannot_fill_the_memory(tmp_path):
    """In a process that may not take more: one line, whatever asks for the array."""
    (tmp_path / "bomb.jpz").write_bytes(BOMB)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (3 << 30, 3 << 30))\n"
        "from typer.testing import CliRunner\nfrom jaxprune.app.cli import app\n"
        "for args in ('verify bomb.jpz', 'restore bomb.jpz -o x.npz', 'diff bomb.jpz bomb.jpz'):\n"
        "    result = CliRunner().invoke(app, args.split())\n"
        "    assert result.exit_code == 2 and '--max-memory 4294967296' in result.stderr, (args, "
        "result.output)\n"
    )
    root = pathlib.Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]


# --- names
# ---------------------------------------------------------------------------------------

LETTERS = "aA/\\.: \0\n'\"0é\u0301\ud800"
KEYS = st.text(LETTERS, max_size=3) | st.sampled_from(
    ["..", ".", "", "value", "a\\", "__metadata__", "0", "1", "a" * 40_000]
)
TREES = st.recursive(
    st.just(0), lambda kids: st.dictionaries(KEYS, kids, min_size=1, max_size=3), max_leaves=6
)


def filled(tree, count):
    return (
        {key: filled(kid, count) for key, kid in tree.items()}
        if isinstance(tree, dict)
        else np.float32([next(count)])
    )


def leaves_of(tree, above=()):
    if not isinstance(tree, dict):
        return {above: tree.tolist()}
    return {
        keys: x for key, kid in tree.items() for keys, x in leaves_of(kid, (*above, key)).items()
    }


def comes_back(tree, folder, suffix):
    """Through a file of ours and one of another format: the same keys and arrays, or an error while
    writing.
    """
    try:
        jp.save(folder / "x.jpz", tree)
    except ValueError as error:
        assert "surrogate" in str(error)
        return
    with open_checkpoint(folder / "x.jpz") as checkpoint:
        assert {
            t.keys: checkpoint.read(path).tolist() for path, t in checkpoint.tensors.items()
        } == leaves_of(tree)
        try:
            write_checkpoint(folder / f"y{suffix}", checkpoint.tensors, checkpoint.read, {})
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
            return
    assert {keys: x.tolist() for keys, x in read_all(folder / f"y{suffix}").items()} == leaves_of(
        tree
    )


@few
@given(TREES, st.sampled_from([".safetensors", ".npz", ".msgpack"]))
def test_keys_come_back_or_are_refused(tmp_path_factory, shape, suffix):
    if isinstance(shape, dict):
        comes_back(filled(shape, iter(range(1, 100))), tmp_path_factory.mktemp("names"), suffix)


@pytest.mark.parametrize(
    "shape",
    [
        {"a.b": 0, "a": {"b": 0}},
        {"A": 0, "a": 0, "a'b": {"c": 0}},
        {"": 0},
        {"0": 0, "1": {"value": 0}},
        {"value": 0},
        {"a": {"value": 0, "other": 0}},
    ],
)
def test_keys_come_back_from_orbax_or_are_refused(shape, tmp_path):
    comes_back(filled(shape, iter(range(1, 100))), tmp_path, "")


def test_orbax_would_write_one_of_these_over_the_other(tmp_path):
    named = {"a.b": np.zeros(2, np.float32), "a/b": np.ones(2, np.float32)}
    tensors = {name: Tensor(tuple(name.split("/")), (2,), F4) for name in named}
    with pytest.raises(ValueError, match="joins keys by dots, and would write it over"):
        write_checkpoint(tmp_path / "x", tensors, named.get, {})
    with ocp.StandardCheckpointer() as store:
        store.save(tmp_path / "y", {"a.b": np.zeros(2), "a": {"b": np.ones(2)}})
    refused(tmp_path / "y", "one of them is lost")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".msgpack", ""])
def test_a_name_or_an_array_that_no_format_holds(suffix, tmp_path):
    for keys in [(), ("a" * 70_000,), ("\udc80",), ("a",) * 70]:
        with pytest.raises(ValueError) as error:
            write_checkpoint(
                tmp_path / f"x{suffix}", {"x": Tensor(keys, (1,), F4)}, lambda path: np.ones(1), {}
            )
        assert len(str(error.value)) < 600
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "leaves, boxed",
    [
        ([("l", "kernel", "value"), ("l", "bias", "value")], 2),
        ([("l", "value")], 1),
        ([("value",)], 0),
        ([("model", "l", "kernel", "value"), ("model", "l", "bias", "value"), ("step",)], 2),
        ([("scale", "value"), ("w",)], 0),
        ([("attention", "value"), ("attention", "query")], 0),
    ],
)
def test_which_arrays_on_disk_are_variables_of_nnx(leaves, boxed):
    assert len(orbax._boxed(leaves)) == boxed


def test_nothings_are_noted(tmp_path):
    jp.save(tmp_path / "x", {"a": None, "b": [np.ones(1), None]})
    with open_checkpoint(tmp_path / "x") as checkpoint:
        assert list(checkpoint.tensors) == ["b/0"]
        assert [note.split(" ")[0] for note in checkpoint.notes] == ["a", "b/1"]


# --- shards
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_bytes, files", [(16, 3), (24, 2), (1000, 1), (1, 5)])
def test_shards_that_are_written_are_read(shard_bytes, files, tmp_path):
    named = {f"l{i}.weight": np.full(4, i, np.float16) for i in range(5)}
    tensors = {name: Tensor((name,), x.shape, x.dtype) for name, x in named.items()}
    write_checkpoint(
        tmp_path / "out", tensors, named.get, {"format": "pt", "n": 3}, shard_bytes=shard_bytes
    )
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len([name for name in names if name.endswith(shards.SHARD)]) == files
    assert (names == ["model.safetensors"]) == (files == 1)
    for place in (tmp_path / "out", *(tmp_path / "out").glob("*.json")):
        with open_checkpoint(place) as checkpoint:
            assert checkpoint.about == {"format": "pt", "n": "3"}
            assert {path: checkpoint.read(path).tolist() for path in checkpoint.tensors} == {
                name: x.tolist() for name, x in named.items()
            }
    with pytest.raises(ValueError, match="exists; a folder is not replaced"):
        write_checkpoint(tmp_path / "out", tensors, named.get, {}, shard_bytes=16)


def test_shards_appear_whole_or_not_at_all(tmp_path):
    tensors = {name: Tensor((name,), (2,), F4) for name in "ab"}

    def read(path):
        if path == "b":
            raise KeyboardInterrupt
        return np.ones(2, np.float32)

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "out", tensors, read, {}, shard_bytes=8)
    assert not list(tmp_path.iterdir())


# --- files that are not read
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "octets, message",
    [
        (b"\x80\x04\x95" + bytes(20), "a pickle.*weights_only=True"),
        (b"(dp0\nS'a'\n", "a pickle"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip"),
        (b"\x1c\0\0\0TFL3" + bytes(20), "TensorFlow Lite"),
        (b"\x08\x07\x12\x07pytorch" + bytes(20), "ONNX.*initializers"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b'{"architectures": []}', r"JSON.*\*\.safetensors\.index\.json"),
        (bytes(257) + b"ustar\0" + bytes(100), "a tar archive"),
        (bytes(100) + bytes.fromhex("57fb808b247547db"), "a TensorFlow checkpoint"),
        (b"", "empty"),
    ],
)
def test_files_of_other_tools_are_named_with_the_way_out(octets, message, tmp_path):
    (tmp_path / "x").write_bytes(octets)
    refused(tmp_path / "x", message)


@pytest.mark.parametrize(
    "name, message",
    [
        ("saved_model.pb", "a TensorFlow SavedModel"),
        ("pytorch_model.bin", "a folder of PyTorch files"),
        ("model.ckpt.index", "a TensorFlow checkpoint"),
        ("zarr.json", "a Zarr store"),
    ],
)
def test_folders_of_other_tools_are_named(name, message, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    refused(tmp_path, message)


def test_one_npy_is_one_array_named_array(tmp_path):
    for x in (
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
        np.array(3),
    ):
        np.save(tmp_path / "x.npy", x)
        found = read_all(tmp_path / "x.npy")
        np.testing.assert_array_equal(found[("array",)], x)
    np.save(tmp_path / "x.npy", np.array([{}], object))
    refused(tmp_path / "x.npy", "Python objects")
