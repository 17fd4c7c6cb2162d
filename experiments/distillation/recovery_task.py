"""Recovering a compressed ResNet: the images, what the teacher says of them, and one run of one
arm.

`recovery` chooses, repeats and reports.
"""

import pathlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from experiments import resnet
from jaxprune.jaxprs.flops import sparse_flops

KERNELS = jp.where.path(".*kernel")
ARMS = ("labels", "kd", "at_kd")
MAPS = {"stage1": 32, "stage2": 16, "stage3": 8}


def cifar(folder: Any) -> dict[str, Any]:
    """uint8 images and int32 labels: all of the training set in an order that never changes, and
    the test set.
    """
    found = {}
    for split in ("train", "test"):
        with np.load(pathlib.Path(folder) / f"cifar10_{split}.npz") as file:
            found[split] = file["x"], file["y"].astype(np.int32)
    order = np.random.default_rng(0).permutation(len(found["train"][0]))
    return found | {"train": tuple(a[order] for a in found["train"])}


def augmented(x: np.ndarray, index: np.ndarray, seed: int) -> np.ndarray:
    """Each image moved by up to 4 pixels and maybe mirrored, as the seed and its index say."""
    move = []
    flip = []
    for i in index:
        rng = np.random.Generator(np.random.Philox([seed, int(i)]))
        move.append(rng.integers(0, 9, 2))
        flip.append(rng.random() < 0.5)
    size = x.shape[1]
    padded = np.pad(x, ((0, 0), (4, 4), (4, 4), (0, 0)))
    parts = (
        a[r : r + size, c : c + size][:, :: -1 if f else 1]
        for a, (r, c), f in zip(padded, move, flip)
    )
    return np.stack(list(parts))


# --- the teacher ---


def spoken(params: Any, x: Any) -> jax.Array:
    """(batch, classes + positions): logits, and the maps of attention of the three stages."""
    z, taps = jp.reap(resnet.apply, "stage.")(params, resnet.normalised(x))
    maps = [jnp.sqrt(jnp.mean(jnp.square(taps[name]), -1)).reshape(len(z), -1) for name in MAPS]
    return jnp.concatenate([z, *maps], 1)


@jax.tree_util.Partial
def told(batch: Any, key: Any) -> dict[str, Any]:
    """What came with the batch: logits, and maps of one channel."""
    if "teacher" not in batch:
        return {}
    row = batch["teacher"]
    said = {}
    for name, size in reversed(MAPS.items()):
        row, last = row[:, : -size * size], row[:, -size * size :]
        said[name] = last.reshape(-1, size, size, 1)
    return {"output": row, **said}


def cached(folder: Any, teacher: Any, x: np.ndarray, seed: int, n: int) -> np.ndarray:
    """What the teacher says of the first n images, augmented; asked once, then read."""
    run = jax.jit(spoken)

    def say(e):
        return run(teacher, augmented(e["x"], e["index"], seed))

    name = jp.distill.fingerprint(teacher, "logits and maps of experiments.resnet, uint8 in")
    examples = {"x": x[:n], "index": np.arange(n)}
    cache = jp.distill.write_cache(
        folder, say, examples, fingerprint=name, augmentation=seed, batch=250
    )
    return cache.whole(seed)


# --- the student ---


def network() -> jp.distill.Network:
    """Train mode: the state is the stored moments."""
    return jp.distill.Network(
        lambda params, state, x, key: resnet.training(params, state, resnet.normalised(x))
    )


def compression(kind: str, settings: Any) -> jp.Compression:
    """One threshold for all kernels, as many at random, or a few bits a channel."""
    if kind == "none":
        return jp.identity
    share = partial(jp.prune, settings["sparsity"], allocate=jp.allocate.global_, where=KERNELS)
    if kind == "quantize":
        return jp.quantize(settings["bits"], where=KERNELS)
    return (
        share()
        if kind == "prune"
        else share(score=partial(jp.scores.random, key=jax.random.key(0)))
    )


def terms(arm: str, soft: float, settings: Any) -> list[jp.distill.Term]:
    """What an arm matches beside labels."""
    kl = partial(jp.distill.losses.soft_targets, temperature=settings["temperature"])
    attention = jp.distill.match(
        jp.distill.losses.attention_transfer, r"stage(\d)", weight=settings["attention"]
    )
    return [
        [],
        [jp.distill.match(kl, weight=soft)],
        [jp.distill.match(kl, weight=soft), attention],
    ][ARMS.index(arm)]


def recovered(
    dense: Any, kind: str, arm: str, soft: float, rate: float, data: Any, settings: Any, seed: int
) -> Any:
    """The compressed network's dense params, moments included, after one epoch."""
    code, (params, moments) = compression(kind, settings), resnet.parted(dense)
    batches = jp.distill.Shuffled(
        data if arm != "labels" else {k: data[k] for k in "xy"}, settings["batch"], seed=seed
    )
    sgd = optax.sgd(optax.cosine_decay_schedule(rate, batches.steps), 0.9, nesterov=True)
    given = jax.tree.map(jnp.copy, params)
    view = jp.straight_through(code)
    if kind != "quantize":
        given = jp.materialize(code.init(params))
        view = jp.materialize
        sgd = optax.chain(sgd, jp.keep_pruned())
    labels = 1.0 if arm == "labels" else 1 - soft
    d = jp.distill.distiller(
        network(), terms(arm, soft, settings), sgd, view=view, compare=False, labels=labels
    )
    first = {k: a[: settings["batch"]] for k, a in batches.data.items()}
    state = d.init(given, first, told, key=jax.random.key(seed), model_state=moments)
    state = jp.distill.fit(d, state, batches, told, steps=batches.steps, progress=False).state
    return resnet.joined(view(state.params), state.model_state)


def costs(dense: Any, kind: str, settings: Any) -> dict[str, Any]:
    """Four sizes of the trained params (batch norms as they are), the zeros, and operations a
    picture.
    """
    params = compression(kind, settings).init(dense)
    image = jnp.zeros((1, 32, 32, 3))
    kept = {k: p["kernel"] for k, p in params.items() if "kernel" in p}
    return {
        "bytes": jp.measure.sizes(params)._asdict(),
        "flops": jp.flops(resnet.apply, jp.materialize(params), image),
        "sparse_flops": sparse_flops(resnet.apply, params, image),
        "density": jp.measure.density(kept),
    }


def renormed(dense: Any, kind: str, x: np.ndarray, settings: Any) -> Any:
    """The compressed network, untrained, but with moments of its own: what batch norms alone
    repair.
    """
    params, moments = resnet.parted(dense)
    params = jp.materialize(compression(kind, settings).init(params))
    run = jax.jit(lambda moments, x: resnet.training(params, moments, resnet.normalised(x))[1])
    for i in range(0, len(x) - settings["batch"] + 1, settings["batch"]):
        moments = run(moments, x[i : i + settings["batch"]])
    return resnet.joined(params, moments)
