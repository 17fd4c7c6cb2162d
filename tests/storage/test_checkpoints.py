"""Checkpoints of every format: what comes back, what is refused, and files that lie."""

import io
import json
import pathlib
import struct
import subprocess
import sys
import zipfile

import flax.serialization
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

import jaxprune as jp
from jaxprune.storage.checkpoints import layouts, msgpack, tensors
from jaxprune.storage.checkpoints.formats import open_checkpoint, write_checkpoint
from jaxprune.storage.format.words import FormatError
from jaxprune.storage.streaming import streamed
from tests.storage.trees import bits_of

ROOT = pathlib.Path(__file__).parent.parent.parent
draw = np.random.default_rng(0)
NAMED = {
    "params/Conv_0/kernel": draw.normal(size=(3, 3, 2, 5)).astype(np.float32),
    "params/Conv_0/bias": draw.normal(size=5).astype(np.float16),
    "params/Dense_0/kernel": np.asfortranarray(draw.normal(size=(4, 7))),
    "step": np.array(7),
    "mask": np.array([True, False, True]),
}
WITH_BF16 = {**NAMED, "params/half": draw.normal(size=(3, 4)).astype(ml_dtypes.bfloat16)}
SUFFIXES = {".safetensors": WITH_BF16, ".npz": NAMED, ".msgpack": WITH_BF16, "": WITH_BF16}


def tree_of(named):
    tree = {}
    for name, x in named.items():
        *keys, last = name.split("/")
        place = tree
        for key in keys:
            place = place.setdefault(key, {})
        place[last] = x
    return tree


def write_foreign(path, named):
    """A checkpoint as other tools write it."""
    if path.suffix == ".safetensors":
        plain = {k: np.ascontiguousarray(x).reshape(np.shape(x)) for k, x in named.items()}
        safetensors.numpy.save_file(plain, path, {"format": "pt"})
    elif path.suffix == ".npz":
        np.savez(path, **named)
    elif path.suffix == ".msgpack":
        path.write_bytes(flax.serialization.msgpack_serialize(tree_of(named)))
    else:
        with ocp.StandardCheckpointer() as store:
            store.save(path.absolute(), tree_of(named))
    return path


def read_foreign(path):
    if path.suffix == ".safetensors":
        return safetensors.numpy.load_file(path)
    if path.suffix == ".npz":
        return dict(np.load(path))
    if path.suffix == ".msgpack":
        tree = flax.serialization.msgpack_restore(path.read_bytes())
    else:
        with ocp.StandardCheckpointer() as store:
            tree = store.restore(path.absolute())
    return flatten(tree)


def flatten(tree, above=""):
    if not isinstance(tree, dict):
        return {above: tree}
    return {
        k: x
        for key, kid in tree.items()
        for k, x in flatten(kid, f"{above}/{key}".strip("/")).items()
    }


def assert_named(found, named):
    assert found.keys() == named.keys()
    for name, x in named.items():
        y = np.asarray(found[name])
        assert (y.dtype, y.shape) == (x.dtype, x.shape), name
        assert y.tobytes() == x.tobytes(), name


