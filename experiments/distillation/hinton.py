"""Hinton, Vinyals & Dean 2015 on MNIST (arXiv:1503.02531, section 3): what soft targets carry.

A teacher of 784-1200-1200-10 learns with dropout, and with images moved by up to 2 pixels. Students of 784-800-800-10
learn without either from hard labels, or from the teacher's logits alone at T = 20, for as many steps. Others never see
a 3: what they know of it comes from the soft targets of other digits. As in the paper, the bias of the class 3 is then
raised; by how much is chosen on the validation split.

python -m experiments.distillation.hinton
"""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from experiments.data import mnist
from experiments.distillation.common import logits, nobody, paired, plus_minus, save, show, summary, wrong
from experiments.models import mlp

TEACHER, STUDENT = (784, 1200, 1200, 10), (784, 800, 800, 10)
SETTINGS: dict[str, Any] = {
    "seeds": [0, 1, 2],
    "epochs": 10,
    "teacher_epochs": 20,
    "batch": 128,
    "learning_rate": 1e-3,
    "temperature": 20.0,
    "jitter": 2,
    "dropout": 0.3,
}
SHIFTS = np.arange(0, 10.1, 0.1)


def jittered(x: np.ndarray, pixels: int, seed: int) -> np.ndarray:
    """Every image moved by whole pixels, drawn for each."""
    rng = np.random.default_rng(seed)
    moves = rng.integers(-pixels, pixels + 1, (len(x), 2))
    padded = np.pad(x.reshape(-1, 28, 28), ((0, 0), (pixels, pixels), (pixels, pixels)))
    rows = (pixels + moves[:, :1] + np.arange(28))[:, :, None]
    columns = (pixels + moves[:, 1:] + np.arange(28))[:, None, :]
    return padded[np.arange(len(x))[:, None, None], rows, columns].reshape(len(x), -1)


def trained(sizes: Any, data: dict[str, Any], settings: Any, seed: int, soft: bool) -> Any:
    """Params after all epochs: from labels, or from the field "teacher" alone."""
    model = mlp(sizes)
    terms = [jp.distill.match(partial(jp.distill.losses.soft_targets, temperature=settings["temperature"]))]
    steps = settings["epochs"] * (len(data["x"]) // settings["batch"])
    rate = optax.cosine_decay_schedule(settings["learning_rate"], steps)
    net = jp.distill.plain(model.apply)
    d = jp.distill.distiller(net, terms if soft else [], optax.adam(rate), labels=0.0 if soft else 1.0)
    teacher = jp.distill.Given() if soft else nobody
    key = jax.random.key(seed)
    state = d.init(model.init(key), {k: v[:1] for k, v in data.items()}, teacher, key=key)
    batches = jp.distill.Shuffled(data, settings["batch"], seed=seed)
    return jp.distill.fit(d, state, batches, teacher, steps=steps, inner_steps=200).state.params


def with_dropout(rate: float) -> jp.distill.Network:
    """The network of `mlp`, of whose hidden units a share is left out at random."""

    def apply(params: Any, state: Any, x: Any, key: Any) -> Any:
        for i, layer in enumerate(params.values()):
            x = x @ layer["kernel"] + layer["bias"]
            if i + 1 < len(params):
                kept = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - rate, x.shape)
                x = jnp.where(kept, jax.nn.relu(x) / (1 - rate), 0)
        return x, state

    return jp.distill.Network(apply)


