"""The commands on files, end to end: plans, round trips, the same bytes streamed and in memory, and
bad inputs."""

import contextlib
import errno
import gc
import json
import os
import re
import tomllib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from typer.testing import CliRunner

import jaxprune as jp
from jaxprune.app import cli
from jaxprune.app.files.compress import compress as run
from jaxprune.app.files.compression_plan import plan
from jaxprune.app.recipes.rules import Recipe, Rule
from jaxprune.app.recipes.strict import convert
from jaxprune.numerics import placement, select, streamed
from jaxprune.numerics.clusters import kmeans
from jaxprune.storage import streaming
from jaxprune.storage.checkpoints.formats import open_checkpoint
from jaxprune.storage.format import parts
from tests.storage.test_checkpoints import SUFFIXES, assert_named, read_all, write_foreign

draw = np.random.default_rng(0)
TORCH = {
    "layer1.0.conv1.weight": draw.normal(size=(8, 4, 3, 3)).astype(np.float32),
    "layer1.0.bn1.weight": draw.normal(size=8).astype(np.float32),
    "layer1.0.bn1.num_batches_tracked": np.array(3),
    "linear.weight": draw.normal(size=(5, 8)).astype(ml_dtypes.bfloat16),
    "linear.bias": draw.normal(size=5).astype(np.float32),
}
RULE = '[[rule]]\nwhere = ".*(conv|linear).*weight"\nprune = 0.5\nquantize = 8\n'


def call(*args):
    return CliRunner().invoke(cli.app, [str(a) for a in args])


