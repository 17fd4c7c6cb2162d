"""ResNet-56 on CIFAR-10 with 2.1 times fewer operations, cut as in `resnet56`, and then trained for an epoch.

The network of the arm `fisher inside`, its weights fitted, learns from the whole network: soft targets (Hinton et al.
2015, arXiv:1503.02531) at T = 4 with a weight of 0.9, and a tenth of labels. The teacher runs once over one crop and
flip of each image, and its logits lie in a cache. Batch norms use the batch's moments. Nesterov's momentum of 0.9; the
rate falls from 0.01 to 0 by a cosine. There was one setting, chosen by no trial. The streams are whole, so the smaller
params are those of a ResNet with other widths inside its blocks, and `resnet.training` takes them as they are.

JAXPRUNE_DATA=data python -m experiments.structured.resnet56_recovery [--folder FOLDER]
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
from experiments.distillation.recovery_task import augmented, cifar, network, terms
from experiments.structured import resnet56

HERE = pathlib.Path(__file__).parent
SETTINGS: dict[str, Any] = {
    **resnet56.SETTINGS,
    "seeds": [0, 1],
    "train_images": 45_000,
    "augmentation": 7,
    "rate": 0.01,
    "temperature": 4.0,
    "soft": 0.9,
    "attention": 0.0,
}


@jax.tree_util.Partial
def told(batch: Any, key: Any) -> dict[str, Any]:
    """What came with the batch."""
    return {"output": batch["teacher"]} if "teacher" in batch else {}


def said(folder: pathlib.Path, teacher: Any, x: np.ndarray, settings: Any) -> np.ndarray:
    """The teacher's logits of the images, augmented; asked once, then read."""
    run, seed = jax.jit(resnet.apply), settings["augmentation"]
    say = lambda e: run(teacher, resnet.normalised(augmented(e["x"], e["index"], seed)))
    name = jp.distill.fingerprint(teacher, "logits of experiments.resnet, uint8 in")
    examples = {"x": x, "index": np.arange(len(x))}
    return jp.distill.write_cache(folder, say, examples, fingerprint=name, augmentation=seed, batch=250).whole(seed)


def recovered(params: Any, data: Any, settings: Any, seed: int) -> Any:
    """The params after an epoch."""
    start, moments = resnet.parted(params)
    batches = jp.distill.Shuffled(data, settings["batch"], seed=seed)
    sgd = optax.sgd(optax.cosine_decay_schedule(settings["rate"], batches.steps), 0.9, nesterov=True)
    soft = terms("kd", settings["soft"], settings)
    d = jp.distill.distiller(network(), soft, sgd, compare=False, labels=1 - settings["soft"])
    first = {k: a[: settings["batch"]] for k, a in batches.data.items()}
    given = jax.tree.map(jnp.copy, start)
    state = d.init(given, first, told, key=jax.random.key(seed), model_state=moments)
    state = jp.distill.fit(d, state, batches, told, steps=batches.steps).state
    return resnet.joined(state.params, state.model_state)


def run(params: Any, data: Any, test: Any, settings: Any, seed: int) -> dict[str, float]:
    """Percent of the test set after an epoch, and what it took."""
    clock = time.perf_counter()
    made = recovered(params, data, settings, seed)
    found = {"seconds": time.perf_counter() - clock, "accuracy": resnet.accuracy(made, *test)}
    print(f"seed {seed}: {found['accuracy']:.2f}% in {found['seconds']:.0f} s", flush=True)
    return found


def measured(settings: Any, params: Any, data: Any, folder: pathlib.Path) -> dict[str, Any]:
    """Every figure; what is done stands in `folder`."""
    (x, y), n = data["train"], settings["train_images"]
    images, labels = resnet.normalised(x[: settings["images"]]), y[: settings["images"]]
    thin = resnet56.shrunk("fisher inside", params, images, labels, settings)
    begun = resnet56.fitted(thin, params, images, settings).params
    teacher = said(folder / "teacher", params, x[:n], settings)
    seen = {"x": augmented(x[:n], np.arange(n), settings["augmentation"]), "y": y[:n], "teacher": teacher}
    right = lambda p: resnet.accuracy(p, *data["test"])
    path = folder / "runs.json"
    found = {name: getattr(thin.report, name) for name in ("flops", "params", "bytes")}
    found["dense"] = remembered(path, "dense", partial(right, params))
    found["before"] = remembered(path, "before", partial(right, begun))
    runs = [
        remembered(path, f"seed {seed}", partial(run, begun, seen, data["test"], settings, seed))
        for seed in settings["seeds"]
    ]
    return found | {"after": summary([one["accuracy"] for one in runs]), "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=pathlib.Path, help="of the cache and of finished runs: the next call goes on")
    folder, home = parser.parse_args().folder, pathlib.Path(os.environ["JAXPRUNE_DATA"])
    folder = folder or pathlib.Path(tempfile.mkdtemp())
    found = measured(SETTINGS, resnet.load(home / "resnet56.npz"), cifar(home), folder)
    path = save("resnet56_recovery", SETTINGS, found, HERE)
    before, after = found["flops"]
    rows = [
        ("dense", f"{found['dense']:.2f}", ""),
        (f"{before / after:.2f} times fewer FLOPs, weights fitted", f"{found['before']:.2f}", ">= 70"),
        ("after an epoch", plus_minus(found["after"], 2), ">= 92.0"),
    ]
    show("ResNet-56: percent of CIFAR-10's test set", ["what", "measured", "goal"], rows)
    print(path)


if __name__ == "__main__":
    main()
