"""FitNets at a small size: a hint trains the lower half alone, and every arm takes as many
steps.
"""

import json

import numpy as np
import pytest

from experiments.distillation import fitnets as experiment
from tests.helpers import digit_images

SMALL = experiment.SETTINGS | {
    "seeds": [0],
    "teacher": [784, 8, 9, 10],
    "teacher_epochs": 1,
    "depth": 4,
    "width": 6,
    "hint_epochs": 2,
    "epochs": 1,
    "batch": 16,
}


pytestmark = pytest.mark.usefixtures("cheap")


def test_every_arm_is_measured_and_taken_over_after_a_kill(tmp_path, monkeypatch):
    data = (digit_images(64, 0), digit_images(20, 1), digit_images(30, 2))
    path = tmp_path / "runs.json"
    found = experiment.measured(SMALL, data, path)
    assert set(json.loads(path.read_text())) == {f"{arm} 0" for arm in experiment.ARMS}
    assert found["params"] == 784 * 6 + 3 * 36 + 6 * 10 + 4 * 6 + 10
    for arm in ("labels", "kd"):
        less = np.subtract(found[arm]["values"], found["hint"]["values"])
        assert found["paired"][arm]["values"] == less.tolist()
    monkeypatch.setattr(experiment, "trained", lambda *_: pytest.fail("it was there"))
    again = experiment.measured(SMALL, data, path)
    assert json.dumps([again[a] for a in experiment.ARMS]) == json.dumps(
        [found[a] for a in experiment.ARMS]
    )


def test_a_hint_moves_the_lower_half_alone(monkeypatch):
    parts = []
    real = experiment.part
    monkeypatch.setattr(
        experiment, "part", lambda *a: parts.append((a[0], real(*a), a)) or parts[-1][1]
    )
    x, y = digit_images(32, 0)
    rng = np.random.default_rng(1)
    soft = {"teacher": rng.normal(size=(32, 10)), "hint": rng.normal(size=(32, 9))}
    data = {"x": x.reshape(32, -1), "y": y, **{k: v.astype(np.float32) for k, v in soft.items()}}
    for arm in experiment.ARMS:
        experiment.trained(arm, data, SMALL, 0)
    epochs = [args[4] for *_, args in parts]
    assert epochs == [3, 3, 2, 1]  # labels, kd, and the two of the hint
    before, after, _ = parts[2]
    moved = {name: bool(np.any(before[name]["kernel"] != after[name]["kernel"])) for name in before}
    assert moved == {
        "dense1": True,
        "dense2": True,
        "dense3": False,
        "dense4": False,
        "dense5": False,
    }