@pytest.fixture
def torch(tmp_path):
    safetensors.numpy.save_file(TORCH, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path / "model.safetensors"


def compress(checkpoint, rules, *more, code=0, out=None):
    recipe = checkpoint.parent / "recipe.toml"
    recipe.write_text(rules)
    out = out or checkpoint.parent / "out.jpz"
    result = call("compress", checkpoint, "-o", out, "--recipe", recipe, "--force", *more)
    assert result.exit_code == code, result.output
    return out, result


def test_the_plan_says_everything(torch):
    out, result = compress(torch, RULE, "--dry-run")
    assert not out.exists() and max(map(len, result.stdout.splitlines())) <= 100
    for words in (
        "f32[3,3,4,8]",
        "bf16[8,5]",
        "prune 0.5, quantize 8",
        "kept",
        "layout: torch, guessed",
    ):
        assert words in result.stdout
    rows = json.loads(compress(torch, RULE, "--dry-run", "--json")[1].stdout)["plan"]["leaves"]
    assert [r["rule"] for r in rows] == [None, None, 1, None, 1]
    conv = next(r for r in rows if r["rule"])  # 288 bits of mask, 144 bytes, 8 scales
    assert conv["predicted_bytes"] == 36 + 144 + 32 and conv["dense_bytes"] == 1152


def test_pytorch_layout_and_back(torch):
    out, result = compress(torch, RULE, "--verify")
    assert "all 5 leaves read back bit for bit" in result.stdout
    code = jp.load(out)["layer1.0.conv1.weight"]
    assert code.shape == (3, 3, 4, 8) and code.values.scale.shape == (1, 1, 1, 8)
    kernel = jnp.asarray(TORCH["layer1.0.conv1.weight"].transpose(2, 3, 1, 0))
    want = np.asarray(jp.chain(jp.prune(0.5), jp.quantize(bits=8)).init(kernel).materialize())
    back = torch.parent / "back.safetensors"
    assert call("restore", out, "-o", back).exit_code == 0
    found = safetensors.numpy.load_file(back)
    assert {k: (x.shape, x.dtype) for k, x in found.items()} == {
        k: (x.shape, x.dtype) for k, x in TORCH.items()
    }
    np.testing.assert_array_equal(found["layer1.0.conv1.weight"], want.transpose(3, 2, 0, 1))
    for name in TORCH.keys() - {"layer1.0.conv1.weight", "linear.weight"}:
        assert found[name].tobytes() == TORCH[name].tobytes()
    with safetensors.safe_open(back, "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_recipe_says_the_layout(torch):
    out, result = compress(torch, 'layout = "jax"\n' + RULE)
    assert "layout: jax, as the recipe says" in result.stdout
    assert jp.load(out)["layer1.0.conv1.weight"].shape == (8, 4, 3, 3)


@pytest.mark.parametrize("source", SUFFIXES)
@pytest.mark.parametrize("target", SUFFIXES)
def test_every_format_to_every_format(source, target, tmp_path):
    named = {
        k: x
        for k, x in SUFFIXES[".npz" if ".npz" in (source, target) else source].items()
        if k != "mask"
    }
    out, _ = compress(
        write_foreign(tmp_path / f"model{source}", named), '[[rule]]\nwhere = ".*"\nkeep = true'
    )
    back = tmp_path / f"back{target}"
    assert call("restore", out, "-o", back).exit_code == 0
    assert call("diff", tmp_path / f"model{source}", out).exit_code == 0
    found = read_all(back)
    assert found.keys() == named.keys()
    if target:
        assert_named(found, named)


STREAMED = [
    "prune = 0.7",
    'prune = { sparsity = 0.7, allocate = "global" }',
    'prune = { sparsity = 0.7, allocate = "erk" }',
    'prune = { sparsity = 0.5, score = "random" }',
    'prune = { pattern = "2:4" }',
    "prune = { threshold = 0.4 }",
    "prune = 0.5\ncluster = 4\ncodebook_bits = 8",
    "factorize = 2",
    "entropy_quantize = { step = 0.1 }",
    "prune = 0.5\nentropy_quantize = { step = 0.05 }",
    'quantize = { bits = 4, rounding = "stochastic" }',
]


@pytest.mark.parametrize("verbs", STREAMED)
def test_streamed_bytes_are_those_of_the_whole_tree(verbs, tmp_path):
    named = {
        f"params/{n}/kernel": draw.normal(size=(8, 4 * n)).astype(np.float32).round(1)
        for n in (1, 2, 3)
    }
    named["params/1/bias"] = np.zeros(4, np.float32)
    path = write_foreign(tmp_path / "m.msgpack", named)
    rules = f'[[rule]]\nwhere = ".*/kernel"\n{verbs}\n'
    one, _ = compress(path, rules, "--verify")
    two, _ = compress(path, rules, "--verify", "--in-memory", out=tmp_path / "two")
    assert one.read_bytes() == two.read_bytes()


def test_streamed_bytes_are_those_of_compiled_functions(tmp_path, monkeypatch):
    """A leaf by itself is NumPy's and goes by blocks; the whole tree is JAX's, and large leaves of
    it are compiled."""

    # both ways make them alike
    def codebooks(*xs, limit=0):
        return limit > 0 and placement.on_host(*xs, limit=limit)

    for module in (select, kmeans):
        monkeypatch.setattr(module, "on_host", codebooks)
    for module in (streamed, parts):
        monkeypatch.setattr(module, "CHUNK", 64)
    x = draw.normal(size=(40, 24)).astype(np.float32)
    path = write_foreign(tmp_path / "m.msgpack", {f"{n}/kernel": x for n in "abc"})
    rules = "".join(
        f'[[rule]]\nwhere = "{n}/kernel"\n{verbs}\n'
        for n, verbs in {
            "a": "prune = 0.6\ncluster = 6",
            "b": "quantize = 8",
            "c": "prune = 0.3\nquantize = 6",
        }.items()
    )
    one, _ = compress(path, rules, "--verify")
    two, _ = compress(path, rules, "--verify", "--in-memory", out=tmp_path / "two")
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    "verbs",
    [
        'cluster = { k = 2, scope = "tree" }',
        'prune = { sparsity = 0.5, allocate = "lamp" }',
        'prune = { sparsity = 0.5, pattern = "channel -1" }',
        "entropy_quantize = { sqnr = 20 }",
        "prune = 0.5\nentropy_quantize = { bits_per_weight = 2 }",
        'prune = { sparsity = 0.5, allocate = "global", score = "random" }',
    ],
)
def test_rules_that_need_the_whole_tree(verbs, tmp_path):
    named = {f"{n}/kernel": draw.normal(size=(8, 4 * n)).astype(np.float32) for n in (1, 2)}
    path = write_foreign(tmp_path / "m.npz", named)
    rules = f'[[rule]]\nwhere = ".*/kernel"\n{verbs}\n'
    out, result = compress(path, rules, code=2)
    assert "--in-memory" in result.stderr and not out.exists()
    out, _ = compress(path, rules, "--in-memory", "--verify")
    assert call("verify", out).exit_code == 0


def test_one_step_for_all_leaves_of_a_rule(tmp_path):
    named = {f"{n}/kernel": draw.normal(size=(8, 40)).astype(np.float32) * n for n in (1, 4)}
    path = write_foreign(tmp_path / "m.npz", named)
    rules = '[[rule]]\nwhere = ".*/kernel"\nentropy_quantize = { sqnr = 20 }\n'
    out, result = compress(path, rules, "--in-memory", "--json")
    assert [leaf["predicted_bytes"] for leaf in json.loads(result.stdout)["plan"]["leaves"]] == [
        None,
        None,
    ]
    steps = {float(code.scale.item()) for code in jp.load(out).values() for code in code.values()}
    total = json.loads(call("diff", path, out, "--json").stdout)["total"]
    assert len(steps) == 1 and 20 <= total["sqnr_db"] < 20.2


@pytest.mark.parametrize(
    "verbs", ["prune = 0.5", "quantize = 8", "prune = 0.5\ncluster = 4", "factorize = 2"]
)
def test_leaves_that_go_by_leave_no_cycles(verbs, tmp_path):
    """A cycle would keep a leaf in memory until Python looks for cycles."""
    path = write_foreign(
        tmp_path / "m.npz", {f"{n}/kernel": draw.normal(size=(8, 8)).astype("f4") for n in range(3)}
    )
    read = open_checkpoint(path)
    recipe = Recipe((convert({"where": ".*", **tomllib.loads(verbs)}, Rule, ""),))
    gc.collect()
    with read as checkpoint, collecting() as garbage:
        run(checkpoint, plan(checkpoint, recipe), tmp_path / "out", lambda *_: None)
    assert not [x for x in garbage if isinstance(x, jax.Array | np.ndarray)]


@contextlib.contextmanager
def collecting():
    """What only the collector of cycles could free."""
    garbage = []
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield garbage
        gc.collect()
        garbage += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


@pytest.mark.parametrize(
    "verbs",
    ["prune = 0.5", "quantize = 4", "prune = 0.5\nquantize = 8", "prune = 0.5\ncluster = 4"],
)
def test_large_leaves_are_restored_to_the_same_bits(verbs, tmp_path, monkeypatch):
    """They are made dense by a compiled function."""
    path = write_foreign(
        tmp_path / "m.npz", {"kernel": draw.normal(size=(30, 40)).astype(np.float32)}
    )
    out, _ = compress(path, f'[[rule]]\nwhere = ".*"\n{verbs}\n')
    want = np.asarray(jp.load(out, as_="numpy")["kernel"])
    assert read_all(out)["kernel"].tobytes() == want.tobytes()
    monkeypatch.setattr(placement, "HOST", 1)
    assert read_all(out)["kernel"].tobytes() == want.tobytes()


def test_float64_leaves_stay_float64(tmp_path):
    named = {"a/kernel": draw.normal(size=(8, 8)), "b": draw.normal(size=3), "n": np.arange(3)}
    out, _ = compress(
        write_foreign(tmp_path / "m.npz", named),
        '[[rule]]\nwhere = ".*/kernel"\nprune = 0.5',
        "--verify",
    )
    found = read_all(out)
    assert (
        all(found[k].dtype == x.dtype for k, x in named.items())
        and (found["b"] == named["b"]).all()
    )
    kept = np.abs(named["a/kernel"]) > np.median(np.abs(named["a/kernel"]))
    assert (found["a/kernel"] == np.where(kept, named["a/kernel"], 0)).all()


# --- diff and verify
# ---------------------------------------------------------------------------------------


def test_diff_by_hand(tmp_path):
    a = {"x": np.array([3.0, 0.0, 4.0, np.nan]), "i": np.array([2**63 - 1]), "only": np.ones(1)}
    b = {"x": np.array([3.0, 1.0, 0.0, np.nan]), "i": np.array([2**63 - 2]), "more": np.ones(1)}
    a |= {"s": np.ones(2), "d": np.ones(2)}
    b |= {"s": np.ones(3), "d": np.ones(2, np.float32)}
    np.savez(tmp_path / "a.npz", **a)
    np.savez(tmp_path / "b.npz", **b)
    result = call("diff", tmp_path / "a.npz", tmp_path / "b.npz", "--json")
    rows = {r["path"]: r for r in json.loads(result.stdout)["leaves"]}
    assert result.exit_code == 1 and not any(r["same"] for r in rows.values())
    x = rows["x"]
    assert (x["max_error"], x["new_zeros"], x["lost_zeros"]) == (4, 1, 1)
    assert x["relative_error"] == pytest.approx((17 / 25) ** 0.5) and x["sqnr_db"] == pytest.approx(
        10 * np.log10(25 / 17)
    )
    notes = {k: r["note"] for k, r in rows.items()}
    assert notes["only"] == "only in the first" and notes["more"] == "only in the second"
    assert notes["s"] == "float64[2] became float64[3]" and notes["d"] == "float64 became float32"
    table = call("diff", tmp_path / "a.npz", tmp_path / "b.npz").stdout
    assert max(map(len, table.splitlines())) <= 100 and "6 of 6 leaves differ" in table
    same = call("diff", tmp_path / "a.npz", tmp_path / "a.npz")
    assert same.exit_code == 0 and "no difference" in same.stdout


def test_verify_compares_the_compressed_leaves_and_counts_kept_ones_apart(tmp_path):
    """A kept causal mask has infinities, a kept variance most of the energy: neither may make a
    loss look small."""
    kernel = draw.normal(size=(16, 16)).astype(np.float32)
    causal = np.where(np.tril(np.ones((8, 8))) > 0, 0, -np.inf).astype(np.float32)
    named = {"d/kernel": kernel, "causal": causal, "bn/var": 1e4 * np.ones(64, np.float32)}
    path = write_foreign(tmp_path / "a.npz", named)
    rules = '[[rule]]\nwhere = "d/.*"\nquantize = 4\n'
    out, result = compress(path, rules, "--verify")
    assert "over 1 compressed leaves, the other 2 are kept exactly" in result.stdout
    pruned = compress(path, rules, "--verify", "--json")[1]
    verified = json.loads(pruned.stdout)["verified"]
    loss = 10 * np.log10((kernel**2).sum() / ((kernel - read_all(out)["d/kernel"]) ** 2).sum())
    assert verified["sqnr_db"] == pytest.approx(loss, rel=1e-4) and not verified["exact"]
    total = json.loads(call("diff", path, out, "--json").stdout)["total"]
    assert total["sqnr_db"] == pytest.approx(loss, rel=1e-4) and total["not_finite"] == 0
    assert json.loads(call("diff", path, out, "--json").stdout)["leaves"][0]["exact"]


def test_verify_says_that_nothing_is_lost_only_where_every_bit_is_equal(tmp_path):
    zeros = {"kernel": np.array([[-0.0, 1.0]], np.float32)}
    path = write_foreign(tmp_path / "a.npz", zeros)
    assert (
        "nothing is lost"
        in compress(path, '[[rule]]\nwhere = ".*"\nkeep = true', "--verify")[1].stdout
    )
    out, result = compress(path, '[[rule]]\nwhere = ".*"\nprune = 0.5', "--verify")
    assert (
        "nothing is lost" not in result.stdout
        and "1 of equal value differ in bits" in result.stdout
    )
    found = call("diff", path, out)
    assert (
        found.exit_code == 0 and "no value differs" in found.stdout and "-0 for 0" in found.stdout
    )


@pytest.mark.parametrize(
    "a, b, words",
    [
        ({"x": np.ones(2)}, {"y": np.ones(2)}, "no leaf in common"),
        (
            {"x": np.array([np.inf, 1.0])},
            {"x": np.array([2.0, 1.0])},
            "1 numbers that are NaN or infinite differ",
        ),
        (
            {"x": np.array([np.nan, 1.0])},
            {"x": np.array([np.inf, 1.0])},
            "1 numbers that are NaN or infinite differ",
        ),
        ({"x": np.ones(2, np.float32)}, {"x": np.ones(2)}, "float32 became float64"),
        ({"x": np.array([True])}, {"x": np.array([False])}, "1 of 1 leaves differ"),
        ({"x": np.array([2**62])}, {"x": np.array([2**62 + 1])}, "1 of 1 leaves differ"),
    ],
)
def test_what_differs_is_never_exact(a, b, words, tmp_path):
    np.savez(tmp_path / "a.npz", **a)
    np.savez(tmp_path / "b.npz", **b)
    found = call("diff", tmp_path / "a.npz", tmp_path / "b.npz")
    assert found.exit_code == 1 and words in found.stdout
    assert "exact" not in found.stdout and "no difference" not in found.stdout


def test_verify_says_which_leaf(torch):
    out, _ = compress(torch, RULE)
    assert call("verify", out).exit_code == 0
    octets = bytearray(out.read_bytes())
    octets[-1] ^= 1  # linear.weight is the last
    out.write_bytes(octets)
    result = call("verify", out, "--json")
    found = json.loads(result.stdout)
    assert (
        result.exit_code == 1 and list(found["damaged"]) == ["linear.weight"] and found["fine"] == 4
    )
    assert "1 of 5 leaves are DAMAGED, the other 4 are fine" in call("verify", out).stdout
    assert (
        call("restore", out, "-o", out.parent / "x.npz").exit_code == 2
        and not (out.parent / "x.npz").exists()
    )
    out.write_bytes(octets[:-5])
    assert call("verify", out).exit_code == 1
    octets[20] ^= 1  # in the header's first word
    out.write_bytes(octets)
    assert call("verify", out).exit_code == 1
    assert call("verify", out.parent / "none").exit_code == 2


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_of_others(suffix, tmp_path):
    path = write_foreign(
        tmp_path / f"m{suffix}", {"a/b": np.zeros((2, 3), np.float32), "c": np.arange(4)}
    )
    result = call("verify", path)
    assert (
        result.exit_code == 2
        and "not a jaxprune file" in result.stderr
        and str(path) in result.stderr
    )
    shown = call("inspect", path)
    assert shown.exit_code == 0 and "f32[2,3]" in shown.stdout and "2 leaves" in shown.stdout
    rows = json.loads(call("inspect", path, "--json").stdout)["rows"]
    assert rows[0] == {"path": "a/b", "shape": [2, 3], "dtype": "float32", "bytes": 24}


@pytest.mark.parametrize("octets", [b"", b"a text", b"\x80\x04pickle", bytes(1000)])
def test_files_that_are_nothing(octets, tmp_path):
    (tmp_path / "x").write_bytes(octets)
    for command in ("verify", "inspect"):
        result = call(command, tmp_path / "x")
        assert result.exit_code == 2 and str(tmp_path / "x") in result.stderr, command


def test_inspect_says_predicted_and_real_bytes(torch):
    out, _ = compress(torch, RULE)
    found = json.loads(call("inspect", out, "--json").stdout)
    fixed = {row["path"]: row["fixed_bytes"] for row in found["rows"]}
    # 288 integers of 8 bits and 8 scales, and no mask, which follows from the zeros; what is kept
    # is raw
    assert fixed["layer1.0.conv1.weight"] == 288 + 32 and fixed["linear.bias"] == 20
    shown = call("inspect", out).stdout
    assert (
        "fixed" in shown
        and "counts predicted" in shown
        and "Masked(Quantized)" in shown
        and max(map(len, shown.splitlines())) <= 100
    )


def test_of_two_checkpoints_the_damaged_one_is_named(torch):
    out, _ = compress(torch, RULE)
    damaged = bytearray(out.read_bytes())
    damaged[-1] ^= 1
    bad = out.with_name("bad.jpz")
    bad.write_bytes(damaged)
    for pair in ((bad, out), (out, bad)):
        result = call("diff", *pair)
        assert result.exit_code == 2 and result.stderr.startswith(
            f"error: {bad}: leaf 'linear.weight'"
        )


def test_compress_verify_finds_damage(torch, monkeypatch):
    add = streaming.LeafWriter.add

    def wrong(self, keys, x):
        return add(self, keys, x + 1 if keys == ("linear.bias",) else x)

    monkeypatch.setattr(streaming.LeafWriter, "add", wrong)
    _, result = compress(torch, RULE, "--verify", code=1)
    assert "DAMAGED: linear.bias" in result.stdout


# --- bad inputs
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rules, match",
    [
        ('[[rule]]\nwhere = "linear.weight"\nprunee = 0.5', "unknown key 'prunee'"),
        ('[[rule]]\nwhere = "(.*/)?kernel"\nprune = 0.5', "matches no leaf"),
        ('layout = "tf"\n' + RULE, "layout"),
        ("[[rule", "not whole TOML"),
        (
            '[[rule]]\nwhere = ".*tracked"\nprune = 0.5',
            "only leaves that hold no floats, as '.*tracked': give .* keep = true",
        ),
        ('[[rule]]\nwhere = "linear.bias"\ncluster = 9', "only 5 weights"),
    ],
)
def test_bad_recipes(rules, match, torch):
    out, result = compress(torch, rules, code=2)
    assert not out.exists()
    assert re.search(match, result.stderr, re.S), result.stderr


