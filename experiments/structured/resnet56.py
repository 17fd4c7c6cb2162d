"""ResNet-56 on CIFAR-10 with fewer operations and no gradient step.

Units are ranked by one number each and cut until a share of the operations is left (DepGraph, Fang
et al. 2023, arXiv:2301.12900). Two repairs, apart, from 1,024 training images and without their
labels: the moments of the batch norms taken anew; and the weights that are left fitted to what
their layers gave (He et al. 2017, arXiv:1707.06168).

    l2            √Σ w² over all weights of a unit; all groups
    l2 inside     the same, of the channels inside the blocks only: the residual streams stay whole
    fisher inside Σ ½ w² E[g²] over them, from the same images and their labels
    random inside the control

Nothing is chosen by the test set, which is looked at once for each figure.

JAXPRUNE_DATA=data python -m experiments.structured.resnet56 [--folder FOLDER]      data holds
resnet56.npz, too
"""

import argparse
import os
import pathlib
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from experiments import resnet
from experiments.distillation.common import remembered, save, show
from experiments.distillation.recovery_task import cifar

SETTINGS: dict[str, Any] = {
    "flops": 0.475,
    "images": 1024,
    "seeds": [0, 1, 2],
    "batch": 128,
    "ridge": 1e-3,
}
STREAMS = {r".*bn2/scale": 1.0}
"""Batch norms at the ends of the blocks: what is added to a residual stream."""
STAGES = ("cut", "settled", "fitted")


def with_statistics(params: Any, x: Any) -> tuple[Any, Any]:
    """Logits in train mode, and the moments that each batch norm saw, under its own name."""
    return resnet.training(params, resnet.parted(params)[1], x, momentum=1.0)