def good_teacher(x: np.ndarray, y: np.ndarray, settings: Any, sizes: Any = None) -> Any:
    """An epoch at a time over images that move anew in each."""
    model, epochs = mlp(sizes or TEACHER), settings["teacher_epochs"]
    steps = epochs * (len(x) // settings["batch"])
    rate = optax.cosine_decay_schedule(settings["learning_rate"], steps)
    net = with_dropout(settings["dropout"]) if "dropout" in settings else jp.distill.plain(model.apply)
    d = jp.distill.distiller(net, [], optax.adam(rate), labels=1.0)
    key = jax.random.key(100)
    state = d.init(model.init(key), {"x": x[:1], "y": y[:1]}, nobody, key=key)
    for epoch in range(epochs):
        data = {"x": jittered(x, settings["jitter"], epoch), "y": y}
        batches = jp.distill.Shuffled(data, settings["batch"], seed=epoch)
        stop = (epoch + 1) * batches.steps
        state = jp.distill.fit(d, state, batches, nobody, steps=stop, inner_steps=200).state
    return state.params


def threes(z: np.ndarray, y: np.ndarray, shift: float) -> dict[str, int]:
    """Errors in all, and on threes, with a raised bias of the class 3."""
    raised = z + shift * (np.arange(10) == 3)
    return {"errors": wrong(raised, y), "threes_wrong": wrong(raised[y == 3], y[y == 3])}


def without_threes(teacher: np.ndarray, data: Any, splits: Any, settings: Any, seed: int) -> dict[str, Any]:
    """A student that never saw a 3, before and after its bias is raised by what the validation split likes best."""
    keep = data["y"] != 3
    params = trained(STUDENT, {"x": data["x"][keep], "teacher": teacher[keep]}, settings, seed, soft=True)
    z = {name: logits(mlp(STUDENT).apply, params, x) for name, (x, _) in splits.items()}
    on_validation = [threes(z["validation"], splits["validation"][1], s)["errors"] for s in SHIFTS]
    shift = float(SHIFTS[int(np.argmin(on_validation))])
    y = splits["test"][1]
    return {"before": threes(z["test"], y, 0.0), "after": threes(z["test"], y, shift), "shift": shift}


def measured(settings: Any, data: Any) -> dict[str, Any]:
    """Every figure."""
    flat = lambda pair: (pair[0].reshape(len(pair[0]), -1), pair[1])
    (x, y), validation, test = (flat(pair) for pair in data)
    clock = time.perf_counter()
    best = good_teacher(x, y, settings)
    soft = logits(mlp(TEACHER).apply, best, x)
    y_test = test[1]
    errors = lambda params: wrong(logits(mlp(STUDENT).apply, params, test[0]), y_test)
    found: dict[str, Any] = {"teacher_errors": wrong(logits(mlp(TEACHER).apply, best, test[0]), y_test)}
    found["teacher_s"] = time.perf_counter() - clock
    whole = {"x": x, "y": y, "teacher": soft}
    splits = {"validation": validation, "test": test}
    arms: dict[str, list[Any]] = {"hard": [], "soft": [], "no_threes": []}
    for seed in settings["seeds"]:
        arms["hard"].append(errors(trained(STUDENT, {"x": x, "y": y}, settings, seed, soft=False)))
        arms["soft"].append(errors(trained(STUDENT, {"x": x, "teacher": soft}, settings, seed, soft=True)))
        arms["no_threes"].append(without_threes(soft, whole, splits, settings, seed))
    found |= {name: summary(arms[name]) for name in ("hard", "soft")}
    found["fewer"] = 1 - found["soft"]["mean"] / found["hard"]["mean"]
    found["paired"] = paired(arms["soft"], arms["hard"])
    found["no_threes"] = {"seeds": arms["no_threes"], "test_threes": int(np.sum(y_test == 3))}
    for when in ("before", "after"):
        for what in ("errors", "threes_wrong"):
            found["no_threes"][f"{what}_{when}"] = summary([r[when][what] for r in arms["no_threes"]])
    return found | {"wall_s": time.perf_counter() - clock}


def main() -> None:
    found = measured(SETTINGS, mnist())
    path = save("hinton", SETTINGS, found)
    none = found["no_threes"]
    rows = [
        ("teacher", found["teacher_errors"], "<= 90"),
        ("student, hard labels", plus_minus(found["hard"]), ""),
        ("student, soft targets", plus_minus(found["soft"]), ""),
        ("fewer errors", f"{found['fewer']:.1%}", ">= 15%"),
        ("no 3 seen: errors", plus_minus(none["errors_before"]), ""),
        (f"no 3 seen: of {none['test_threes']} threes wrong", plus_minus(none["threes_wrong_before"]), "<= 60"),
        ("bias raised: errors", plus_minus(none["errors_after"]), ""),
        ("bias raised: threes wrong", plus_minus(none["threes_wrong_after"]), "<= 20"),
    ]
    show("Soft targets on MNIST: errors of 10,000", ["what", "measured", "goal"], rows)
    print(path)


if __name__ == "__main__":
    main()
