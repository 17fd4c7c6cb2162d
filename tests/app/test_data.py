"""Data: the splits, and files that are cut short, mixed up or missing."""

import gzip
import struct

import numpy as np
import pytest

from experiments import data, models


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPRUNE_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def offline(monkeypatch):
    import pooch

    def refuse(*args, **kw):
        raise OSError("no route to host")

    monkeypatch.setattr(pooch, "retrieve", refuse)


def images(n, *shape):
    return np.random.default_rng(n).integers(0, 256, (n, *shape), np.uint8)


def labels(n):
    return np.arange(n).astype(np.uint8) % 10


def idx(array):
    return (
        b"\0\0\x08"
        + bytes([array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def write_idx(folder, end=""):
    pack = gzip.compress if end else bytes
    for name, n in (("train", 40), ("t10k", 10)):
        (folder / f"{name}-images-idx3-ubyte{end}").write_bytes(pack(idx(images(n, 28, 28))))
        (folder / f"{name}-labels-idx1-ubyte{end}").write_bytes(pack(idx(labels(n))))


def write_npz(path, n, n_labels):
    test = {"x_test": images(3, 28, 28), "y_test": labels(3)}
    np.savez(path, x_train=images(n, 28, 28), y_train=labels(n_labels), **test)


def write_cifar(folder, n=4):
    there = folder / "cifar-10-batches-bin"
    there.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        rows = np.concatenate([labels(n)[:, None], images(n, 3072)], 1)
        (there / f"{name}.bin").write_bytes(rows.tobytes())
    return there


def test_digits():
    found = data.digits()
    assert [len(x) for x, _ in found] == [1257, 180, 360]
    assert found.train[0].dtype == np.float32 and found.train[1].dtype == np.int32
    assert found.train[0].min() == 0 and found.train[0].max() == 1
    again = data.digits()
    assert all(np.array_equal(a, b) for p, q in zip(found, again) for a, b in zip(p, q))
    rows = np.concatenate([x for x, _ in found])
    assert len(np.unique(rows, axis=0)) == len(rows)  # no image is in two splits


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_files(folder, end):
    write_idx(folder, end)
    found = data.mnist(validation=5)
    assert [x.shape for x, _ in found] == [(35, 28, 28, 1), (5, 28, 28, 1), (10, 28, 28, 1)]
    np.testing.assert_array_equal(
        found.test[0][..., 0], (images(10, 28, 28) / np.float32(255)).astype(np.float32)
    )


def test_npz_files(folder):
    write_npz(folder / "mnist.npz", 9, 9)
    assert [len(x) for x, _ in data.mnist(validation=2)] == [7, 2, 3]


def test_cifar_binary_is_planes_of_colour(folder):
    write_cifar(folder)
    found = data.cifar10(validation=3)
    assert [x.shape for x, _ in found] == [(17, 32, 32, 3), (3, 32, 32, 3), (4, 32, 32, 3)]
    raw = images(4, 3072)[0].reshape(3, 32, 32)
    np.testing.assert_allclose(
        found.test[0][0, 5, 7, 2], (raw[2, 5, 7] / 255 - 0.4465) / 0.2616, rtol=1e-4
    )


def test_text(folder):
    (folder / "tinyshakespeare.txt").write_text("abcd" * 1000)
    found = data.tiny_shakespeare(length=16)
    np.testing.assert_array_equal(found.train[0][:, 1:], found.train[1][:, :-1])


CUT = [
    (lambda f: write_idx(f), "train-images-idx3-ubyte", data.mnist),
    (lambda f: write_idx(f), "t10k-labels-idx1-ubyte", data.mnist),
    (lambda f: write_idx(f, ".gz"), "train-images-idx3-ubyte.gz", data.mnist),
    (write_cifar, "cifar-10-batches-bin/data_batch_3.bin", data.cifar10),
    (write_cifar, "cifar-10-batches-bin/test_batch.bin", data.cifar10),
]


@pytest.mark.parametrize("write, name, load", CUT, ids=[n for _, n, _ in CUT])
@pytest.mark.parametrize("keep", [0.0, 0.7])
def test_a_truncated_file_is_named(folder, write, name, load, keep):
    write(folder)
    raw = (folder / name).read_bytes()
    (folder / name).write_bytes(raw[: int(keep * len(raw)) - (keep > 0)])
    with pytest.raises(ValueError) as e:
        load(validation=2)
    assert str(folder / name) in str(e.value) and "fetch it again" in str(e.value)


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_a_truncated_npz_is_named(folder, size):
    path = folder / "mnist.npz"
    write_npz(path, 40, 40)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="cut short") as e:
        data.mnist()
    assert str(path) in str(e.value)


def test_an_npz_of_something_else_is_named(folder):
    np.savez(folder / "mnist.npz", a=labels(3))
    with pytest.raises(ValueError, match=r"mnist\.npz.*x_train"):
        data.mnist()


def test_images_without_labels(folder):
    write_npz(folder / "mnist.npz", 9, 8)
    with pytest.raises(ValueError, match="9 images and 8 labels"):
        data.mnist(validation=2)


def test_a_missing_part_is_named(folder):
    write_cifar(folder)
    (folder / "cifar-10-batches-bin/data_batch_2.bin").unlink()
    with pytest.raises(ValueError, match=r"data_batch_2\.bin"):
        data.cifar10()


@pytest.mark.parametrize(
    "load, name",
    [
        (data.mnist, "mnist.npz"),
        (data.cifar10, "cifar-10-batches-bin"),
        (data.tiny_shakespeare, "tinyshakespeare.txt"),
    ],
)
def test_offline_says_which_file_to_put_where(folder, offline, load, name):
    with pytest.raises(ValueError, match="Offline") as e:
        load()
    assert name in str(e.value) and "JAXPRUNE_DATA" in str(e.value)


def test_a_wrong_download_is_refused(folder, monkeypatch):
    import pooch

    def wrong(*args, **kw):
        raise ValueError("SHA256 hash does not match")

    monkeypatch.setattr(pooch, "retrieve", wrong)
    with pytest.raises(ValueError, match="SHA256"):
        data.mnist()


SIZES = [(models.digits_mlp, 50_610), (models.lenet300, 266_610), (models.lenet5, 431_080)]


@pytest.mark.parametrize("make, n", SIZES, ids=[m.__name__ for m, _ in SIZES])
def test_the_models_have_the_sizes_of_their_papers(make, n):
    import jax

    model = make()
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(params)) == n
    x = jax.ShapeDtypeStruct((2, *model.example), np.float32)
    assert jax.eval_shape(model.apply, params, x).shape == (2, 10)
