"""Checkpoints of other tools: shards, items, boxes, names; what is hostile or foreign is one short
line.
"""

import json
import struct
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import jaxprune as jp
from jaxprune.app.recipe import leaf_paths
from jaxprune.core.leaves.keys import joined as join
from jaxprune.core.leaves.keys import split
from jaxprune.core.leaves.paths import flatten_with_path, leaf_path
from jaxprune.storage.checkpoints import npy, safetensors
from jaxprune.storage.checkpoints.formats import open_checkpoint, write_checkpoint
from jaxprune.storage.format.words import FormatError

W = np.arange(12, dtype=np.float32).reshape(3, 4)


def paths_of(path):
    with open_checkpoint(path) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.tensors}


def refused(path, message):
    with pytest.raises(FormatError, match=message) as error, open_checkpoint(path) as checkpoint:
        for name in checkpoint.tensors:
            checkpoint.read(name)
    assert len(str(error.value)) < 600 and "\n" not in str(error.value)


# --- shards
# ---------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path):
    for i in (1, 2):
        save_file(
            {f"l{i}.weight": i * W, f"l{i}.bias": W[0]},
            tmp_path / f"model-{i}.safetensors",
            {"format": "np"},
        )
    return tmp_path


def index(folder, **changes):
    weight_map = {
        f"l{i}.{name}": f"model-{i}.safetensors" for i in (1, 2) for name in ("weight", "bias")
    }
    weight_map |= changes
    text = json.dumps(
        {"metadata": {}, "weight_map": {k: v for k, v in weight_map.items() if v is not None}}
    )
    (folder / "model.safetensors.index.json").write_text(text)
    return folder / "model.safetensors.index.json"


def test_shards_are_one_checkpoint(shards):
    for place in (shards, index(shards), shards):
        found = paths_of(place)
        assert sorted(found) == ["l1.bias", "l1.weight", "l2.bias", "l2.weight"]
        np.testing.assert_array_equal(found["l2.weight"], 2 * W)


WRONG_INDEX = {
    "a missing shard": (
        {"l3.weight": "model-3.safetensors"},
        "shard 'model-3.safetensors': the index names it, but it is not there",
    ),
    "a missing tensor": (
        {"l3.weight": "model-1.safetensors"},
        "'l3.weight' is in 'model-1.safetensors'; no shard has it",
    ),
    "another shard": ({"l1.bias": "model-2.safetensors"}, "it is in model-1.safetensors"),
    "a tensor not listed": (
        {"l1.bias": None},
        "'l1.bias' is in the shard model-1.safetensors, and the index does not list it",
    ),
    "a way out": (
        {"l1.bias": "../model-1.safetensors"},
        "a shard is a .safetensors file beside the index",
    ),
    "an absolute path": ({"l1.bias": "/etc/passwd"}, "beside the index"),
    "no text": ({"l1.bias": 3}, "beside the index"),
}


@pytest.mark.parametrize("case", WRONG_INDEX)
def test_an_index_that_is_wrong(shards, case):
    changes, message = WRONG_INDEX[case]
    refused(index(shards, **changes), message)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"weight_map": {}}', "[" * 100_000, '{"weight_map": 1}']
)
def test_an_index_that_is_none(shards, text):
    (shards / "x.safetensors.index.json").write_text(text)
    refused(shards / "x.safetensors.index.json", "the index")


def test_a_tensor_in_two_shards(shards):
    save_file({"l1.bias": W[0]}, shards / "model-3.safetensors")
    refused(shards, "'l1.bias' is in model-1.safetensors and in model-3.safetensors")


# --- Orbax
# ---------------------------------------------------------------------------------------


def test_items_of_a_step_are_read_or_named(tmp_path):
    items = {name: ocp.args.StandardSave({"w": W}) for name in ("params", "ema")}
    with ocp.CheckpointManager(tmp_path / "mgr") as manager:
        manager.save(0, args=ocp.args.Composite(params=items["params"]))
        manager.save(1, args=ocp.args.Composite(**items))
        manager.wait_until_finished()
    assert list(paths_of(tmp_path / "mgr" / "0")) == ["w"]
    refused(tmp_path / "mgr" / "1", r"the folder has the items ema, params: name one")
    refused(tmp_path / "mgr", r"the folder has the steps 0, 1")


