"""Reading where JAX is not: by the reader's path, in NumPy alone, the same numbers as `load`."""

import contextlib
import importlib.util
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxprune.core.arrays import Clustered, Common, Masked
from jaxprune.core.factors import Shared
from jaxprune.core.quantized import Binary, Quantized, pack
from jaxprune.storage import reader
from jaxprune.storage.files import inspect, load, save
from jaxprune.storage.format.words import FormatError
from tests.storage.hostile import GOOD, HOSTILE, json_nodes, tree_of, unguarded
from tests.storage.test_banks import model as banked
from tests.storage.trees import DTYPES, bits_of, codes, integers, mask, normal, quantized

CODES = codes()
SUMS = {name for name in CODES if "low rank" in name or "tucker" in name}
PROGRAM = pathlib.Path(reader.__file__)
BLOCKED = (
    "jax",
    "jaxlib",
    "jaxprune",
    "flax",
    "ml_dtypes",
    "optax",
    "msgspec",
    "rich",
    "typer",
    "safetensors",
    "orbax",
)
WEIGHTS = ("float16", "bfloat16", "float32", "float64")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.jp"


def widened(x):
    """What NumPy has in the place of an array."""
    if not hasattr(x, "dtype"):
        return x
    x = np.asarray(x)
    if x.dtype.name in ("int2", "int4"):
        return x.astype(np.int8)
    if x.dtype.name in ("uint2", "uint4"):
        return x.astype(np.uint8)
    return x.astype(np.float32) if x.dtype.kind == "V" or "float8" in x.dtype.name else x


def check(found, expected, near=0.0):
    """Whether two trees of arrays and numbers are alike: bit for bit, but that any NaN is one; or
    near.
    """
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), map(widened, jax.tree.leaves(expected))):
        assert type(a) is type(b)
        if not isinstance(a, np.ndarray):
            assert a == b
            continue
        assert (a.dtype, a.shape, a.flags.writeable) == (b.dtype, b.shape, True)
        if not near:
            np.testing.assert_array_equal(a, b)
            assert a.dtype.kind != "f" or (np.signbit(a) == np.signbit(b))[~np.isnan(a)].all()
        else:
            np.testing.assert_allclose(a, b, rtol=near, atol=1e-5)


@pytest.mark.parametrize("name", CODES)
def test_codes(name, path):
    save(path, {"layer": {"kernel": CODES[name], "bias": normal(3)}, "n": [1, None, (2.5, True)]})
    check(reader.read(path), load(path, as_="numpy"), near=1e-5 if name in SUMS else 0.0)


