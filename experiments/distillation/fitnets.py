"""FitNets (Romero et al. 2015, arXiv:1412.6550) on MNIST: a hint trains what is too deep to be
trained without.

The teacher, 784-500-500-10, learns from images moved by up to 2 pixels. The student has 40 hidden
layers of 32 units, no skips and no norm. Three arms of as many steps each, Adam with a cosine:
    labels   alone
    kd       labels and soft targets at T = 4
    hint     first the lower half alone, by the teacher's second hidden layer through a trained
             matrix; then as kd

The depth was chosen on the validation split, of 10, 20, 30 and 40: the first ones train well
without a hint. All arms have the teacher's learning rate; half of it made more errors there, with
and without a teacher.

python -m experiments.distillation.fitnets [--resume FILE]
"""

import argparse
import pathlib
import time
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

import jaxprune as jp
from experiments.data import mnist
from experiments.distillation.common import (
    logits,
    paired,
    plus_minus,
    remembered,
    save,
    show,
    summary,
    wrong,
)
from experiments.distillation.hinton import good_teacher
from experiments.models import Model, mlp

SETTINGS: dict[str, Any] = {
    "seeds": [0, 1, 2, 3, 4],
    "teacher": [784, 500, 500, 10],
    "teacher_epochs": 12,
    "learning_rate": 1e-3,
    "jitter": 2,
    "depth": 40,
    "width": 32,
    "hint_epochs": 5,
    "epochs": 10,
    "batch": 128,
    "temperature": 4.0,
}
ARMS = ("labels", "kd", "hint")


@jax.tree_util.Partial
def told(batch: Any, key: Any) -> dict[str, Any]:
    """A teacher whose logits and hint came with the batch."""
    return {
        name: batch[field]
        for name, field in (("output", "teacher"), ("hint", "hint"))
        if field in batch
    }


def student(settings: Any) -> Model:
    """The thin and deep one."""
    return mlp((784, *[settings["width"]] * settings["depth"], 10))


def part(
    params: Any, data: Any, terms: Any, labels: float, epochs: int, settings: Any, seed: int
) -> Any:
    """Params after so many epochs of one objective."""
    batches = jp.distill.Shuffled(data, settings["batch"], seed=seed)
    steps = epochs * batches.steps
    key = jax.random.key(seed)
    adam = optax.adam(optax.cosine_decay_schedule(settings["learning_rate"], steps))
    d = jp.distill.distiller(
        jp.distill.plain(student(settings).apply), terms, adam, labels=labels, compare=False
    )
    state = d.init(params, {k: v[:1] for k, v in data.items()}, told, key=key)
    return jp.distill.fit(
        d, state, batches, told, steps=steps, inner_steps=400, progress=False
    ).state.params


def trained(arm: str, data: Any, settings: Any, seed: int) -> Any:
    """The student's params after one arm."""
    soft = jp.distill.match(
        partial(jp.distill.losses.soft_targets, temperature=settings["temperature"])
    )
    first = settings["hint_epochs"]
    then = settings["epochs"]
    middle = settings["depth"] // 2
    params = student(settings).init(jax.random.key(seed))

    def only(*fields):
        return {k: data[k] for k in ("x", *fields)}

    if arm == "labels":
        return part(params, only("y"), [], 1.0, first + then, settings, seed)
    if arm == "kd":
        return part(params, only("y", "teacher"), [soft], 1.0, first + then, settings, seed)
    hint = jp.distill.match(jp.distill.losses.hint, f"dense{middle}", "hint", project="auto")
    params = part(params, only("teacher", "hint"), [hint], 0.0, first, settings, seed)
    return part(params, only("y", "teacher"), [soft], 1.0, then, settings, seed)


def hinting(params: Any, x: np.ndarray, settings: Any, size: int = 5000) -> dict[str, np.ndarray]:
    """The teacher's logits and its second hidden layer."""
    run = jax.jit(jp.reap(mlp(settings["teacher"]).apply, "dense2"))
    parts = [run(params, x[i : i + size]) for i in range(0, len(x), size)]

    def whole(xs):
        return np.concatenate([np.asarray(a) for a in xs])

    return {
        "teacher": whole(z for z, _ in parts),
        "hint": whole(taps["dense2"] for _, taps in parts),
    }


def measured(settings: Any, data: Any, path: pathlib.Path | None = None) -> dict[str, Any]:
    """Every figure; what a killed run had finished is taken from `path`."""
    (x, y), _, test = ((a.reshape(len(a), -1), b) for a, b in data)
    clock = time.perf_counter()
    teacher = good_teacher(
        x, y, settings | {"epochs": settings["teacher_epochs"]}, settings["teacher"]
    )
    told_before = {"x": x, "y": y, **hinting(teacher, x, settings)}

    def count(params, pair):
        return wrong(logits(student(settings).apply, params, pair[0]), pair[1])

    found: dict[str, Any] = {
        "teacher_errors": wrong(logits(mlp(settings["teacher"]).apply, teacher, test[0]), test[1]),
        "teacher_s": time.perf_counter() - clock,
        "params": sum(w.size for w in jax.tree.leaves(student(settings).init(jax.random.key(0)))),
    }

    def errors(arm: str, seed: int) -> int:
        n = remembered(
            path, f"{arm} {seed}", lambda: count(trained(arm, told_before, settings, seed), test)
        )
        print(f"{arm:7} seed {seed}: {n} errors of {len(test[1])}", flush=True)
        return n

    rows = [[errors(arm, seed) for arm in ARMS] for seed in settings["seeds"]]
    found |= {arm: summary([row[i] for row in rows]) for i, arm in enumerate(ARMS)}
    found["paired"] = {
        arm: paired(found["hint"]["values"], found[arm]["values"]) for arm in ("labels", "kd")
    }
    return found | {"wall_s": time.perf_counter() - clock}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--resume", type=pathlib.Path, help="a file for finished runs, taken over on the next start"
    )
    found = measured(SETTINGS, mnist(), parser.parse_args().resume)
    path = save("fitnets", SETTINGS, found)
    rows = [
        ("teacher", found["teacher_errors"], ""),
        *((arm, plus_minus(found[arm]), "") for arm in ARMS),
    ]
    for arm in ("labels", "kd"):
        low, high = found["paired"][arm]["interval"]
        gain = f"{found['paired'][arm]['mean']:.1f} ({low:.1f} to {high:.1f})"
        rows.append((f"fewer with the hint than {arm}", gain, "> 0" if arm == "kd" else ""))
    show("FitNets on MNIST: errors of 10,000", ["what", "measured", "goal"], rows)
    print(path)


if __name__ == "__main__":
    main()
