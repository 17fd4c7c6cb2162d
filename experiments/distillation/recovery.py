"""How well an epoch repairs a compressed ResNet-20 on CIFAR-10: from labels, a teacher's logits,
its attention too.

The network (He et al. 2016, arXiv:1512.03385) is damaged in two ways, apart: nine of ten weights of
all kernels go, by one threshold (`prune`), or all kernels get 3 bits a channel (`quantize`, trained
straight through). `random` is the control of the first: as many zeros at random. Three arms of as
many steps each, on the same images in the same order:
    labels   alone
    kd       soft targets (Hinton et al. 2015) of ResNet-56 at T = 4, and a tenth of labels if that
             is better
    at_kd    as kd, and the three stages' maps of attention (Zagoruyko & Komodakis 2017,
             arXiv:1612.03928)

The teacher runs once, over one crop and flip of every image; its logits and maps lie in a cache.
The maps are the root of the channels' mean square, one channel, of which `attention_transfer` gives
what it gives of the whole activations. Batch norms use the batch's moments while training. Rates,
and the share of the labels in kd, are chosen on training images that are not among the 20,000, with
fewer steps and a seed that is not reported; both networks saw them when they were trained, so that
the accuracies there say nothing by themselves. The weights of attention are RepDistiller's. The
sizes are what one core does in an hour and a half: a step of 128 images takes a second.

JAXPRUNE_DATA=data python -m experiments.distillation.recovery [--folder FOLDER]      data holds
both resnet*.npz, too
"""

import argparse
import itertools
import os
import pathlib
import tempfile
import time
from functools import partial
from typing import Any

import numpy as np

import jaxprune as jp
from experiments import resnet
from experiments.distillation.common import paired, plus_minus, remembered, save, show, summary
from experiments.distillation.recovery_task import (
    ARMS,
    augmented,
    cached,
    cifar,
    compression,
    costs,
    recovered,
    renormed,
)

SETTINGS: dict[str, Any] = {
    "seeds": [0, 1, 2],
    "control_seeds": [0],
    "tuning_seed": 9,
    "images": 20_000,
    "tuning_images": 4_000,
    "validation_images": 2_500,
    "augmentation": 7,
    "batch": 128,
    "rates": {"prune": [0.01, 0.03, 0.1], "quantize": [0.001, 0.003, 0.01, 0.03, 0.1]},
    "temperature": 4.0,
    "soft": [0.9, 1.0],
    "attention": 3000.0,
    "sparsity": 0.9,
    "bits": 3,
}
KINDS = ("prune", "quantize")


class Bench:
    """The data, the networks, and what was measured before."""

    def __init__(self, settings: Any, data: Any, dense: Any, teacher: Any, folder: pathlib.Path):
        (x, y), n, m = data["train"], settings["images"], settings["validation_images"]
        self.settings = settings
        self.dense = dense
        self.path = folder / "runs.json"
        soft = cached(folder / "teacher", teacher, x, settings["augmentation"], n)
        self.seen = {
            "x": augmented(x[:n], np.arange(n), settings["augmentation"]),
            "y": y[:n],
            "teacher": soft,
        }
        self.validation = (x[n : n + m], y[n : n + m])
        self.test = data["test"]

    def accuracy(self, name: str, params: Any, pair: Any = None) -> float:
        """Percent of the test set, or of another pair, by a function of no arguments."""
        return remembered(self.path, name, lambda: resnet.accuracy(params(), *(pair or self.test)))

    def tuning(self, kind: str, arm: str, soft: float, rate: float) -> float:
        """Percent of the validation split after the short run."""
        few = {k: a[: self.settings["tuning_images"]] for k, a in self.seen.items()}
        seed = self.settings["tuning_seed"]

        def make():
            return recovered(self.dense, kind, arm, soft, rate, few, self.settings, seed)

        right = self.accuracy(f"tuning {kind} {arm} {soft} {rate}", make, self.validation)
        print(
            f"{kind} {arm} soft {soft} rate {rate}: {right:.2f}% of the validation split",
            flush=True,
        )
        return right

    def run(self, kind: str, arm: str, soft: float, rate: float, seed: int) -> dict[str, Any]:
        """Percent of the test set, and the costs."""

        def make() -> dict[str, Any]:
            clock = time.perf_counter()
            params = recovered(self.dense, kind, arm, soft, rate, self.seen, self.settings, seed)
            right = resnet.accuracy(params, *self.test)
            seconds = time.perf_counter() - clock
            return {"accuracy": right, "seconds": seconds, **costs(params, kind, self.settings)}

        found = remembered(self.path, f"{kind} {arm} {soft} {rate} {seed}", make)
        print(
            f"{kind} {arm} seed {seed}: {found['accuracy']:.2f}% in {found['seconds']:.0f} s",
            flush=True,
        )
        return found


