"""The speed half of `coder`: files to float32 and back, of ResNet-56 and of one leaf of 100 million
weights.

Goals are for CPU time, which other work on the machine moves less than the clock; both are written
down. MB are of float32 weights. Memory is what a call adds to the process at most, beside what it
had.
"""

import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from jaxprune.coding import rans, rans_jax
from jaxprune.storage import reader

from .common import at_least, at_most, race

SIDE = 10_000
MB = 4 * SIDE**2 / 1e6
STEP = 1 / 7.8  # of normal weights: levels of 5.01 bits
ROUNDS = 5

Rows = list[dict[str, Any]]


def speed(kernels: Any) -> tuple[Rows, dict[str, Any]]:
    """Rows and figures."""
    with tempfile.TemporaryDirectory() as folder:
        small, figures = _resnet(kernels, pathlib.Path(folder))
        large, more = _large(pathlib.Path(folder, "large.jp"))
    return small + large, figures | more


def _resnet(kernels: Any, folder: pathlib.Path) -> tuple[Rows, dict[str, Any]]:
    rows = []
    figures = {}
    for sparsity in (0.0, 0.9):
        pruned = (
            jp.prune(sparsity, allocate=jp.allocate.global_).init(kernels) if sparsity else kernels
        )
        path = folder / f"{sparsity}.jp"
        jp.save(path, jp.entropy_quantize(sqnr=25).init(pruned))
        times = race(
            {
                "reader": lambda p=path: reader.read(p),
                "load": lambda p=path: jp.load(p, as_="numpy"),
            },
            ROUNDS,
        )
        figures[f"ResNet-56, {sparsity:.0%}"] = times
        rows.append(
            at_most(
                f"s to read ResNet-56, {sparsity:.0%} pruned",
                times["reader"]["cpu_ms"]["median"] / 1e3,
                0.3,
            )
        )
    return rows, figures


def _saved(path: pathlib.Path) -> tuple[np.ndarray, dict[str, Any], dict[str, Any]]:
    """The integers of the large leaf, and the times and the peak of saving it; the tree itself is
    forgotten.
    """
    tree = {"kernel": _levels()}
    times = race({"save": lambda: jp.save(path, tree)}, 3)
    return np.asarray(tree["kernel"].q), times, {"save": _peak(lambda: jp.save(path, tree))}


def _large(path: pathlib.Path) -> tuple[Rows, dict[str, Any]]:
    levels, saving, peaks = _saved(path)
    contestants: dict[str, Callable[[], Any]] = {
        "reader": lambda: reader.read(path),
        "load, compressed": lambda: jp.load(path),
        "load, dense": lambda: jp.load(path, as_="dense"),
    }
    peaks |= {name: _peak(f) for name, f in contestants.items()}
    files = race(contestants, ROUNDS)
    coders = _coders(levels)
    rates = {
        name: MB / t["cpu_ms"]["median"] * 1e3 for name, t in {**saving, **files, **coders}.items()
    }
    rows = [
        at_least("MB/s from a file of 100M weights to float32, NumPy", rates["reader"], 250),
        at_least("the stream alone to float32, NumPy", rates["decode"], 250),
        at_least("the same in JAX, of NumPy's speed", rates["decode in JAX"] / rates["decode"], 1),
        at_least("MB/s of save", rates["save"], 50),
    ]
    return rows, {
        "100M weights": {**saving, **files, **coders, "mb_per_cpu_s": rates, "peak_bytes": peaks}
    }


def _levels() -> Any:
    w = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    return jp.entropy_quantize(step=STEP).init(jnp.asarray(w))


def _coders(q: np.ndarray) -> dict[str, Any]:
    """The stream without its file, to float32."""
    base = int(q.min())
    symbols = (q.ravel() - base).astype(np.uint8)
    freqs = rans.normalise(np.bincount(symbols[: 1 << 22], minlength=int(symbols.max()) + 1) + 1)
    lanes = rans.lanes_for(symbols.size, 5 * symbols.size)
    stream = rans.encode(symbols, freqs, lanes)
    values = (np.arange(freqs.size) + base).astype(np.float32) * np.float32(STEP)
    return race(
        {
            "encode": lambda: rans.encode(symbols, freqs, lanes),
            "decode": lambda: rans.decode(stream, symbols.size, freqs, lanes, values),
            "decode in JAX": lambda: rans_jax.decode(stream, symbols.size, freqs, lanes, values),
        },
        ROUNDS,
    )


def _peak(f: Callable[[], Any]) -> int:
    """Bytes by which f raises the process's resident memory at most (Linux; elsewhere 0)."""
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        return 0

    def field(name):
        return 1024 * int(re.search(rf"{name}:\s+(\d+)", status.read_text())[1])

    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = field("VmRSS")
    jax.block_until_ready(f())
    return field("VmHWM") - before