def test_banks(path):
    save(path, banked())
    check(reader.read(path), load(path, as_="numpy"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, path):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    every = {1: np.arange(256, dtype=np.uint8), 2: np.arange(1 << 16, dtype=np.uint16)}
    whole = (
        kind.kind in "Vf"
        and kind.itemsize in every
        and "int" not in dtype
        and dtype != "float4_e2m1fn"
    )
    x = every[kind.itemsize].view(kind) if whole else bits_of(dtype)
    save(path, {"w": x, "scalar": x[3]})
    check(reader.read(path), load(path, as_="numpy"))


@pytest.mark.parametrize("scale", WEIGHTS)
@pytest.mark.parametrize("dtype", WEIGHTS)
def test_products_are_rounded_as_in_jax(dtype, scale, path):
    with jax.enable_x64(True):
        s = jnp.exp(4 * normal(4, 10)).astype(scale)
        kind = jnp.dtype(dtype)
        q = integers(-99, 99, 24, 10, dtype=np.int8)
        z = integers(0, 9, 4, 10)
        grid = (-1.0, -0.3, 1e-3, 2.0)
        p = (100 * normal(5, 10)).astype(kind)
        tree = {
            "groups": Quantized(q, s, z, 8, kind),
            "grid": Quantized(pack(integers(0, 4, 24, 10), 2), s, None, 4, kind, grid),
            "beyond the grid": Quantized(q, s, None, 8, kind, grid),
            "wide": Quantized(integers(-(2**31), 2**31, 24, 10, dtype=np.int64), s, None, 64, kind),
            "bool": Quantized(mask(24, 10), s, None, 1, kind),
            "float8": Quantized(normal(24, 10).astype(jnp.float8_e5m2), s, None, 8, kind),
            "zero point is a code": Quantized(
                q, s[:1], Quantized(z[:1], jnp.ones((1, 1)), None, 8, kind), 8, kind
            ),
            "binary": Binary(pack(integers(0, 2, 24, 10), 1), s, kind),
            "shared": Shared(p, integers(0, 5, 24), (100 * normal(24)).astype(scale), -2),
        }
        save(path, tree)
    # XLA:CPU rounds float64 to a half in one step or in two, by way of float32, as it happens to be
    # compiled.
    twice = float(jnp.finfo(kind).eps) if scale == "float64" and kind.itemsize == 2 else 0.0
    check(reader.read(path), load(path, as_="numpy"), near=twice)


def test_shared_units_on_any_axis(path):
    tree = {
        "first": Shared(normal(3, 4, 5), integers(0, 3, 7), normal(7), -3),
        "middle": Shared(normal(3, 4, 5), integers(0, 4, 7), normal(7), -2),
        "batches": Shared(normal(2, 3, 4, 5), integers(0, 5, 2, 3, 7), normal(2, 3, 7), -1),
    }
    save(path, tree)
    check(reader.read(path), load(path, as_="numpy"))


def test_commons(path):
    tree = {
        "empty": Common(normal(4), {}),
        "alone": Common(normal(4), Clustered(None, integers(0, 4, 3))),
        "own": Common(
            normal(4), [Clustered(normal(2), integers(0, 2, 3)), Masked(normal(5), mask(5)), 1]
        ),
    }
    save(path, tree)
    check(reader.read(path), load(path, as_="numpy"))


def test_max_bytes_counts_what_is_made(path):
    save(
        path,
        {
            "a": np.zeros(100, np.float32),
            "b": normal(100, dtype=jnp.bfloat16),
            "c": quantized(8, 10, 10),
        },
    )
    need = 400 + (200 + 400) + (100 + 40 + 400)
    assert reader.read(path, max_bytes=need)["a"].size == 100
    with pytest.raises(
        FormatError, match=f"{path}: the arrays take {need} bytes decoded, more than max_bytes"
    ):
        reader.read(path, max_bytes=need - 1)


def test_weights_of_no_floats_are_refused(path):
    save(path, {"w": Quantized(integers(0, 9, 4), jnp.ones(1), None, 8, jnp.dtype("int32"))})
    with pytest.raises(FormatError, match="leaf 'w': weights of int32 are not computed"):
        reader.read(path)


# --- by its path
# ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Runs Python where only NumPy can be imported."""
    folder = tmp_path_factory.mktemp("blocked")
    for name in BLOCKED:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is blocked')")
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "PYTHONIOENCODING": "utf-8",
        "PYTHONWARNINGS": "error",
    }

    def run(*arguments):
        line = [sys.executable, *map(str, arguments)]
        return subprocess.run(
            line, capture_output=True, text=True, check=False, env=environment, cwd=folder
        )

    assert "jaxprune is blocked" in run("-c", "import jaxprune").stderr
    return run


def test_the_program(alone, tmp_path):
    tree = {
        "codes": CODES,
        "banked": banked(),
        "dtypes": {d: bits_of(d) for d in DTYPES},
        "a/b": [1, 2.5, None],
    }
    save(tmp_path / "model", tree)
    done = alone(PROGRAM, tmp_path / "model", "-o", tmp_path / "out.npz")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{inspect(tmp_path / 'model')}\n"
    expected = jax.tree_util.tree_flatten_with_path(load(tmp_path / "model", as_="numpy"))[0]
    with np.load(tmp_path / "out.npz") as archive:
        found = {name: archive[name] for name in archive.files}
    named = {
        "/".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in keys): x
        for keys, x in expected
    }
    assert found.keys() == named.keys() and "codes/masked" in found and "a/b/1" in found
    for name, x in named.items():
        check(
            found[name],
            np.asarray(x),
            near=1e-5 if any(f"codes/{some}" in name for some in SUMS) else 0.0,
        )


def test_under_any_name(alone, path):
    save(path, {"w": CODES["masked clustered"], "n": 3})
    program = f"""
import importlib.util, sys
for name in ("x", "a.b.c", "jaxprune"):
    spec = importlib.util.spec_from_file_location(name, {str(PROGRAM)!r})
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    print(module.read({str(path)!r})["w"].sum())
assert not {{"jax", "jaxprune", "ml_dtypes"}} & sys.modules.keys()
"""
    done = alone("-I", "-c", program)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {str(reader.read(path)["w"].sum())}


