"""How the small experiments train and rank: one loop of Adam, whose moments outlive a cut.

    L = (1 − s) CE(y, z) + s T² KL(softmax(t / T) ‖ softmax(z / T))

z are the logits, y the labels, t the logits of the dense network; s = 0 is labels alone. The loop
is Python's: on XLA:CPU a convolution inside `lax.scan` takes ten times as long as the same one in a
compiled step.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import jaxprune as jp

Apply = Callable[..., Array]


class Trained(NamedTuple):
    """Params and the state of their optimizer; `thin.cut` cuts both."""

    params: Any
    state: Any


def optimizer(decay: float) -> optax.GradientTransformation:
    """AdamW without its rate, which comes with each step."""
    return optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(decay))


def fresh(params: Any, decay: float) -> Trained:
    """Params that no step was taken with."""
    return Trained(params, optimizer(decay).init(params))


def cosine(rate: float, steps: int, warmup: int = 0) -> np.ndarray:
    """[steps]: a rate a step, up to `rate` and down to 0."""
    t = np.arange(steps)
    down = 0.5 * rate * (1 + np.cos(np.pi * np.maximum(t - warmup, 0) / max(steps - warmup, 1)))
    return np.where(t < warmup, rate * (t + 1) / max(warmup, 1), down)


def fitted(
    apply: Apply,
    start: Trained,
    data: Mapping[str, Array],
    rates: np.ndarray,
    *,
    batch: int,
    seed: int,
    decay: float = 0.0,
    soft: float = 0.0,
    temperature: float = 1.0,
) -> Trained:
    """A step a rate, over examples in an order that the seed says.

    Args:
      apply: (params, x) -> logits (batch, …, classes).
      start: where to begin.
      data: "x", "y" (n, …), and "teacher", logits (n, …, classes), if soft > 0.
      rates: of each step.
      batch: examples a step.
      seed: of the order.
      decay: of AdamW.
      soft: s.
      temperature: T.
    """

    def loss(params: Any, x: Array, y: Array, teacher: Array | None = None) -> Array:
        z = apply(params, x)
        hard = optax.softmax_cross_entropy_with_integer_labels(z, y).mean()
        if not soft:
            return hard
        return (1 - soft) * hard + soft * jp.distill.losses.soft_targets(
            z, teacher, temperature=temperature
        ).mean()

    @jax.jit
    def step(now: Trained, data: Any, index: Array, rate: Array) -> Trained:
        slope = jax.grad(loss)(now.params, **{name: a[index] for name, a in data.items()})
        updates, state = optimizer(decay).update(slope, now.state, now.params)
        return Trained(jax.tree.map(lambda w, u: w - rate * u, now.params, updates), state)

    used = {name: a for name, a in data.items() if soft or name != "teacher"}
    orders = order(len(data["x"]), batch, seed)
    for rate in rates:
        start = step(start, used, next(orders), np.float32(rate))
    return start


def order(n: int, batch: int, seed: int) -> Any:
    """Indices of batches, without end: each epoch is a permutation, whose rest is left out."""
    rng = np.random.default_rng(seed)
    while True:
        yield from rng.permutation(n)[: n // batch * batch].reshape(-1, batch)


def kept(path: pathlib.Path | None, like: Any, make: Callable[[], Any]) -> Any:
    """make(), a tree as `like` is, or the arrays that an earlier run left in an .npz; no path:
    make().
    """
    leaves, tree = jax.tree.flatten(like)
    if path is not None and path.exists():
        with np.load(path) as file:
            return tree.unflatten([jnp.asarray(file[f"arr_{i}"]) for i in range(len(leaves))])
    found = make()
    if path is not None:
        np.savez(path, *map(np.asarray, jax.tree.leaves(found)))
    return found


def said(apply: Apply, params: Any, x: Any, batch: int, dtype: Any = np.float32) -> np.ndarray:
    """The logits of all examples; `apply` is best a compiled function."""
    parts = (apply(params, x[i : i + batch]) for i in range(0, len(x), batch))
    return np.concatenate([np.asarray(z).astype(dtype) for z in parts])


def loss_of_labels(apply: Apply) -> Callable[..., Array]:
    """(params, x, y) -> the loss that scores are taken with."""
    return lambda params, x, y: optax.softmax_cross_entropy_with_integer_labels(
        apply(params, x), y
    ).mean()


def scores(
    arm: str, apply: Apply, params: Any, data: Mapping[str, Any], settings: Any, seed: int
) -> Any:
    """A number a weight of the matrices: magnitude, at random, or ½ w² E[g²] over batches of the
    training set.
    """

    def matrices(tree):
        return jax.tree.map(lambda s: s if s.ndim > 1 else None, tree)

    if arm == "magnitude":
        return matrices(jp.scores.magnitude(params))
    if arm == "random":
        return matrices(jp.scores.random(params, key=jax.random.key(seed)))
    index = np.random.default_rng(seed).permutation(len(data["x"]))[
        : settings["batches"] * settings["batch"]
    ]
    batches = [(data["x"][i], data["y"][i]) for i in index.reshape(-1, settings["batch"])]
    return matrices(jp.scores.fisher(loss_of_labels(apply), params, batches))


def anew(init: Any, small: Any) -> Any:
    """Initial params of the small shapes, from those of the dense ones: kernels of variance c /
    fan-in keep their c.

    Any part of an array of independent numbers is one of them again, so only the fan-in is to be
    put right.
    """

    def one(keys: Any, a: Array, like: Array) -> Array:
        part = a[tuple(map(slice, like.shape))]
        fans = [np.prod(w.shape[:-1]) for w in (a, like)]
        return part * np.float32((fans[0] / fans[1]) ** 0.5) if keys[-1].key == "kernel" else part

    return jax.tree_util.tree_map_with_path(one, init, small)
