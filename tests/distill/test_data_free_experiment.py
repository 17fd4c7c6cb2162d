"""The experiment without data, at a small size: its parts fit together, and its figures can be
written.
"""

import json

import jax
import numpy as np
import pytest

from experiments.data import Data
from experiments.distillation import data_free as experiment
from tests.helpers import digit_images

SMALL = experiment.SETTINGS | {
    "seeds": [0],
    "teacher": experiment.SETTINGS["teacher"] | {"width": 0.1, "epochs": 1, "batch": 8},
    "student": experiment.SETTINGS["student"] | {"width": 0.1},
    "generator": experiment.SETTINGS["generator"] | {"channels": 2, "latent": 3},
    "steps": 2,
    "batch": 4,
    "looks": 2,
}


pytestmark = pytest.mark.usefixtures("cheap")


@pytest.mark.slow
def test_every_arm_is_run_and_its_figures_are_saved(capsys):
    saved = []
    data = Data(digit_images(16, 0), digit_images(8, 1), digit_images(8, 2))
    found = experiment.measured(SMALL, data, lambda found, arm, images: saved.append((arm, images)))
    assert json.loads(json.dumps(found))["competing"]["0"]["curve"][-1]["step"] == 2
    assert [arm for arm, _ in saved] == ["competing", "noise", "dafl"] and saved[1][1] is None
    assert saved[0][1].shape == (100, 28, 28, 1)
    assert set(experiment.summary(found)) == {"teacher", "competing", "noise", "dafl"}
    assert "generator/competition" in found["competing"]["0"]["curve"][0]
    assert "generator/competition" not in found["dafl"]["0"]["curve"][0]
    assert "seed 0, dafl: 2/2" in capsys.readouterr().out
    del found["noise"]["0"]
    again = experiment.measured(SMALL, data, found=json.loads(json.dumps(found)))
    assert again["dafl"] == json.loads(json.dumps(found["dafl"]))  # a seed is not trained twice
    assert set(again["noise"]) == {"0"} and "seed 0, dafl" not in capsys.readouterr().out


def test_a_generator_makes_pixels_of_every_vector():
    params = experiment.generator_init(jax.random.key(0), 5, 3)
    z = jax.random.normal(jax.random.key(1), (7, 5))
    x = np.asarray(experiment.generator(params, z))
    assert x.shape == (7, 28, 28, 1) and (x > 0).all() and (x < 1).all() and x.mean() < 0.3
    assert np.std(x, 0).max() > 1e-3


def test_the_summary_and_the_picture(tmp_path):
    runs = {
        "teacher": {0: {"accuracy": 0.9}, 1: {"accuracy": 0.8}},
        "dafl": {0: {"accuracy": 0.5}},
        "noise": {},
    }
    told = experiment.summary(runs)
    assert told["teacher"]["mean"] == pytest.approx(0.85) and told["teacher"][
        "std"
    ] == pytest.approx(0.0707, abs=1e-4)
    assert told["dafl"] == {"mean": 0.5, "std": None, "values": [0.5]} and "noise" not in told
    experiment.draw(
        {"one": np.zeros((100, 28, 28, 1)), "two": np.ones((100, 28, 28, 1))}, tmp_path / "x.png"
    )
    assert (tmp_path / "x.png").stat().st_size > 1000
