"""What is saved comes back: every type, dtype and container, bit for bit, in few bytes."""

import json
import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict
from safetensors.numpy import load as load_safetensors

from jaxprune.core.arrays import Clustered, Common, CompressedArray, Masked, is_code, materialize
from jaxprune.core.leaves.paths import flatten_with_path, leaf_path
from jaxprune.core.quantized import Packed
from jaxprune.storage.files import inspect, load, save
from jaxprune.storage.format import parts
from jaxprune.storage.format import words as f
from jaxprune.storage.format.shapes import dense
from jaxprune.storage.prediction import predicted_bytes
from jaxprune.storage.streams import smallest
from tests.storage.trees import (
    DTYPES,
    assert_same,
    bits_of,
    cleaned,
    codes,
    integers,
    mask,
    normal,
    same,
)

CODES = codes()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.anything"


@pytest.mark.parametrize("name", CODES)
def test_codes(name, path):
    tree = {"layer": {"kernel": CODES[name], "bias": normal(3)}}
    save(path, tree)
    assert_same(load(path), cleaned(tree))
    dense_tree = materialize(tree)
    assert_same(load(path, as_="dense"), dense_tree)
    assert_same(load(path, as_="numpy"), jax.tree.map(np.asarray, dense_tree))
    assert_same(load(path, like=jax.eval_shape(lambda: dense_tree)), cleaned(tree))
    assert_same(load(path, like=tree, as_="dense"), dense_tree)


@pytest.mark.parametrize("name", CODES)
def test_shapes_without_jax(name, path):
    """`structure.dense` is `eval_shape(materialize)`, and `inspect` shows it."""
    code = CODES[name]
    save(path, {"w": code})
    if isinstance(code, Common):
        return
    row = inspect(path).rows[0]
    assert (row.path, row.shape, row.dtype) == ("w", code.shape, code.dtype.name)
    assert dense(parts.to_node(code)) == (code.shape, f.CODE_OF[code.dtype.name])
    assert row.stored_bytes == inspect(path).bytes.data
    assert row.dense_bytes == code.size * code.dtype.itemsize


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("host", [False, True])
def test_dtypes(dtype, host, path):
    bits = bits_of(dtype)
    tree = {"vector": bits, "scalar": bits[0].reshape(()), "matrix": bits.reshape(7, 10)}
    tree["empty"] = bits[:0].reshape(0, 3)
    with jax.enable_x64(True):
        tree = tree if host else {key: jnp.asarray(x) for key, x in tree.items()}
        assert host or tree["vector"].dtype.name == dtype
    save(path, tree)
    assert_same(load(path), tree)
    assert_same(load(path, as_="numpy"), {key: np.asarray(x) for key, x in tree.items()})
    assert load(path, as_="numpy")["vector"].flags.writeable


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_under_a_mask(dtype, path):
    bits = bits_of(dtype)
    kept = np.asarray(mask(70))
    save(path, Masked(bits, kept))
    back = load(path).values
    assert same(back[kept], bits[kept])
    assert not any(back[~kept].tobytes())  # +0.0, where the dtype has a zero


def test_numbers_and_none(path):
    tree = {
        "a": 3,
        "b": -(2**63),
        "c": 0.1,
        "d": -0.0,
        "e": math.inf,
        "f": -math.inf,
        "g": math.nan,
        "h": True,
    }
    tree |= {"i": None, "j": False, "k": 1e300, "l": 5.0, "m": [], "n": {}, "o": ()}
    save(path, tree)
    back = load(path)
    assert back.keys() == tree.keys()
    assert all(same(tree[k], back[k]) if k < "m" and k != "i" else tree[k] == back[k] for k in tree)
    assert math.copysign(1, back["d"]) == -1 and type(back["l"]) is float and back["h"] is True