def tuned(bench: Bench, kind: str) -> dict[str, Any]:
    """The share of soft targets that does best at the middle rate, and for each arm the best
    rate.
    """
    rates = bench.settings["rates"][kind]
    shares = {
        soft: bench.tuning(kind, "kd", soft, rates[len(rates) // 2])
        for soft in bench.settings["soft"]
    }
    soft = max(shares, key=lambda s: shares[s])
    tried = {arm: {rate: bench.tuning(kind, arm, soft, rate) for rate in rates} for arm in ARMS}
    best = {arm: max(tried[arm], key=lambda r: tried[arm][r]) for arm in ARMS}
    return {"soft": soft, "rates": best, "validation_by_soft": shares, "validation_by_rate": tried}


def measured(
    settings: Any, data: Any, dense: Any, teacher: Any, folder: pathlib.Path
) -> dict[str, Any]:
    """Every figure."""
    bench = Bench(settings, data, dense, teacher, folder)
    found: dict[str, Any] = {"dense_costs": costs(dense, "none", settings)}
    for name, params in (("dense", dense), ("teacher", teacher)):
        found[name] = bench.accuracy(name, partial(lambda p: p, params))
    small = bench.seen["x"][: settings["tuning_images"]]

    def untrained(kind):
        return jp.materialize(compression(kind, settings).init(dense))

    for kind in (*KINDS, "random"):
        found[kind] = {"before": bench.accuracy(f"before {kind}", partial(untrained, kind))}
        found[kind]["moments"] = bench.accuracy(
            f"moments {kind}", partial(renormed, dense, kind, small, settings)
        )
    choice = {kind: tuned(bench, kind) for kind in KINDS}
    runs: dict[tuple[str, str], list[Any]] = {}
    for arm, seed, kind in itertools.product(ARMS, settings["seeds"], KINDS):
        one = bench.run(kind, arm, choice[kind]["soft"], choice[kind]["rates"][arm], seed)
        runs.setdefault((kind, arm), []).append(one)
    like = choice["prune"]

    def control(seed):
        return bench.run("random", "kd", like["soft"], like["rates"]["kd"], seed)

    runs["random", "kd"] = [control(seed) for seed in settings["control_seeds"]]
    for (kind, arm), many in runs.items():
        found[kind][arm] = summary([one["accuracy"] for one in many]) | {"runs": many}
    for kind in KINDS:
        values = {arm: found[kind][arm]["values"] for arm in ARMS}
        # In percent right: what an arm has more than labels.
        found[kind]["gain"] = {arm: paired(values["labels"], values[arm]) for arm in ARMS[1:]}
        found[kind]["tuning"] = choice[kind]
    return found | {"runs_s": sum(one["seconds"] for many in runs.values() for one in many)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--folder",
        type=pathlib.Path,
        help="of the cache and of finished runs: the next call goes on",
    )
    folder = parser.parse_args().folder or pathlib.Path(tempfile.mkdtemp())
    home = pathlib.Path(os.environ["JAXPRUNE_DATA"])
    dense, teacher = (resnet.load(home / f"resnet{depth}.npz") for depth in (20, 56))
    found = measured(SETTINGS, cifar(home), dense, teacher, folder)
    path = save("recovery", SETTINGS, found)
    rows = [(name, f"{found[name]:.2f}", "") for name in ("dense", "teacher")]
    for kind in (*KINDS, "random"):
        rows.append((f"{kind}: before", f"{found[kind]['before']:.2f}", ""))
        rows.append((f"{kind}: own moments", f"{found[kind]['moments']:.2f}", ""))
        rows += [
            (f"{kind}: {arm}", plus_minus(found[kind][arm], 2), "")
            for arm in ARMS
            if arm in found[kind]
        ]
        for arm, gain in found[kind].get("gain", {}).items():
            low, high = gain["interval"]
            rows.append(
                (
                    f"{kind}: {arm} over labels",
                    f"{gain['mean']:+.2f} ({low:+.2f} to {high:+.2f})",
                    "> 0",
                )
            )
    show(
        "An epoch of 20,000 images: percent of CIFAR-10's test set",
        ["what", "measured", "goal"],
        rows,
    )
    print(path)


if __name__ == "__main__":
    main()
