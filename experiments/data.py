"""Data sets as arrays: `Data(train, validation, test)`, each (x, y).

The validation split is a fixed part of the training set: it selects, the test set only reports.
Files are looked for in the folder that the environment variable JAXPRUNE_DATA names, as .npz or in
the formats their authors publish; else they are downloaded once, checked by sha256, into pooch's
cache. `digits` comes with scikit-learn and needs neither.
"""

import gzip
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]

SOURCES = {
    "mnist.npz": (
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
        "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
    ),
    "cifar-10-binary.tar.gz": (
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    "tinyshakespeare.txt": (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
}


class Data(NamedTuple):
    """Three splits of (x, y): x float32 (or int32 characters), y int32."""

    train: Pair
    validation: Pair
    test: Pair


def digits() -> Data:
    """1,797 handwritten digits of 8×8 pixels, flat in [0, 1]: 1,257 to train, 180 to validate, 360
    to test.
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = split((x / 16).astype(np.float32), y.astype(np.int32), 360)
    return with_validation(x, y, 180)


def mnist(validation: int = 5000) -> Data:
    """70,000 handwritten digits, (28, 28, 1) in [0, 1]; 10,000 test."""
    pairs = _first_found(
        ("mnist.npz", _mnist_npz),
        ("train-images-idx3-ubyte", _mnist_idx),
        ("train-images-idx3-ubyte.gz", _mnist_idx),
        fetch="mnist.npz",
    )
    (train, test) = ((_images(x.reshape(-1, 28, 28, 1)), y.astype(np.int32)) for x, y in pairs)
    return with_validation(train, test, validation)


def cifar10(validation: int = 5000) -> Data:
    """60,000 colour images of ten classes, (32, 32, 3), each channel normalised by its mean and
    deviation.
    """
    pairs = _first_found(
        ("cifar10_train.npz", _cifar_npz),
        ("cifar-10-batches-bin", _cifar_binary),
        ("cifar-10-binary.tar.gz", _cifar_tar),
        fetch="cifar-10-binary.tar.gz",
    )
    mean = np.array([0.4914, 0.4822, 0.4465], np.float32)
    std = np.array([0.2470, 0.2435, 0.2616], np.float32)
    train, test = (((_images(x) - mean) / std, y.astype(np.int32)) for x, y in pairs)
    return with_validation(train, test, validation)


def tiny_shakespeare(length: int = 128) -> Data:
    """1.1 MB of plays: windows of `length` characters (int32), y one character further; cut in
    order 90:5:5.
    """
    text = _first_found(("tinyshakespeare.txt", _text), fetch="tinyshakespeare.txt")
    vocabulary = sorted(set(text))
    ids = np.searchsorted(np.array(vocabulary), np.array(list(text))).astype(np.int32)
    n = (len(ids) - 1) // length
    if n < 20:
        raise ValueError(
            f"tinyshakespeare.txt has {len(ids)} characters: too few for 20 windows of {length}"
        )
    x = ids[: n * length].reshape(n, length)
    y = ids[1 : n * length + 1].reshape(n, length)
    a = int(0.9 * n)
    b = int(0.95 * n)
    return Data((x[:a], y[:a]), (x[a:b], y[a:b]), (x[b:], y[b:]))


def split(x: np.ndarray, y: np.ndarray, n: int) -> tuple[Pair, Pair]:
    """All but n examples, and n examples, chosen by a permutation that never changes."""
    order = np.random.default_rng(0).permutation(len(x))
    return (x[order[n:]], y[order[n:]]), (x[order[:n]], y[order[:n]])


def with_validation(train: Pair, test: Pair, n: int) -> Data:
    """The training set less n examples, those n, and the test set."""
    if not 0 < n < len(train[0]):
        raise ValueError(
            f"a validation split of {n} does not fit in {len(train[0])} training examples"
        )
    rest, validation = split(*train, n)
    return Data(rest, validation, test)


def _images(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) / 255


def _first_found(*readers: tuple[str, Callable[[Path], Any]], fetch: str) -> Any:
    """The first reader whose file lies in $JAXPRUNE_DATA, else the last to know what `fetch` is."""
    folder = os.environ.get("JAXPRUNE_DATA")
    for name, read in readers if folder else ():
        path = Path(folder or "") / name
        if path.exists():
            return _read(read, path)
    return _read(dict(readers)[fetch], _download(fetch, [name for name, _ in readers]))


def _read(read: Callable[[Path], Any], path: Path) -> Any:
    try:
        return read(path)
    except (
        OSError,
        EOFError,
        KeyError,
        ValueError,
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
    ) as e:
        if isinstance(e, _Broken):
            raise
        message = (
            f"{path} cannot be read ({e}): it is cut short or is another file. Delete it and "
            f"fetch it again"
        )
        raise _Broken(message) from e


class _Broken(ValueError):
    """Already names its path."""


def _download(name: str, names: list[str]) -> Path:
    url, sha256 = SOURCES[name]
    help = (
        f"download {url} elsewhere and set JAXPRUNE_DATA to a folder that holds one of: "
        f"{', '.join(names)}"
    )
    try:
        import pooch
    except ImportError as e:
        raise ValueError(
            f"{name} is not here, nor is pooch: pip install 'jaxprune[experiments]', or {help}"
        ) from e
    try:
        return Path(
            pooch.retrieve(url, sha256, name, pooch.os_cache("jaxprune"), progressbar=False)
        )
    except ValueError as e:
        raise ValueError(f"{url} is not the file it was ({e}): {help}") from e
    except Exception as e:  # whichever of requests, urllib3 and the socket speaks first
        raise ValueError(
            f"{name} cannot be downloaded ({type(e).__name__}). Offline: {help}"
        ) from e


def _mnist_npz(path: Path) -> tuple[Pair, Pair]:
    with open(path, "rb") as file, np.load(file) as f:
        pairs = (f["x_train"], f["y_train"]), (f["x_test"], f["y_test"])
    return _matched(pairs[0]), _matched(pairs[1])


def _mnist_idx(path: Path) -> tuple[Pair, Pair]:
    end = ".gz" if path.suffix == ".gz" else ""

    def one(name: str) -> np.ndarray:
        there = path.with_name(name + end)
        return _read(read_idx, there) if there != path else read_idx(path)

    train = one("train-images-idx3-ubyte"), one("train-labels-idx1-ubyte")
    test = one("t10k-images-idx3-ubyte"), one("t10k-labels-idx1-ubyte")
    return _matched(train), _matched(test)


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of bytes: two zeros, the type 8, the number of axes, their lengths (big-endian),
    the bytes.
    """
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError("it has not the IDX header of bytes")
    start = 4 + 4 * raw[3]
    shape = tuple(int.from_bytes(raw[i : i + 4], "big") for i in range(4, start, 4))
    if len(raw) - start != np.prod(shape, dtype=np.int64):
        raise ValueError(f"its header says {shape}, and {len(raw) - start} bytes follow")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _cifar_npz(path: Path) -> tuple[Pair, Pair]:
    def one(path: Path) -> Pair:
        with open(path, "rb") as file, np.load(file) as f:
            return _matched((f["x"], f["y"]))

    return one(path), _read(one, path.with_name("cifar10_test.npz"))


def _cifar_binary(folder: Path) -> tuple[Pair, Pair]:
    def batch(name):
        return _read(lambda p: cifar_records(p.read_bytes()), folder / name)

    parts = [batch(f"data_batch_{i}.bin") for i in range(1, 6)]
    x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return (x, y), batch("test_batch.bin")


def _cifar_tar(path: Path) -> tuple[Pair, Pair]:
    with tarfile.open(path) as tar:

        def batch(name: str) -> Pair:
            file = tar.extractfile(f"cifar-10-batches-bin/{name}.bin")
            assert file is not None
            return cifar_records(file.read())

        parts = [batch(f"data_batch_{i}") for i in range(1, 6)]
        x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return (x, y), batch("test_batch")


def cifar_records(raw: bytes) -> Pair:
    """CIFAR-10's binary format: a label byte, then 32×32 red, green and blue bytes, 10,000
    times.
    """
    if len(raw) == 0 or len(raw) % 3073:
        raise ValueError(f"{len(raw)} bytes are not whole records of 3,073")
    records = np.frombuffer(raw, np.uint8).reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]


def _matched(pair: Pair) -> Pair:
    if len(pair[0]) != len(pair[1]):
        raise ValueError(f"it has {len(pair[0])} images and {len(pair[1])} labels")
    return pair


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
