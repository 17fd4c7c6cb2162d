"""Runs, end to end through the command line: results, resuming to the same bits, skipping, plans,
errors.
"""

import json

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from typer.testing import CliRunner

import jaxprune as jp
from jaxprune.app import cli
from jaxprune.app.experiments import phases, training
from jaxprune.app.experiments.config import load_config
from jaxprune.app.experiments.experiment import run
from jaxprune.distill.inner import convolves
from jaxprune.storage.files import inspect, load
from tests.app.toy import CONFIG, blobs, net


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """Every run builds its programs anew; here they share what XLA makes of them."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("xla")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    compilation_cache.reset_cache()
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run: (its folder, its config, what the command printed)."""
    root = tmp_path_factory.mktemp("toy")
    (root / "toy.toml").write_text(CONFIG)
    result = call("run", root / "toy.toml", "--runs", root / "runs")
    assert result.exit_code == 0, result.output
    (folder,) = (root / "runs").iterdir()
    return folder, root / "toy.toml", result.stdout


def call(*args):
    return CliRunner().invoke(cli.app, [str(a) for a in args])


def results(folder):
    return json.loads((folder / "results.json").read_text())


def figures(tree):
    """Results without what the clock says."""
    if isinstance(tree, dict):
        return {k: figures(v) for k, v in tree.items() if k != "seconds"}
    return [figures(x) for x in tree] if isinstance(tree, list) else tree


def test_the_table_fits_and_tells_before_and_after(done):
    _, _, printed = done
    table = printed[printed.index("┏") : printed.index("┘")]
    assert max(map(len, table.splitlines())) <= 100
    for word in (
        "prune, before",
        "share, before",
        "quantize",
        "the file",
        "entropy",
        "stored",
        "ratio",
    ):
        assert word in table
    assert "smaller on disk" in printed and "Huffman" in printed


