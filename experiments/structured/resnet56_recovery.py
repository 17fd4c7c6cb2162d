"""ResNet-56 on CIFAR-10 with 2.1 times fewer operations, cut as in `resnet56`, and then trained for
three epochs.

The network of the arm `l2 inside`, its weights fitted, learns from the whole network: soft targets
(Hinton et al. 2015, arXiv:1503.02531) at T = 4, what the last layer takes, which has one width in
both (Chen et al. 2022, arXiv:2203.14001), and a tenth of labels. The teacher runs once over three
crops and flips of each image; what it says lies in a cache. Nesterov's momentum of 0.9; the rate
falls to 0 by a cosine. Batch norms use the batch's moments, at last those of 10,000 training
images. The streams are whole, so the smaller params are those of a ResNet with other widths inside
its blocks, and `resnet.training` takes them as they are. Batches of 32 take half the time of one of
128 on a CPU, huge pages a third off that.

JAXPRUNE_DATA=data GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m
experiments.structured.resnet56_recovery
    [--folder FOLDER] [--seed SEED, of one run only]
"""

import argparse
import os
import pathlib
import tempfile
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from experiments import resnet
from experiments.distillation.common import plus_minus, remembered, save, show, summary
from experiments.distillation.recovery_task import augmented, cifar, network
from experiments.structured import resnet56

SETTINGS: dict[str, Any] = {
    **resnet56.SETTINGS,
    "seeds": [0, 1],
    "train_images": 45_000,
    "train_batch": 32,
    "arm": "l2 inside",
    "augmentations": [7, 8, 9],
    "rate": 0.003,
    "temperature": 4.0,
    "soft": 0.9,
    "features": 30.0,
    "moments": 10_000,
    "checkpoint": 200,
}
CLASSES = 10


@jax.tree_util.Partial
def told(batch: Any, key: Any) -> dict[str, Any]:
    """What came with the batch."""
    row = batch.get("teacher")
    return {} if row is None else {"output": row[:, :CLASSES], "features": row[:, CLASSES:]}


def spoken(params: Any, x: Any) -> jax.Array:
    """(batch, classes + width): logits, and what the last layer takes."""
    z, taps = jp.reap(resnet.apply, "features")(params, resnet.normalised(x))
    return jnp.concatenate([z, taps["features"]], 1)


def said(folder: pathlib.Path, teacher: Any, x: np.ndarray, augmentation: int) -> np.ndarray:
    """What the teacher says of the images, augmented; asked once, then read."""
    run = jax.jit(spoken)

    def say(e):
        return run(teacher, augmented(e["x"], e["index"], augmentation))

    name = jp.distill.fingerprint(teacher, "logits and features of experiments.resnet, uint8 in")
    examples = {"x": x, "index": np.arange(len(x))}
    cache = jp.distill.write_cache(
        folder, say, examples, fingerprint=name, augmentation=augmentation, batch=250
    )
    return cache.whole(augmentation)


def shown(
    folder: pathlib.Path, teacher: Any, x: np.ndarray, y: np.ndarray, settings: Any
) -> dict[str, np.ndarray]:
    """Every image as often as there are augmentations, with labels and logits."""
    parts = [
        {"x": augmented(x, np.arange(len(x)), a), "y": y, "teacher": said(folder, teacher, x, a)}
        for a in settings["augmentations"]
    ]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def matched(settings: Any) -> list[jp.distill.Term]:
    """What the network learns beside labels."""
    soft = partial(jp.distill.losses.soft_targets, temperature=settings["temperature"])
    features = jp.distill.match(
        jp.distill.losses.hidden_mse, "features", weight=settings["features"]
    )
    return [
        jp.distill.match(soft, weight=settings["soft"]),
        *[features] * bool(settings["features"]),
    ]


