"""What the small experiments measure: losses, operations, bytes and times; results.json and a
plot.
"""

import argparse
import json
import pathlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax
import jax
import numpy as np
import optax

import jaxprune as jp
from experiments.benchmarks.common import machine, race, ratio
from experiments.distillation.common import summary
from experiments.results import save_results
from experiments.structured.training import Apply, said


def judged(
    apply: Apply, params: Any, splits: Mapping[str, tuple[Any, Any]], batch: int = 250
) -> dict[str, Any]:
    """The loss in nats and the percentage of wrong best classes, of each split."""
    found = {}
    for name, (x, y) in splits.items():
        z = said(apply, params, x, batch)
        z = z - z.max(-1, keepdims=True)
        loss = np.log(np.exp(z).sum(-1)) - np.take_along_axis(z, y[..., None], -1)[..., 0]
        found[name] = {
            "loss": float(loss.mean()),
            "error": 100 * float(np.mean(np.argmax(z, -1) != y)),
        }
    return found


def costs(apply: Apply, params: Any, x: Any) -> dict[str, float]:
    """Of one example: operations by the jaxpr and by XLA; numbers and bytes of the params."""
    compiled: Any = jax.jit(apply).lower(params, x[:1]).compile().cost_analysis()
    leaves = jax.tree.leaves(params)
    return {
        "flops": jp.flops(apply, params, x[:1]),
        "xla_flops": float(compiled["flops"]),
        "params": sum(a.size for a in leaves),
        "bytes": sum(a.nbytes for a in leaves),
    }


def faster(
    dense: tuple[Apply, Any], small: tuple[Apply, Any], x: Any, rounds: int = 15
) -> dict[str, float]:
    """Forward passes that take turns: medians, and the median of the ratio within a round."""

    def run(apply, params):
        return partial(jax.jit(apply), params, x)

    times = race({"dense": run(*dense), "small": run(*small)}, rounds)
    found = {f"{name}_ms": times[name]["wall_ms"]["median"] for name in times}
    return found | {"times_faster": ratio(times, "dense", "small", "wall_ms")}


def averaged(runs: Sequence[Any]) -> Any:
    """Trees of numbers, a seed each, as one of means, standard deviations and all values."""
    return jax.tree.map(lambda *values: summary(values), *runs)


def save(name: str, settings: Any, results: Any) -> pathlib.Path:
    """Writes runs/structured/NAME/results.json."""
    versions = {
        "jaxprune": jp.__version__,
        "optax": optax.__version__,
        "flax": flax.__version__,
        "machine": machine(),
    }
    return save_results("structured", name, {**versions, "settings": settings, "results": results})


def asked(
    doc: str | None, name: str, settings: Mapping[str, Any]
) -> tuple[str, dict[str, Any], pathlib.Path | None]:
    """The command line: where results go (below results/), the settings, and the file of finished
    runs.
    """
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument(
        "--resume", type=pathlib.Path, help="a file for finished runs, taken over on the next start"
    )
    parser.add_argument("--name", default=name, help="the folder below results")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=JSON", help="another value of a setting"
    )
    args = parser.parse_args()
    given = {key: json.loads(text) for key, _, text in (pair.partition("=") for pair in args.set)}
    if odd := set(given) - set(settings):
        parser.error(f"no setting is called {sorted(odd)}; there are {sorted(settings)}")
    return args.name, {**settings, **given}, args.resume


Points = Mapping[str, Sequence[tuple[float, float, float]]]


def draw(path: pathlib.Path, panels: Mapping[str, Points], ylabel: str) -> None:
    """Against the share of operations that is left: for each label points (share, mean, std)."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 5 * len(panels), 4), layout="constrained")
    labels = list(dict.fromkeys(label for points in panels.values() for label in points))
    colours = dict(zip(labels, colormaps["tab10"].colors * 2))
    for k, (title, points) in enumerate(panels.items(), 1):
        axis = figure.add_subplot(1, len(panels), k)
        for i, (label, found) in enumerate(points.items()):
            x, mean, std = map(np.array, zip(*found))
            aside = 1.02 ** (i - len(points) / 2)  # points of equal shares beside one another
            axis.errorbar(
                x * aside,
                mean,
                std,
                fmt="o-",
                ms=4,
                lw=1,
                capsize=3,
                color=colours[label],
                label=label,
            )
        axis.set(
            title=title,
            xscale="log",
            xlabel="share of the dense network's operations",
            ylabel=ylabel,
        )
        ticks = sorted({round(x, 2) for found in points.values() for x, *_ in found})
        axis.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axis.set_xticks([], minor=True)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", fontsize=8, frameon=False)
    FigureCanvasAgg(figure).print_png(path)
