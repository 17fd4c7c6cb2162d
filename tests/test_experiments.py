"""The pages show what the results.json files say, and what measures them runs."""

import json
import zlib

import jax
import numpy as np
import optax
import pytest

from experiments import results, table
from experiments.benchmarks import common as benchmark
from experiments.benchmarks import floats
from experiments.distillation import cached_teacher as ct
from experiments.distillation import common, hinton, inner_loop
from experiments.structured import measures
from tests.helpers import digit_images


def test_the_table_is_that_of_the_results():
    text = table.PAGE.read_text()
    assert table.page(text) == text, "run: python -m experiments.table --write"
    assert text.count("jaxprune run experiments/") >= 1


def test_scripts_write_below_runs_and_leave_the_results_in_git_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["script"])
    tracked = table.HERE / "distillation/results/hinton/results.json"
    before = tracked.read_bytes()
    written = [
        common.save("hinton", {}, {"errors": 74}),
        common.save("speed", {}, {}, "structured"),
    ]
    written += [measures.save("lenet5", {}, {})]
    assert [str(path) for path in written] == [
        "runs/distillation/hinton/results.json",
        "runs/structured/speed/results.json",
        "runs/structured/lenet5/results.json",
    ]
    assert json.loads(written[0].read_text())["results"] == {"errors": 74}
    benchmark.report("select", "Selection", [benchmark.shown("time", 1.0)], {})
    assert json.loads((results.RUNS / "benchmarks/select/select.results.json").read_text())["rows"]
    assert tracked.read_bytes() == before
    capsys.readouterr()


def test_the_cached_teacher_runs_at_a_small_size(capsys):
    rng = np.random.default_rng(0)
    data = rng.normal(size=(70, 9)).astype(np.float32), rng.integers(0, 4, 70).astype(np.int32)
    sizes = ct.Sizes((9, 12, 4), (9, 8, 4), batch=16, steps=2, rounds=2)
    rows, figures = ct.measured(sizes, data)
    json.dumps(figures)
    assert figures["cache"]["bytes"] > 70 * 4 * 2 and all(row["measured"] > 0 for row in rows)
    assert set(figures["steps"]) == {ct.ALONE, ct.CACHED, ct.READ, ct.ONLINE}
    with ct.bar("work", after=0.0) as progress:
        progress(1, 2)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_the_inner_loop_is_measured_at_a_small_size():
    sizes = inner_loop.Sizes(
        (5, 4, 3), (9, 8, 3), (4, 8), 32, (64, 10), 1, table=(((3, 2), 2),), chunk=5
    )
    rows, figures = inner_loop.measured(sizes)
    json.dumps(figures)
    assert all(row["measured"] > 0 for row in rows) and len(figures["milliseconds_a_step"]) == 7
    [row], tried = figures["sizes"], figures["attempts"]
    assert row["layers"] == [3, 2] and row["python over scan"] > 0
    assert tried["as it is"]["of it"] == tried["python"]["python over"] == 1 and len(tried) == 7


@pytest.mark.slow
def test_hintons_experiment_runs_at_a_small_size(monkeypatch):
    monkeypatch.setattr(hinton, "TEACHER", (784, 12, 10))
    monkeypatch.setattr(hinton, "STUDENT", (784, 8, 10))
    small = hinton.SETTINGS["teacher"] | {"epochs": 2, "batch": 16}
    settings = hinton.SETTINGS | {"epochs": 1, "teacher": small, "batch": 16, "seeds": [0, 1]}
    found = hinton.measured(
        settings, (digit_images(64, 0), digit_images(20, 1), digit_images(30, 2))
    )
    json.dumps(found)
    assert len(found["paired"]["values"]) == len(found["no_threes"]["seeds"]) == 2
    assert 0 <= found["teacher_errors"] <= 30
    errors = {name: about["validation"] for name, about in found["teacher"]["errors"].items()}
    assert len(errors) == 3 and errors[found["teacher"]["chosen"]] == min(errors.values())


def test_norms_are_bounded_after_each_step():
    params = {
        "kernel": np.array([[3.0, 0.1], [4.0, 0.1]], np.float32),
        "bias": np.array([9.0, 9.0], np.float32),
    }
    bound = hinton.max_norm(2.0)
    up = jax.tree.map(np.ones_like, params)
    found = optax.apply_updates(params, bound.update(up, bound.init(params), params)[0])
    column = np.array([4.0, 5.0]) * 2 / np.hypot(4, 5)
    np.testing.assert_allclose(found["kernel"], np.stack([column, [1.1, 1.1]], 1), rtol=1e-6)
    np.testing.assert_allclose(found["bias"], [10, 10])


def test_images_move_anew_in_each_epoch():
    x, y = digit_images(8, 0)
    recipe = {"epochs": 2, "batch": 4, "jitter": 2}
    batches = list(hinton.moving(x.reshape(8, -1), y, recipe))
    epochs = [np.concatenate([b["x"] for b in batches[i : i + 2]]) for i in (0, 2)]
    assert len(batches) == 4 and [sorted(np.concatenate([b["y"] for b in batches[:2]]))] == [
        sorted(y)
    ]
    assert not np.array_equal(np.sort(epochs[0], 0), np.sort(epochs[1], 0))


def test_images_are_moved_by_whole_pixels_and_lose_nothing_that_stays_inside():
    x = np.zeros((50, 784), np.float32)
    x[:, 28 * 14 + 9] = 1 + np.arange(50)
    moved = hinton.jittered(x, 2, seed=3).reshape(50, 28, 28)
    places = np.array([np.argwhere(m)[0] for m in moved])
    assert np.array_equal(moved.max((1, 2)), 1 + np.arange(50)) and np.all(
        np.count_nonzero(moved, (1, 2)) == 1
    )
    assert np.abs(places - [14, 9]).max() == 2 and len(np.unique(places, axis=0)) > 10
    assert np.array_equal(hinton.jittered(x, 0, seed=3), x)


class Zlib:
    """Stands for zstandard, which tests do not need."""

    __version__ = "of zlib"

    def __init__(self, level=1):
        self.level = min(level, 9)

    def compress(self, octets):
        return zlib.compress(octets, self.level)

    def decompress(self, octets):
        return zlib.decompress(octets)

    ZstdCompressor = ZstdDecompressor = None


def test_floats_are_measured_at_a_small_size():
    Zlib.ZstdCompressor = Zlib.ZstdDecompressor = Zlib
    rows, figures = floats.measured({"few": floats.weights(80)}, Zlib)
    json.dumps(figures)
    sizes = figures["few"]["fraction"]
    assert sizes["planes"] < sizes["zstd -19"] < 1 and all(row["measured"] > 0 for row in rows)