def test_two_readers_in_one_process(path):
    save(path, {"w": CODES["masked clustered"]})
    spec = importlib.util.spec_from_file_location("jaxprune_reader", PROGRAM)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.Decoder is not reader.Decoder
    check(module.read(path), reader.read(path))


@pytest.mark.parametrize(
    "name", ["empty", "header length 2^64-1", "manifest is deep", "slow bomb", "an index of k"]
)
def test_the_program_refuses(name, alone, path):
    path.write_bytes(HOSTILE[name])
    done = alone(PROGRAM, path, "-o", path.with_suffix(".npz"))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"{path}: ")
    assert os.listdir(path.parent) == [path.name]


def test_the_program_has_one_line_for_every_error(capsys, path):
    assert reader.main([str(path)]) == 2 and "No such file" in capsys.readouterr().err
    save(path, {"../../w": np.ones(3)})
    assert reader.main([str(path), "-o", f"{path}.npz"]) == 2
    assert "unpacked outside" in capsys.readouterr().err
    save(path, {"a/b": np.ones(3), "a": {"b": np.ones(3)}})
    assert reader.main([str(path), "-o", f"{path}.npz"]) == 2
    assert "another one has its name" in capsys.readouterr().err
    assert reader.main([str(path), "-o", str(path.parent)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert os.listdir(path.parent) == [path.name]


def test_an_array_alone(path):
    save(path, np.arange(3))
    assert reader.main([str(path), "-o", f"{path}.npz"]) == 0
    with np.load(f"{path}.npz") as archive:
        assert archive["array"].tolist() == [0, 1, 2]


# --- hostile files
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name, path):
    path.write_bytes(HOSTILE[name])
    with pytest.raises(FormatError) as caught:
        reader.read(path, max_bytes=1 << 28)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 500


def test_the_good_file_is_good(path):
    path.write_bytes(GOOD)
    assert reader.read(path)["w"].tolist() == [1.0, 2.0]


SETTINGS = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@SETTINGS
@given(json_nodes, st.binary(max_size=16))
def test_forged_trees(tmp_path_factory, node, data):
    path = tmp_path_factory.getbasetemp() / "tree"
    path.write_bytes(tree_of(node, data))
    with contextlib.suppress(FormatError):
        reader.read(path, max_bytes=1 << 20)


def arrays_of_every_codec():
    """Arrays that are written by the codecs of one array, by the name of the codec."""
    normal = np.random.default_rng(0).standard_normal((40, 70)).astype(np.float32)
    far = np.random.default_rng(1).laplace(size=4000) ** 3 * 40
    return {
        "rans": np.clip(far, -20, 20).astype(np.int8),
        "planes": normal,
        "lzma": np.tile(normal, (20, 1)),
        "escape": far.astype(np.int32),
    }


@pytest.fixture(scope="module")
def lone_files(tmp_path_factory):
    path = tmp_path_factory.mktemp("lone") / "x"
    found = []
    codes = [code for code in CODES.values() if not isinstance(code, Common)]
    for code in (*codes, *arrays_of_every_codec().values()):
        save(path, code)
        found.append((path.read_bytes(), inspect(path).bytes.data))
    return found


def test_forged_data_is_read_by_every_codec(lone_files, tmp_path):
    """So that `test_forged_data` tries all of them, and not only the version of a file."""
    codecs = set()
    for raw, size in lone_files:
        (tmp_path / "x").write_bytes(unguarded(raw, raw[len(raw) - size :]))
        reader.read(tmp_path / "x")
        codecs |= set(inspect(tmp_path / "x").rows[0].codecs)
    assert {"raw", "bits", *arrays_of_every_codec()} <= codecs


@SETTINGS
@given(
    st.integers(0, 999),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
)
def test_forged_data(lone_files, tmp_path_factory, which, flips):
    raw, size = lone_files[which % len(lone_files)]
    octets = bytearray(raw[len(raw) - size :])
    for at, x in flips if size else ():
        octets[int(at * size)] ^= x
    path = tmp_path_factory.getbasetemp() / "forged"
    path.write_bytes(unguarded(raw, bytes(octets)))
    with contextlib.suppress(FormatError):
        reader.read(path, max_bytes=1 << 24)
