"""A character model of 4 layers taught to one of 2, on tiny shakespeare: soft targets at every
position.

Both are causal transformers (`experiments.transformer`) of width 96 over windows of 128 characters.
The students begin as the teacher's first and last block, its embedding, positions and last norm;
the teacher's learning rate, the schedule, the steps and the order of the data are the same for all:
    labels   cross-entropy alone
    kd       labels + w · KL(teacher ‖ student)
    jsd      labels + w · generalised JSD, β = 0.5 (GKD, Agarwal et al. 2024, arXiv:2306.13649; on
             the data's own text)

w is one of two, by the validation loss of a seed that is not reported. Where the test split is
looked at, nothing is chosen any more. The teacher's logits of the training text are computed once
and lie in float16 beside the characters.

python -m experiments.distillation.char_lm [--resume FILE]
"""

import argparse
import pathlib
import time
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from experiments.data import tiny_shakespeare
from experiments.distillation.common import (
    nobody,
    paired,
    plus_minus,
    remembered,
    save,
    show,
    summary,
)
from experiments.models import Model
from experiments.transformer import transformer

SETTINGS: dict[str, Any] = {
    "seeds": [0, 1, 2],
    "tuning_seed": 9,
    "width": 96,
    "heads": 4,
    "vocabulary": 65,
    "length": 128,
    "teacher_layers": 4,
    "kept": [0, 3],
    "batch": 8,
    "teacher_steps": 2400,
    "steps": 700,
    "learning_rate": 2e-3,
    "warmup": 100,
    "beta": 0.5,
    "weights": {"labels": [0.0], "kd": [1.0, 4.0], "jsd": [4.0, 16.0]},
}


def model(settings: Any, layers: int) -> Model:
    """A transformer of so many blocks."""
    return transformer(
        layers, *(settings[name] for name in ("width", "heads", "vocabulary", "length"))
    )


def fitted(
    net: Model,
    params: Any,
    data: Any,
    terms: Any,
    teacher: Any,
    steps: int,
    settings: Any,
    seed: int,
) -> Any:
    """Params after all steps, with a warm-up and a cosine."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0, settings["learning_rate"], settings["warmup"], steps
    )
    d = jp.distill.distiller(
        jp.distill.plain(net.apply), terms, optax.adam(rate), labels=1.0, compare=False
    )
    state = d.init(params, {k: v[:1] for k, v in data.items()}, teacher, key=jax.random.key(seed))
    batches = jp.distill.Shuffled(data, settings["batch"], seed=seed)
    return jp.distill.fit(
        d, state, batches, teacher, steps=steps, inner_steps=50, progress=False
    ).state.params


def judge(net: Model, splits: Any) -> Callable[[Any], dict[str, float]]:
    """params -> nats a character on each split."""
    seen = jp.distill.plain(net.apply)
    each = {
        name: jp.distill.Evaluator(seen, {"x": x, "y": y}, batch=64)
        for name, (x, y) in splits.items()
    }

    def state(params):
        return types.SimpleNamespace(params=params, model_state={})

    return lambda params: {name: evaluate(state(params))["loss"] for name, evaluate in each.items()}


def good_teacher(settings: Any, train: Any, path: pathlib.Path | None) -> tuple[Any, Any, float]:
    """The teacher, its params and the seconds it took; from `path`.npz if a run that was killed
    left them there.
    """
    net = model(settings, settings["teacher_layers"])
    params, treedef = jax.tree.flatten(net.init(jax.random.key(100)))
    there = path.with_suffix(".npz") if path is not None else None
    if there is not None and there.exists():
        with np.load(there) as f:
            return (
                net,
                treedef.unflatten([jnp.asarray(f[f"arr_{i}"]) for i in range(len(params))]),
                float(f["seconds"]),
            )
    clock = time.perf_counter()
    data = {"x": train[0], "y": train[1]}
    found = fitted(
        net, treedef.unflatten(params), data, [], nobody, settings["teacher_steps"], settings, 100
    )
    seconds = time.perf_counter() - clock
    if there is not None:
        np.savez(there, *map(np.asarray, jax.tree.leaves(found)), seconds=seconds)
    return net, found, seconds


def said(net: Model, params: Any, x: np.ndarray, size: int = 64) -> np.ndarray:
    """The logits of every position, float16."""
    run = jax.jit(lambda x: net.apply(params, x).astype(jnp.float16))
    return np.concatenate([np.asarray(run(x[i : i + size])) for i in range(0, len(x), size)])


def thinned(params: Any, kept: Any) -> Any:
    """A student of some of the teacher's blocks, in arrays of its own."""
    ends = {name: x for name, x in params.items() if not name.startswith("block")}
    return jax.tree.map(
        jnp.array, ends | {f"block{i}": params[f"block{k}"] for i, k in enumerate(kept)}
    )