@pytest.mark.parametrize(
    "octets, match",
    [
        (b"a = " + b"[" * 5000 + b"]" * 5000, "brackets nest too deep"),
        (b"a = {" * 3000, "not whole TOML"),
        (b"\xff\xfe[[rule]]", "byte 0 is not UTF-8"),
        (b"#" * (1 << 24) + b"#", "longer than 16777216 bytes"),
        (b'[[rule]]\nwhere = "' + b"(" * 5000 + b'"\nprune = 0.5', "rule 1"),
        (None, "not a regular file"),
    ],
)
def test_settings_are_regular_files_of_bounded_size(octets, match, torch, tmp_path):
    path = tmp_path / "settings.toml"
    os.mkfifo(path) if octets is None else path.write_bytes(octets)
    for result in (call("compress", torch, "-o", tmp_path / "out", "-r", path), call("run", path)):
        assert (
            result.exit_code == 2 and result.stderr.count("\n") == 1 and len(result.stderr) < 6000
        ), result.output
        assert re.search(match, result.stderr) or (octets and octets.startswith(b"[[rule]]")), (
            result.stderr
        )
    for place in (tmp_path, "/dev/zero"):
        assert (
            "not a regular file"
            in call("compress", torch, "-o", tmp_path / "out", "-r", place).stderr
        )


