"""What the small experiments compare: networks cut by several rankings, new ones of the same size,
the dense one.

    fisher        units ranked by Σ ½ w² E[g²] over their weights, from training examples
    labels        the same, and the rest learns from the labels alone; all others learn from the
                  dense network's logits
    magnitude     ranked by √Σ w²
    random        ranked at random
    scratch       a new network of the size that the first of these arrived at
    scratch_long  the same, trained for as many steps as the dense network was, and the others,
    together

All are trained for as many steps, with one rate, weight decay and order of the data. A cut may go
in turns: units go until a share of the operations is left, the rest is trained, more go. Adam's
moments are cut as the weights are.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from experiments.models import Model
from experiments.structured.measures import costs, faster, judged
from experiments.structured.training import Trained, anew, cosine, fitted, fresh, kept, said, scores
from jaxprune.core.leaves.paths import flatten_with_path, leaf_path


def of_its_own_size(net: Model) -> Callable[[jax.Array, Any], Any]:
    """(key, params of the small network) -> initial ones, for a network whose kernels are
    independent numbers.
    """
    return lambda key, small: anew(net.init(key), small)


class Task(NamedTuple):
    """What all arms have in common.

    Attributes:
      settings: "batch", "decay"; "rate", "warmup", "steps" of the dense network; "recovery_rate"
        and "recovery", the steps after each cut; "soft", "temperature"; "fisher"; "cut", keywords
        of `jp.shrink` by ranking; "arms".
      net: the dense network.
      new: (key, small params) -> initial params of the small shapes.
      data: what is trained on: "x", "y", and "teacher", what the dense network says.
      splits: what is judged by.
    """

    settings: Any
    net: Model
    new: Callable[[jax.Array, Any], Any]
    data: Mapping[str, Any]
    splits: Mapping[str, Any]

    def fit(
        self, apply: Any, start: Trained, rates: np.ndarray, seed: int, arm: str = "labels"
    ) -> Trained:
        taught = {} if arm == "labels" else {k: self.settings[k] for k in ("soft", "temperature")}
        shared = {k: self.settings[k] for k in ("batch", "decay")}
        return fitted(apply, start, self.data, rates, seed=seed, **shared, **taught)

    def judged(self, apply: Any, now: Trained) -> dict[str, Any]:
        return judged(apply, now.params, self.splits)

    def costs(self, apply: Any, now: Trained) -> dict[str, float]:
        return costs(apply, now.params, self.data["x"])


def task(settings: Any, net: Model, splits: Any, new: Any = None) -> Task:
    """Without a dense network yet."""
    (x, y), validation, test = splits
    net = net._replace(apply=jax.jit(net.apply))
    data = {"x": jnp.asarray(x), "y": jnp.asarray(y)}
    return Task(
        settings, net, new or of_its_own_size(net), data, {"validation": validation, "test": test}
    )


def dense(t: Task, seed: int) -> Trained:
    """The dense network."""
    rates = cosine(t.settings["rate"], t.settings["steps"], t.settings["warmup"])
    return t.fit(t.net.apply, start(t, t.net.init, seed), rates, seed)


def start(t: Task, init: Callable[[jax.Array], Any], seed: int) -> Trained:
    """Initial params, compiled at once."""
    return jax.jit(lambda key: fresh(init(key), t.settings["decay"]))(jax.random.key(seed))


def dense_or_kept(t: Task, seed: int, path: pathlib.Path | None, name: str) -> Trained:
    """The same, or what an earlier run left beside `path`."""
    like = jax.eval_shape(lambda: fresh(t.net.init(jax.random.key(0)), t.settings["decay"]))
    return kept(path and path.with_suffix(f".{name}.npz"), like, lambda: dense(t, seed))


def taught_by(t: Task, whole: Trained, dtype: Any = np.float32) -> Task:
    """With what the dense network says."""
    z = said(t.net.apply, whole.params, t.data["x"], 250, dtype)
    return t._replace(data={**t.data, "teacher": jnp.asarray(z)})


def trained_on(t: Task, whole: Trained, seed: int) -> dict[str, Any]:
    """The dense network after as many steps more."""
    rates = cosine(t.settings["recovery_rate"], sum(t.settings["recovery"]))
    return {"end": t.judged(t.net.apply, t.fit(t.net.apply, whole, rates, seed + 1000))}


def cut(
    t: Task, whole: Trained, arm: str, shares: Any, seed: int
) -> tuple[Any, Trained, list[Any]]:
    """A network cut and trained in as many turns as there are shares, and what it was worth at
    each.
    """
    apply = t.net.apply
    now = whole
    path = []
    example = t.data["x"][:2]
    steps = t.settings["recovery"]
    rates = np.split(cosine(t.settings["recovery_rate"], sum(steps)), np.cumsum(steps)[:-1])
    rank = "fisher" if arm == "labels" else arm
    for share, part in zip(shares, rates, strict=True):
        score = scores(rank, apply, now.params, t.data, t.settings["fisher"], seed)
        left = (
            share
            * jp.flops(t.net.apply, whole.params, example)
            / jp.flops(apply, now.params, example)
        )
        thin = jp.shrink(apply, now.params, example, flops=left, score=score, **how(t, rank))
        apply = jax.jit(thin.apply)
        now = Trained(thin.params, thin.cut(now.state))
        path.append({"share": share, "check": thin.report.error, "cut": t.judged(apply, now)})
        now = t.fit(apply, now, part, seed + 1000 * len(path), arm)
        path[-1]["trained"] = t.judged(apply, now)
    return apply, now, path


def how(t: Task, rank: str) -> dict[str, Any]:
    """How the scores of a unit's weights become its own, and what the settings say of this
    ranking.
    """
    return {"reduce": "l2" if rank == "magnitude" else "l1", **t.settings["cut"].get(rank, {})}


def scratch(t: Task, arm: str, apply: Any, small: Any, seed: int) -> dict[str, Any]:
    """A new network of the small shapes."""
    steps = sum(t.settings["recovery"]) + (t.settings["steps"] if arm == "scratch_long" else 0)
    shapes = jax.eval_shape(lambda: small)
    begin = start(t, lambda key: t.new(key, shapes), seed + 500)
    rates = cosine(t.settings["rate"], steps, t.settings["warmup"])
    return {"end": t.judged(apply, t.fit(apply, begin, rates, seed + 1000, arm))}


def budgeted(t: Task, whole: Trained, shares: Any, seed: int) -> dict[str, Any]:
    """Every arm at one budget, with one seed."""
    found: dict[str, Any] = {}
    first: Any = None
    for arm in t.settings["arms"]:
        if arm.startswith("scratch"):
            found[arm] = scratch(t, arm, first[0], first[1].params, seed)
        else:
            apply, now, path = cut(t, whole, arm, shares, seed)
            first = first or (apply, now)
            found[arm] = {"path": path, "end": path[-1]["trained"], **t.costs(apply, now)}
            found[arm]["shapes"] = {leaf_path(keys): a.shape for keys, a in _leaves(now.params)}
        print(f"seed {seed}, {shares[-1]}, {arm}: {found[arm]['end']}", flush=True)
    many = t.data["x"][: t.settings["speed_batch"]]
    return found | {"speed": faster((t.net.apply, whole.params), (first[0], first[1].params), many)}


def _leaves(params: Any) -> Any:
    return flatten_with_path(params)[0]
