"""Character models with half the operations, on tiny shakespeare: a transformer and a recurrent
network (GRU).

Each is trained once, cut in one go and trained on, by each of the `arms`; `control` is the dense
network trained on for as many steps. What the units of a transformer are ranked with, and whether
the residual stream may be cut (layer norm makes that approximate), is what gives the least
validation loss right after the cut, before any training, for each ranking. Nothing is chosen by the
test split. Windows are of 128 characters; losses are nats a character.

python -m experiments.structured.char_lm [--resume FILE] [--name FOLDER] [--set KEY=JSON]
"""

import pathlib
import time
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from experiments.data import tiny_shakespeare
from experiments.distillation.common import plus_minus, remembered, show
from experiments.models import Model
from experiments.structured import arms
from experiments.structured.measures import asked, averaged, draw, save
from experiments.structured.training import scores
from experiments.transformer import transformer

SETTINGS: dict[str, Any] = {
    "seeds": [0, 1, 2],
    "dense_seed": 100,
    "vocabulary": 65,
    "length": 128,
    "models": {
        "transformer": {"layers": 2, "width": 64, "heads": 4},
        "gru": {"embedding": 48, "width": 128},
    },
    "batch": 8,
    "rate": 3e-3,
    "warmup": 100,
    "decay": 0.01,
    "steps": 3000,
    "budgets": {"0.5": [0.5]},
    "recovery": [1000],
    "recovery_rate": 2e-3,
    "soft": 0.7,
    "temperature": 1.0,
    "fisher": {"batches": 128, "batch": 1},
    "cuts": {
        "global": {"scope": "global"},
        "group": {"scope": "group"},
        "global, stream": {"scope": "global", "approximate": True},
        "group, stream": {"scope": "group", "approximate": True},
    },
    "arms": ["fisher", "magnitude", "random", "scratch", "scratch_long"],
    "speed_batch": 8,
}


class Recurrent(nn.Module):
    """An embedding, a GRU (Cho et al. 2014, arXiv:1406.1078) along the text, a dense layer at every
    position.
    """

    embedding: int
    width: int
    vocabulary: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.RNN(nn.GRUCell(self.width))(nn.Embed(self.vocabulary, self.embedding)(x))
        return nn.Dense(self.vocabulary)(h)


def gru(embedding: int, width: int, vocabulary: int, length: int) -> Model:
    """`Recurrent` as a pair of functions."""
    module = Recurrent(embedding, width, vocabulary)
    example = jnp.zeros((1, length), jnp.int32)
    return Model(lambda key: module.init(key, example), module.apply, (length,))


def rebuilt(small: Any, vocabulary: int, length: int) -> Model:
    """The Flax module that a cut `Recurrent` is: its widths are all that has changed."""
    params = small["params"]
    embedding = params["Embed_0"]["embedding"].shape[1]
    width = params["GRUCell_0"]["hn"]["bias"].shape[0]
    return gru(embedding, width, vocabulary, length)


def task(name: str, settings: Any, data: Any) -> arms.Task:
    ends = settings["vocabulary"], settings["length"]
    if name == "gru":

        def new(key, small):
            return rebuilt(small, *ends).init(key)

        return arms.task(
            settings, gru(**settings["models"][name], vocabulary=ends[0], length=ends[1]), data, new
        )
    return arms.task(
        settings, transformer(**settings["models"][name], vocabulary=ends[0], length=ends[1]), data
    )


def tried(t: arms.Task, whole: Any, rank: str, share: float) -> dict[str, float]:
    """The validation loss right after each of the cuts."""
    found = {}
    example = t.data["x"][:2]
    score = scores(
        rank, t.net.apply, whole.params, t.data, t.settings["fisher"], t.settings["dense_seed"]
    )
    validation = t._replace(splits={"validation": t.splits["validation"]})
    inexact = any(g.approximate for g in jp.coupled_axes(t.net.apply, whole.params, example).groups)
    for name, options in t.settings["cuts"].items():
        if "approximate" in options and not inexact:
            continue
        now = t._replace(settings={**t.settings, "cut": {rank: options}})
        thin = jp.shrink(
            t.net.apply, whole.params, example, flops=share, score=score, **arms.how(now, rank)
        )
        found[name] = validation.judged(jax.jit(thin.apply), whole._replace(params=thin.params))[
            "validation"
        ]["loss"]
    print(f"{rank}, loss after the cut: {found}", flush=True)
    return found


