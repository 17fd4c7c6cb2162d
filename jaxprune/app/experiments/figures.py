"""Plots of a run, as PNG: weights before and after, accuracy against size, each layer's density and
bits.
"""

from typing import Any, BinaryIO

import jax
import numpy as np

from jaxprune.app.experiments.results import mean_and_std
from jaxprune.core import where
from jaxprune.core.leaves.paths import flatten_with_path, leaf_path

INK = "#333333"
BEFORE = "#9aa5b1"
AFTER = "#1f6feb"


def weights(file: BinaryIO, dense: Any, final: Any) -> None:
    """Histograms of each weight leaf before and after; exact zeros are counted in the title, not
    drawn.
    """
    pairs = [(p, a, b) for (p, a), (_, b) in zip(_leaves(dense), _leaves(final), strict=True)]
    fig, axes = _grid(len(pairs))
    for ax, (name, before, after) in zip(axes, pairs):
        kept = after[after != 0]
        bins = np.linspace(*_range(before, kept), 81)
        ax.hist(before, bins, color=BEFORE, alpha=0.6, label="dense")
        ax.hist(kept, bins, color=AFTER, alpha=0.85, label="final, not 0")
        ax.set_yscale("log")
        ax.set_title(
            f"{name}: {before.size:,} weights, {1 - kept.size / before.size:.1%} zero",
            fontsize=9,
            color=INK,
        )
        ax.set_xlabel("weight")
    axes[0].set_ylabel("weights in a bin")
    axes[0].legend(
        fontsize=8, frameon=False, loc="upper right"
    )  # the search for the best place warns when it is slow
    _write(fig, file)


def accuracy(file: BinaryIO, results: dict[str, Any]) -> None:
    """Test accuracy against compression ratio after each phase; bars are one standard deviation
    over seeds.
    """
    from matplotlib import colormaps

    seeds = results["seeds"]
    fig, (ax,) = _grid(1, (7.4, 4.2))
    rows = [
        (p["name"], [s["phases"][i]["after"] for s in seeds])
        for i, p in enumerate(seeds[0]["phases"])
    ]
    rows.append(("the file", [s["final"] for s in seeds]))

    def of(f):
        return [mean_and_std([f(r) for r in found]) for _, found in rows]

    x = of(lambda r: r["ratio"])
    y = of(lambda r: 100 * r["test"]["accuracy"])
    ax.plot([m["mean"] for m in x], [m["mean"] for m in y], color=BEFORE, zorder=1)
    for k, (name, _) in enumerate(rows):
        bars = {"xerr": x[k]["std"], "yerr": y[k]["std"]} if len(seeds) > 1 else {}
        look = {
            "fmt": "o",
            "color": colormaps["viridis"](0.9 * k / max(1, len(rows) - 1)),
            "capsize": 3,
        }
        ax.errorbar(
            x[k]["mean"], y[k]["mean"], **bars, **look, label=f"{name}: {x[k]['mean']:.1f}x"
        )
    _ratios(ax)
    ax.set_ylabel("test accuracy, %")
    ax.set_title(
        f"{results['name']}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}",
        fontsize=10,
        color=INK,
    )
    ax.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _write(fig, file)


def _ratios(ax: Any) -> None:
    """A logarithmic axis whose ticks read 1, 2, 5, 10, …"""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    ax.set_xscale("log")
    ax.margins(x=0.1, y=0.25)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("dense bytes / stored bytes")


def layers(file: BinaryIO, results: dict[str, Any]) -> None:
    """Density and bits a weight of each compressed leaf, mean over seeds."""
    runs = [[x for x in s["final"]["leaves"] if x["type"] != "dense"] for s in results["seeds"]]
    names = [x["path"] for x in runs[0]] or ["(no leaf is compressed)"]
    fig, axes = _grid(2, (4.8, 0.9 + 0.45 * len(names)))
    columns = (("density", "weights kept, %", 100), ("bits", "bits a weight, fixed length", 1))
    for ax, (key, label, scale) in zip(axes, columns):
        found = [mean_and_std([scale * run[i][key] for run in runs]) for i in range(len(runs[0]))]
        found = found or [{"mean": 0.0, "std": 0.0}]
        mean, std = ([m[which] for m in found] for which in ("mean", "std"))
        spread = {"xerr": std, "ecolor": BEFORE, "capsize": 3} if len(runs) > 1 else {}
        bars = ax.barh(names, mean, color=AFTER, **spread)
        ax.bar_label(bars, fmt="%.3g", padding=4, fontsize=8)
        ax.set_xlabel(label)
        ax.invert_yaxis()
        ax.margins(x=0.18)
    axes[1].set_yticklabels([])
    _write(fig, file)


def _leaves(params: Any) -> list[tuple[str, np.ndarray]]:
    """The weight leaves, flat; all leaves where none counts as a weight."""
    flat = flatten_with_path(params)[0]
    found = [(leaf_path(k), np.asarray(x, np.float32).ravel()) for k, x in flat]
    flags = jax.tree.leaves(where.weights(params))
    return [x for x, flag in zip(found, flags, strict=True) if flag] or found


def _range(*arrays: np.ndarray) -> tuple[float, float]:
    low = min(a.min(initial=0.0) for a in arrays)
    high = max(a.max(initial=0.0) for a in arrays)
    return (low, high) if low < high else (low - 1, high + 1)


def _grid(n: int, size: tuple[float, float] = (4.2, 3.2)) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(n, 3)
    rows = -(-n // columns)
    fig = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    FigureCanvasAgg(fig)  # no pyplot: nothing global changes, and no display is asked for
    axes = np.atleast_1d(fig.subplots(rows, columns, squeeze=False).ravel())
    for ax in axes[n:]:
        ax.set_visible(False)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return fig, axes[:n]


def _write(fig: Any, file: BinaryIO) -> None:
    fig.savefig(file, dpi=120, format="png")
