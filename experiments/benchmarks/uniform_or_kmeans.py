"""A uniform step, k-means or integers a channel: accuracy of ResNet-20 on CIFAR-10 at equal
entropy-coded bytes.

JAXPRUNE_DATA=folder python -m experiments.benchmarks.uniform_or_kmeans [--out results.json]

The folder holds resnet20.npz and cifar10_test.npz. Nothing is trained after compressing. Bytes are
the order-0 entropy of each kernel's levels, and scales and codebooks as they are.
"""

import os
import pathlib
from typing import Any

import jax
import numpy as np

import jaxprune as jp
from experiments import resnet

from .common import at_least, report

IMAGES = 2000


def main() -> None:
    folder = pathlib.Path(os.environ["JAXPRUNE_DATA"])
    with np.load(folder / "cifar10_test.npz") as file:
        x = resnet.normalised(file["x"][:IMAGES])
        y = file["y"][:IMAGES]
    params = resnet.load(folder / "resnet20.npz")
    run = jax.jit(resnet.apply)

    def measured(tree: Any) -> dict[str, float]:
        dense = jp.materialize(tree)
        logits = np.concatenate([run(dense, x[i : i + 250]) for i in range(0, IMAGES, 250)])
        kernels = {name: p["kernel"] for name, p in tree.items() if "kernel" in p}
        return {
            "bytes": jp.measure.sizes(kernels).entropy,
            "accuracy": 100 * float(np.mean(np.argmax(logits, 1) == y)),
            "sqnr": jp.measure.sqnr(params, tree),
        }

    kernels = sum(p["kernel"].size for p in params.values() if "kernel" in p)
    others = {f"k-means {k}": jp.cluster(k) for k in (5, 8, 12, 24)}
    others |= {f"int{bits} a channel": jp.quantize(bits=bits) for bits in (3, 4, 5)}
    figures: dict[str, Any] = {"dense": measured(params) | {"sqnr": None}}
    rows = []
    for name, c in others.items():
        theirs = measured(c.init(params))
        budget = 8 * theirs["bytes"] / kernels * 0.998  # the scales are not levels
        ours = measured(jp.entropy_quantize(bits_per_weight=budget).init(params))
        figures[name] = {"theirs": theirs, "uniform": ours}
        rows.append(
            at_least(
                f"accuracy of a uniform step, less that of {name}",
                ours["accuracy"] - theirs["accuracy"],
                0,
            )
        )
    report("uniform_or_kmeans", "ResNet-20: a uniform step at equal coded bytes", rows, figures)


if __name__ == "__main__":
    main()
