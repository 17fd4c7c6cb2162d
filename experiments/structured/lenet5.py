"""LeNet-5 on MNIST with a tenth of the operations.

Gradually: units go until a first share of the operations is left, the rest is trained for some epochs, more go, and it
is trained to the end. Adam's moments are cut as the weights are. How the units are ranked:

    fisher      Σ ½ w² E[g²] over the weights of a unit, from training images
    magnitude   √Σ w²
    random      the control

The cut networks learn from the logits of the dense one (`labels`: from the labels alone, ranked by `fisher`). Beside
them, for as many steps: the dense network trained on (`control`), and a new network of the size that `fisher` found
(`scratch`; `scratch_long` for as many as the dense one took too). Nothing is chosen by the test images.

python -m experiments.structured.lenet5 [--resume FILE] [--set KEY=JSON]
"""

import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from experiments.data import mnist
from experiments.distillation.common import plus_minus, remembered, show
from experiments.models import Model, lenet5
from experiments.structured.measures import asked, averaged, costs, draw, faster, judged, save
from experiments.structured.training import Trained, anew, cosine, fitted, fresh, said, scores

SETTINGS: dict[str, Any] = {
    "seeds": [0, 1, 2],
    "width": 1.0,
    "batch": 64,
    "rate": 2e-3,
    "decay": 0.1,
    "epochs": 5,
    "budgets": {"0.1": [0.3, 0.1]},
    "recovery_epochs": [1, 4],
    "recovery_rate": 2e-3,
    "soft": 0.9,
    "temperature": 4.0,
    "fisher": {"batches": 128, "batch": 16},
    "arms": ["fisher", "labels", "magnitude", "random", "scratch", "scratch_long"],
    "speed_batch": 128,
}




class Task(NamedTuple):
    """One seed.

    Attributes:
      settings: all of them.
      net: LeNet-5.
      data: what is trained on: "x", "y" and, once there is a dense network, "teacher".
      splits: what is judged by.
      fit: `fitted`, with what all arms share.
      epoch: its steps.
      seed: of initial params, orders and random scores.
    """

    settings: Any
    net: Model
    data: dict[str, Any]
    splits: dict[str, Any]
    fit: Any
    epoch: int
    seed: int

    def judged(self, apply: Any, now: Trained) -> dict[str, Any]:
        return judged(apply, now.params, self.splits)

    def taught(self, arm: str) -> dict[str, float]:
        """What an arm learns from."""
        return {} if arm in ("labels", "control") else {k: self.settings[k] for k in ("soft", "temperature")}

    def rates(self, extra: int = 0) -> np.ndarray:
        """Of all steps of recovery."""
        return cosine(self.settings["recovery_rate"], (sum(self.settings["recovery_epochs"]) + extra) * self.epoch)


