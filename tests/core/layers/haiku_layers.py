"""The layers of Haiku, under the names that it gives them."""

from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from tests.core.layers.probe import Built, Layer, Weight, filled

X = jnp.ones((2, 6))
LINE = jnp.ones((1, 5, 6))
IMAGE = jnp.ones((1, 5, 5, 6))
BOX = jnp.ones((1, 3, 3, 3, 6))
LAST = Weight()
TRANSPOSED = Weight((-2,))


def layer(f: Callable[..., Any], *args: Any) -> Callable[[], Built]:
    def build() -> Built:
        net = hk.transform_with_state(f)
        params, state = filled(jax.eval_shape(net.init, jax.random.key(0), *args))
        return Built(params, lambda params: net.apply(params, state, jax.random.key(0), *args)[0])

    return build


def core(make: Callable[[], Any], x: Any = X) -> Callable[[], Built]:
    """One step of a recurrent core, from a state of ones: of unit k's gates only unit k of the
    output depends."""

    def step(x: Any) -> Any:
        inner = make()
        return inner(x, jax.tree.map(jnp.ones_like, inner.initial_state(len(x))))[0]

    return layer(step, x)


HEADS = {
    f"multi_head_attention\\/{name}/w": Weight(
        hand="the projection back mixes all heads; as Linear"
    )
    for name in ("query", "key", "value")
}
PICTURE = jnp.ones((1, 32, 32, 3))

LAYERS = [
    Layer("Linear", layer(lambda x: hk.Linear(5)(x), X), {"linear/w": LAST}),
    Layer("Bias", layer(lambda x: hk.Bias()(x), IMAGE), {}),
    Layer("Bias (all axes)", layer(lambda x: hk.Bias(bias_dims=(-3, -2, -1))(x), IMAGE), {}),
    Layer("Conv1D", layer(lambda x: hk.Conv1D(4, 3)(x), LINE), {"conv1_d/w": LAST}),
    Layer("Conv2D", layer(lambda x: hk.Conv2D(4, 3)(x), IMAGE), {"conv2_d/w": LAST}),
    Layer("Conv3D", layer(lambda x: hk.Conv3D(4, 2)(x), BOX), {"conv3_d/w": LAST}),
    Layer(
        "Conv1DTranspose",
        layer(lambda x: hk.Conv1DTranspose(4, 3)(x), LINE),
        {"conv1_d_transpose/w": TRANSPOSED},
    ),
    Layer(
        "Conv2DTranspose",
        layer(lambda x: hk.Conv2DTranspose(4, 3)(x), IMAGE),
        {"conv2_d_transpose/w": TRANSPOSED},
    ),
    Layer(
        "Conv3DTranspose",
        layer(lambda x: hk.Conv3DTranspose(4, 2)(x), BOX),
        {"conv3_d_transpose/w": TRANSPOSED},
    ),
    Layer(
        "DepthwiseConv1D",
        layer(lambda x: hk.DepthwiseConv1D(2, 3)(x), LINE),
        {"depthwise_conv1_d/w": LAST},
    ),
    Layer(
        "DepthwiseConv2D",
        layer(lambda x: hk.DepthwiseConv2D(2, 3)(x), IMAGE),
        {"depthwise_conv2_d/w": LAST},
    ),
    Layer(
        "DepthwiseConv3D",
        layer(lambda x: hk.DepthwiseConv3D(2, 2)(x), BOX),
        {"depthwise_conv3_d/w": LAST},
    ),
    Layer(
        "SeparableDepthwiseConv2D",
        layer(lambda x: hk.SeparableDepthwiseConv2D(2, 3)(x), IMAGE),
        {
            "separable_depthwise_conv2_d\\/~\\/depthwise_conv2_d/w": Weight(
                hand="the next layer mixes"
            ),
            "separable_depthwise_conv2_d\\/~\\/depthwise_conv2_d_1/w": LAST,
        },
    ),
    Layer("Embed", layer(lambda x: hk.Embed(5, 4)(x), jnp.zeros((2,), int)), {}),
    Layer("BatchNorm", layer(lambda x: hk.BatchNorm(True, True, 0.9)(x, True), IMAGE), {}),
    Layer("LayerNorm", layer(lambda x: hk.LayerNorm(-1, True, True)(x), X), {}),
    Layer(
        "LayerNorm (all axes)",
        layer(lambda x: hk.LayerNorm(slice(1, None), True, True, param_axis=(1, 2, 3))(x), IMAGE),
        {},
    ),
    Layer("RMSNorm", layer(lambda x: hk.RMSNorm(-1)(x), X), {}),
    Layer("GroupNorm", layer(lambda x: hk.GroupNorm(2)(x), IMAGE), {}),
    Layer("InstanceNorm", layer(lambda x: hk.InstanceNorm(True, True)(x), IMAGE), {}),
    Layer(
        "VanillaRNN",
        core(lambda: hk.VanillaRNN(4)),
        {f"vanilla_rnn\\/{name}/w": LAST for name in ("linear", "linear_1")},
    ),
    Layer("LSTM", core(lambda: hk.LSTM(4)), {"lstm\\/linear/w": LAST}),
    Layer("GRU", core(lambda: hk.GRU(4)), {"gru/w_i": LAST, "gru/w_h": LAST}),
    Layer(
        "Conv2DLSTM",
        core(lambda: hk.Conv2DLSTM((5, 5), 4, 3), IMAGE),
        {f"conv2_dlstm\\/{name}_to_hidden/w": LAST for name in ("input", "hidden")},
    ),
    Layer(
        "MultiHeadAttention",
        layer(
            lambda x: hk.MultiHeadAttention(2, 4, w_init=jnp.ones, model_size=5)(x, x, x),
            jnp.ones((1, 3, 6)),
        ),
        {**HEADS, "multi_head_attention\\/linear/w": Weight(hand="as Linear")},
    ),
    Layer(
        "nets.MLP",
        layer(lambda x: hk.nets.MLP((4, 5))(x), X),
        {"mlp\\/~\\/linear_0/w": Weight(hand="the next layer mixes"), "mlp\\/~\\/linear_1/w": LAST},
    ),
    Layer(
        "nets.VectorQuantizer", layer(lambda x: hk.nets.VectorQuantizer(6, 5, 0.25)(x, True), X), {}
    ),
]

# Networks of layers that stand in the table: their names are longer.
NETS = {
    "ResNet18": layer(lambda x: hk.nets.ResNet18(10)(x, True), PICTURE),
    "MobileNetV1": layer(lambda x: hk.nets.MobileNetV1((1, 2), (4, 6), 10)(x, True), PICTURE),
}