def test_rules_pass_over_leaves_that_hold_no_floats(torch):
    out, result = compress(torch, '[[rule]]\nwhere = ".*"\nprune = 0.5', "--verify")
    assert "kept (no floats)" in result.stdout
    assert jp.load(out, as_="numpy")["layer1.0.bn1.num_batches_tracked"] == 3
    tree = {"kernel": jnp.ones((4, 4)), "step": jnp.array(3), "kept": jnp.arange(2)}
    rules = [{"where": ".*", "prune": 0.5}, {"where": "kept", "keep": True}]
    code = jp.recipe(rules).init(tree)
    assert isinstance(code["kernel"], jp.Masked) and code["step"] == 3
    with pytest.raises(
        ValueError, match=r"only leaves that hold no floats, as 'step': give them keep = true"
    ):
        jp.recipe([{"where": "step", "prune": 0.5}]).init(tree)


def test_shards_come_back_as_a_folder(torch, tmp_path):
    out, _ = compress(torch, '[[rule]]\nwhere = ".*"\nkeep = true')
    result = call("restore", out, "-o", tmp_path / "shards", "--shard-size", "1 kB")
    assert result.exit_code == 0 and (tmp_path / "shards" / "model.safetensors.index.json").exists()
    assert call("diff", torch, tmp_path / "shards").exit_code == 0
    for size in ("0", "-1", "big", "1e3", "GB"):
        result = call("restore", out, "-o", tmp_path / "more", f"--shard-size={size}")
        assert result.exit_code == 2 and "as 500MB, 8GB or 2GiB" in result.stderr
    assert (
        "not replaced"
        in call("restore", out, "-o", tmp_path / "shards", "--shard-size", "1kB").stderr
    )