def dense(settings: Any, data: Any, seed: int) -> tuple[Task, Trained]:
    """The dense network, and all else that the arms of a seed begin with."""
    (x, y), validation, test = data
    net, arrays = lenet5(settings["width"]), {"x": jnp.asarray(x), "y": jnp.asarray(y)}
    fit = partial(fitted, batch=settings["batch"], decay=settings["decay"])
    splits = {"validation": validation, "test": test}
    task = Task(settings, net, arrays, splits, fit, len(x) // settings["batch"], seed)
    start = fresh(net.init(jax.random.key(seed)), settings["decay"])
    found = fit(net.apply, start, arrays, cosine(settings["rate"], settings["epochs"] * task.epoch), seed=seed)
    arrays["teacher"] = jnp.asarray(said(net.apply, found.params, x, 250))
    return task, found


def cut(task: Task, whole: Trained, arm: str, shares: Any) -> tuple[Any, Trained, list[Any]]:
    """A network cut and trained in as many turns as there are shares, and what it was worth at each."""
    apply, now, path, example = task.net.apply, whole, [], task.data["x"][:2]
    ends = np.cumsum(task.settings["recovery_epochs"]) * task.epoch
    rank = "fisher" if arm == "labels" else arm
    for share, rates in zip(shares, np.split(task.rates(), ends[:-1]), strict=True):
        score = scores(rank, apply, now.params, task.data, task.settings["fisher"], task.seed)
        left = share * jp.flops(task.net.apply, whole.params, example) / jp.flops(apply, now.params, example)
        reduce = "l2" if rank == "magnitude" else "l1"
        thin = jp.shrink(apply, now.params, example, flops=left, score=score, reduce=reduce)
        apply, now = thin.apply, Trained(thin.params, thin.cut(now.state))
        path.append({"share": share, "check": thin.report.error, "cut": task.judged(apply, now)})
        now = task.fit(apply, now, task.data, rates, seed=task.seed + 1000 * len(path), **task.taught(arm))
        path[-1]["trained"] = task.judged(apply, now)
    return apply, now, path


def new(task: Task, arm: str, apply: Any, small: Any) -> Trained:
    """A new network of the small shapes."""
    params = anew(task.net.init(jax.random.key(task.seed + 500)), small)
    rates = task.rates(task.settings["epochs"] if arm == "scratch_long" else 0)
    start = fresh(params, task.settings["decay"])
    return task.fit(apply, start, task.data, rates, seed=task.seed + 1000, **task.taught(arm))


def budgeted(task: Task, whole: Trained, shares: Any) -> dict[str, Any]:
    """Every arm at one budget."""
    found: dict[str, Any] = {}
    sizes: Any = None
    for arm in task.settings["arms"]:
        if arm.startswith("scratch"):
            apply, now = sizes
            found[arm] = {"end": task.judged(apply, new(task, arm, apply, now.params))}
        else:
            apply, now, path = cut(task, whole, arm, shares)
            sizes = sizes or (apply, now)
            found[arm] = {"path": path, "end": path[-1]["trained"]} | costs(apply, now.params, task.data["x"])
            found[arm]["widths"] = [now.params[layer]["bias"].size for layer in ("conv1", "conv2", "dense1")]
        print(f"seed {task.seed}, {shares[-1]}, {arm}: {found[arm]['end']}", flush=True)
    many = task.data["x"][: task.settings["speed_batch"]]
    return found | {"speed": faster((task.net.apply, whole.params), (sizes[0], sizes[1].params), many)}


def one_seed(settings: Any, data: Any, seed: int) -> dict[str, Any]:
    """Every figure of a seed."""
    task, whole = dense(settings, data, seed)
    found = {"dense": {"end": task.judged(task.net.apply, whole)} | costs(task.net.apply, whole.params, data.test[0])}
    print(f"seed {seed}, dense: {found['dense']['end']}", flush=True)
    control = task.fit(task.net.apply, whole, task.data, task.rates(), seed=seed + 1000, **task.taught("control"))
    found["control"] = {"end": task.judged(task.net.apply, control)}
    return found | {name: budgeted(task, whole, shares) for name, shares in settings["budgets"].items()}


def plot(path: Any, found: Any, settings: Any) -> None:
    """Test errors against operations."""
    point = lambda share, arm: (float(share), arm["end"]["test"]["error"]["mean"], arm["end"]["test"]["error"]["std"])
    points = {"dense": [point(1, found["dense"])], "dense, trained on": [point(1, found["control"])]}
    points |= {arm: [point(b, found[b][arm]) for b in settings["budgets"]] for arm in settings["arms"]}
    draw(path, {f"LeNet-5, MNIST, {len(settings['seeds'])} seeds": points}, "test error, %")


def main() -> None:
    name, settings, resume = asked(__doc__, "lenet5", SETTINGS)
    data, runs = mnist(), []
    for seed in settings["seeds"]:
        clock = time.perf_counter()
        once = lambda seed=seed, clock=clock: one_seed(settings, data, seed) | {"wall_s": time.perf_counter() - clock}
        runs.append(remembered(resume, f"seed {seed}", once))
        found = averaged(runs)
        path = save(name, settings, found)
    plot(path.with_name("error.png"), found, settings)
    rows = [(arm, "1", plus_minus(found[arm]["end"]["test"]["error"], 2)) for arm in ("dense", "control")]
    for budget in settings["budgets"]:
        rows += [(a, budget, plus_minus(found[budget][a]["end"]["test"]["error"], 2)) for a in settings["arms"]]
    show("LeNet-5 on MNIST", ["arm", "share of the operations", "test error, %"], rows)
    print(path)


if __name__ == "__main__":
    main()