def recovered(
    params: Any, data: Any, settings: Any, seed: int, folder: pathlib.Path | None = None
) -> Any:
    """The params after one pass over the data."""
    start, moments = resnet.parted(params)
    batches = jp.distill.Shuffled(data, settings["train_batch"], seed=seed)
    sgd = optax.sgd(
        optax.cosine_decay_schedule(settings["rate"], batches.steps), 0.9, nesterov=True
    )
    d = jp.distill.distiller(
        network(), matched(settings), sgd, compare=False, labels=1 - settings["soft"]
    )
    first = {k: a[: settings["train_batch"]] for k, a in batches.data.items()}
    given = jax.tree.map(jnp.copy, start)
    every = settings["checkpoint"]
    state = d.init(given, first, told, key=jax.random.key(seed), model_state=moments)
    state = jp.distill.fit(
        d, state, batches, told, steps=batches.steps, folder=folder, checkpoint_every=every
    ).state
    return resnet.joined(
        state.params, settled(state.params, state.model_state, data["x"][: settings["moments"]])
    )


def settled(params: Any, moments: Any, x: np.ndarray, batch: int = 250) -> Any:
    """Moments of batch norms: means over batches of what each saw."""
    run = jax.jit(
        lambda moments, x, momentum: resnet.training(
            params, moments, resnet.normalised(x), momentum
        )[1]
    )
    for i, at in enumerate(range(0, len(x), batch)):
        moments = run(moments, x[at : at + batch], np.float32(1 / (i + 1)))
    return moments


def run(
    params: Any, data: Any, test: Any, settings: Any, seed: int, folder: pathlib.Path | None = None
) -> dict[str, float]:
    """Percent of the test set afterwards, and what it took."""
    clock = time.perf_counter()
    made = recovered(params, data, settings, seed, folder)
    found = {"seconds": time.perf_counter() - clock, "accuracy": resnet.accuracy(made, *test)}
    print(f"seed {seed}: {found['accuracy']:.2f}% in {found['seconds']:.0f} s", flush=True)
    return found


def measured(
    settings: Any, params: Any, data: Any, folder: pathlib.Path, seeds: list[int] | None = None
) -> dict[str, Any]:
    """Every figure; what is done stands in `folder`."""
    (x, y), n = data["train"], settings["train_images"]
    images = resnet.normalised(x[: settings["images"]])
    labels = y[: settings["images"]]
    thin = resnet56.shrunk(settings["arm"], params, images, labels, settings)
    begun = resnet56.fitted(thin, params, images, settings).params
    seen = shown(folder / "teacher", params, x[:n], y[:n], settings)

    def right(p):
        return resnet.accuracy(p, *data["test"])

    def one(seed):
        return run(begun, seen, data["test"], settings, seed, folder / str(seed))

    runs = [
        remembered(folder / f"{seed}.json", "run", partial(one, seed))
        for seed in seeds or settings["seeds"]
    ]
    found = {name: getattr(thin.report, name) for name in ("flops", "params", "bytes")}
    found["dense"] = remembered(folder / "before.json", "dense", partial(right, params))
    found["before"] = remembered(folder / "before.json", "before", partial(right, begun))
    return found | {"after": summary([one["accuracy"] for one in runs]), "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--folder",
        type=pathlib.Path,
        help="of the cache and of finished runs: the next call goes on",
    )
    parser.add_argument("--seed", type=int, help="one run only, for `folder`")
    args = parser.parse_args()
    home = pathlib.Path(os.environ["JAXPRUNE_DATA"])
    folder = args.folder or pathlib.Path(tempfile.mkdtemp())
    seeds = None if args.seed is None else [args.seed]
    found = measured(SETTINGS, resnet.load(home / "resnet56.npz"), cifar(home), folder, seeds)
    if seeds is not None:
        return
    path = save("resnet56_recovery", SETTINGS, found, "structured")
    before, after = found["flops"]
    rows = [
        ("dense", f"{found['dense']:.2f}", ""),
        (
            f"{before / after:.2f} times fewer FLOPs, weights fitted",
            f"{found['before']:.2f}",
            ">= 70",
        ),
        ("after three epochs", plus_minus(found["after"], 2), ">= 92.0"),
    ]
    show("ResNet-56: percent of CIFAR-10's test set", ["what", "measured", "goal"], rows)
    print(path)


if __name__ == "__main__":
    main()
