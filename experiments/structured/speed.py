"""ResNet-56 on CIFAR-10, faster on this CPU: what a budget of time is worth beside one of
operations.

All channels may go, those of the residual streams too (of the channels inside the blocks alone a
multiple of 8 each leaves 62% of the time): by Fisher information, as in `resnet56`. The weights
that are left are fitted, as there; no gradient step. Ways to choose how many channels are left
where, and which blocks:

    operations             flops=, any width
    device widths          flops=, round_to="device": widths and an order that save time here
    device widths, blocks  the same, depth=True: blocks may go whole, by how little they change the
    stream
    time                   latency=
    time, blocks           latency=, depth=True

Then each network and the whole one run in turns, on a batch of 128: wall time and CPU time, medians
over the rounds of the ratio within a round. Plans are made by CPU time, which sees less of what
else runs on a machine than wall time does. Nothing is chosen by the test set, which is looked at
once for each network.

JAXPRUNE_DATA=data GLIBC_TUNABLES=glibc.malloc.hugetlb=1 taskset -c 0 python -m
experiments.structured.speed
    [--folder FOLDER]           data holds resnet56.npz, too; one core, which nothing else should
                                use
"""

import argparse
import os
import pathlib
import tempfile
import time
from functools import cache, partial
from typing import Any

import jax
import numpy as np

import jaxprune as jp
from experiments import resnet
from experiments.benchmarks.common import race, ratio
from experiments.distillation.common import remembered, save, show
from experiments.distillation.recovery_task import cifar
from experiments.structured import resnet56
from jaxprune.structure.time.timings import race as timed

SETTINGS: dict[str, Any] = {
    **{k: resnet56.SETTINGS[k] for k in ("images", "batch", "ridge")},
    "flops": [0.6, 0.4],
    "latency": [0.7, 0.6, 0.5],
    "rounds": 15,
}
WIDTHS = {"normalize": "none"}
"""Fisher information of units is what their loss costs, and is compared as it is."""
BLOCKS = {"depth": True}
"""What a block changes is on a scale of its own: shares of the whole are compared."""
ARMS: dict[str, dict[str, Any]] = {
    "operations": {"budget": "flops", "round_to": 1, **WIDTHS},
    "device widths": {"budget": "flops", "round_to": "device", **WIDTHS},
    "device widths, blocks": {"budget": "flops", "round_to": "device", **BLOCKS},
    "time": {"budget": "latency", "round_to": "device", **WIDTHS},
    "time, blocks": {"budget": "latency", "round_to": "device", **BLOCKS},
}


def table(folder: pathlib.Path) -> jp.Timings:
    """What was measured by now, by CPU time."""
    path = folder / "timings.json"
    known = jp.Timings.load(path) if path.exists() else jp.Timings()
    return known._replace(clock=partial(timed, now=time.process_time))


def planned(
    arm: str, value: float, params: Any, images: Any, score: Any, folder: pathlib.Path, s: Any
) -> Any:
    """Costs of one network made smaller; its plan and the table go to the folder."""
    how = dict(ARMS[arm])
    clock = time.process_time()
    given = {how.pop("budget"): value, **how}
    given |= {"timings": table(folder)} if how["round_to"] == "device" else {}
    thin = jp.shrink(
        resnet.apply, params, images[: s["batch"]], score=score(), reduce="l1", **given
    )
    thin.plan.save(folder / f"{arm} {value}.json")
    found = {
        "cpu_s": time.process_time() - clock,
        "flops": thin.report.flops,
        "error": thin.report.error,
    }
    widths = {name.split("/")[0]: n for name, n in ((g.name, n) for g, n in thin.report.groups)}
    if (pace := thin.report.pace) is not None:
        pace.timings.save(folder / "timings.json")
        found |= {
            "predicted": pace.predicted,
            "measured": pace.measured,
            "entries": len(pace.timings.seconds),
        }
    print(f"{arm} {value}: {found}", flush=True)
    return found | {
        "widths": widths,
        "blocks": [leaves[0].split("/")[0] for leaves in thin.plan.blocks],
    }


def thinned(arm: str, value: float, params: Any, images: Any, folder: pathlib.Path) -> Any:
    """The network of a plan that was made."""
    return jp.shrink(
        resnet.apply, params, images[:2], plan=jp.Plan.load(folder / f"{arm} {value}.json")
    )