def test_a_state_of_nnx_has_the_paths_of_memory_and_is_written_as_it_was(tmp_path):
    state = nnx.state(nnx.Dict(l=nnx.Linear(4, 3, rngs=nnx.Rngs(0))), nnx.Param)
    with ocp.StandardCheckpointer() as store:
        store.save(tmp_path / "state", state)
    with open_checkpoint(tmp_path / "state") as checkpoint:
        assert sorted(checkpoint.tensors) == sorted(leaf_paths(state)) == ["l/bias", "l/kernel"]
        write_checkpoint(tmp_path / "again", checkpoint.tensors, checkpoint.read, checkpoint.about)
    with ocp.StandardCheckpointer() as store:
        back = store.restore(
            tmp_path / "again", jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        )
    np.testing.assert_array_equal(back["l"]["kernel"][...], state["l"]["kernel"][...])


def test_a_value_among_others_keeps_its_name(tmp_path):
    with ocp.StandardCheckpointer() as store:
        store.save(tmp_path / "x", {"attention": {"query": W, "value": W}})
    assert sorted(paths_of(tmp_path / "x")) == ["attention/query", "attention/value"]


def test_orbax_is_not_blamed_for_the_errors_of_others(tmp_path):
    with ocp.StandardCheckpointer() as store:
        store.save(tmp_path / "x", {"w": W})
    with pytest.raises(ZeroDivisionError), open_checkpoint(tmp_path / "x"):
        raise ZeroDivisionError


# --- names
# ---------------------------------------------------------------------------------------

KEYS = st.text(st.sampled_from("ab/\\.é \0"), min_size=0, max_size=4)

SHAPES = st.dictionaries(
    KEYS, st.one_of(st.just(0), st.dictionaries(KEYS, st.just(0), max_size=3)), max_size=4
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(KEYS, min_size=1, max_size=4))
def test_a_path_tells_its_keys(keys):
    assert split(join(tuple(keys))) == tuple(keys)
    tree = W
    for key in reversed(keys):
        tree = {key: tree}
    ((names, _),) = flatten_with_path(tree)[0]
    assert leaf_path(names) == join(tuple(keys))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        KEYS,
        st.one_of(st.just(0), st.dictionaries(KEYS, st.just(0), min_size=1, max_size=3)),
        max_size=4,
    )
)
def test_names_come_back_or_are_refused(tmp_path_factory, shape):
    """Through files of ours and of others: never another name, never another array."""
    folder = tmp_path_factory.mktemp("names")
    counter = iter(range(100))
    tree = {
        key: {k: np.float32([next(counter)]) for k in kid}
        if isinstance(kid, dict)
        else np.float32([next(counter)])
        for key, kid in shape.items()
    }
    expected = {leaf_path(keys): x for keys, x in flatten_with_path(tree)[0]}
    if not expected:
        return
    jp.save(folder / "x.jpz", tree)
    assert {k: v.tolist() for k, v in paths_of(folder / "x.jpz").items()} == {
        k: v.tolist() for k, v in expected.items()
    }
    with open_checkpoint(folder / "x.jpz") as checkpoint:
        for suffix in (".safetensors", ".npz", ".msgpack"):
            try:
                write_checkpoint(folder / f"y{suffix}", checkpoint.tensors, checkpoint.read, {})
                back = paths_of(folder / f"y{suffix}")
            except ValueError:
                continue
            assert sorted(numbers(back).values()) == sorted(numbers(expected).values())


def numbers(found):
    return {name: x.tolist() for name, x in found.items()}


def test_backslashes_are_part_of_a_name(tmp_path):
    tree = {"a\\": {"b": jnp.ones(3)}, "a/b": jnp.zeros(3), "a": {"b": jnp.full(3, 2.0)}}
    jp.save(tmp_path / "x", tree)
    back = jp.load(tmp_path / "x")
    assert back["a\\"]["b"][0] == 1 and back["a/b"][0] == 0 and back["a"]["b"][0] == 2
    assert len(paths_of(tmp_path / "x")) == 3


# --- bounds
# ---------------------------------------------------------------------------------------


def safetensors_of(entries):
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