def term(arm: str, weight: float, settings: Any) -> list[Any]:
    """What is added to the labels."""
    loss = {
        "kd": jp.distill.losses.forward_kl,
        "jsd": partial(jp.distill.losses.jsd, beta=settings["beta"]),
    }
    return [jp.distill.match(loss[arm], weight=weight)] if arm in loss else []


def measured(settings: Any, data: Any, path: pathlib.Path | None = None) -> dict[str, Any]:
    """Every figure; what a killed run had finished is taken from `path`."""
    clock = time.perf_counter()
    (x, y), validation, test = data
    net, weights, seconds = good_teacher(settings, data.train, path)
    pupil = model(settings, len(settings["kept"]))
    start = thinned(weights, settings["kept"])
    arrays = {"x": x, "y": y, "teacher": said(net, weights, x)}
    splits = {"validation": validation, "test": test}
    judged = judge(pupil, splits)
    judged_teacher = judge(net, splits)

    def losses(arm: str, weight: float, seed: int) -> dict[str, float]:
        terms = term(arm, weight, settings)
        fields = ("x", "y", "teacher") if arm != "labels" else ("x", "y")
        teacher = jp.distill.Precomputed() if terms else nobody
        rest = {k: arrays[k] for k in fields}, terms, teacher, settings["steps"], settings, seed
        return judged(fitted(pupil, start, *rest))

    def run(arm: str, weight: float, seed: int) -> dict[str, float]:
        began = time.perf_counter()
        found = remembered(path, f"{arm} {weight} {seed}", lambda: losses(arm, weight, seed))
        took = time.perf_counter() - began
        print(
            f"{arm:7} w {weight:g} seed {seed}: validation {found['validation']:.4f}  {took:.0f} s",
            flush=True,
        )
        return found

    found: dict[str, Any] = {
        "teacher": judged_teacher(weights) | {"seconds": seconds},
        "student_before": judged(start),
        "params": {"teacher": _size(weights), "student": _size(start)},
        "tokens": {
            k: settings[k] * settings["batch"] * x.shape[1] for k in ("teacher_steps", "steps")
        },
    }
    for arm, grid in settings["weights"].items():
        tried = (
            [run(arm, w, settings["tuning_seed"])["validation"] for w in grid]
            if len(grid) > 1
            else []
        )
        weight = grid[int(np.argmin(tried))] if tried else grid[0]
        seeds = [run(arm, weight, seed) for seed in settings["seeds"]]
        found[arm] = {split: summary([s[split] for s in seeds]) for split in ("validation", "test")}
        found[arm] |= {"weight": weight, "tried": tried}

    def less(arm, split):
        return paired(found[arm][split]["values"], found["labels"][split]["values"])

    taught = [arm for arm in settings["weights"] if arm != "labels"]
    found["less_than_labels"] = {
        arm: {split: less(arm, split) for split in splits} for arm in taught
    }
    return found | {"wall_s": time.perf_counter() - clock}


def _size(params: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(params))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--resume", type=pathlib.Path, help="a file for finished runs, taken over on the next start"
    )
    found = measured(SETTINGS, tiny_shakespeare(SETTINGS["length"]), parser.parse_args().resume)
    path = save("char_lm", SETTINGS, found)
    teacher, before = (
        [f"{found[who][s]:.4f}" for s in ("validation", "test")]
        for who in ("teacher", "student_before")
    )
    rows = [("teacher, 4 layers", *teacher), ("its layers 0 and 3, untrained", *before)]
    for arm in SETTINGS["weights"]:
        rows.append(
            (f"2 layers, {arm}", *(plus_minus(found[arm][s], 4) for s in ("validation", "test")))
        )
    show("Characters of tiny shakespeare: nats each", ["what", "validation", "test"], rows)
    print(path)


if __name__ == "__main__":
    main()