def kernels(tree: Any) -> Any:
    """The scores of kernels; None elsewhere."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, s: s if keys[-1].key == "kernel" else None, tree
    )


def scores(arm: str, params: Any, images: Any, labels: Any, settings: Any, seed: int) -> Any:
    """One number a weight of the kernels."""
    if arm.startswith("random"):
        return kernels(jp.scores.random(params, key=jax.random.key(seed)))
    if arm.startswith("l2"):
        return kernels(jp.scores.magnitude(params))

    def loss(p, x, y):
        return -jax.nn.log_softmax(resnet.apply(p, x))[jnp.arange(len(y)), y].mean()

    n = settings["batch"]
    return kernels(
        jp.scores.fisher(
            loss, params, [(images[i : i + n], labels[i : i + n]) for i in starts(images, n)]
        )
    )


def starts(x: Any, n: int) -> range:
    """Of whole batches."""
    return range(0, len(x) - n + 1, n)


def shrunk(arm: str, params: Any, images: Any, labels: Any, settings: Any, seed: int = 0) -> Any:
    """The network with a share of its operations left."""
    keep = STREAMS if arm.endswith("inside") else {}
    reduce = "l1" if arm.startswith("fisher") else "l2"
    how = {
        "score": scores(arm, params, images, labels, settings, seed),
        "reduce": reduce,
        "keep": keep,
    }
    return jp.shrink(resnet.apply, params, images[:2], flops=settings["flops"], **how)


def settled(thin: Any, images: Any) -> Any:
    """The smaller params, with moments of their own."""
    moments = thin.of(with_statistics, state=".*/(mean|var)")(thin.params, images)[1]
    return resnet.joined(thin.params, moments)


def fitted(thin: Any, params: Any, images: Any, settings: Any) -> jp.Reconstruction:
    """The smaller params, their weights fitted to the layers of the whole network."""
    n = settings["batch"]
    batches = [(images[i : i + n],) for i in starts(images, n)]
    alone = {"biases": False, "streams": False}  # `reconstruction` adds these
    return jp.reconstruct(
        resnet.apply, params, thin.plan, batches, ridge=settings["ridge"], **alone
    )


def cut(arm: str, params: Any, data: Any, settings: Any, seed: int) -> dict[str, Any]:
    """One network made smaller: costs, and its accuracy as it is and after either repair."""
    (images, labels), test = data
    seconds = {}
    clock = time.process_time()
    thin = shrunk(arm, params, images, labels, settings, seed)
    seconds["cut"] = time.process_time() - clock
    clock = time.process_time()
    made = {"cut": thin.params, "settled": settled(thin, images)}
    seconds["settled"] = time.process_time() - clock
    clock = time.process_time()
    made["fitted"] = fitted(thin, params, images, settings).params
    seconds["fitted"] = time.process_time() - clock
    found = {name: getattr(thin.report, name) for name in ("flops", "params", "bytes", "error")}
    right = {stage: resnet.accuracy(made[stage], *test, apply=thin.apply) for stage in STAGES}
    return found | {
        "accuracy": right,
        "cpu_s": seconds,
        "xla_flops": xla_flops(thin.apply, thin.params, images),
    }


def xla_flops(apply: Any, params: Any, images: Any) -> dict[str, float]:
    """What XLA counts, of one image: in the program, and in what it has compiled, where fusions add
    some twice.
    """
    lowered: Any = jax.jit(apply).lower(params, images[:1])
    stages = {"program": lowered, "compiled": lowered.compile()}
    return {name: float(stage.cost_analysis()["flops"]) for name, stage in stages.items()}


def measured(
    settings: Any, params: Any, data: Any, path: pathlib.Path | None = None
) -> dict[str, Any]:
    """Every figure; what is done stands in the file at `path`."""
    (x, y), test = data
    images = resnet.normalised(x[: settings["images"]])
    labels = y[: settings["images"]].astype(np.int32)
    found: dict[str, Any] = {
        "dense": remembered(path, "dense", lambda: resnet.accuracy(params, *test)),
        "dense_xla_flops": xla_flops(resnet.apply, params, images),
        "arms": [],
    }
    for arm in ("fisher inside", "l2 inside", "l2", "random inside"):
        for seed in settings["seeds"] if arm.startswith("random") else settings["seeds"][:1]:
            one = remembered(
                path,
                f"{arm} {seed}",
                partial(cut, arm, params, ((images, labels), test), settings, seed),
            )
            found["arms"].append({"arm": arm, "seed": seed} | one)
            print(f"{arm} seed {seed}: {one['accuracy']}", flush=True)
    return found


def plot(found: Any, path: pathlib.Path) -> None:
    """Percent right of each arm, as it is cut and after either repair; the random arm with its
    standard deviation.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.axhline(
        found["dense"], color="black", linestyle=":", label=f"whole network, {found['dense']:.2f}%"
    )
    names = list(dict.fromkeys(one["arm"] for one in found["arms"]))
    for i, arm in enumerate(names):
        runs = np.array(
            [[one["accuracy"][s] for s in STAGES] for one in found["arms"] if one["arm"] == arm]
        )
        spread = runs.std(0, ddof=1) if len(runs) > 1 else None
        at = np.arange(len(STAGES)) + 0.05 * (i - (len(names) - 1) / 2)
        label = f"{arm}, {len(runs)} seeds" if len(runs) > 1 else arm
        axes.errorbar(at, runs.mean(0), yerr=spread, marker="o", capsize=3, label=label)
    axes.set_xticks(
        range(len(STAGES)), ["cut", "batch norms' moments\nmeasured anew", "weights fitted"]
    )
    axes.set(xlabel="after", ylabel="CIFAR-10 test accuracy, percent", ylim=(0, 100))
    before, after = found["arms"][0]["flops"]
    axes.set_title(f"ResNet-56 with {before / after:.2f} times fewer operations, no gradient step")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--folder", type=pathlib.Path, help="of what is done: the next call goes on"
    )
    folder = parser.parse_args().folder
    home = pathlib.Path(os.environ["JAXPRUNE_DATA"])
    data = cifar(home)
    params = resnet.load(home / "resnet56.npz")
    found = measured(
        SETTINGS, params, (data["train"], data["test"]), folder and folder / "cut.json"
    )
    path = save("resnet56", SETTINGS, found, "structured")
    plot(found, path.with_name("accuracy.png"))

    def xla(one, when):
        return found["dense_xla_flops"][when] / one["xla_flops"][when]

    def fewer(one):
        return [one["flops"][0] / one["flops"][1], xla(one, "program"), xla(one, "compiled")]

    rows = [
        (
            f"{one['arm']}, seed {one['seed']}",
            *(f"{x:.3f}" for x in fewer(one)),
            *(f"{one['accuracy'][stage]:.2f}" for stage in STAGES),
        )
        for one in found["arms"]
    ]
    columns = [
        "units",
        "fewer FLOPs",
        "by XLA",
        "compiled",
        "cut",
        "moments anew",
        "weights fitted",
    ]
    show(
        f"ResNet-56, no gradient step: percent of CIFAR-10's test set; dense {found['dense']:.2f}",
        columns,
        rows,
    )
    print(path)


if __name__ == "__main__":
    main()