def read_all(path):
    with open_checkpoint(path) as checkpoint:
        return {t.name: checkpoint.read(p) for p, t in checkpoint.tensors.items()}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_other_tools_files_are_read(suffix, tmp_path):
    assert_named(
        read_all(write_foreign(tmp_path / f"model{suffix}", SUFFIXES[suffix])), SUFFIXES[suffix]
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("source", SUFFIXES)
def test_other_tools_read_what_is_written(source, suffix, tmp_path):
    named = NAMED if ".npz" in (source, suffix) else WITH_BF16
    out = tmp_path / f"out{suffix}"
    with open_checkpoint(write_foreign(tmp_path / f"model{source}", named)) as c:
        write_checkpoint(out, c.tensors, c.read, c.about)
    found = read_foreign(out)
    if not suffix:  # Orbax gives JAX's arrays: 64 bits are cut to 32
        named = {k: x for k, x in named.items() if x.dtype.itemsize < 8}
        found = {k: x for k, x in found.items() if k in named}
    assert_named(found, named)


def test_a_safetensors_file_comes_back_with_its_metadata(tmp_path):
    with open_checkpoint(write_foreign(tmp_path / "a.safetensors", WITH_BF16)) as c:
        assert c.about == {"format": "pt"}
        write_checkpoint(tmp_path / "b.safetensors", c.tensors, c.read, c.about)
    with safetensors.safe_open(tmp_path / "b.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    "dtype", ["float8_e4m3fn", "float8_e5m2", "bfloat16", "int8", "uint16", "complex64", "bool"]
)
@pytest.mark.parametrize("suffix", [".safetensors", ".msgpack"])
def test_every_pattern_of_bits(dtype, suffix, tmp_path):
    named = {"w": bits_of(dtype)}
    with streamed(tmp_path / "m.jpz") as file:
        file.add(("w",), named["w"])
    with open_checkpoint(tmp_path / "m.jpz") as c:
        write_checkpoint(tmp_path / f"m{suffix}", c.tensors, c.read, c.about)
    assert_named(read_all(tmp_path / f"m{suffix}"), named)


def test_msgpack_is_flaxs_to_the_byte(tmp_path):
    tree = tree_of(dict(sorted(WITH_BF16.items())))
    write_foreign(tmp_path / "a.msgpack", WITH_BF16)
    with open_checkpoint(tmp_path / "a.msgpack") as c:
        write_checkpoint(tmp_path / "b.msgpack", c.tensors, c.read, {})
    tree["params"] = {
        k: dict(sorted(v.items())) if isinstance(v, dict) else v
        for k, v in sorted(tree["params"].items())
    }
    assert (tmp_path / "b.msgpack").read_bytes() == flax.serialization.msgpack_serialize(tree)


def test_msgpack_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 40)
    monkeypatch.setattr(msgpack, "MAX_CHUNK", 40)
    named = {"w": np.arange(35.0).reshape(5, 7), "v": np.arange(3)}
    path = write_foreign(tmp_path / "a.msgpack", named)
    assert b"__msgpack_chunked_array__" in path.read_bytes()
    assert_named(read_all(path), named)
    with open_checkpoint(path) as c:
        write_checkpoint(tmp_path / "b.msgpack", c.tensors, c.read, {})
    assert_named(read_foreign(tmp_path / "b.msgpack"), named)


