"""The coder: bytes of ResNet-56's weights side by side with other coders, whole files, and the
speed of reading them.

JAXPRUNE_DATA=folder python -m experiments.benchmarks.coder [--out results.json]

The folder holds resnet56.npz and cifar10_test.npz. Nothing is trained. kB is 1000 bytes.
"""

import lzma
import os
import pathlib
import tempfile
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from experiments import resnet
from jaxprune.storage.format.words import DTYPES
from jaxprune.storage.streams import smallest

from .coder_speed import speed
from .common import at_least, at_most, report

SQNR = 25
KB = 1000
GOALS = {0.0: 420, 0.5: 289, 0.8: 133, 0.9: 74}  # kB
DEEPCABAC = {
    0.0: 421.4,
    0.5: 289.4,
    0.8: 134.6,
    0.9: 76.0,
}  # nncodec 2.1.3, plain rounding to one step at 25 dB
IMAGES = 1000


def file_of(tree: Any) -> tuple[Any, dict[str, int]]:
    """A tree saved and loaded again, and the bytes of its file."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tree.jp")
        jp.save(path, tree)
        said = jp.inspect(path).bytes
        return jp.load(path, as_="numpy"), {"file": os.path.getsize(path), "streams": said.data}


def levels(tree: Any) -> list[np.ndarray]:
    """The integers of a tree of `Quantized` or `Clustered` leaves; a cluster's are 0 where
    pruned.
    """

    def of(code: Any) -> np.ndarray:
        mask, code = (
            (np.asarray(code.mask), code.values) if isinstance(code, jp.Masked) else (True, code)
        )
        return (
            np.asarray(code.q)
            if isinstance(code, jp.Quantized)
            else mask * (np.asarray(code.indices) + 1)
        )

    def is_code(x):
        return isinstance(x, jp.CompressedArray)

    return [of(code).astype(np.int16) for code in jax.tree.leaves(tree, is_leaf=is_code)]


def others(each: list[np.ndarray]) -> dict[str, float]:
    """The same integers by other coders, bytes: one table or block a leaf; scales and codebooks are
    not counted.
    """
    narrow = [q.astype(np.int8 if abs(q).max() < 128 else np.int16) for q in each]

    def dtype(q):
        return DTYPES["i1" if q.itemsize == 1 else "i2"]

    joined = b"".join(q.tobytes() for q in narrow)
    return {
        "static rANS": sum(smallest.predict_size(q.ravel(), dtype(q)) for q in narrow),
        "zlib-9": len(zlib.compress(joined, 9)),
        "lzma": len(lzma.compress(joined, preset=9 | lzma.PRESET_EXTREME)),
    }


def plain_step(tree: Any) -> float:
    """The step at which rounding to the nearest level has the same SQNR."""
    dense = [np.asarray(x, np.float64) for x in jax.tree.leaves(jp.materialize(tree))]
    power = sum(float((w**2).sum()) for w in dense)
    low = 1e-6
    high = 1.0
    for _ in range(50):
        step = (low * high) ** 0.5
        noise = sum(float(((w - np.rint(w / step) * step) ** 2).sum()) for w in dense)
        low, high = (step, high) if power >= noise * 10 ** (SQNR / 10) else (low, step)
    return low


def uniform(kernels: Any, sparsity: float) -> dict[str, float]:
    """Coded bytes of one uniform step, and of the same levels by other coders."""
    pruned = jp.prune(sparsity, allocate=jp.allocate.global_).init(kernels) if sparsity else kernels
    tree = jp.entropy_quantize(sqnr=SQNR).init(pruned)
    loaded, size = file_of(tree)
    step = plain_step(pruned)
    rounded = [
        np.rint(np.asarray(w) / step).astype(np.int16)
        for w in jax.tree.leaves(jp.materialize(pruned))
    ]
    nearest = jax.tree.unflatten(
        jax.tree.structure(kernels), [_quantized(q, step) for q in rounded]
    )
    return {
        "sqnr": jp.measure.sqnr(jp.materialize(pruned), loaded),
        "bytes": size["streams"],
        "file": size["file"],
        "plain rounding": file_of(nearest)[1]["streams"],
        "entropy, order 0": jp.measure.sizes(tree).entropy,
        "DeepCABAC": DEEPCABAC[sparsity] * KB,
        **others(levels(tree)),
        **{f"{name}, plain rounding": n for name, n in others(rounded).items()},
    }


def _quantized(q: np.ndarray, step: float) -> Any:
    scale = jnp.full((1,) * q.ndim, step, jnp.float32)
    return jp.Quantized(jnp.asarray(q), scale, None, 16, jnp.dtype(jnp.float32))


def codebooks(kernels: Any, sparsity: float, k: int) -> dict[str, float]:
    """Coded bytes of pruned and clustered kernels, whose codebooks are float32."""
    pruned = jp.prune(sparsity, allocate=jp.allocate.global_).init(kernels) if sparsity else kernels
    tree = jp.cluster(k).init(pruned)
    loaded, size = file_of(tree)
    return {
        "sqnr": jp.measure.sqnr(jp.materialize(pruned), loaded),
        "bytes": size["streams"],
        "overhead": 1 - size["streams"] / size["file"],
        "entropy, order 0": jp.measure.sizes(tree).entropy,
        "Huffman and gaps": jp.measure.deep_compression_bits(tree).huffman / 8,
        **others(levels(tree)),
    }


# --- whole files
# ---------------------------------------------------------------------------------------


def folded(params: Any, folder: pathlib.Path) -> dict[str, Any]:
    """Whole files of the network with its batch norms folded.

    "levels": the 25 dB levels of the kernels as they were, a norm's factor in the scale of its
    channel, so that the network is that of 25 dB without folding. "step": one step at 25 dB over
    the folded kernels, where channels with large factors count for more. Biases have a step of
    their own, 30 dB.
    """
    with np.load(folder / "cifar10_test.npz") as file:
        x = file["x"][:IMAGES]
        y = file["y"][:IMAGES]
    new = jp.fold_batch_norm(resnet.apply, params, resnet.normalised(x[:2])).params

    def finish(tree):
        return jp.entropy_quantize(sqnr=30, where=jp.where.path(".*/bias")).init(tree)

    unfolded = jp.entropy_quantize(sqnr=SQNR).init(params)
    trees = {
        "levels": finish(jax.tree.map(_scaled, unfolded, params, new, is_leaf=_is_code)),
        "step": finish(jp.entropy_quantize(sqnr=SQNR).init(new)),
        "not folded": unfolded,
    }
    figures: dict[str, Any] = {"dense": {"accuracy": resnet.accuracy(params, x, y)}}
    exact = resnet.apply(new, resnet.normalised(x[:100]))
    for name, tree in trees.items():
        loaded, size = file_of(tree)
        error = jnp.linalg.norm(
            resnet.apply(loaded, resnet.normalised(x[:100])) - exact
        ) / jnp.linalg.norm(exact)
        accuracy = resnet.accuracy(loaded, x, y)
        figures[name] = {**size, "error of the logits": float(error), "accuracy": accuracy}
    return figures


def _is_code(x: Any) -> bool:
    return isinstance(x, jp.CompressedArray)


def _scaled(code: Any, old: Any, new: Any) -> Any:
    """The code with each channel's scale times what folding did to that channel; other arrays as
    folding left them.
    """
    if not _is_code(code):
        return new
    axes = tuple(range(old.ndim - 1))
    return code.replace(
        scale=code.scale
        * (jnp.sum(old * new, axes, keepdims=True) / jnp.sum(old**2, axes, keepdims=True))
    )


def lenet300() -> float:
    """Overhead of LeNet-300-100 at 8% and 64 values: untrained, Laplacian, its rows and columns of
    uneven scale.
    """
    draw = np.random.default_rng(0)
    tree = {}
    for i, (rows, columns) in enumerate(((784, 300), (300, 100), (100, 10))):
        scale = (
            np.exp(0.5 * draw.standard_normal((rows, 1)) + 0.5 * draw.standard_normal(columns))
            / rows**0.5
        )
        kernel = jnp.asarray(draw.laplace(size=(rows, columns)) * scale, jnp.float32)
        tree[f"dense{i + 1}"] = {"kernel": kernel, "bias": jnp.zeros(columns, jnp.float16)}
    code = jp.cluster(64).init(jp.prune(0.92, allocate=jp.allocate.global_).init(tree))
    size = file_of(code)[1]
    return 1 - size["streams"] / size["file"]


def main() -> None:
    folder = pathlib.Path(os.environ["JAXPRUNE_DATA"])
    params = resnet.load(folder / "resnet56.npz")
    kernels = {name: layer["kernel"] for name, layer in params.items() if "kernel" in layer}
    figures: dict[str, Any] = {"uniform": {}, "codebooks": {}}
    rows = []
    for sparsity, goal in GOALS.items():
        found = figures["uniform"][f"{sparsity:.0%}"] = uniform(kernels, sparsity)
        rows.append(
            at_most(f"kB of 848,944 weights, {sparsity:.0%} pruned", found["bytes"] / KB, goal)
        )
        rows.append(at_least("their SQNR, dB", found["sqnr"], 24.95))
        for k in (16, 32):
            figures["codebooks"][f"{sparsity:.0%}, {k} values"] = codebooks(kernels, sparsity, k)
    figures["folded"] = folded(params, folder)
    rows.append(
        at_most("kB of the file, batch norms folded", figures["folded"]["levels"]["file"] / KB, 432)
    )
    clustered = figures["codebooks"]["90%, 32 values"]
    rows.append(
        at_most(
            "overhead of the container, ResNet-56 pruned and clustered",
            clustered["overhead"],
            0.035,
        )
    )
    figures["lenet300"] = {"overhead": lenet300()}
    rows.append(
        at_most(
            "the same, LeNet-300-100 at 8% and 64 values", figures["lenet300"]["overhead"], 0.06
        )
    )
    more, figures["speed"] = speed(kernels)
    report("coder", "The coder", rows + more, figures)


if __name__ == "__main__":
    main()