@pytest.mark.parametrize(
    "tree",
    [
        np.float32(1.5).reshape(()),
        {"a/b": {"c": np.ones(2)}, "a": {"b/c": np.zeros(2)}},
        {"": {"": np.ones(2)}, 'é\0\n"[{': np.ones(1)},
        {3: np.ones(2), -1: {0: np.ones(1)}, 20: None},
        [np.ones(1), (np.ones(2), [np.ones(3), None]), []],
        {"l": 1, "t": [2.5], "x": ({"i": 3},)},
    ],
)
def test_containers(tree, path):
    save(path, tree)
    assert_same(load(path), tree)
    assert_same(load(path, like=tree), tree)


def test_paths_are_those_of_where(path):
    tree = {"a/b": [normal(2), {1: normal(2)}], "s": nnx.Param(normal(2))}
    save(path, tree)
    paths = [leaf_path(keys) for keys, _ in flatten_with_path(tree)[0]]
    assert [row.path for row in inspect(path).rows] == paths


class State(NamedTuple):
    count: jax.Array
    value: jax.Array


class Lone(NamedTuple):
    value: jax.Array


class Net(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])
        self.norm = nnx.BatchNorm(2, rngs=rngs)


TEMPLATES = {
    "namedtuple": lambda: {"opt": (State(jnp.zeros((), jnp.int32), normal(3)), Lone(normal(2)))},
    "frozen": lambda: FrozenDict(
        {"params": {"dense": {"kernel": normal(3, 4), "value": normal(2)}}}
    ),
    "nnx": lambda: nnx.state(Net(nnx.Rngs(0)), nnx.Not(nnx.RngState)),
    "equinox": lambda: eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)),
}


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("as_", ["compressed", "dense"])
def test_templates(kind, as_, path):
    template = TEMPLATES[kind]()
    tree = jax.tree.map(
        lambda x: Masked(x, jnp.abs(x) > 0.3) if getattr(x, "ndim", 0) == 2 else x, template
    )
    save(
        path,
        jax.tree.map(lambda x: x if is_code(x) or eqx.is_array(x) else None, tree, is_leaf=is_code),
    )
    back = load(path, like=template, as_=as_)
    expected = cleaned(tree) if as_ == "compressed" else materialize(tree)
    assert jax.tree.structure(back) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(expected)):
        assert a is b or same(a, b)


def test_a_common_inside_a_template(path):
    tree = {
        "net": Common(normal(4), {"a": Clustered(None, integers(0, 4, 3, 3)), "b": normal(2)}),
        "step": 3,
    }
    save(path, tree)
    like = FrozenDict(materialize(tree))
    back = load(path, like=like)
    assert isinstance(back, FrozenDict) and isinstance(back["net"], Common)
    assert_same(materialize(back), like)
    assert_same(load(path, like=like, as_="dense"), like)


@pytest.mark.parametrize(
    ("like", "says"),
    [
        ({"w": np.ones((2, 3), np.float32)}, r"has besides b, c/0"),
        (
            {"w": np.ones((2, 3), np.float32), "b": 1.0, "c": [1], "d": [1.0, np.ones(2)]},
            r"lacks d/0, d/1",
        ),
        (
            {"w": np.ones((3, 2), np.float32), "b": 1.0, "c": [1]},
            r"w \(float32\[3, 2\] expected, float32\[2, 3\] ",
        ),
        (
            {"w": jax.ShapeDtypeStruct((2, 3), "bfloat16"), "b": 1.0, "c": [1]},
            r"w \(bfloat16\[2, 3\] expected",
        ),
        (
            {"w": np.ones((2, 3), np.float32), "b": np.ones(3), "c": [1]},
            r"b \(an array of shape \(3,\) expected",
        ),
    ],
)
def test_templates_that_do_not_fit(like, says, path):
    save(path, {"w": np.ones((2, 3), np.float32), "b": 1.0, "c": [1]})
    with pytest.raises(ValueError, match=says):
        load(path, like=like)


