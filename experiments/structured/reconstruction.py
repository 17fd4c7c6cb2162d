"""Accuracy at 2.1 times fewer operations without a gradient step: what each part of
`jp.reconstruct` adds.

Four networks: the CIFAR-10 ResNet-20 and ResNet-56, a residual CNN without any norm and a GRU that
reads the rows of a digit (both on MNIST, trained here from a seed). Units inside the blocks are
ranked and cut; what is left is repaired with 1,024 training images, without labels:

    cut       as it is
    weights   weights alone, each layer to its own output (ridge 1e-3)
    biases    with biases and the means of norms
    streams   and what is added to a stream corrects the error of the stream

The ranking is group L2 of the weights (magnitude), or of |w| √E[x²] on the same images
(contribution: Wanda's score); random is the control, and blocks is contribution with depth=True.
Each draw takes other images. Nothing is chosen by the test set, which is looked at once for each
figure.

JAXPRUNE_DATA=data python -m experiments.structured.reconstruction [--folder FOLDER] [--networks
NAME,NAME]
"""

import argparse
import json
import os
import pathlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

import jaxprune as jp
from experiments import resnet
from experiments.data import mnist
from experiments.distillation.common import plus_minus, remembered, save, show, summary
from experiments.distillation.recovery_task import cifar
from experiments.structured.resnet56 import kernels

SETTINGS: dict[str, Any] = {
    "flops": 0.475,
    "images": 1024,
    "batch": 128,
    "draws": [0, 1, 2],
    "examples": 128,
    "steps": 600,
    "rate": 2e-3,
    "train_batch": 64,
}
REPAIRS: dict[str, dict[str, Any]] = {
    "weights": {"biases": False, "streams": False, "ridge": 1e-3},
    "biases": {"streams": False},
    "streams": {},
}
"""Keywords of `jp.reconstruct`."""


class Network(NamedTuple):
    """A trained network.

    Attributes:
      apply: (params, images) -> logits.
      params: trained.
      train, test: (images as `apply` takes them, labels).
      inside: the leaves whose units may go, those inside the blocks: the streams stay whole.
      deep: whether it has blocks that can be left out.
    """

    apply: Callable[..., Array]
    params: Any
    train: tuple[Any, Any]
    test: tuple[Any, Any]
    inside: str | None
    deep: bool


def cnn_params(key: Array) -> Any:
    """A residual CNN without norms: a first convolution, three blocks of two, a dense layer."""
    shapes: dict[str, tuple[int, ...]] = {"first": (3, 3, 1, 16)}
    shapes |= {
        f"{name}{i}": (3, 3, *io)
        for i in range(3)
        for name, io in (("up", (16, 32)), ("down", (32, 16)))
    }
    shapes["last"] = (16, 10)
    params = {}
    for (name, shape), one in zip(shapes.items(), jax.random.split(key, len(shapes))):
        scale = np.sqrt(2 / np.prod(shape[:-1])) * (0.5 if name.startswith("down") else 1)
        params[name] = {
            "kernel": scale * jax.random.normal(one, shape),
            "bias": jnp.zeros(shape[-1]),
        }
    return params


def cnn(params: Any, x: Array) -> Array:
    """Logits of images [n, 28, 28, 1]."""

    def conv(name: str, x: Array, stride: int = 1) -> Array:
        dims = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(
            x, params[name]["kernel"], (stride, stride), "SAME", dimension_numbers=dims
        )
        return y + params[name]["bias"]

    x = jax.nn.relu(conv("first", x, 2))
    for i in range(3):
        x = x + conv(f"down{i}", jax.nn.relu(conv(f"up{i}", x)))
    return jax.nn.relu(x).mean((1, 2)) @ params["last"]["kernel"] + params["last"]["bias"]


def gru_params(key: Array, size: int = 64, rows: int = 28) -> Any:
    """A GRU, and a dense layer."""
    shapes = {
        f"{kind}{gate}": (rows if kind == "x" else size, size) for gate in "zrn" for kind in "xh"
    }
    params: dict[str, Any] = {"last": {"kernel": jnp.zeros((size, 10)), "bias": jnp.zeros(10)}}
    for (name, shape), one in zip(shapes.items(), jax.random.split(key, len(shapes))):
        params[name] = {"kernel": jax.random.normal(one, shape) / np.sqrt(shape[0])}
        if name.startswith("x"):
            params[name]["bias"] = jnp.zeros(size)
    return params


