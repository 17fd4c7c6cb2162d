"""ResNet-56 on CIFAR-10 with fewer operations and no gradient step (DepGraph, Fang et al. 2023, arXiv:2301.12900).

Units are ranked by one number each and cut until a share of the operations is left. Then the means and variances of the
batch norms are taken anew from 1,024 training images, on the small network. No label is used but by `fisher`, and no
test image but for the accuracy, once an arm.

    l2          √Σ w² over all weights of a unit
    fisher      Σ ½ w² E[g²] over them, from 1,024 training images
    random      the control

python -m experiments.structured.resnet56
"""

import json
import os
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from experiments import resnet
from experiments.benchmarks.common import machine

OUT = pathlib.Path(__file__).parent / "results" / "resnet56"
SETTINGS: dict[str, Any] = {"flops": [0.475], "images": 1024, "seeds": [0, 1, 2], "batch": 128}


def with_statistics(params: Any, x: Any) -> tuple[Any, Any]:
    """Logits in train mode, and the moments that each batch norm saw, under its own name."""
    return resnet.training(params, resnet.parted(params)[1], x, momentum=1.0)


def scores(arm: str, params: Any, images: Any, labels: Any, settings: Any, seed: int) -> Any:
    """One number a weight of the kernels, None elsewhere."""
    kernels = lambda tree: jax.tree_util.tree_map_with_path(
        lambda keys, s: s if keys[-1].key == "kernel" else None, tree
    )
    if arm == "random":
        return kernels(jp.scores.random(params, key=jax.random.key(seed)))
    if arm == "l2":
        return kernels(jp.scores.magnitude(params))
    loss = lambda p, x, y: -jax.nn.log_softmax(resnet.apply(p, x))[jnp.arange(len(y)), y].mean()
    n = settings["batch"]
    batches = [(images[i : i + n], labels[i : i + n]) for i in range(0, len(images), n)]
    return kernels(jp.scores.fisher(loss, params, batches))


def cut(arm: str, share: float, params: Any, data: Any, settings: Any, seed: int) -> dict[str, Any]:
    """One network made smaller, its accuracy as it is, and with statistics taken anew."""
    (images, labels), test = data
    clock = time.process_time()
    score, reduce = scores(arm, params, images, labels, settings, seed), "l2" if arm == "l2" else "l1"
    thin = jp.shrink(resnet.apply, params, images[:2], flops=share, score=score, reduce=reduce)
    took = time.process_time() - clock
    found = {"cut_cpu_s": took, "flops": thin.report.flops, "params": thin.report.params, "error": thin.report.error}
    found["accuracy"] = resnet.accuracy(thin.params, *test, apply=thin.apply)
    settled = resnet.joined(thin.params, thin.of(with_statistics, state=".*/(mean|var)")(thin.params, images)[1])
    return found | {
        "accuracy_settled": resnet.accuracy(settled, *test, apply=thin.apply),
        "xla": xla_flops(thin, images),
    }


def xla_flops(thin: Any, images: Any) -> float:
    """What XLA counts in the compiled program, of one image."""
    return float(jax.jit(thin.apply).lower(thin.params, images[:1]).compile().cost_analysis()["flops"])


def measured(settings: Any, params: Any, data: Any, save: Any = lambda found: None) -> dict[str, Any]:
    """Every figure; `save` is given what there is after each arm."""
    (x, y), test = data
    images, labels = resnet.normalised(x[: settings["images"]]), y[: settings["images"]].astype(np.int32)
    dense = float(jax.jit(resnet.apply).lower(params, images[:1]).compile().cost_analysis()["flops"])
    found: dict[str, Any] = {"dense": {"accuracy": resnet.accuracy(params, *test), "xla": dense}, "arms": []}
    for share in settings["flops"]:
        for arm in ("l2", "fisher", "random"):
            for seed in settings["seeds"] if arm == "random" else settings["seeds"][:1]:
                one = cut(arm, share, params, ((images, labels), test), settings, seed)
                found["arms"].append({"arm": arm, "share": share, "seed": seed} | one)
                print(
                    f"{arm:>7} {share} seed {seed}: {one['accuracy']:.2f}%, settled {one['accuracy_settled']:.2f}%",
                    flush=True,
                )
                save(found)
    return found


def main() -> None:
    folder = pathlib.Path(os.environ.get("JAXPRUNE_DATA", "."))
    with np.load(folder / "cifar10_train.npz") as a, np.load(folder / "cifar10_test.npz") as b:
        data = (a["x"][: SETTINGS["images"]], a["y"][: SETTINGS["images"]]), (b["x"], b["y"])
    OUT.mkdir(parents=True, exist_ok=True)

    def save(found: Any) -> None:
        about = {"jaxprune": jp.__version__, "machine": machine(), "settings": SETTINGS}
        (OUT / "results.json").write_text(json.dumps(about | {"results": found}, indent=1) + "\n")

    measured(SETTINGS, resnet.load(folder / "resnet56.npz"), data, save)


if __name__ == "__main__":
    main()