def test_only(path):
    tree = {
        "a": {"kernel": normal(3, 3), "bias": normal(3)},
        "b": [normal(2), normal(2)],
        "c": None,
    }
    save(path, tree)
    assert_same(load(path, only=r"a/.*"), {"a": tree["a"]})
    assert_same(load(path, only=r"b/1"), {"b": [None, tree["b"][1]]})
    zeros = jax.tree.map(jnp.zeros_like, tree)
    assert_same(
        load(path, only=r".*kernel", like=zeros),
        {**zeros, "a": {**zeros["a"], "kernel": tree["a"]["kernel"]}},
    )
    with pytest.raises(ValueError, match=r"matches no leaf of the file. Nearest: 'a/kernel'"):
        load(path, only="kernel")


def test_only_reads_a_codebook_with_its_leaves(path):
    tree = Common(
        normal(4),
        {"a": Clustered(None, integers(0, 4, 3, 3)), "b": Clustered(None, integers(0, 4, 2, 2))},
    )
    save(path, tree)
    assert_same(load(path, only="b"), Common(tree.codebook, {"b": tree.tree["b"]}))
    assert_same(load(path, only="b", as_="dense"), {"b": materialize(tree)["b"]})


def test_what_a_mask_hides_vanishes(path):
    values = jnp.array([-0.0, jnp.nan, jnp.inf, -0.0, jnp.nan])
    save(path, Masked(values, jnp.array([False, False, False, True, True])))
    back = np.asarray(load(path).values)
    assert back[:3].tobytes() == np.zeros(3, np.float32).tobytes()
    assert back[3:].tobytes() == np.asarray(values)[3:].tobytes()


def test_the_same_tree_gives_the_same_bytes(tmp_path):
    a = normal(5)
    b = CODES["masked clustered"]
    save(tmp_path / "1", {"x": a, "y": b}, metadata={"epoch": 1})
    save(tmp_path / "2", {"y": b, "x": a}, metadata={"epoch": 1})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    save(tmp_path / "3", load(tmp_path / "1"), metadata=inspect(tmp_path / "1").metadata)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "3").read_bytes()


def test_it_is_a_safetensors_file(path):
    save(path, CODES)
    raw = path.read_bytes()
    found = load_safetensors(raw)
    assert set(found) == {"jp.manifest", "jp.data"}
    assert all(x.dtype == np.uint8 and x.ndim == 1 for x in found.values())
    assert raw.endswith(found["jp.data"].tobytes())


def test_sharded_arrays_are_gathered(path):
    mesh = jax.make_mesh((8,), ("x",))
    w = normal(16, 4)
    save(path, jax.device_put(w, jax.sharding.NamedSharding(mesh, jax.P("x"))))
    assert same(load(path), w)


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"a": {"b": "text"}}, "a/b: a str"),
        ({"a": [object()]}, "a/0: a object"),
        ({"a": np.array(["x"])}, "a: the dtype <U1"),
        ({"a": np.array([None])}, "a: the dtype object"),
        ({"a": 1j}, "a: a complex"),
        ({"a": 2**64}, "a: an integer of more than 64 bits"),
        ({"a": {(1, 2): 1.0}}, r"a: keys \[\(1, 2\)\] cannot be saved"),
        ({"a": {True: 1.0}}, "keys"),
        (
            {"a": jax.random.key(0)},
            r"a: the dtype key<fry> cannot be saved: save jax.random.key_data",
        ),
        ({"a": jax.ShapeDtypeStruct((2,), "float32")}, "a: a ShapeDtypeStruct"),
        (
            {"a": Clustered(np.ones(2, np.float32), np.array([0, 2], np.uint8))},
            r"a: Clustered.indices run from 0 to 2",
        ),
        ({"a": Clustered(None, np.array([0, 1], np.uint8))}, "a: Clustered has no codebook"),
        ({"a": Masked(np.ones(2), np.ones(3, bool))}, r"a: the shapes \(3,\), \(2,\) do not fit"),
        ({"a": Masked(np.ones(2), np.ones(2))}, "a: Masked.mask has the dtype float64"),
        ({"a": Masked(1.0, np.ones(2, bool))}, "a: a part of a code is a float"),
        ({"a": Packed(np.zeros((3, 2), np.uint8), 40)}, r"a: Packed\(length=40\)"),
        ({"\ud800": 1.0}, "half of a surrogate pair"),
    ],
)
def test_what_cannot_be_saved(tree, says, path):
    with pytest.raises(ValueError, match=says):
        save(path, tree)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "metadata", [{"a": math.nan}, {"a": object()}, {1: "a"}, {"a": (1,)}, ["a"]]
)
def test_metadata_that_json_would_change(metadata, path):
    with pytest.raises(ValueError, match="metadata must be a dict of JSON"):
        save(path, {}, metadata=metadata)