def gru(params: Any, x: Array) -> Array:
    """Logits of images [n, 28, 28, 1], read row by row."""

    def gate(name: str, row: Array, h: Array) -> Array:
        return (
            row @ params[f"x{name}"]["kernel"]
            + params[f"x{name}"]["bias"]
            + h @ params[f"h{name}"]["kernel"]
        )

    def cell(h: Array, row: Array) -> tuple[Array, None]:
        update = jax.nn.sigmoid(gate("z", row, h))
        reset = jax.nn.sigmoid(gate("r", row, h))
        new = jnp.tanh(gate("n", row, reset * h))
        return update * h + (1 - update) * new, None

    start = jnp.zeros((len(x), params["hz"]["kernel"].shape[0]), x.dtype)
    h, _ = lax.scan(cell, start, x[..., 0].swapaxes(0, 1))
    return h @ params["last"]["kernel"] + params["last"]["bias"]


def trained(
    apply: Callable[..., Array], params: Any, data: Any, settings: Any, seed: int = 0
) -> Any:
    """Adam with a cosine schedule on labels."""
    (x, y), n = data, settings["train_batch"]
    adam = optax.adam(optax.cosine_decay_schedule(settings["rate"], settings["steps"]))

    def loss(params: Any, x: Array, y: Array) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(apply(params, x), y).mean()

    @jax.jit
    def step(params: Any, state: Any, x: Array, y: Array) -> Any:
        changes, state = adam.update(jax.grad(loss)(params, x, y), state)
        return optax.apply_updates(params, changes), state

    state = adam.init(params)
    rng = np.random.default_rng(seed)
    for _ in range(settings["steps"]):
        at = rng.integers(0, len(x), n)
        params, state = step(params, state, x[at], y[at])
    return params


def network(name: str, settings: Any, home: pathlib.Path) -> Network:
    """A network of a name, trained if no checkpoint is there."""
    if name.startswith("resnet"):
        data = cifar(home)
        params = resnet.load(home / f"{name}.npz")
        return Network(resnet.apply, params, data["train"], data["test"], r".*\.bn1/scale", True)
    train, _, test = mnist()
    init, apply = (cnn_params, cnn) if name == "cnn" else (gru_params, gru)
    params = trained(apply, init(jax.random.key(0)), train, settings)
    inside = r"up\d/.*" if name == "cnn" else None
    return Network(apply, params, train, test, inside, name == "cnn")


def images_of(net: Network, settings: Any, draw: int) -> Any:
    """1,024 of the training images."""
    x = net.train[0]
    at = np.random.default_rng(draw).permutation(len(x))[: settings["images"]]
    return as_taken(x[at])


def as_taken(x: Any) -> Any:
    return resnet.normalised(x) if x.dtype == np.uint8 else jnp.asarray(x)


def accuracy(apply: Callable[..., Array], params: Any, test: Any, batch: int = 250) -> float:
    """Percent right."""
    x, y = test
    run = jax.jit(apply)
    right = [
        np.argmax(run(params, as_taken(x[i : i + batch])), 1) == y[i : i + batch]
        for i in range(0, len(y), batch)
    ]
    return 100 * float(np.concatenate(right).mean())


def batches_of(images: Any, settings: Any) -> list[tuple[Any]]:
    n = settings["batch"]
    return [(images[i : i + n],) for i in range(0, len(images) - n + 1, n)]


def cut(net: Network, units: str, images: Any, settings: Any, draw: int) -> Any:
    """The network with a share of its operations left."""
    if units == "random":
        score = jp.scores.random(net.params, key=jax.random.key(draw))
    elif units == "magnitude":
        score = jp.scores.magnitude(net.params)
    else:
        score = jp.scores.wanda(jp.input_rms(net.apply, net.params, batches_of(images, settings)))(
            net.params
        )
    how: dict[str, Any] = {
        "score": kernels(score),
        "where": net.inside,
        "approximate": not net.deep,
    }
    examples = images[: settings["examples"]] if units == "blocks" else images[:2]
    return jp.shrink(
        net.apply, net.params, examples, flops=settings["flops"], depth=units == "blocks", **how
    )


