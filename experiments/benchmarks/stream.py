"""A checkpoint of 2 GB leaf by leaf: peak memory and speed of compress, restore and diff.

Memory is a process's VmHWM, less that of the same command on a checkpoint of one leaf of 1 MiB.
(The ru_maxrss of getrusage would not do: a child starts with its parent's.) That leaf is large
enough to be restored by rows, as the others are: a smaller one is made dense by JAX, which takes 60
MB that would be subtracted from what never took them. Clustering compiles for large leaves alone;
the base has none of that, some 120 MB.

python -m experiments.benchmarks.stream [--out results.json]
"""

import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from .common import at_most, report

# 16 leaves of 128 MiB
LEAVES = 16
ROWS = 4096
COLUMNS = 8192
LEAF = 4 * ROWS * COLUMNS
SIDE = 512  # of the base's leaf: `storage.parts.CHUNK` entries, so that both go the same way
RULES = {
    "kept": "keep = true",
    "prune": "prune = 0.9",
    "quantize": "quantize = 8",
    "prune, cluster": "prune = 0.9\ncluster = 16",
}
RUN = """
import re, sys, time
from jaxprune.app.cli import app
start = time.perf_counter()
try:
    app(sys.argv[1:])
except SystemExit as e:
    assert e.code in (None, 0, 1), e.code  # 1: they differ
peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
print("\\n", peak, time.perf_counter() - start)
"""


def make(path: pathlib.Path, leaves: int, rows: int, columns: int) -> None:
    """A safetensors file of normal weights, written leaf by leaf; no two leaves are alike, or one
    would be stored.
    """
    nbytes = 4 * rows * columns

    def entry(i):
        return {
            "dtype": "F32",
            "shape": [rows, columns],
            "data_offsets": [i * nbytes, (i + 1) * nbytes],
        }

    header = json.dumps({f"layer_{i:02}/kernel": entry(i) for i in range(leaves)}).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for i in range(leaves):
            file.write(np.random.default_rng(i).standard_normal((rows, columns), np.float32).data)


def run(*command: Any) -> tuple[float, float]:
    """(peak bytes, seconds) of one command."""
    line = [sys.executable, "-c", RUN, *map(str, command)]
    done = subprocess.run(
        line, capture_output=True, text=True, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    peak, seconds = done.stdout.split()[-2:]
    return float(peak), float(seconds)


def commands(
    checkpoint: pathlib.Path, recipe: pathlib.Path
) -> tuple[dict[str, tuple[float, float]], int]:
    """What each command takes, and the bytes of the compressed file."""
    out = checkpoint.with_suffix(".jpz")
    back = checkpoint.with_suffix(".back.safetensors")
    took = {
        "compress": run("compress", checkpoint, "-o", out, "-r", recipe, "--force"),
        "restore": run("restore", out, "-o", back, "--force"),
        "diff": run("diff", checkpoint, out),
    }
    size = out.stat().st_size
    out.unlink()
    back.unlink()
    return took, size


def main() -> None:
    rows = []
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        big, small, recipe = (
            pathlib.Path(folder, name)
            for name in ("big.safetensors", "small.safetensors", "r.toml")
        )
        make(big, LEAVES, ROWS, COLUMNS)
        make(small, 1, SIDE, SIDE)
        for rule, verbs in RULES.items():
            recipe.write_text(f'[[rule]]\nwhere = ".*/kernel"\n{verbs}\n')
            (base, _), (whole, size) = commands(small, recipe), commands(big, recipe)
            for verb, (peak, seconds) in whole.items():
                name = f"{rule}: {verb}"
                figures[name] = figure(peak - base[verb][0], base[verb][0], seconds, size)
                rows.append(
                    at_most(
                        f"{name}: peak memory / largest leaf", (peak - base[verb][0]) / LEAF, 1.2
                    )
                )
    report("stream", "A checkpoint of 2 GiB, leaf by leaf", rows, figures)


def figure(peak: float, base: float, seconds: float, size: int) -> dict[str, Any]:
    mb_per_s = LEAVES * LEAF / seconds / 1e6
    return {
        "peak_bytes": peak,
        "base_bytes": base,
        "seconds": seconds,
        "mb_per_s": mb_per_s,
        "file_bytes": size,
    }


if __name__ == "__main__":
    main()