def model(name: str, settings: Any, data: Any, path: pathlib.Path | None = None) -> dict[str, Any]:
    """Every figure of a model; what a killed run had finished is taken from `path`."""
    clock = time.perf_counter()
    t = task(name, settings, data)
    whole = arms.dense_or_kept(t, settings["dense_seed"], path, name)
    t = arms.taught_by(t, whole, np.float16)
    found = {"dense": {"end": t.judged(t.net.apply, whole), **t.costs(t.net.apply, whole)}}
    print(f"{name}, dense: {found['dense']['end']}", flush=True)
    for budget, shares in settings["budgets"].items():
        found[budget] = at_budget(t, whole, shares, path, f"{name} {budget}")
    control = [
        remembered(path, f"{name} {s}", partial(arms.trained_on, t, whole, s))
        for s in settings["seeds"]
    ]
    return found | {"control": averaged(control), "wall_s": time.perf_counter() - clock}


def at_budget(
    t: arms.Task, whole: Any, shares: Any, path: pathlib.Path | None, name: str
) -> dict[str, Any]:
    """Every arm, cut as each ranking likes best."""
    ranks = [arm for arm in t.settings["arms"] if arm in ("fisher", "magnitude", "random")]
    losses = {
        r: remembered(path, f"{name} {r}", partial(tried, t, whole, r, shares[0])) for r in ranks
    }
    best = {rank: min(one, key=one.__getitem__) for rank, one in losses.items()}
    chosen = {rank: t.settings["cuts"][name] for rank, name in best.items()}
    t = t._replace(settings={**t.settings, "cut": chosen})
    once = partial(arms.budgeted, t, whole, shares)
    runs = [remembered(path, f"{name} {seed}", partial(once, seed)) for seed in t.settings["seeds"]]
    return averaged(runs) | {"loss_after_each_cut": losses, "cut": best}


def points(one: Any, settings: Any) -> dict[str, Any]:
    """Of a model, by arm: (share of the operations, validation loss, its deviation)."""

    def value(arm):
        return arm["end"]["validation"]["loss"]

    def point(share, arm):
        return (float(share), value(arm)["mean"], value(arm)["std"])

    whole = {
        "dense": [(1.0, value(one["dense"]), 0.0)],
        "dense, trained on": [point(1, one["control"])],
    }
    return whole | {
        arm: [point(b, one[b][arm]) for b in settings["budgets"]] for arm in settings["arms"]
    }


def plot(path: Any, found: Any, settings: Any) -> None:
    """Validation losses against operations, a panel a model."""
    panels = {
        f"{name}, {len(settings['seeds'])} seeds": points(one, settings)
        for name, one in found.items()
    }
    draw(path, panels, "validation loss, nats a character")


def main() -> None:
    folder, settings, resume = asked(__doc__, "char_lm", SETTINGS)
    data = tiny_shakespeare(settings["length"])
    found = {}
    rows = []
    for name in settings["models"]:
        found[name] = model(name, settings, data, resume)
        path = save(folder, settings, found)
    plot(path.with_name("loss.png"), found, settings)
    for name, one in found.items():
        rows.append((name, "dense", "1", f"{one['dense']['end']['validation']['loss']:.4f}"))
        rows.append(
            (name, "control", "1", plus_minus(one["control"]["end"]["validation"]["loss"], 4))
        )
        for budget in settings["budgets"]:
            ends = {arm: one[budget][arm]["end"]["validation"]["loss"] for arm in settings["arms"]}
            rows += [(name, arm, budget, plus_minus(end, 4)) for arm, end in ends.items()]
    show(
        "Characters of tiny shakespeare",
        ["model", "arm", "share of the operations", "validation loss"],
        rows,
    )
    print(path)


if __name__ == "__main__":
    main()