def test_bad_places(torch, tmp_path):
    before = torch.read_bytes()
    assert "is the checkpoint" in compress(torch, RULE, code=2, out=torch)[1].stderr
    assert "does not exist" in compress(torch, RULE, code=2, out=tmp_path / "no" / "out")[1].stderr
    assert torch.read_bytes() == before
    assert "unknown suffix" in call("restore", torch, "-o", tmp_path / "x.h5").stderr
    result = call("restore", torch, "-o", tmp_path / "x.npz")
    assert result.exit_code == 2 and "bfloat16: restore to .safetensors" in result.stderr
    assert call("diff", torch, tmp_path / "none").exit_code == 2


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_the_old_file_survives(failure, torch, monkeypatch):
    out, _ = compress(torch, RULE)
    before = out.read_bytes()
    files = sorted(os.listdir(out.parent))

    def failing(self, keys, x):
        if keys == ("linear.bias",):
            raise failure
        return add(self, keys, x)

    add = streaming.LeafWriter.add
    monkeypatch.setattr(streaming.LeafWriter, "add", failing)
    code = 130 if isinstance(failure, KeyboardInterrupt) else 2
    _, result = compress(torch, RULE, code=code)
    assert out.read_bytes() == before and sorted(os.listdir(out.parent)) == files
    assert ("as it was" if code == 130 else "No space left") in result.stderr


