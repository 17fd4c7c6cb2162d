"""The layers of Equinox."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from tests.core.layers.probe import Built, Layer, Weight, filled

KEY = jax.random.key(0)
X = jnp.ones(6)
FIRST = Weight((-2,))


class Net(eqx.Module):
    layer: Any


def layer(make: Callable[[], Any], *args: Any, call: Any = None) -> Callable[[], Built]:
    """A builder of a layer; `call` gives its outputs, which otherwise have their channels first."""

    def build() -> Built:
        net = filled(eqx.filter_eval_shape(lambda: Net(make())))

        def apply(weights: Any) -> Any:
            inner = eqx.combine(weights, net).layer
            return jnp.moveaxis(inner(*args), 0, -1) if call is None else call(inner)

        return Built(eqx.filter(net, eqx.is_array), apply)

    return build


def conv(depth: int) -> Weight:
    return Weight((-2 - depth,))


LINE = jnp.ones((6, 5))
IMAGE = jnp.ones((6, 5, 5))
BOX = jnp.ones((6, 3, 3, 3))
STATE = jnp.ones(4)
CELL = {"layer/weight_ih": FIRST, "layer/weight_hh": FIRST}
HEADS = {
    f"layer/{name}_proj/weight": Weight(
        (-2,), hand="the projection back mixes all heads; as Linear"
    )
    for name in ("query", "key", "value")
}


def many(make: Callable[[Any], Any]) -> Callable[[], Any]:
    return lambda: eqx.filter_vmap(make)(jax.random.split(KEY, 3))


def side_by_side(layers: Any) -> Any:
    """The outputs (layers, out) of stacked layers."""
    return eqx.filter_vmap(lambda one: one(X))(layers)


LAYERS = [
    Layer("Linear", layer(lambda: eqx.nn.Linear(6, 5, key=KEY), X), {"layer/weight": FIRST}),
    Layer(
        "Conv1d", layer(lambda: eqx.nn.Conv1d(6, 4, 3, key=KEY), LINE), {"layer/weight": conv(1)}
    ),
    Layer(
        "Conv2d", layer(lambda: eqx.nn.Conv2d(6, 4, 3, key=KEY), IMAGE), {"layer/weight": conv(2)}
    ),
    Layer(
        "Conv2d (grouped)",
        layer(lambda: eqx.nn.Conv2d(6, 4, 3, groups=2, key=KEY), IMAGE),
        {"layer/weight": conv(2)},
    ),
    Layer(
        "Conv2d (depthwise)",
        layer(lambda: eqx.nn.Conv2d(6, 12, 3, groups=6, key=KEY), IMAGE),
        {"layer/weight": conv(2)},
    ),
    Layer("Conv3d", layer(lambda: eqx.nn.Conv3d(6, 4, 2, key=KEY), BOX), {"layer/weight": conv(3)}),
    Layer(
        "Conv", layer(lambda: eqx.nn.Conv(2, 6, 4, 3, key=KEY), IMAGE), {"layer/weight": conv(2)}
    ),
    Layer(
        "ConvTranspose1d",
        layer(lambda: eqx.nn.ConvTranspose1d(6, 4, 3, key=KEY), LINE),
        {"layer/weight": conv(1)},
    ),
    Layer(
        "ConvTranspose2d",
        layer(lambda: eqx.nn.ConvTranspose2d(6, 4, 3, key=KEY), IMAGE),
        {"layer/weight": conv(2)},
    ),
    Layer(
        "ConvTranspose3d",
        layer(lambda: eqx.nn.ConvTranspose3d(6, 4, 2, key=KEY), BOX),
        {"layer/weight": conv(3)},
    ),
    Layer(
        "ConvTranspose",
        layer(lambda: eqx.nn.ConvTranspose(2, 6, 4, 3, key=KEY), IMAGE),
        {"layer/weight": conv(2)},
    ),
    Layer("Embedding", layer(lambda: eqx.nn.Embedding(5, 4, key=KEY)), {}),
    Layer("LayerNorm", layer(lambda: eqx.nn.LayerNorm(6)), {}),
    Layer("LayerNorm (2 axes)", layer(lambda: eqx.nn.LayerNorm((6, 4))), {}),
    Layer("RMSNorm", layer(lambda: eqx.nn.RMSNorm(6)), {}),
    Layer("GroupNorm", layer(lambda: eqx.nn.GroupNorm(2, 6)), {}),
    Layer("BatchNorm", layer(lambda: eqx.nn.BatchNorm(6, "batch", mode="batch")), {}),
    Layer("PReLU", layer(lambda: eqx.nn.PReLU()), {}),
    Layer("RotaryPositionalEmbedding", layer(lambda: eqx.nn.RotaryPositionalEmbedding(6)), {}),
    Layer(
        "LSTMCell",
        layer(lambda: eqx.nn.LSTMCell(6, 4, key=KEY), call=lambda cell: cell(X, (STATE, STATE))[0]),
        CELL,
    ),
    Layer("GRUCell", layer(lambda: eqx.nn.GRUCell(6, 4, key=KEY), X, STATE), CELL),
    Layer(
        "MultiheadAttention",
        layer(
            lambda: eqx.nn.MultiheadAttention(2, 6, output_size=5, key=KEY), *[jnp.ones((3, 6))] * 3
        ),
        {**HEADS, "layer/output_proj/weight": Weight((-2,), hand="as Linear")},
    ),
    Layer(
        "MLP",
        layer(lambda: eqx.nn.MLP(6, 5, 4, 1, key=KEY), X),
        {
            "layer/layers/0/weight": Weight((-2,), hand="the next layer mixes"),
            "layer/layers/1/weight": FIRST,
        },
    ),
    Layer(
        "SpectralNorm(Linear)",
        layer(lambda: eqx.nn.SpectralNorm(eqx.nn.Linear(6, 5, key=KEY), "weight", key=KEY)),
        {"layer/layer/weight": Weight((-2,), hand="the largest singular value is that of all")},
    ),
    Layer(
        "WeightNorm(Linear)",
        layer(lambda: eqx.nn.WeightNorm(eqx.nn.Linear(6, 5, key=KEY)), X),
        {"layer/layer/weight": FIRST},
    ),
    Layer(
        "WeightNorm(Conv2d)",
        layer(lambda: eqx.nn.WeightNorm(eqx.nn.Conv2d(6, 4, 3, key=KEY)), IMAGE),
        {"layer/layer/weight": conv(2)},
    ),
    Layer(
        "vmap of Linear",
        layer(many(lambda key: eqx.nn.Linear(6, 5, key=key)), call=side_by_side),
        {"layer/weight": Weight((-2,), (-3,))},
        2,
    ),
    Layer(
        "vmap of Conv2d",
        layer(many(lambda key: eqx.nn.Conv2d(6, 4, 3, key=key))),
        {"layer/weight": Weight((-4,), (-5,), "as one of them")},
    ),
]