def repaired(net: Network, thin: Any, images: Any, settings: Any, repair: str) -> Any:
    batches = batches_of(images, settings)
    return jp.reconstruct(net.apply, net.params, thin.plan, batches, **REPAIRS[repair]).params


def run(net: Network, units: str, repair: str, settings: Any, draw: int) -> dict[str, Any]:
    """One figure, and what it took."""
    clock = time.process_time()
    wall = time.perf_counter()
    images = images_of(net, settings, draw)
    thin = cut(net, units, images, settings, draw)
    params = thin.params if repair == "cut" else repaired(net, thin, images, settings, repair)
    seconds = {"cpu_s": time.process_time() - clock, "wall_s": time.perf_counter() - wall}
    made = {
        "accuracy": accuracy(thin.apply, params, net.test),
        "flops": thin.report.flops,
        **seconds,
    }
    return made | {"blocks": len(thin.plan.blocks), "tried": thin.report.tried}


def arms(net: Network, settings: Any) -> list[tuple[str, str, int]]:
    """(units, repair, draw) of all figures; only the full repair of ranked units takes every
    draw.
    """
    draws = settings["draws"]
    found = [("magnitude", "cut", draws[0])]
    found += [(units, "streams", draw) for units in ("magnitude", "contribution") for draw in draws]
    once = [("magnitude", "weights"), ("magnitude", "biases"), ("random", "streams")]
    once += [("blocks", "streams")] if net.deep else []
    return found + [(*kind, draws[0]) for kind in once]


def measured(
    name: str, net: Network, settings: Any, path: pathlib.Path | None = None
) -> dict[str, Any]:
    """Every figure of a network; what is done stands in the file at `path`."""
    dense = remembered(path, "dense", lambda: accuracy(net.apply, net.params, net.test))
    found: dict[str, Any] = {"dense": dense}
    for units, repair, draw in arms(net, settings):
        one = remembered(
            path, f"{units} {repair} {draw}", partial(run, net, units, repair, settings, draw)
        )
        found.setdefault(f"{units} {repair}", []).append({"draw": draw, **one})
        print(
            f"{name} {units} {repair} draw {draw}: {one['accuracy']:.2f}% ({one['cpu_s']:.0f} CPU "
            f"s)",
            flush=True,
        )
    return found


def finished(folder: pathlib.Path) -> dict[str, Any]:
    """The figures that stand in a folder, by network, as `measured` gives them."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.json")):
        known = json.loads(path.read_text())
        found[path.stem] = {"dense": known.pop("dense")}
        for name, one in known.items():
            units, repair, draw = name.split(" ")
            found[path.stem].setdefault(f"{units} {repair}", []).append({"draw": int(draw), **one})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--folder", type=pathlib.Path, help="of what is done: the next call goes on"
    )
    parser.add_argument("--networks", default="cnn,gru,resnet20,resnet56")
    parser.add_argument(
        "--finished", action="store_true", help="report what stands in the folder, and run nothing"
    )
    args = parser.parse_args()
    home = pathlib.Path(os.environ["JAXPRUNE_DATA"])
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
    found = finished(args.folder or pathlib.Path()) if args.finished else {}
    for name in [] if args.finished else args.networks.split(","):
        net = network(name, SETTINGS, home)
        found[name] = measured(name, net, SETTINGS, args.folder and args.folder / f"{name}.json")
    path = save("reconstruction", SETTINGS, found, "structured")
    columns = ["network", "units", "repair", "accuracy", "fewer FLOPs"]
    rows = []
    for name, arms_found in found.items():
        rows.append((name, "all", "", f"{arms_found['dense']:.2f}", "1"))
        for arm, runs in arms_found.items():
            if arm != "dense":
                before, after = runs[0]["flops"]
                figure = plus_minus(summary([one["accuracy"] for one in runs]), 2)
                rows.append((name, *arm.split(" "), figure, f"{before / after:.2f}"))
    show("percent of the test set, no gradient step", columns, rows)
    print(path)


if __name__ == "__main__":
    main()