HEADERS = {
    "many axes": (
        {"a": {"dtype": "F32", "shape": [9] * 100_000, "data_offsets": [0, 8]}},
        "100000 axes; at most 32 are read",
    ),
    "33 axes": ({"a": {"dtype": "F32", "shape": [1] * 33, "data_offsets": [0, 8]}}, "33 axes"),
    "many floats": (
        {"a": {"dtype": "F32", "shape": [10**10], "data_offsets": [0, 8]}},
        "truncated",
    ),
    "more than can be": (
        {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}},
        "says that its shape",
    ),
    "many slashes": (
        {"a/" * 5000 + "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
        "more than 64 keys",
    ),
    "a long name": (
        {"a" * 70_000: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
        "longer than 32768 bytes",
    ),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_asks_for_too_much(case, tmp_path):
    entries, message = HEADERS[case]
    (tmp_path / "x.safetensors").write_bytes(safetensors_of(entries))
    refused(tmp_path / "x.safetensors", message)


NPY = [
    b"{[]:1}\n",
    b"{1:2,'a':3}\n",
    b"{'descr': (), 'fortran_order': False, 'shape': (2,)}\n",
    b"(" * 50 + b"\n",
    b"-" * 9000 + b"1\n",
    b"",
    b"{}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,)",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'shape': (3,)}",
    b"{'descr': '<f4', 'fortran_order': 0, 'shape': (2,)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1," * 40 + b")}",
    b"{'descr': '<zz', 'fortran_order': False, 'shape': (2,)}",
    b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}",
    b"{'descr': '|O', 'fortran_order': False, 'shape': (2,)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}",
    b" " * 20_000,
]


@pytest.mark.parametrize("header", NPY, ids=lambda h: h[:40].decode("latin-1"))
def test_hostile_headers_of_npy(header, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr(
            "a.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(8)
        )
    refused(tmp_path / "x.npz", "'a'")


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "|i1", "?", "<c8", "<U3"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0, 4), (1,) * 32])
def test_headers_that_numpy_writes_are_read(dtype, shape, tmp_path):
    for order in "CF":
        x = np.zeros(shape, dtype, order=order)
        np.save(tmp_path / "x.npy", x)
        with open(tmp_path / "x.npy", "rb") as stream:
            if "U" in dtype:
                with pytest.raises(FormatError, match="text, which is no dtype of JAX's arrays"):
                    npy.read_head(stream.read, "x")
                continue
            found = npy.read_head(stream.read, "x")
            assert (found.shape, found.stored) == (shape, x.dtype)
            assert stream.read() == x.tobytes(order)


FOREIGN = {
    "x.h5": (b"\x89HDF\r\n\x1a\n" + bytes(60), "HDF5"),
    "x.gguf": (b"GGUF" + bytes(60), "GGUF"),
    "x.npy": (b"\x93NUMPY\1\0" + bytes(60), "its header is '', which is no dict"),
    "x.pt": (b"\x80\x02}q\x00." + bytes(60), "pickle"),
    "x.txt": (b"hello, this is a text of some length", "none of the formats"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_other_tools_are_named(name, tmp_path):
    octets, message = FOREIGN[name]
    (tmp_path / name).write_bytes(octets)
    refused(tmp_path / name, message)


@pytest.mark.parametrize(
    "member, message",
    [
        ("archive/data.pkl", "a PyTorch checkpoint.*save_file"),
        ("model.weights.h5", "a Keras model"),
    ],
)
def test_archives_of_other_tools_are_named(member, message, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(member, b"x")
    refused(tmp_path / "x.zip", message)


@pytest.mark.parametrize("about", [{"x": 1}, {"x": {"y": [1, None]}}, {"x": "text", "é": True}])
def test_metadata_that_is_no_text_is_written_as_json(about, tmp_path):
    with open_checkpoint(saved(tmp_path / "a.jpz")) as checkpoint:
        write_checkpoint(tmp_path / "b.safetensors", checkpoint.tensors, checkpoint.read, about)
    with safetensors.opened(tmp_path / "b.safetensors") as back:
        assert back.about == {
            key: x if isinstance(x, str) else json.dumps(x) for key, x in about.items()
        }


def saved(path):
    jp.save(path, {"w": W})
    return path