def test_inspect(path):
    tree = {
        "a": CODES["masked clustered quantized"],
        "b": normal(1000),
        "c": 3,
        "d" * 80: CODES["low rank nested"],
    }
    save(path, tree, metadata={"epoch": 3, "loss": 0.25, "tags": ["x", None, True]})
    raw = path.read_bytes()
    found = inspect(path)
    path.write_bytes(
        raw[: -found.bytes.data] + bytes(found.bytes.data)
    )  # it never looks at the data
    assert inspect(path) == found
    assert found.metadata == {"epoch": 3, "loss": 0.25, "tags": ["x", None, True]}
    assert found.bytes.file == len(raw) and found.bytes.manifest + found.bytes.data < len(raw)
    kinds = ["Masked(Clustered(Quantized))", "array", "int", "LowRank(Masked, Quantized)"]
    assert [row.kind for row in found.rows] == kinds
    assert sum(row.stored_bytes for row in found.rows) == found.bytes.data
    assert json.loads(json.dumps(found.to_dict()))["rows"][0]["shape"] == [24, 10]
    assert max(map(len, str(found).splitlines())) <= 100 and "dddd…dddd" in str(found)


# --- sizes
# ---------------------------------------------------------------------------------------


def pruned_and_clustered(shape, keep, k):
    w = rng.standard_normal(shape).astype(np.float32)
    m = np.abs(w) >= np.quantile(np.abs(w), 1 - keep)
    book = np.quantile(w[m], (np.arange(k) + 0.5) / k).astype(np.float16)
    indices = np.abs(w[..., None] - book.astype(np.float32)).argmin(-1).astype(np.uint8)
    return Masked(
        Clustered(jnp.asarray(book), jnp.asarray(np.where(m, indices, np.uint8(0)))), jnp.asarray(m)
    )


rng = np.random.default_rng(0)


def resnet56():
    """The leaves of ResNet-56 in some 91 kB: 56 coded, 221 of float16."""

    def coded(*shape):
        return {"kernel": pruned_and_clustered(shape, 0.076, 16)}

    def half(n):
        return jnp.asarray(rng.standard_normal(n).astype(np.float16))

    def norm(n):
        return {name: half(n) for name in ("bias", "mean", "scale", "var")}

    tree = {
        "conv": coded(3, 3, 3, 16),
        "norm": norm(16),
        "head": {**coded(64, 10), "bias": half(10)},
    }
    wide = 16
    for stage, width in enumerate((16, 32, 64)):
        for block in range(9):
            layers = {"conv1": coded(3, 3, wide, width), "norm1": norm(width)}
            tree[f"block{stage}_{block}"] = {
                **layers,
                "conv2": coded(3, 3, width, width),
                "norm2": norm(width),
            }
            wide = width
    return tree


def lenet300():
    """LeNet-300-100 in some 5.1 kB."""
    sizes = (784, 300, 100, 10)
    keep = (0.007, 0.012, 0.1)

    def bias(n):
        return jnp.asarray(rng.standard_normal(n).astype(np.float32))

    return {
        f"fc{i + 1}": {
            "kernel": pruned_and_clustered(sizes[i : i + 2], keep[i], 16),
            "bias": bias(sizes[i + 1]),
        }
        for i in range(3)
    }


