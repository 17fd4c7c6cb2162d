"""Floats that are kept: bytes and speed of jaxprune's planes beside zstd, of the same arrays in one run.

python -m experiments.benchmarks.floats [--out results.json]          (pip install zstandard; about five minutes)

Two arrays of 100 million weights, normal with a scale for each row, float32 and bfloat16; and, where JAXPRUNE_DATA
names a folder with resnet56.npz, the weights of a trained ResNet-56. MB are of the array, and times CPU times of one
core: medians of rounds in turns, but for `zstd -19`, which runs once.
"""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from jaxprune.storage import planes

from .common import at_least, at_most, race, report, shown, timed

SIDE = 10_000
ROUNDS = 3


def weights(side: int) -> np.ndarray:
    """(side, side) float32: normal weights, whose scale differs from row to row."""
    rng = np.random.default_rng(0)
    x = 0.05 * rng.standard_normal((side, side), np.float32)
    x *= np.exp(0.5 * rng.standard_normal((side, 1))).astype(np.float32)
    return x


def resnet56() -> np.ndarray | None:
    """All float32 arrays of the trained network on one axis; None without the data."""
    path = pathlib.Path(os.environ.get("JAXPRUNE_DATA", ""), "resnet56.npz")
    if not path.is_file():
        return None
    with np.load(path) as arrays:
        return np.concatenate([arrays[name].ravel() for name in arrays.files if arrays[name].dtype == np.float32])


def measured(arrays: dict[str, np.ndarray], zstandard: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and figures: of each array the sizes and speeds of the three coders."""
    rows: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    for name, array in arrays.items():
        figures[name] = _one(array, zstandard)
        sizes, rates = figures[name]["fraction"], figures[name]["MB/s"]
        rows += [
            at_most(f"{name}: planes, of the array's bytes", sizes["planes"], sizes["zstd -19"]),
            shown(f"{name}: zstd -19", sizes["zstd -19"]),
            shown(f"{name}: zstd -3", sizes["zstd -3"]),
            at_least(f"{name}: planes written, MB/s", rates["planes, write"], 150),
            at_least(f"{name}: planes read, MB/s", rates["planes, read"], 150),
            shown(f"{name}: zstd -3 written, MB/s", rates["zstd -3, write"]),
            shown(f"{name}: zstd -3 read, MB/s", rates["zstd -3, read"]),
            shown(f"{name}: zstd -19 written, MB/s", rates["zstd -19, write"]),
        ]
    return rows, figures


def _one(array: np.ndarray, zstandard: Any) -> dict[str, Any]:
    words = array.ravel().view(f"u{array.itemsize}")
    raw = memoryview(words).cast("B")
    fast, best = zstandard.ZstdCompressor(3), zstandard.ZstdCompressor(19)
    stream, small = b"".join(planes.encode(words)), fast.compress(raw)
    if not np.array_equal(planes.decode(stream, words.size, words.dtype.str[1:]), words):
        raise AssertionError("planes do not give the words back")
    contestants: dict[str, Callable[[], Any]] = {
        "planes, write": lambda: sum(map(len, planes.encode(words))),
        "planes, read": lambda: planes.decode(stream, words.size, words.dtype.str[1:]),
        "zstd -3, write": lambda: len(fast.compress(raw)),
        "zstd -3, read": lambda: zstandard.ZstdDecompressor().decompress(small),
    }
    times = race(contestants, ROUNDS)
    smallest: list[int] = []
    once = timed(lambda: smallest.append(len(best.compress(raw))))
    speeds = {name: array.nbytes / 1e3 / each["cpu_ms"]["median"] for name, each in times.items()}
    return {
        "bytes": array.nbytes,
        "fraction": {
            "planes": len(stream) / array.nbytes,
            "zstd -3": len(small) / array.nbytes,
            "zstd -19": smallest[0] / array.nbytes,
        },
        "MB/s": speeds | {"zstd -19, write": array.nbytes / 1e3 / once["cpu_ms"]},
        "times": times | {"zstd -19, write": once},
        "zstandard": zstandard.__version__,
    }


def main() -> None:
    import zstandard  # pyright: ignore[reportMissingImports]

    large = weights(SIDE)
    arrays = {"100M float32": large, "100M bfloat16": large.astype(ml_dtypes.bfloat16)}
    trained = resnet56()
    if trained is not None:
        arrays |= {"ResNet-56 float32": trained, "ResNet-56 bfloat16": trained.astype(ml_dtypes.bfloat16)}
    rows, figures = measured(arrays, zstandard)
    report("floats", "Floats that are kept, as planes and by zstd", rows, figures)


if __name__ == "__main__":
    main()
