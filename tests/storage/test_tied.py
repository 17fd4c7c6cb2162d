"""Arrays that are alike are in a file once, and come back everywhere."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxprune as jp
from jaxprune.storage.files import inspect
from jaxprune.storage.format.words import FormatError
from jaxprune.storage.prediction import predicted_bytes
from jaxprune.storage.reader import read
from jaxprune.storage.streaming import streamed
from tests.storage.hostile import tree_of

RNG = np.random.default_rng(3)
E = jnp.asarray(RNG.standard_normal((60, 40), np.float32))
OTHER = E.at[59, 39].add(1.0)
SPARSE = jp.chain(jp.prune(0.5), jp.cluster(k=4)).init({"w": E})["w"]
INTEGERS = jp.quantize(bits=8).init({"w": E})["w"]

TREES = {
    "an embedding": ({"embed": E, "x": OTHER, "head": E}, {"head": "embed"}),
    "an equal copy": ({"embed": E, "head": jnp.array(np.asarray(E))}, {"head": "embed"}),
    "codes": (
        {"a": SPARSE, "b": jnp.ones(3), "c": SPARSE, "d": INTEGERS, "e": INTEGERS},
        {"c": "a", "e": "d"},
    ),
    "three": ([E, E, {"deep": (E,)}], {"1": "0", "2/deep/0": "0"}),
    "another dtype": ({"a": E, "b": E.astype(jnp.bfloat16), "c": E.view(jnp.int32)}, {}),
    "another shape": ({"a": E, "b": E.reshape(40, 60)}, {}),
    "NumPy and JAX": ({"a": E, "b": np.asarray(E)}, {}),
    "one element apart": ({"a": E, "b": OTHER}, {}),
    "constants": ({"a": jnp.zeros(4000), "b": jnp.zeros(4000)}, {}),
    "small": ({"a": E[:2], "b": E[:2]}, {}),
    "hidden numbers": (
        {"a": jp.Masked(E, E > 0), "b": jp.Masked(jnp.where(E > 0, E, 7.0), E > 0)},
        {"b": "a"},  # what a mask hides is not part of a code
    ),
    "one codebook": (jp.cluster(k=4, scope="tree").init({"a": E, "b": E}), {}),
}


def tied(path):
    return {
        row.path: row.codecs[0][2:]
        for row in inspect(path).rows
        if row.codecs and row.codecs[0].startswith("= ")
    }


@pytest.mark.parametrize("name", TREES)
def test_what_is_alike_is_stored_once(name, tmp_path):
    tree, expected = TREES[name]
    path = tmp_path / "x"
    jp.save(path, tree)
    assert tied(path) == expected
    found = inspect(path)
    assert sum(row.stored_bytes for row in found.rows) == found.bytes.data
    assert found.bytes.predicted == predicted_bytes(tree)
    dense = jp.materialize(tree) if not isinstance(tree, jp.Common) else jp.load(path, as_="dense")
    for back in (jp.load(path, as_="dense"), read(path), jp.load(path, as_="numpy")):
        for x, y in zip(leaves(back), leaves(dense)):
            assert np.asarray(x, np.float32).tobytes() == np.asarray(y, np.float32).tobytes()


def leaves(tree):
    return [tree] if hasattr(tree, "shape") else [x for kid in _kids(tree) for x in leaves(kid)]


def _kids(tree):
    return [tree[key] for key in sorted(tree)] if isinstance(tree, dict) else list(tree)


def test_tied_leaves_are_one_object_of_jax_and_two_of_numpy(tmp_path):
    jp.save(tmp_path / "x", {"a": E, "b": E, "c": SPARSE, "d": SPARSE})
    back = jp.load(tmp_path / "x")
    assert back["a"] is back["b"] and back["c"].mask is back["d"].mask
    back = jp.load(tmp_path / "x", as_="numpy")
    back["a"][0] = 0
    assert back["b"][0].any()
    assert jp.load(tmp_path / "x", only="b")["b"].tobytes() == np.asarray(E).tobytes()


def test_leaves_that_come_one_by_one_are_tied_too(tmp_path):
    with streamed(tmp_path / "x") as file:
        for key, x in {"a": E, "b": OTHER, "c": E, "d": SPARSE, "e": SPARSE}.items():
            file.add((key,), x)
    assert tied(tmp_path / "x") == {"c": "a", "e": "d"}
    jp.save(tmp_path / "y", {"a": E, "b": OTHER, "c": E, "d": SPARSE, "e": SPARSE})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_a_checkpoint_with_a_tied_head_comes_back_whole(tmp_path):
    from typer.testing import CliRunner

    from jaxprune.app import cli

    weights = {
        "head.weight": np.asarray(E),
        "embed.weight": np.asarray(E),
        "mlp.weight": np.asarray(OTHER),
    }
    save_file(weights, tmp_path / "a.safetensors")
    (tmp_path / "r.toml").write_text('[[rule]]\nwhere = ".*"\nkeep = true\n')

    def run(*args):
        done = CliRunner().invoke(cli.app, [str(a) for a in args])
        assert done.exit_code == 0, done.output
        return done.stdout

    run(
        "compress",
        tmp_path / "a.safetensors",
        "-o",
        tmp_path / "a.jpz",
        "-r",
        tmp_path / "r.toml",
        "--verify",
    )
    assert inspect(tmp_path / "a.jpz").bytes.data < 2 * E.nbytes
    run("restore", tmp_path / "a.jpz", "-o", tmp_path / "b.safetensors")
    back = load_file(tmp_path / "b.safetensors")
    assert all(back[name].tobytes() == x.tobytes() for name, x in weights.items())


def test_a_tie_is_of_version_2(tmp_path):
    octets = tree_of({"a": ["f4", [2]], "b": ["@", 0]}, bytes(8))
    (tmp_path / "x").write_bytes(octets)
    with pytest.raises(FormatError, match="names no earlier leaf"):
        jp.load(tmp_path / "x")
    (tmp_path / "x").write_bytes(octets.replace(b'"jaxprune":"1"', b'"jaxprune":"2"'))
    assert (jp.load(tmp_path / "x")["b"] == 0).all()


@pytest.mark.parametrize("said", [["@"], ["@", 1], ["@", -1], ["@", True], ["@", 0, 0], ["@", "a"]])
def test_hostile_ties(said, tmp_path):
    octets = tree_of({"a": ["f4", [2]], "b": said}, bytes(8))
    (tmp_path / "x").write_bytes(octets.replace(b'"jaxprune":"1"', b'"jaxprune":"2"'))
    with pytest.raises(FormatError, match="leaf 'b'"):
        jp.load(tmp_path / "x")