@pytest.mark.parametrize(("make", "leaves", "most"), [(resnet56, 277, 0.035), (lenet300, 6, 0.06)])
def test_overhead_and_prediction(make, leaves, most, path):
    tree = make()
    save(path, tree)
    found = inspect(path)
    assert len(found.rows) == leaves
    overhead = found.bytes.file / found.bytes.data - 1
    print(f"\n{make.__name__}: {found.bytes}, overhead {overhead:.2%}")
    assert overhead <= most
    assert predicted_bytes(tree) == found.bytes.predicted
    assert abs(found.bytes.predicted - found.bytes.data) <= max(0.01 * found.bytes.data, 64)
    assert_same(load(path), tree)


@pytest.mark.parametrize("name", CODES)
def test_predictions(name, path):
    save(path, CODES[name])
    assert abs(predicted_bytes(CODES[name]) - inspect(path).bytes.data) <= max(
        0.01 * inspect(path).bytes.data, 64
    )


# --- streams
# ---------------------------------------------------------------------------------------

WORDS = {
    "one value": (np.full(100, 7, np.uint8), "u1", f.BITS),
    "two values": (rng.integers(0, 2, 4000).astype(np.uint8), "?", f.BITS),
    "a sparse mask": ((rng.random(4000) < 0.05).astype(np.uint8), "?", f.RANS),
    "a large mask": ((rng.random(200_000) < 0.05).astype(np.uint8), "?", f.RANS),
    "uniform bytes": (rng.integers(0, 256, 4000).astype(np.uint8), "u1", f.RAW),
    "normal bytes": (
        np.clip(20 * rng.standard_normal(9000), -127, 127).astype(np.int8),
        "i1",
        f.RANS,
    ),
    "offset": (rng.integers(1_000_000, 1_000_030, 99).astype(np.int32), "i4", f.BITS),
    "extremes": (
        np.append(rng.integers(-(2**63), 2**63 - 1, 40), [-(2**63), 2**63 - 1]),
        "i8",
        f.RAW,
    ),
    "two extremes": (np.array([-(2**63), 2**63 - 1] * 9), "i8", f.PLANES),
    "negative": (rng.integers(-(2**62), -(2**62) + 2**20, 90), "i8", f.BITS),
    "unsigned": (np.uint64(2**64 - 1) - rng.integers(0, 9, 90).astype(np.uint64), "u8", f.BITS),
    "32 bits": (
        np.append(rng.integers(0, 2**32, 40, np.uint64), np.uint64([0, 2**32 - 1])),
        "u8",
        f.BITS,
    ),
    "wide alphabet": (
        np.minimum(rng.exponential(300, 90_000), 4095).astype(np.uint16),
        "u2",
        f.ESCAPE,
    ),
    "too wide an alphabet": (
        np.minimum(rng.exponential(300, 9000), 3200).astype(np.uint16) * 10,
        "u2",
        f.ESCAPE,
    ),
    "an outlier": (np.append(rng.integers(-9, 9, 9000), 30_000).astype(np.int16), "i2", f.ESCAPE),
    "outliers of both signs": (
        np.append(rng.integers(-9, 9, 9000), [2**19, -(2**18)]).astype(np.int32),
        "i4",
        f.ESCAPE,
    ),
    "heavy tails": (
        np.rint(3 * rng.standard_cauchy(9000)).clip(-32767, 32767).astype(np.int16),
        "i2",
        f.ESCAPE,
    ),
    "far from zero": (
        np.append(rng.integers(60_000, 60_009, 9000), 7).astype(np.uint16),
        "u2",
        f.ESCAPE,
    ),
    "three values far apart": (
        rng.choice([-17_644, 0, 32_767], 9000).astype(np.int16),
        "i2",
        f.ESCAPE,
    ),
    "few": (np.array([5, 6, 5], np.uint16), "u2", f.BITS),
    "none": (np.zeros(0, np.uint8), "?", f.RAW),
    "across chunks": (rng.integers(0, 8, 2 * smallest.CHUNK + 5).astype(np.uint8), "u1", f.BITS),
    "floats alike": (np.full(9, 0x3F800000, np.uint32), "f4", f.BITS),
    "two floats": (np.array([0x3F800000, 0x3F800001] * 9, np.uint32), "f4", f.PLANES),
    "noise": (rng.integers(0, 2**32, 4000, np.uint32), "f4", f.RAW),
    "weights": (rng.standard_normal(4000).astype(np.float32).view(np.uint32), "f4", f.PLANES),
    "copies of rows": (np.tile(rng.integers(0, 2**32, 40_000, np.uint32), 4), "f4", f.LZMA),
    "doubles alike": (np.full(2, 2**64 - 1, np.uint64), "f8", f.BITS),
    "float8": (
        (rng.standard_normal(4000)).astype(jnp.float8_e5m2).view(np.uint8),
        "float8_e5m2",
        f.RANS,
    ),
}