def test_what_is_no_array_is_noted(tmp_path):
    tree = {
        "a": np.ones(2),
        "n": None,
        "e": {},
        "name": "x",
        "i": 3,
        "f": 0.5,
        "l": [1, np.zeros(1)],
    }
    (tmp_path / "m.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    with open_checkpoint(tmp_path / "m.msgpack") as c:
        assert (
            list(c.tensors) == ["a", "f", "i", "l/0", "l/1"]
            and c.read("i") == 3
            and c.read("f") == 0.5
        )
        assert len(c.notes) == 3 and all("left out" in note for note in c.notes)


def test_npz_bfloat16_without_its_name(tmp_path):
    x = WITH_BF16["params/half"]
    np.savez(tmp_path / "m.npz", w=x)
    with open_checkpoint(tmp_path / "m.npz") as c:
        assert (
            c.read("w").dtype == ml_dtypes.bfloat16
            and c.read("w").tobytes() == x.tobytes()
            and "|V2" in c.notes[0]
        )
    np.savez(tmp_path / "m.npz", w=x.astype(ml_dtypes.float8_e4m3fn))
    with pytest.raises(FormatError, match=r"\|V1.*safetensors"):
        read_all(tmp_path / "m.npz")


def test_big_endian(tmp_path):
    x = np.arange(6.0).reshape(2, 3)
    np.savez_compressed(tmp_path / "m.npz", w=x.astype(">f8"), v=np.asfortranarray(x.astype(">i2")))
    assert_named(read_all(tmp_path / "m.npz"), {"w": x, "v": x.astype(np.int16)})


def test_blocks_cover_an_array_in_order(monkeypatch):
    monkeypatch.setattr(tensors, "BLOCK", 64)
    for shape in [(), (0, 3), (100,), (3, 50), (2, 3, 40), (5, 2, 2)]:
        for x in (
            np.arange(np.prod(shape, dtype=int)).reshape(shape),
            np.arange(np.prod(shape, dtype=int)).reshape(shape[::-1]).T,
        ):
            octets = io.BytesIO()
            tensors.write_array(x, octets.write)
            assert octets.getvalue() == x.tobytes("C")
            octets.seek(0)
            assert (tensors.fill(np.empty_like(x), octets.read) == x).all()


def test_names_that_make_no_tree_are_keys():
    assert tensors.split_names(["a/b", "a/c"]) == {"a/b": ("a", "b"), "a/c": ("a", "c")}
    assert tensors.split_names(["a/b", "a"]) == {"a/b": ("a/b",), "a": ("a",)}
    assert tensors.split_names(["a//b"]) == {"a//b": ("a//b",)}


def test_layouts():
    x = np.arange(120).reshape(5, 4, 3, 2)  # O I H W
    t = tensors.Tensor(("c.weight",), x.shape, x.dtype)

    def fill(path, into):
        return into.__setitem__(..., x)

    y = layouts.read_as_jax(fill, "c.weight", "torch", t)
    assert y.shape == (3, 2, 4, 5) == layouts.to_jax("torch", t).shape and y.flags.c_contiguous
    assert y[2, 1, 3, 4] == x[4, 3, 2, 1] and y[0, 1, 2, 3] == x[3, 2, 0, 1]
    assert (layouts.from_jax(y, "torch", t.keys) == x).all()
    assert (
        layouts.guess({"c": t}) == "torch"
        and layouts.guess({"c": t, "k": t._replace(keys=("kernel",))}) == "jax"
    )
    assert layouts.guess({"b": tensors.Tensor(("bn.weight",), (4,), x.dtype)}) == "jax"


# --- streaming
# ---------------------------------------------------------------------------------------


def test_streamed_bytes_are_saves(tmp_path):
    tree = {
        "a": {"k": jp.prune(0.5).init(jnp.eye(4)), "z": jnp.arange(300)},
        "b.c": jp.quantize(bits=4).init(jnp.eye(4)),
    }
    tree["a0"] = {
        "n": 3,
        "nf": jp.quantize(kind="nf4", group=4).init(jnp.eye(4)),
        "x": float("inf"),
    }
    jp.save(tmp_path / "whole", tree, metadata={"m": 1})
    with streamed(tmp_path / "parts", {"m": 1}) as file:
        for a in sorted(tree):
            for b in sorted(tree[a]) if isinstance(tree[a], dict) else [None]:
                file.add((a,) if b is None else (a, b), tree[a] if b is None else tree[a][b])
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parts", "whole"]


def test_leaves_out_of_order(tmp_path):
    with pytest.raises(ValueError, match="order of their keys"), streamed(tmp_path / "m") as file:
        file.add(("b",), jnp.ones(1))
        file.add(("a",), jnp.ones(1))
    assert not list(tmp_path.iterdir())


# --- bad files
# ---------------------------------------------------------------------------------------


def header_of(**entries):
    raw = json.dumps(entries).encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


LIES = {
    "past the end": header_of(w=entry(offsets=(0, 16), shape=(4,))) + bytes(8),
    "shape": header_of(w=entry(shape=(3,))) + bytes(8),
    "gap": header_of(w=entry(offsets=(8, 16))) + bytes(16),
    "overlap": header_of(w=entry(), v=entry(offsets=(4, 12))) + bytes(12),
    "negative": header_of(w=entry(shape=(-2,), offsets=(0, 8))) + bytes(8),
    "offsets": header_of(w=entry(offsets=(-8, 0))) + bytes(8),
    "dtype": header_of(w=entry(dtype="O")) + bytes(8),
    "left over": header_of(w=entry()) + bytes(9),
    "huge": header_of(w=entry(shape=(2**40, 2**40))) + bytes(8),
    "not JSON": struct.pack("<Q", 9) + b"{" * 9,
    "long header": struct.pack("<Q", 2**40) + b'{"w":' + bytes(9),
    "twice": struct.pack("<Q", 15) + b'{"w":{},"w":{}}',
    "list": header_of(w=[1, 2]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_safetensors_header_that_lies(lie, tmp_path):
    (tmp_path / "m.safetensors").write_bytes(LIES[lie])
    with pytest.raises(FormatError, match=r"m\.safetensors: "):
        read_all(tmp_path / "m.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".msgpack", ".jpz"])
def test_a_truncated_file(suffix, tmp_path):
    path = tmp_path / f"m{suffix}"
    jp.save(path, tree_of(NAMED)) if suffix == ".jpz" else write_foreign(path, NAMED)
    whole = path.read_bytes()
    for n in (0, 2, 7, 30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(FormatError):
            read_all(path)


def test_a_folder_with_a_file_missing(tmp_path):
    """In a process of its own: TensorStore still reads other leaves when Orbax has given up, and
    complains of it."""
    path = write_foreign(tmp_path / "m", NAMED)
    for file in [*(path / "d").iterdir(), *path.glob("ocdbt.process_0/d/*")]:
        file.unlink()
    code = "import sys; from jaxprune.app.cli import app; app(sys.argv[1:])"
    command = [sys.executable, "-c", code, "diff", str(path), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "Orbax cannot read it" in done.stderr


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(FormatError, match="no checkpoint of Orbax"):
        read_all(tmp_path)


def test_pickles_are_refused(tmp_path):
    np.savez(tmp_path / "m.npz", w=np.array([{}], object))
    with pytest.raises(FormatError, match="pickle"):
        read_all(tmp_path / "m.npz")
    (tmp_path / "m.pt").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(FormatError, match="pickle"):
        read_all(tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    with pytest.raises(FormatError, match=r"a PyTorch checkpoint.*safetensors\.torch\.save_file"):
        read_all(tmp_path / "m.zip")


@pytest.mark.parametrize(
    "octets, match",
    [
        (b"\x81\xa1w\xd4\x05\x00", "extension of type 5"),
        (b"\x81\xa1w\xd4\x02\x00", "complex"),
        (b"\x82\xa1w\x01\xa1w\x02", "twice"),
        (b"\x81\xa1w\xc7\x0b\x01\x93\x91\x04\xa1O\xc4\x04abcd", "dtype 'O'"),
        (b"\x81\xa1w\xc7\x0f\x01\x93\x91\x03\xa7float32\xc4\x02ab", "no array"),
        (b"\x81\xa1w\xc7\xff\x01\x93", "truncated"),
        (b"\x81\xa1w\x01\x00", "goes on"),
        (b"\x81" + b"\xa1w\x81" * 100 + b"\xa1w\x01", "levels"),
        (b"\xdf\xff\xff\xff\xff\xa1a\x01", "truncated"),
    ],
)
def test_bad_msgpack(octets, match, tmp_path):
    (tmp_path / "m.msgpack").write_bytes(octets)
    with pytest.raises(FormatError, match=match):
        read_all(tmp_path / "m.msgpack")


@pytest.mark.parametrize(
    "suffix, name", [("", ".."), ("", "a\\b"), (".npz", "../../x"), (".npz", "/etc/x")]
)
def test_names_that_lead_out_are_not_written(suffix, name, tmp_path):
    keys = tuple(name.split("/"))
    t = {"x": tensors.Tensor(keys, (1,), np.dtype("float32"))}
    with pytest.raises(ValueError, match="leads out"):
        write_checkpoint(tmp_path / f"out{suffix}", t, lambda path: np.ones(1, np.float32), {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "suffix, dtype, match",
    [
        (".npz", "bfloat16", "restore to .safetensors"),
        (".safetensors", "int4", "restore to .msgpack"),
    ],
)
def test_a_dtype_that_a_format_lacks(suffix, dtype, match, tmp_path):
    t = {"x": tensors.Tensor(("x",), (1,), np.dtype(dtype))}
    with pytest.raises(ValueError, match=f"'x': .*{dtype}.*{match}"):
        write_checkpoint(tmp_path / f"out{suffix}", t, lambda path: np.ones(1), {})
    assert not list(tmp_path.iterdir())


def test_unknown_files_and_suffixes(tmp_path):
    (tmp_path / "m.x").write_bytes(bytes(100))
    with pytest.raises(FormatError, match="formats that are known"):
        read_all(tmp_path / "m.x")
    with pytest.raises(ValueError, match=r"unknown suffix \.h5"):
        write_checkpoint(tmp_path / "out.h5", {}, lambda path: np.ones(1), {})
