"""Models as pairs of functions: `Model(init, apply, example)`, params a dict of kernels and biases.

Kernels are (in, out) and HWIO, as Flax has them. The keywords of a factory are what a config gives
in [model_args].
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

import jaxprune as jp
from jaxprune.app.experiments.models import Model


def mlp(sizes: Sequence[int], example: Sequence[int] | None = None) -> Model:
    """Dense layers with ReLU between, tapped as "dense1", …; the input is flattened."""
    shapes = {f"dense{i + 1}": pair for i, pair in enumerate(itertools.pairwise(sizes))}

    def apply(params: Any, x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        for name in shapes:
            x = _dense(params[name], x)
            x = jp.tap(jax.nn.relu(x), name) if name != f"dense{len(shapes)}" else x
        return x

    return Model(lambda key: _init(key, shapes), apply, tuple(example or (sizes[0],)))


def digits_mlp() -> Model:
    """64-300-100-10, for scikit-learn's digits: 50,610 params."""
    return mlp((64, 300, 100, 10))


def lenet300() -> Model:
    """LeNet-300-100 (LeCun et al. 1998): 784-300-100-10, 266,610 params."""
    return mlp((784, 300, 100, 10), (28, 28, 1))


def lenet5(width: float = 1.0) -> Model:
    """LeNet-5 as Caffe has it: convolutions of 20 and 50 channels, dense layers of 500 and 10;
    431,080 params.

    With `width` as many times the channels and units; what goes into the last layer is tapped as
    "features".
    """
    a, b, c = (round(width * n) for n in (20, 50, 500))
    shapes = {
        "conv1": (5, 5, 1, a),
        "conv2": (5, 5, a, b),
        "dense1": (16 * b, c),
        "dense2": (c, 10),
    }

    def apply(params: Any, x: Array) -> Array:
        x = _max_pool(_conv(params["conv1"], x))
        x = _max_pool(_conv(params["conv2"], x))
        x = jax.nn.relu(_dense(params["dense1"], x.reshape(x.shape[0], -1)))
        return _dense(params["dense2"], jp.tap(x, "features"))

    return Model(lambda key: _init(key, shapes), apply, (28, 28, 1))


def strided(channels: Sequence[int] = (16, 32), hidden: int = 128) -> Model:
    """Two convolutions with a stride of 2 instead of pooling, and two dense layers, for images of
    28×28.

    Taps: "map1" (14×14) and "map2" (7×7), after their ReLU; "before", what goes into the second of
    them; "hidden".
    """
    a, b = channels
    shapes = {
        "conv1": (5, 5, 1, a),
        "conv2": (3, 3, a, b),
        "dense1": (49 * b, hidden),
        "dense2": (hidden, 10),
    }

    def apply(params: Any, x: Array) -> Array:
        x = jp.tap(jax.nn.relu(_conv(params["conv1"], x, stride=2, padding="SAME")), "map1")
        x = jp.tap(_conv(params["conv2"], x, stride=2, padding="SAME"), "before")
        x = jp.tap(jax.nn.relu(x), "map2")
        x = jax.nn.relu(_dense(params["dense1"], x.reshape(x.shape[0], -1)))
        return _dense(params["dense2"], jp.tap(x, "hidden"))

    return Model(lambda key: _init(key, shapes), apply, (28, 28, 1))


def _init(key: Array, shapes: dict[str, tuple[int, ...]]) -> Any:
    """Normal weights of variance 2 / fan-in (He et al. 2015), zero biases; one draw for all layers
    compiles once.
    """
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes.values()))
    noise = jnp.split(jax.random.normal(key, (ends[-1],)), ends[:-1])

    def layer(draw: Array, shape: tuple[int, ...]) -> dict[str, Array]:
        kernel = draw.reshape(shape) * math.sqrt(2 / math.prod(shape[:-1]))
        return {"kernel": kernel, "bias": jnp.zeros(shape[-1], jnp.float32)}

    return {
        name: layer(draw, shape) for draw, (name, shape) in zip(noise, shapes.items(), strict=True)
    }


def _dense(layer: Any, x: Array) -> Array:
    return x @ layer["kernel"] + layer["bias"]


def _conv(layer: Any, x: Array, stride: int = 1, padding: str = "VALID") -> Array:
    letters = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(
        x, layer["kernel"], (stride, stride), padding, dimension_numbers=letters
    )
    return y + layer["bias"]


def _max_pool(x: Array) -> Array:
    """2×2 maxima as an axis maximum: on XLA:CPU its gradient halves the time of a LeNet-5 step,
    against slices' own.
    """
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))
