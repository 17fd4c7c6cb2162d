"""LeNet-5 on MNIST with a tenth of the operations.

Gradually: units go until a first share of the operations is left, the rest is trained for an epoch,
more go, and it is trained to the end. `arms` says what is compared; `control` is the dense network
trained on for as many steps. With `copies`, what comes after the dense network also sees that many
copies of the images, moved by a pixel at most. Nothing is chosen by the test images.

python -m experiments.structured.lenet5 [--resume FILE] [--name FOLDER] [--set KEY=JSON]
"""

import pathlib
import time
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.data import mnist
from experiments.distillation.common import plus_minus, remembered, show
from experiments.distillation.hinton import jittered
from experiments.models import lenet5
from experiments.structured import arms
from experiments.structured.measures import asked, averaged, draw, save
from experiments.structured.training import Trained

SETTINGS: dict[str, Any] = {
    "seeds": [0, 1, 2],
    "width": 1.0,
    "batch": 64,
    "rate": 2e-3,
    "warmup": 0,
    "decay": 0.1,
    "steps": 1500,
    "budgets": {"0.1": [0.3, 0.1]},
    "recovery": [860, 12040],
    "copies": 0,
    "recovery_rate": 2e-3,
    "soft": 0.9,
    "temperature": 4.0,
    "fisher": {"batches": 128, "batch": 16},
    "cut": {rank: {"scope": "group"} for rank in ("fisher", "magnitude", "random")},
    "arms": ["fisher", "magnitude", "random", "scratch", "scratch_long"],
    "speed_batch": 128,
}


class Seed(NamedTuple):
    """A dense network, and what was found with it."""

    task: arms.Task
    whole: Trained
    seed: int
    found: dict[str, Any]


def with_copies(task: arms.Task, copies: int) -> arms.Task:
    """With every image so many times more, each moved by a pixel at most."""
    x = task.data["x"]
    y = task.data["y"]
    moved = [jittered(np.asarray(x), 1, seed).reshape(x.shape) for seed in range(copies)]
    return task._replace(data={"x": jnp.concatenate([x, *moved]), "y": jnp.tile(y, 1 + copies)})


def one_seed(settings: Any, data: Any, seed: int, resume: pathlib.Path | None = None) -> Seed:
    """Every figure of a seed but the control's; what a killed run had finished is taken from
    `resume`.
    """
    clock = time.perf_counter()
    task = arms.task(settings, lenet5(settings["width"]), data)
    whole = arms.dense_or_kept(task, seed, resume, str(seed))
    task = arms.taught_by(with_copies(task, settings["copies"]), whole)
    found = {
        "dense": {"end": task.judged(task.net.apply, whole), **task.costs(task.net.apply, whole)}
    }
    print(f"seed {seed}, dense: {found['dense']['end']}", flush=True)
    for name, shares in settings["budgets"].items():
        found[name] = remembered(
            resume, f"{name} {seed}", partial(arms.budgeted, task, whole, shares, seed)
        )
    return Seed(task, whole, seed, found | {"wall_s": time.perf_counter() - clock})


def control(one: Seed, resume: pathlib.Path | None = None) -> dict[str, Any]:
    """With the dense network trained on, the dearest of all."""
    once = partial(arms.trained_on, one.task, one.whole, one.seed)
    return one.found | {"control": remembered(resume, f"control {one.seed}", once)}


def plot(path: Any, found: Any, settings: Any, seeds: int) -> None:
    """Test errors against operations."""

    def point(share, arm):
        return (
            float(share),
            arm["end"]["test"]["error"]["mean"],
            arm["end"]["test"]["error"]["std"],
        )

    points = {name: [point(1, found[name])] for name in ("dense", "control") if name in found}
    points |= {
        arm: [point(b, found[b][arm]) for b in settings["budgets"]] for arm in settings["arms"]
    }
    draw(path, {f"LeNet-5, MNIST, {seeds} seeds": points}, "test error, %")


def main() -> None:
    name, settings, resume = asked(__doc__, "lenet5", SETTINGS)
    data = mnist()
    done = []

    def saved(runs: list[Any]) -> Any:
        found = averaged(runs)
        plot(save(name, settings, found).with_name("error.png"), found, settings, len(runs))
        return found

    for seed in settings["seeds"]:
        done.append(one_seed(settings, data, seed, resume))
        saved([one.found for one in done])
    found = saved([control(one, resume) for one in done])
    rows = [
        (arm, "1", plus_minus(found[arm]["end"]["test"]["error"], 2))
        for arm in ("dense", "control")
    ]
    for budget in settings["budgets"]:
        rows += [
            (a, budget, plus_minus(found[budget][a]["end"]["test"]["error"], 2))
            for a in settings["arms"]
        ]
    show("LeNet-5 on MNIST", ["arm", "share of the operations", "test error, %"], rows)


if __name__ == "__main__":
    main()
