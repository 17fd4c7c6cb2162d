"""What a run leaves behind: results.json, its figures and where they came from. docs/results.md
lists every key.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

import jaxprune
from jaxprune.app.recipes.strict import one_line, read_text
from jaxprune.core.arrays import is_code, materialize
from jaxprune.core.trees.walk import slots
from jaxprune.report import measure
from jaxprune.storage.atomic import replacing

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
SCHEMA = 1
KEYS = (
    "name",
    "ratio",
    "accuracy",
    "bytes",
    "flops",
    "deep_compression",
    "std",
    "seeds",
)  # that the tables read
SIZES = ("dense", "nonzero", "stored", "entropy")


def sizes(tree: Any) -> dict[str, int]:
    """The four sizes of a tree in bytes."""
    found = measure.sizes(tree)
    return {name: int(getattr(found, name)) for name in SIZES}


def leaf_figures(tree: Any) -> list[dict[str, Any]]:
    """For each leaf of the user's tree: its type, weights, density, and bits a weight at fixed
    length.
    """
    return [_leaf(s.path, s.value) for s in slots(tree, is_code)]


def _leaf(path: str, code: Any) -> dict[str, Any]:
    w = np.asarray(materialize(code))
    return {
        "path": path,
        "type": type(code).__name__ if is_code(code) else "dense",
        "weights": w.size,
        "density": np.count_nonzero(w) / max(w.size, 1),
        "bits": int(jaxprune.nbits(code)) / max(w.size, 1),
    }


def density(tree: Any) -> float:
    """The fraction of weights that are not zero, over the leaves that are codes; 1 where there are
    none.
    """
    codes = [np.asarray(materialize(s.value)) for s in slots(tree, is_code) if is_code(s.value)]
    return sum(np.count_nonzero(w) for w in codes) / sum(w.size for w in codes) if codes else 1.0


def mean_and_std(values: Sequence[float]) -> dict[str, float]:
    """Mean and sample standard deviation over seeds (0 for one seed)."""
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
    }


def summarise(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """The top-level figures: means over seeds, and in `std` their standard deviations."""
    pick = {
        "ratio": lambda s: s["final"]["ratio"],
        "accuracy": {
            name: (lambda s, n=name: s[n]["test"]["accuracy"]) for name in ("dense", "final")
        },
        "bytes": {name: (lambda s, n=name: s["final"]["bytes"][n]) for name in SIZES},
        "flops": {name: (lambda s, n=name: s["flops"][n]) for name in ("dense", "final")},
    }
    if all(s["deep_compression"] for s in seeds):
        both = {name: (lambda s, n=name: s["deep_compression"][n]) for name in ("fixed", "huffman")}
        pick["deep_compression"] = both
    return (
        {"deep_compression": None} | _over(pick, seeds, "mean") | {"std": _over(pick, seeds, "std")}
    )


def _over(pick: Any, seeds: list[dict[str, Any]], which: str) -> Any:
    if isinstance(pick, dict):
        return {name: _over(inner, seeds, which) for name, inner in pick.items()}
    return mean_and_std([pick(s) for s in seeds])[which]


def environment() -> dict[str, Any]:
    """Versions, commit and machine."""
    versions = {"python": platform.python_version(), "jaxprune": jaxprune.__version__}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "versions": versions,
        "git": git_commit(),
        "cpu": cpu(),
        "device": jax.devices()[0].device_kind,
    }


def git_commit() -> str | None:
    """The commit of the working directory, "-dirty" when files differ from it; None outside a
    repository.
    """
    try:
        how: Any = {"capture_output": True, "text": True, "check": True, "timeout": 10}

        def run(*args):
            return subprocess.run(["git", *args], **how).stdout.strip()

        return run("rev-parse", "HEAD") + ("-dirty" if run("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def cpu() -> str:
    """The processor, as the system names it, and its cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return f"{names[0] if names else platform.processor() or platform.machine()} × {os.cpu_count()}"


def data_sha256(data: Any) -> str:
    """One hash of all splits: the reader can tell whether it is the same data."""
    digest = hashlib.sha256()
    for array in jax.tree.leaves(data):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is whole or not there."""
    text = json.dumps(value, indent=2) + "\n"
    write_whole(path, lambda file: file.write(text.encode("utf-8")))


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Calls write(file) on a new file, which takes the place of `path` once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        write(file)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      ValueError: it is broken, or something else.
    """
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(
            f"{path} is not whole JSON ({one_line(e)}). Delete it to run again"
        ) from None
    if not isinstance(value, dict):
        raise ValueError(
            f"{path} holds a JSON {type(value).__name__}, not an object. Delete it to run again"
        )
    return value


def read_results(path: Path) -> dict[str, Any]:
    """A results.json.

    Raises:
      ValueError: it is none, or one of another version.
    """
    results = read_json(path)
    schema = results.get("schema")
    if schema != SCHEMA:
        raise ValueError(
            f"{path} has the schema {schema!r}, and this version of jaxprune reads {SCHEMA}. "
            "Delete the folder to run again, or read it with the version that wrote it"
        )
    missing = [key for key in KEYS if key not in results]
    if missing or not results["seeds"]:
        raise ValueError(
            f"{path} lacks {', '.join(missing) or 'an entry in seeds'}. Delete it to run again"
        )
    return results
