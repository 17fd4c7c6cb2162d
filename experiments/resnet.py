"""The CIFAR-10 ResNets of He et al. 2016 (arXiv:1512.03385), option-A shortcuts, channels last.

`load` reads a PyTorch checkpoint's names and layouts (an .npz) into `{"conv1": {"kernel": HWIO},
"bn1": …}`. What the three stages give is tapped as "stage1" to "stage3", what the last layer takes
as "features".
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

import jaxprune as jp

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
NAMES = {"running_mean": "mean", "running_var": "var", "bias": "bias"}


def load(path: Any) -> dict[str, dict[str, Array]]:
    """Params by layer: kernels HWIO and (in, out), batch norms with mean, var, scale and bias."""
    params: dict[str, dict[str, Array]] = {}
    with np.load(path) as file:
        for name in file.files:
            layer, _, field = name.rpartition(".")
            x = file[name]
            field = NAMES.get(field, "kernel" if x.ndim > 1 else "scale")
            x = x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T
            params.setdefault(layer, {})[field] = jnp.asarray(x)
    return params


def normalised(x: Any) -> Array:
    """uint8 images as the network takes them."""
    return jnp.asarray((x.astype(np.float32) / 255 - MEAN) / STD)


def _norm(p: Any, x: Array) -> Array:
    return (x - p["mean"]) * (lax.rsqrt(p["var"] + 1e-5) * p["scale"]) + p["bias"]


def _conv(p: Any, x: Array, stride: int = 1) -> Array:
    # not "SAME", which pads a stride of 2 on one side only
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, p["kernel"], (stride, stride), [(1, 1), (1, 1)], dimension_numbers=dims
    )


def apply(params: Any, x: Array) -> Array:
    """Logits, with the stored moments."""
    return forward(params, x, lambda name, y: _norm(params[name], y))


def training(params: Any, moments: Any, x: Array, momentum: float = 0.1) -> tuple[Array, Any]:
    """Logits, normalised by the batch's own moments, and the stored moments after it; both trees as
    of `parted`.
    """
    seen: dict[str, dict[str, Array]] = {}

    def norm(name: str, y: Array) -> Array:
        mean = y.mean((0, 1, 2))
        seen[name] = {"mean": mean, "var": jnp.square(y - mean).mean((0, 1, 2))}
        return _norm({**params[name], **seen[name]}, y)

    logits = forward(params, x, norm)
    return logits, jax.tree.map(lambda old, new: old + momentum * (new - old), moments, seen)


def parted(params: Any) -> tuple[Any, Any]:
    """The trained params and the moments, by layer."""
    moments = {
        layer: {k: p[k] for k in ("mean", "var")} for layer, p in params.items() if "mean" in p
    }
    return {
        layer: {k: x for k, x in p.items() if k not in ("mean", "var")}
        for layer, p in params.items()
    }, moments


def joined(params: Any, moments: Any) -> Any:
    """The params that `apply` takes."""
    return {layer: {**p, **moments.get(layer, {})} for layer, p in params.items()}


def forward(params: Any, x: Array, norm: Callable[[str, Array], Array]) -> Array:
    """Logits, with norm(name, x) for the batch norms."""
    x = jax.nn.relu(norm("bn1", _conv(params["conv1"], x)))
    blocks = sum(name.startswith("layer1.") and name.endswith("conv1") for name in params)
    for stage in (1, 2, 3):
        for i in range(blocks):
            at = f"layer{stage}.{i}."
            stride = 2 if stage > 1 and i == 0 else 1
            y = jax.nn.relu(norm(at + "bn1", _conv(params[at + "conv1"], x, stride)))
            y = norm(at + "bn2", _conv(params[at + "conv2"], y))
            more = (y.shape[-1] - x.shape[-1]) // 2
            x = jax.nn.relu(
                y + jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (more, more)))
            )
        x = jp.tap(x, f"stage{stage}")
    return (
        jp.tap(x.mean((1, 2)), "features") @ params["linear"]["kernel"] + params["linear"]["bias"]
    )


def accuracy(
    params: Any, x: np.ndarray, y: np.ndarray, batch: int = 250, apply: Callable[..., Array] = apply
) -> float:
    """Percent right."""
    run = jax.jit(apply)
    starts = range(0, len(y), batch)
    right = [
        np.argmax(run(params, normalised(x[i : i + batch])), 1) == y[i : i + batch] for i in starts
    ]
    return 100 * float(np.concatenate(right).mean())