@pytest.mark.parametrize("name", WORDS)
def test_streams(name):
    words, code, expected = WORDS[name]
    codec, pieces, predicted = smallest.encode(words, f.DTYPES[code])
    octets = b"".join(pieces)
    assert codec == expected
    assert predicted == smallest.predict_size(words, f.DTYPES[code])
    assert abs(predicted - len(octets)) <= max(64, 0.01 * len(octets))
    assert same(smallest.decode(bytes(octets), words.size, codec, f.DTYPES[code]), words)
    assert len(octets) <= words.nbytes or code == "?"


@pytest.mark.parametrize("dtype", ["f2", "bf", "f4", "f8", "c8"])
@pytest.mark.parametrize("end", [0.0, -0.0, 1.0, np.inf, np.nan])
def test_floats_alike_take_few_bytes(dtype, end):
    """Zeros of both signs and every NaN come back bit for bit."""
    stored = f.DTYPES[dtype]
    one = (
        np.float32(end)
        .reshape(1)
        .astype(stored.name if dtype != "bf" else ml_dtypes.bfloat16)
        .view(stored.word)
    )
    for word in (
        one[0],
        one[0] ^ one.dtype.type(1),
    ):  # another zero, infinity, or NaN of another payload
        words = np.full(1000, word)
        codec, pieces, predicted = smallest.encode(words, stored)
        octets = b"".join(pieces)
        assert codec == f.BITS and len(octets) == predicted <= 11
        assert same(smallest.decode(bytes(octets), 1000, codec, stored), words)


def test_constant_leaves(path):
    """What a folded batch norm leaves: the manifest's row and two to six bytes for each array."""
    tree = {
        "zero": jnp.zeros(64),
        "minus": -jnp.zeros((8, 8)),
        "one": np.ones(64),
        "half": jnp.ones(64, jnp.bfloat16),
    }
    tree["masked"] = Masked(jnp.full((8, 8), 0.1), mask(8, 8))
    save(path, tree)
    assert_same(load(path), cleaned(tree))
    assert inspect(path).bytes.data < 60
    assert predicted_bytes(tree) == inspect(path).bytes.data


def test_the_table_of_kinds_is_that_of_the_types():
    for tag, cls in parts.TYPES.items():
        kind = f.KINDS[tag]
        statics = {x.name for x in cls.__dataclass_fields__.values() if x.metadata.get("static")}
        assert issubclass(cls, CompressedArray) and cls.__name__ == kind.name
        assert set(kind.fields) == {
            name for name in cls.__dataclass_fields__ if name not in statics
        }
        assert set(kind.statics) == statics or cls is Packed
    assert not {
        x
        for x in f.DTYPES
        if x in f.KINDS or x in (f.GROUP, f.LIST, f.TUPLE, f.INT_KEYS, f.NOT_FINITE)
    }


def test_a_donated_array_is_named(tmp_path):
    x = jnp.ones((4, 4))
    x.delete()
    with pytest.raises(ValueError, match="a/w: the array was deleted"):
        save(tmp_path / "x", {"a": {"w": x}})
