"""Equal trees have one fingerprint, wherever and however they lie; any change of any leaf gives
another.
"""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from jax.sharding import NamedSharding, PartitionSpec

import jaxprune as jp
from jaxprune.distill.teachers import fingerprints

fingerprint = jp.distill.fingerprint
W = np.arange(48, dtype=np.float32).reshape(8, 6)
TREE = {"a": W, "b": [np.int32([1, 2]), np.float32(3)]}


def test_it_is_sha256_as_described():
    import hashlib

    def said(*words):
        return (lambda o: len(o).to_bytes(8, "little") + o)(json.dumps(words).encode())

    raw = (
        b"jaxprune fingerprint 1"
        + said(1)
        + said(["a", "1"], "array", "int16", [2])
        + b"\x01\x00\x02\x01"
    )
    assert fingerprint({"a": [None, np.int16([1, 258])]}) == hashlib.sha256(raw).hexdigest()


def test_where_and_how_an_array_lies_does_not_matter(tmp_path, monkeypatch):
    mesh = jax.make_mesh((8,), ("data",))
    mapped = np.lib.format.open_memmap(tmp_path / "w.npy", "w+", np.float32, W.shape)
    mapped[:] = W
    same = [
        jnp.asarray(W),
        jax.device_put(W, NamedSharding(mesh, PartitionSpec("data"))),
        np.asfortranarray(W),
        np.repeat(W, 2, 1)[:, ::2],
        W.astype(">f4"),
        mapped,
    ]
    assert {fingerprint({"w": x}) for x in same} == {fingerprint({"w": W})}
    monkeypatch.setattr(fingerprints, "CHUNK", 50)  # two rows
    assert {fingerprint({"w": x}) for x in same} == {fingerprint({"w": W})}


def test_containers_are_known_by_their_keys():
    class Net(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.asarray(W))

    said = fingerprint({"w": W})
    assert fingerprint(nnx.state(Net())) == fingerprint(jp.distill.nnx(Net()).params) == said
    assert fingerprint({"b": 1, "a": W}) == fingerprint({"a": W, "b": 1})
    assert fingerprint(jp.distill.Online(jp.distill.plain(lambda w, x: x), W, {})) == fingerprint(
        {"params": W}
    )


OTHERS = {
    "a number": {**TREE, "a": W + np.eye(8, 6, dtype=np.float32) * 1e-6},
    "the sign of a zero": {**TREE, "a": np.where(W == 0, np.float32(-0.0), W)},
    "a dtype of the same bytes": {**TREE, "a": W.view(np.int32)},
    "a shape": {**TREE, "a": W.reshape(6, 8)},
    "a new axis": {**TREE, "a": W[None]},
    "a path": {"c": TREE["a"], "b": TREE["b"]},
    "two leaves swapped": {**TREE, "b": TREE["b"][::-1]},
    "a leaf more": {**TREE, "c": np.zeros((0, 3))},
    "a level": {**TREE, "b": [TREE["b"]]},
    "a Python number": {**TREE, "b": [TREE["b"][0], 3.0]},
    "a text": {**TREE, "b": [TREE["b"][0], "3.0"]},
    "a flag": {**TREE, "b": [TREE["b"][0], True]},
    "one": {**TREE, "b": [TREE["b"][0], 1]},
    "a slash in a key": {"a": W, "b/0": TREE["b"][0], "b/1": TREE["b"][1]},
    "a backslash": {"a": W, "b\\": {"0": TREE["b"][0]}, "b": {"1": TREE["b"][1]}},
    "a slash": {"a": W, "b\\/0": TREE["b"][0], "b": {"1": TREE["b"][1]}},
}


def test_any_change_gives_another():
    found = {name: fingerprint(tree) for name, tree in {"itself": TREE, **OTHERS}.items()}
    assert len(set(found.values())) == len(found)
    assert fingerprint(TREE, "text") not in (
        fingerprint(TREE),
        fingerprint("text", TREE),
        fingerprint([TREE, "text"]),
    )
    assert fingerprint({"a": W}, {"b": W}) != fingerprint({"a": W, "b": W})


@settings(max_examples=50, deadline=None)
@given(arrays(np.uint8, array_shapes(max_dims=3, max_side=6)), st.data())
def test_every_byte_counts(x, data):
    y = x.copy()
    y.flat[data.draw(st.integers(0, x.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert fingerprint(x) == fingerprint(x.copy()) != fingerprint(y)


def test_codes():
    codes = {
        "dense": W,
        "pruned": jp.prune(0.5).init({"w": jnp.asarray(W)})["w"],
        "clustered": jp.cluster(4).init({"w": jnp.asarray(W)})["w"],
        "both": jp.chain(jp.prune(0.5), jp.cluster(4)).init({"w": jnp.asarray(W)})["w"],
        "8 bits": jp.quantize(bits=8).init({"w": jnp.asarray(W)})["w"],
        "4 bits": jp.quantize(bits=4).init({"w": jnp.asarray(W)})["w"],
        "low rank": jp.factorize(rank=2).init({"w": jnp.asarray(W)})["w"],
    }
    codes["8 bits, of bfloat16"] = codes["8 bits"].replace(dense_dtype=jnp.dtype(jnp.bfloat16))
    pruned = codes["pruned"]
    codes["its arrays, as a dict"] = {
        ".": "Masked {}",
        ".values": pruned.values,
        ".mask": pruned.mask,
    }
    found = {name: fingerprint({"w": x}) for name, x in codes.items()}
    assert len(set(found.values())) == len(found)
    assert fingerprint({"w": pruned}) == fingerprint({"w": jax.tree.map(np.asarray, pruned)})


def test_small_dtypes_and_keys():
    x = np.ones(3)
    dtypes = (
        ml_dtypes.bfloat16,
        ml_dtypes.int4,
        ml_dtypes.uint4,
        ml_dtypes.float8_e4m3fn,
        bool,
        np.uint8,
        complex,
    )
    keys = [
        jax.random.key(0),
        jax.random.key(1),
        jax.random.key(0, impl="rbg"),
        jax.random.key_data(jax.random.key(0)),
    ]
    trees = [x.astype(d) for d in dtypes] + keys
    assert len({fingerprint(t) for t in trees}) == len(trees)
    assert fingerprint(jnp.ones(3, jnp.bfloat16)) == fingerprint(x.astype(ml_dtypes.bfloat16))


@jax.tree_util.register_pytree_with_keys_class
class OneName:
    """A node whose children have one name."""

    def __init__(self, *kids):
        self.kids = kids

    def tree_flatten_with_keys(self):
        return [
            (jax.tree_util.DictKey(1), self.kids[0]),
            (jax.tree_util.DictKey("1"), self.kids[1]),
        ], None

    @classmethod
    def tree_unflatten(cls, _, kids):
        return cls(*kids)


WRONG = {
    "nothing": (lambda: fingerprint(), "no array"),
    "no leaf": (lambda: fingerprint({}, [None]), "no array"),
    "a function": (
        lambda: fingerprint({"net": {"f": len}}),
        "net/f is a builtin_function_or_method",
    ),
    "objects": (lambda: fingerprint({"a": np.array([{}, 1])}), "a is a ndarray object"),
    "texts": (lambda: fingerprint({"a": np.array(["x"])}), "a is a ndarray <U1"),
    "one path": (lambda: fingerprint({"b": OneName(W, W)}), "path 'b/1'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input(case):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call()