@pytest.fixture
def small_files():
    """No file may grow beyond 64 kB: a write then fails in the middle, as on a full disk."""
    resource = pytest.importorskip("resource")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # Orbax writes in threads
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("command", ["compress", *SUFFIXES])
def test_a_full_disk(command, tmp_path, request):
    # each array alone is too large: Orbax puts them into one file or several, as its threads come
    kernels = {f"{n}/kernel": draw.normal(size=(128, 200)).astype(np.float32) for n in range(3)}
    path = write_foreign(tmp_path / "m.npz", kernels)
    out = tmp_path / f"out{command}"
    (tmp_path / "r.toml").write_text('[[rule]]\nwhere = ".*"\nkeep = true')
    before = sorted(os.listdir(tmp_path))
    request.getfixturevalue("small_files")
    if command == "compress":
        result = call("compress", path, "-o", out, "-r", tmp_path / "r.toml")
    else:
        result = call("restore", path, "-o", out)
    assert result.exit_code == 2 and sorted(os.listdir(tmp_path)) == before, result.output
    error = result.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ") and "File too large" in error and str(out) in error
    gc.collect()  # what Orbax's threads leave warns here, and not in another test


def test_checkpoints_with_little_in_them(tmp_path):
    rules = '[[rule]]\nwhere = ".*"\nkeep = true'
    named = {"n": np.arange(3), "zero": np.array(2, np.int8), "none": np.zeros((0, 3), np.float32)}
    out, _ = compress(write_foreign(tmp_path / "m.npz", named), rules, "--verify")
    assert_named(read_all(out), named)
    _, result = compress(write_foreign(tmp_path / "e.npz", {}), rules, code=2)
    assert "holds no arrays" in result.stderr


