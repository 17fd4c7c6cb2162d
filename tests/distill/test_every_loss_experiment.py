"""Every loss is on the task, is given what it asks for, and the page shows what was measured."""

import json
import types
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

import jaxprune as jp
from experiments.distillation import every_loss
from experiments.distillation.arms import Arm, arms, joined
from experiments.distillation.common import remembered
from experiments.distillation.every_loss_task import Task

NO_ARM = {
    "masked_mean", "CRDBank", "crd_init", "crd_negatives", "crd_update", "TopK", "standardise",
    "top_k_teacher",
    "vid_raw_variance", "overhaul_margin", "dino_centre",  # what losses need beside them
    # a generator's
    "activation_magnitude", "batch_norm_matching", "information_entropy", "one_hot",
    "soft_and_hard",  # is "soft_targets" and the labels
}  # fmt: skip
TRAINED = {
    "hint",
    "hidden_mse",
    "hidden_cosine",
    "fsp",
    "vid",
    "activation_boundary",
    "overhaul",
    "crd",
}  # a projection
SMALL = every_loss.SETTINGS | {
    "seeds": [0, 1],
    "powers": [0],
    "images": 16,
    "epochs": 1,
    "batch": 8,
    "teacher_epochs": 1,
    "student": {"channels": [2, 4], "hidden": 3},
}


pytestmark = pytest.mark.usefixtures("cheap")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)

    def pair(n):
        return (rng.random((n, 28, 28, 1), np.float32), rng.integers(0, 10, n).astype(np.int32))

    return pair(24), pair(20), pair(30)


def test_the_table_is_that_of_the_results():
    text = every_loss.PAGE.read_text()
    assert every_loss.page(text) == text, (
        "run: python -m experiments.distillation.every_loss --write"
    )
    found = json.loads(every_loss.RESULTS.read_text())["results"]["losses"]
    assert all(text.count(f"| `{name}` | ") >= 1 for name in found)
    assert set(found) == set(arms(16, np.zeros(32)))


def test_no_loss_is_left_out():
    public = {name for name, x in vars(jp.distill.losses).items() if callable(x)}
    assert set(arms(16, np.zeros(32))) == public - NO_ARM and public >= NO_ARM


def test_every_arm_finds_its_layers(data):
    task = Task(data, SMALL)
    for name, arm in arms(16, task.margin).items():
        init, step, teacher = task.made(arm)
        batch = task.batches(arm, 0).at(0)
        params = task.first(arm, 0)
        start = partial(init, teacher=teacher, key=jax.random.key(0))
        state = jax.eval_shape(start, params, batch)
        after = jax.eval_shape(step, state, batch, 1.0)
        assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, state), name
        assert set(state.projections) == {"taught"} and bool(
            jax.tree.leaves(state.projections)
        ) == (name in TRAINED), name


def test_a_few_losses_are_measured_at_a_small_size(data, tmp_path, capsys):
    path = tmp_path / "runs.json"
    names = ["soft_targets", "deep_mutual", "born_again"]
    found = every_loss.measured(SMALL, data, names, path)
    assert list(json.loads(json.dumps(found))["losses"]) == names
    for name in names:
        row = found["losses"][name]
        assert len(row["tried"]) == 1 and row["weight"] == 1.0 and len(row["errors"]["values"]) == 2
        assert (
            row["fewer"]["values"]
            == np.subtract(found["labels"]["values"], row["errors"]["values"]).tolist()
        )
    assert "`deep_mutual` | logits, peers | 1 |" in every_loss.table(found)
    kept = json.loads(path.read_text())
    assert kept["soft_targets"]["errors"] == found["losses"]["soft_targets"]["errors"]
    kept["soft_targets"]["errors"]["values"] = [1.0, 2.0]
    assert remembered_from(path, kept, "soft_targets")["errors"]["values"] == [1.0, 2.0]


def remembered_from(path, kept, name):
    path.write_text(json.dumps(kept))
    return remembered(path, name, lambda: pytest.fail("it was there"))


def test_the_weight_is_chosen_on_the_validation_split():
    asked = []
    scores = {0.1: (7, 0.3), 1.0: (5, 0.4), 10.0: (5, 0.2), 100.0: (9, 0.1)}
    task: Any = types.SimpleNamespace(score=lambda weight: scores[weight])

    def learn(weight, seed):
        return (asked.append(seed), round(weight, 6))[1]

    settings = every_loss.SETTINGS | {"powers": [-1, 0, 1, 2]}
    weight, tried = every_loss.chosen(task, learn, Arm(None, weight=1.0), settings)
    assert weight == 10.0 and [t[1] for t in tried] == [7, 5, 5, 9]
    assert (
        asked == 4 * [settings["tuning_seed"]] and settings["tuning_seed"] not in settings["seeds"]
    )


def test_the_flow_joins_the_pooled_first_layer_and_the_second():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2, 4, 4, 3)).astype(np.float32)
    b = rng.normal(size=(2, 2, 2, 6)).astype(np.float32)
    found = np.asarray(joined({"map1": a, "map2": b}))
    assert found.shape == (2, 2, 2, 9) and np.array_equal(found[..., 3:], b)
    np.testing.assert_allclose(found[0, 0, 1, :3], a[0, :2, 2:].mean((0, 1)), rtol=1e-6)
