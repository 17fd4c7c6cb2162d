"""What the distillation experiments share: students over seeds, errors on a split, and a
results.json.
"""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxprune as jp
from experiments.benchmarks.common import machine
from experiments.results import save_results
from jaxprune.app.experiments.training import logits_of

HERE = pathlib.Path(__file__).parent


@jax.tree_util.Partial
def nobody(batch: Any, key: Any) -> dict[str, Any]:
    """A teacher that says nothing."""
    return {}


def logits(apply: Any, params: Any, x: Any) -> np.ndarray:
    """The outputs for all examples, on the host."""
    return np.asarray(logits_of(apply, params, x))


def wrong(z: np.ndarray, y: np.ndarray) -> int:
    """How many best classes are not the label."""
    return int(np.sum(z.argmax(-1) != y))


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (n − 1) and all values."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": std, "values": [float(x) for x in values]}


def paired(better: Sequence[float], worse: Sequence[float]) -> dict[str, Any]:
    """The mean of the differences worse − better, seed by seed, and its 95% interval by Student's
    t.
    """
    difference = np.subtract(worse, better)
    n = len(difference)
    t = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}.get(n, 1.96)
    half = t * float(np.std(difference, ddof=1)) / np.sqrt(n) if n > 1 else float("nan")
    mean = float(np.mean(difference))
    return {"mean": mean, "interval": [mean - half, mean + half], "values": difference.tolist()}


def save(
    name: str, about: Mapping[str, Any], results: Mapping[str, Any], group: str = "distillation"
) -> pathlib.Path:
    """Writes runs/GROUP/NAME/results.json."""
    versions = {"jaxprune": jp.__version__, "machine": machine()}
    return save_results(group, name, {**versions, "settings": about, "results": results})


def remembered(path: pathlib.Path | None, name: str, make: Callable[[], Any]) -> Any:
    """make(), or what it gave in an earlier run that was killed: a JSON object by name; no path:
    make().
    """
    known = json.loads(path.read_text()) if path is not None and path.exists() else {}
    if name not in known:
        known[name] = make()
        if path is not None:
            path.write_text(json.dumps(known))
    return known[name]


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on stdout."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=100).print(table)


def plus_minus(found: Mapping[str, Any], digits: int = 1) -> str:
    """mean ± std."""
    return f"{found['mean']:.{digits}f} ± {found['std']:.{digits}f}"
