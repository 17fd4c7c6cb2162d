"""What every benchmark needs: interleaved timing, the machine it ran on, a table of ratios and a
results.json.

Times on a shared machine wander; so the contestants take turns in one process, and what is printed
is the median over the rounds of the ratio within a round. CPU time is that of the process, all
threads together.
"""

import argparse
import datetime
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.results import run_file
from jaxprune.app.experiments.results import write_json


def timed(f: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of CPU and of wall time until the result of f() is there."""
    cpu = time.process_time()
    wall = time.perf_counter()
    jax.block_until_ready(f())
    return {
        "cpu_ms": 1e3 * (time.process_time() - cpu),
        "wall_ms": 1e3 * (time.perf_counter() - wall),
    }


def race(
    contestants: Mapping[str, Callable[[], Any]], rounds: int = 7
) -> dict[str, dict[str, Any]]:
    """Times of each contestant, in turns, after one warm-up: medians, and every round. Each starts
    as often.
    """
    for f in contestants.values():
        jax.block_until_ready(f())
    names = list(contestants)
    turns = [names[i % len(names) :] + names[: i % len(names)] for i in range(rounds)]
    runs = [{name: timed(contestants[name]) for name in turn} for turn in turns]
    return {
        name: {
            clock: {"median": float(np.median(times)), "rounds": times}
            for clock in ("cpu_ms", "wall_ms")
            for times in [[run[name][clock] for run in runs]]
        }
        for name in contestants
    }


def ratio(race: Mapping[str, Any], a: str, b: str, clock: str = "cpu_ms") -> float:
    """The median over the rounds of a's time over b's."""
    return float(np.median(np.divide(race[a][clock]["rounds"], race[b][clock]["rounds"])))


def machine() -> dict[str, Any]:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    names = [line.split(":")[1] for line in _cpuinfo() if line.startswith("model name")]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": f"python -m {spec.name}" if spec else " ".join(sys.argv),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "platform": jax.default_backend(),
        "cpu": names[0].strip() if names else platform.processor(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg(),
    }


def _cpuinfo() -> list[str]:
    path = pathlib.Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def report(
    name: str,
    title: str,
    rows: list[dict[str, Any]],
    figures: Mapping[str, Any],
    out: pathlib.Path | None = None,
) -> None:
    """Print rows of {what, measured, goal, met} and write runs/benchmarks/NAME/NAME.results.json,
    `out`, or --out.
    """
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--out", type=pathlib.Path, default=out)
    out = parser.parse_args().out or run_file("benchmarks", name, f"{name}.results.json")
    table = Table("what", "measured", "goal", "", title=title)
    for row in rows:
        table.add_row(
            row["what"],
            f"{row['measured']:.4g}",
            row["goal"],
            {True: "yes", False: "NO"}.get(row["met"], ""),
        )
    Console(width=100).print(table)
    write_json(out, {"machine": machine(), "rows": rows, "figures": figures})


def at_least(what: str, measured: float, goal: float) -> dict[str, Any]:
    return {
        "what": what,
        "measured": measured,
        "goal": f">= {goal:g}",
        "met": bool(measured >= goal),
    }


def at_most(what: str, measured: float, goal: float) -> dict[str, Any]:
    return {
        "what": what,
        "measured": measured,
        "goal": f"<= {goal:g}",
        "met": bool(measured <= goal),
    }


def shown(what: str, measured: float) -> dict[str, Any]:
    """A figure without a goal."""
    return {"what": what, "measured": measured, "goal": "", "met": None}