def right(
    arm: str, value: float, params: Any, images: Any, test: Any, folder: pathlib.Path, s: Any
) -> float:
    """Percent of the test set, with the weights fitted."""
    thin = thinned(arm, value, params, images, folder)
    found = resnet.accuracy(
        resnet56.fitted(thin, params, images, s).params, *test, apply=thin.apply
    )
    print(f"{arm} {value}: {found:.2f}%", flush=True)
    return found


def raced(arm: str, value: float, params: Any, images: Any, folder: pathlib.Path, s: Any) -> Any:
    """Times of one network and the whole one, in turns: as one network alone has a process, for
    what others leave of the memory moves times of a call (in one race of all of them some took 170
    or 240 ms by turns).
    """
    x = images[: s["batch"]]
    thin = thinned(arm, value, params, images, folder)
    small = partial(jax.jit(thin.apply), thin.params, x)
    found = race({"dense": partial(jax.jit(resnet.apply), params, x), "small": small}, s["rounds"])
    print(
        f"{arm} {value}: {ratio(found, 'dense', 'small', 'wall_ms'):.2f} times faster", flush=True
    )
    return found | {"load": os.getloadavg()}


def measured(s: Any, params: Any, data: Any, folder: pathlib.Path) -> dict[str, Any]:
    """Every figure; what is done stands in the folder."""
    (x, y), test = data
    images = resnet.normalised(x[: s["images"]])
    labels = y[: s["images"]].astype(np.int32)
    score = cache(lambda: resnet56.scores("fisher", params, images, labels, s, 0))
    arms = [(arm, value) for arm, how in reversed(ARMS.items()) for value in s[how["budget"]]]
    known = partial(remembered, folder / "done.json")
    plans = [
        known(f"plan {a} {v}", partial(planned, a, v, params, images, score, folder, s))
        for a, v in arms
    ]
    races = [
        known(f"race {a} {v}", partial(raced, a, v, params, images, folder, s)) for a, v in arms
    ]
    found: dict[str, Any] = {
        "dense": known("dense", lambda: resnet.accuracy(params, *test)),
        "arms": [],
    }
    for (arm, value), plan, times in zip(arms, plans, races):
        faster = {c: ratio(times, "dense", "small", f"{c}_ms") for c in ("wall", "cpu")}
        accuracy = known(
            f"right {arm} {value}", partial(right, arm, value, params, images, test, folder, s)
        )
        fewer = plan["flops"][0] / plan["flops"][1]
        one = {
            "arm": arm,
            "value": value,
            "fewer": fewer,
            "faster": faster,
            "accuracy": accuracy,
            "race": times,
        }
        found["arms"].append(one | plan)
    return found


def plot(found: Any, path: pathlib.Path, clock: str = "wall") -> None:
    """Accuracy against how many times faster: a curve an arm."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for arm, mark in zip(ARMS, "os^Dv"):
        some = sorted(
            (one["faster"][clock], one["accuracy"]) for one in found["arms"] if one["arm"] == arm
        )
        axes.plot(
            [1.0, *(x for x, _ in some)],
            [found["dense"], *(y for _, y in some)],
            marker=mark,
            label=arm,
        )
    axes.set_xlabel(f"times faster than the whole network ({clock} time, batch of 128)")
    axes.set_ylabel("CIFAR-10 test accuracy, %")
    axes.set_title("ResNet-56, weights fitted, no gradient step", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(title="budget of")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--folder", type=pathlib.Path, help="of what is done: the next call goes on"
    )
    folder = parser.parse_args().folder
    home = pathlib.Path(os.environ["JAXPRUNE_DATA"])
    folder = folder or pathlib.Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    data = cifar(home)
    found = measured(
        SETTINGS, resnet.load(home / "resnet56.npz"), (data["train"], data["test"]), folder
    )
    path = save("speed", SETTINGS, found, "structured")
    plot(found, path.with_name("speed.png"))

    def numbers(one):
        return (one["fewer"], one["faster"]["wall"], one["faster"]["cpu"], one["accuracy"])

    rows = [
        (one["arm"], one["value"], *(f"{x:.2f}" for x in numbers(one))) for one in found["arms"]
    ]
    columns = ["budget of", "share", "fewer FLOPs", "faster, wall", "faster, CPU", "accuracy"]
    show(f"ResNet-56, batch of 128; dense {found['dense']:.2f}%", columns, rows)
    print(path)


if __name__ == "__main__":
    main()