def test_a_compressed_file_is_a_checkpoint_too(torch):
    out, _ = compress(torch, RULE)
    again, _ = compress(
        out, '[[rule]]\nwhere = "linear.weight"\ncluster = 4', out=torch.parent / "again"
    )
    with open_checkpoint(again) as c:
        assert (
            c.about == {"format": "pt"}
            and len(np.unique(c.read("linear.weight").astype(np.float32))) <= 5
        )


def test_axes_of_a_file_are_told_by_the_biases_too(tmp_path):
    """GPT-2's Conv1D is (in, out) under the name `weight`; a transposed convolution is (in, out,
    window)."""
    rng = np.random.default_rng(0)
    columns = np.exp(2 * rng.standard_normal(24)).astype(np.float32)
    tree = {
        "h.0.attn.c_attn.weight": rng.standard_normal((8, 24), np.float32) * columns,
        "h.0.attn.c_attn.bias": np.zeros(24, np.float32),
        "up.weight": rng.standard_normal((6, 4, 2, 2), np.float32),
        "up.bias": np.zeros(4, np.float32),
        "head.weight": rng.standard_normal((5, 8), np.float32),
        "head.bias": np.zeros(5, np.float32),
    }
    path = tmp_path / "gpt.safetensors"
    safetensors.numpy.save_file(tree, path)
    out, result = compress(path, '[[rule]]\nwhere = ".*weight"\nquantize = 4\n')
    assert result.exit_code == 0, result.output
    assert "outputs on axis -2: h/0/attn/c_attn/weight, up/weight" in result.stdout.replace(
        ".", "/"
    )
    scales = {
        "/".join(keys): code for keys, code in _leaves(jp.load(out)) if hasattr(code, "scale")
    }
    assert scales["h/0/attn/c_attn/weight"].scale.shape == (
        24,
        1,
    )  # a scale for each of its 24 outputs
    assert scales["up/weight"].scale.shape == (1, 1, 4, 1)
    assert scales["head/weight"].scale.shape == (1, 5)


def _leaves(tree, keys=()):
    """(keys, leaf) of a tree of dicts; a name with dots is several keys."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*keys, *str(key).split(".")))
        else:
            yield (*keys, *str(key).split(".")), value
