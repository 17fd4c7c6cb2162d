"""Arrays that are kept: bytes and speed of jaxprune's codecs beside zstd, of the same arrays in one
run.

python -m experiments.benchmarks.floats [--out results.json]          (pip install zstandard; about
    five minutes)

Two arrays of 100 million weights, normal with a scale for each row, float32 and bfloat16; and,
where JAXPRUNE_DATA names a folder with resnet56.npz, the weights of a trained ResNet-56. MB are of
the array, and times CPU times of one core: medians of rounds in turns, but for `zstd -19`, which
runs once. Then arrays of every kind that a checkpoint may hold, of a million elements each: their
bytes beside those of `zstd -19`.
"""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from jaxprune.storage.format.words import CODE_OF, CODECS, DTYPES
from jaxprune.storage.streams import planes, smallest

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
        return np.concatenate(
            [arrays[name].ravel() for name in arrays.files if arrays[name].dtype == np.float32]
        )


def measured(
    arrays: dict[str, np.ndarray], zstandard: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and figures: of each array the sizes and speeds of the three coders."""
    rows: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    for name, array in arrays.items():
        figures[name] = _one(array, zstandard)
        sizes = figures[name]["fraction"]
        rates = figures[name]["MB/s"]
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
    fast = zstandard.ZstdCompressor(3)
    best = zstandard.ZstdCompressor(19)
    stream = b"".join(planes.encode(words))
    small = fast.compress(raw)
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


def kinds() -> dict[str, np.ndarray]:
    """Arrays of (1024, 1024) with some structure, by what they hold."""
    rng = np.random.default_rng(1)
    dense = weights(1024)
    mask = rng.random(dense.shape)
    few = rng.standard_normal(1000).astype(np.float32)
    tiled = np.tile(rng.integers(-3000, 3000, 8192), 128)
    zeros = {
        f"{100 * share:g}% zeros": np.where(mask < share, np.float32(0), dense)
        for share in (0.5, 0.9, 0.99, 0.999)
    }
    again = {f"{bits} bits a row, dense again": _dense_again(dense, bits) for bits in (8, 4, 3)}
    return {
        "normal, float16": dense.astype(np.float16),
        "normal, float64": dense.astype(np.float64),
        **zeros,
        "90% zeros, bfloat16": zeros["90% zeros"].astype(ml_dtypes.bfloat16),
        "16 values": few[rng.integers(0, 16, dense.shape)],
        "1,000 values": few[rng.integers(0, 1000, dense.shape)],
        **again,
        "8 bits a row, float16": _dense_again(dense, 8).astype(np.float16),
        "4 bits a row, bfloat16": _dense_again(dense, 4).astype(ml_dtypes.bfloat16),
        "a grid of 0.01": np.rint(100 * dense) / np.float32(100),
        "a grid of 0.01, float16": (np.rint(100 * dense) / np.float32(100)).astype(np.float16),
        "rows that are copies": dense[rng.integers(0, 100, 1024)],
        "sorted": np.sort(dense, axis=None),
        "a ramp": np.arange(dense.size, dtype=np.float32),
        "a causal mask, float32": np.where(np.tri(1024), 0, -np.inf).astype(np.float32),
        "a causal mask, bool": np.tri(1024).astype(bool),
        "zeros of both signs": np.copysign(np.float32(0), dense),
        "normal, int8": np.clip(np.rint(600 * dense), -127, 127).astype(np.int8),
        "a table, tiled, uint8": (tiled % 256).astype(np.uint8),
        "a table, tiled, int16": tiled.astype(np.int16),
        "a table, tiled, int64": tiled.astype(np.int64),
        "positions, int32": np.arange(dense.size, dtype=np.int32),
        "tokens, int32": np.minimum(rng.zipf(1.2, dense.size), 50_000).astype(np.int32),
    }


def _dense_again(x: np.ndarray, bits: int) -> np.ndarray:
    """Rounded to integers with a scale for each row, and multiplied out."""
    scale = np.abs(x).max(1, keepdims=True) / (2 ** (bits - 1) - 1)
    return np.rint(x / scale) * scale


def beside_zstd(
    arrays: dict[str, np.ndarray], zstandard: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row and figures for each array: its stream's bytes, codec and speed, and the bytes of zstd
    -19.
    """
    best = zstandard.ZstdCompressor(19)
    rows: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    for name, array in arrays.items():
        one = _beside_zstd(array, best)
        figures[name] = one
        rows.append(
            at_most(f"{name} ({one['codec']}), of zstd -19", one["stored"] / one["zstd -19"], 1.0)
        )
    return rows, figures


def _beside_zstd(array: np.ndarray, best: Any) -> dict[str, Any]:
    dtype = DTYPES[CODE_OF[array.dtype.name]]
    words = np.ascontiguousarray(array).view(dtype.word).ravel()
    written: list[Any] = []
    once = timed(lambda: written.append(_stream(words, dtype)))
    codec, stream = written[0]
    if not np.array_equal(smallest.decode(stream, words.size, codec, dtype), words):
        raise AssertionError("the stream does not give the words back")
    return {
        "bytes": array.nbytes,
        "codec": CODECS[codec],
        "stored": len(stream),
        "zstd -19": len(best.compress(words.tobytes())),
        "MB/s": array.nbytes / 1e3 / once["cpu_ms"],
    }


def _stream(words: np.ndarray, dtype: Any) -> tuple[int, bytes]:
    codec, pieces, _ = smallest.encode(words, dtype)
    return codec, b"".join(pieces)


def main() -> None:
    import zstandard  # pyright: ignore[reportMissingImports]

    large = weights(SIDE)
    arrays = {"100M float32": large, "100M bfloat16": large.astype(ml_dtypes.bfloat16)}
    trained = resnet56()
    if trained is not None:
        arrays |= {
            "ResNet-56 float32": trained,
            "ResNet-56 bfloat16": trained.astype(ml_dtypes.bfloat16),
        }
    rows, figures = measured(arrays, zstandard)
    more_rows, figures["kinds"] = beside_zstd(kinds(), zstandard)
    report("floats", "Arrays that are kept, and by zstd", rows + more_rows, figures)


if __name__ == "__main__":
    main()