def test_the_folder_holds_all(done):
    folder, _, _ = done
    names = {p.name for p in folder.iterdir()}
    assert names == {
        "config.json",
        "results.json",
        "model.jpz",
        "weights.png",
        "accuracy.png",
        "layers.png",
    }
    for name in ("weights.png", "accuracy.png", "layers.png"):
        assert (folder / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_schema(done):
    folder, _, _ = done
    r = results(folder)
    assert r["schema"] == 1 and r["config"]["name"] == "toy"
    assert set(r["versions"]) == {"python", "jaxprune", "jax", "jaxlib", "flax", "optax", "numpy"}
    assert {"git", "cpu", "device", "data"} <= set(r)
    assert set(r["bytes"]) == {"dense", "nonzero", "stored", "entropy"}
    assert set(r["accuracy"]) == {"dense", "final"} and set(r["flops"]) == {"dense", "final"}
    assert r["deep_compression"]["huffman"] >= r["deep_compression"]["fixed"] > 1
    (seed,) = r["seeds"]
    assert [p["name"] for p in seed["phases"]] == ["train", "prune", "share", "quantize"]
    assert [len(p["epochs"]) for p in seed["phases"]] == [5, 5, 3, 0]
    assert seed["phases"][3]["before"] is None and all(p["seconds"] > 0 for p in seed["phases"])
    assert set(seed["baselines"]) == {"magnitude", "random"}
    assert r["std"]["ratio"] == 0
    assert len(r["data"]["sha256"]) == 64


def test_stored_is_the_file_and_the_accuracy_is_its_model(done):
    folder, _, _ = done
    r = results(folder)
    assert r["bytes"]["stored"] == (folder / "model.jpz").stat().st_size
    assert r["ratio"] == r["bytes"]["dense"] / r["bytes"]["stored"]
    x, y = blobs().test
    logits = net().apply(jp.materialize(load(folder / "model.jpz")), x)
    assert r["accuracy"]["final"] == np.mean(np.argmax(logits, -1) == y)
    assert r["accuracy"]["dense"] > 0.8  # the toy can be learned


def test_the_schedule_reaches_its_target(done):
    folder, _, _ = done
    tree = load(folder / "model.jpz")
    masks = [layer["kernel"].mask for layer in tree.values()]
    total = sum(m.size for m in masks)
    assert sum(int(m.sum()) for m in masks) == total - round(0.8 * total)
    assert results(folder)["seeds"][0]["final"]["density"] == pytest.approx(0.2, abs=0.01)


def test_the_recipe_travels_with_the_file(done):
    folder, _, _ = done
    recipe = inspect(folder / "model.jpz").metadata["recipe"]
    assert list(recipe) == ["prune", "share", "quantize"]
    assert 'allocate = "global"' in recipe["prune"]


def test_a_finished_run_is_skipped(done):
    folder, config, printed = done
    before = (folder / "results.json").stat().st_mtime_ns
    again = call("run", config, "--runs", folder.parent)
    assert again.exit_code == 0 and again.stdout == printed
    assert (folder / "results.json").stat().st_mtime_ns == before
    as_json = call("run", config, "--runs", folder.parent, "--json")
    assert json.loads(as_json.stdout) == results(folder)


@pytest.mark.parametrize("epochs", [8, 10], ids=lambda n: f"after {n} epochs")
def test_a_killed_run_goes_on_to_the_same_bits(done, tmp_path, monkeypatch, epochs):
    folder, config, _ = done
    train = phases._train_one_epoch
    left = iter(range(epochs))

    def killed(now):
        if next(left, None) is None:
            raise KeyboardInterrupt
        train(now)

    with monkeypatch.context() as patch:
        patch.setattr(phases, "_train_one_epoch", killed)
        assert call("run", config, "--runs", tmp_path).exit_code == 130
    (there,) = tmp_path.iterdir()
    assert not (there / "results.json").exists()
    assert call("run", config, "--runs", tmp_path).exit_code == 0
    assert figures(results(there)) == figures(results(folder))
    assert (there / "model.jpz").read_bytes() == (folder / "model.jpz").read_bytes()


def test_a_plan_trains_nothing(done, tmp_path, monkeypatch):
    _, config, _ = done
    monkeypatch.setattr(phases, "run_phase", None)
    shown = call("run", config, "--runs", tmp_path / "runs", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "dense1/kernel" in shown.stdout and "cluster = 4" in shown.stdout
    assert max(map(len, shown.stdout.splitlines()[:-1])) <= 100
    assert not (tmp_path / "runs").exists()
    plan = json.loads(
        call("run", config, "--runs", tmp_path / "runs", "--dry-run", "--json").stdout
    )
    assert plan[1]["rules"][0]["leaves"] == ["dense1/kernel", "dense2/kernel"]
    ratios = [phase["ratio"] for phase in plan]
    assert (
        ratios[3] > ratios[1] > ratios[0] and 1 < ratios[0] < 1.3
    )  # the dense network's exponents are coded


def test_inspect(done):
    folder, _, _ = done
    shown = call("inspect", folder / "model.jpz")
    assert shown.exit_code == 0 and "dense1/kernel" in shown.stdout
    assert json.loads(call("inspect", folder / "model.jpz", "--json").stdout)


BAD = [
    (["--set", "train.lerning_rate=1"], "learning_rate"),
    (["--set", "model=tests.app.toy:nets"], "Did you mean 'net'"),
    (["--set", "model=tests.app.tay:net"], "tests"),
    (["--set", "model_args.hiden=3"], "hiden"),
    (["--set", "phase.prune.rule.1.where=kernels"], "Nearest: "),
]


@pytest.mark.parametrize("args, message", BAD, ids=[a[1] for a, _ in BAD])
def test_an_error_is_one_message_and_exit_code_2(done, tmp_path, args, message):
    _, config, _ = done
    failed = call("run", config, "--runs", tmp_path, *args, "--dry-run")
    assert failed.exit_code == 2
    assert message in failed.stderr and "Traceback" not in failed.output


def test_missing_files_are_errors(tmp_path):
    assert call("run", tmp_path / "no.toml").exit_code == 2
    assert call("inspect", tmp_path / "no.jpz").exit_code == 2
    (tmp_path / "bad.jpz").write_bytes(b"nothing")
    assert call("inspect", tmp_path / "bad.jpz").exit_code == 2


def test_seeds_and_sweeps(done, tmp_path):
    _, config, _ = done
    short = [
        "--set",
        "phase.train.epochs=1",
        "--set",
        "phase.prune.epochs=2",
        "--set",
        "phase.share.epochs=1",
    ]
    sweep = ["--set", "seeds=[0, 1]", "--set", "sweep={phase.prune.ramp = [0.5, 0]}"]
    shown = call("run", config, "--runs", tmp_path, *short, *sweep, "--json")
    assert shown.exit_code == 0, shown.output
    runs = json.loads(shown.stdout)
    assert len(runs) == 2 and len(list(tmp_path.iterdir())) == 2
    for r in runs:
        assert [s["seed"] for s in r["seeds"]] == [0, 1]
        finals = [s["final"]["test"]["accuracy"] for s in r["seeds"]]
        assert r["accuracy"]["final"] == pytest.approx(np.mean(finals))
        assert r["std"]["accuracy"]["final"] == pytest.approx(np.std(finals, ddof=1))
        (folder,) = [p for p in tmp_path.iterdir() if results(p)["config"] == r["config"]]
        assert {"model.jpz", "model-1.jpz"} <= {p.name for p in folder.iterdir()}


def test_both_loops_take_the_same_steps(done):
    _, path, _ = done
    data = blobs()
    model = net()
    trained = []
    for inner in ("scan", "loop"):
        config = load_config(path, [f"train.inner={inner}"])
        prog = training.program(
            model.apply, config.phase[1], config.train, len(data.train[0]), False
        )
        state = prog.begin(model.init(jax.random.key(0)), jax.random.key(1))
        for epoch in range(2):
            state = prog.epoch(
                state, jax.tree.map(jax.numpy.asarray, data.train), jax.random.key(1), epoch
            )
        trained.append(jp.materialize(state.tree))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *trained)


def test_a_price_on_bits_makes_the_file_smaller_and_is_not_the_dense_control(done, tmp_path):
    _, path, _ = done
    text = path.read_text()
    cut = text.index('name = "share"')
    pay = 'name = "pay"\nepochs = 30\nselect = "last"\nrate_penalty = PRICE\n'
    prune = (
        '[[phase]]\nname = "prune"\nepochs = 0\n[[phase.rule]]\nwhere = "(.*/)?kernel"\nprune = '
        "{ threshold = 0.05 }\n"
    )
    start = text.index('name = "prune"')
    found = {}
    for price in ("0.0", "{ strength = 2e-3, width = 0.05 }"):
        config = tmp_path / f"{len(found)}.toml"
        config.write_text(
            text[:start] + pay.replace("PRICE", price) + prune + text[cut - len("[[phase]]\n") :]
        )
        folder = run(load_config(config), tmp_path / "runs")[1]
        found[price] = results(folder)
    free, paid = found.values()
    assert paid["seeds"][0]["final"]["density"] < 0.5 * free["seeds"][0]["final"]["density"]
    assert paid["accuracy"]["final"] >= free["accuracy"]["final"] - 0.1
    dense = paid["seeds"][0]["phases"][0]["after"]
    assert dense["test"]["accuracy"] == paid["accuracy"]["dense"] == free["accuracy"]["dense"]
    assert paid["seeds"][0]["phases"][1]["after"]["test"] != dense["test"]


def test_a_grid_for_the_entropy_coder_is_a_phase_too(done, tmp_path):
    """One step for all kernels, trained after rounding; the file's integers are those of the
    tree.
    """
    _, path, _ = done
    text = path.read_text()
    config = tmp_path / "grid.toml"
    grid = (
        'name = "grid"\nepochs = 2\n[[phase.rule]]\nwhere = "(.*/)?kernel"\nentropy_quantize = '
        "{ sqnr = 20.0 }\n"
    )
    config.write_text(text[: text.index('name = "share"')] + grid)
    found, folder = run(load_config(config), tmp_path / "runs")
    _, pruned, last = found["seeds"][0]["phases"]
    tree = load(folder / "model.jpz")
    for layer in tree.values():
        assert (
            isinstance(layer["kernel"].values, jp.Quantized) and layer["kernel"].values.bits == 16
        )
    assert last["after"]["ratio"] > 1.5 * pruned["after"]["ratio"]
    assert found["accuracy"]["final"] == last["after"]["test"]["accuracy"] > 0.6


def test_a_phase_learns_from_the_dense_network(done):
    _, path, _ = done
    data = blobs()
    model = net()
    teacher = model.init(jax.random.key(7))
    x, y = map(jax.numpy.asarray, data.train)
    outputs = training.logits_of(model.apply, teacher, x, batch=50)
    np.testing.assert_allclose(outputs, model.apply(teacher, x), rtol=1e-5, atol=1e-6)
    config = load_config(path, ["phase.share.distill={ temperature = 2.0, weight = 0.6 }"])

    def reference(params):
        z = model.apply(params, x)
        soft = jax.nn.softmax(outputs / 2)
        hard = -np.mean([jax.nn.log_softmax(row)[label] for row, label in zip(z, y)])
        return 0.4 * hard + 0.6 * 4 * np.mean(
            np.sum(soft * (np.log(soft) - jax.nn.log_softmax(z / 2)), 1)
        )

    student = model.init(jax.random.key(1))
    found = training._loss(config.phase[2].distill)(model.apply(student, x), y, outputs)
    assert found == pytest.approx(float(reference(student)), rel=1e-5)
    prog = training.program(model.apply, config.phase[2], config.train, len(x), False)
    state = prog.begin(student, jax.random.key(1))
    before = float(reference(jp.materialize(state.tree)))
    for epoch in range(20):
        state = prog.epoch(state, (x, y, outputs), jax.random.key(1), epoch)
    assert reference(jp.materialize(state.tree)) < before


def test_a_convolution_is_seen():
    from experiments.models import lenet5, lenet300

    for make, expected in ((lenet5, True), (lenet300, False)):
        model = make()
        params = jax.eval_shape(model.init, jax.random.key(0))
        x = jax.ShapeDtypeStruct((1, *model.example), np.float32)
        assert convolves(jax.make_jaxpr(model.apply)(params, x)) == expected


def test_pruned_weights_have_no_gradient(done):
    """Training never moves a pruned weight away from +0.0."""
    folder, _, _ = done
    for layer in jp.materialize(load(folder / "model.jpz")).values():
        zeros = np.asarray(layer["kernel"])[np.asarray(layer["kernel"]) == 0]
        assert zeros.size and not np.signbit(zeros).any()


def test_run_is_a_function_too(done):
    folder, path, _ = done
    found, where = run(load_config(path), folder.parent)
    assert where == folder and found == results(folder)
