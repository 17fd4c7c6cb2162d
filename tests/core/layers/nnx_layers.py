"""The layers of Flax NNX, under the name that an attribute has: `layer`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tests.core.layers.probe import Built, Layer, Weight, filled

X = jnp.ones((2, 6))
LINE = jnp.ones((1, 5, 6))
IMAGE = jnp.ones((1, 5, 5, 6))
LAST = Weight()


class Net(nnx.Module):
    def __init__(self, layer: Any):
        self.layer = layer


def layer(
    make: Callable[[nnx.Rngs], Any], *args: Any, call: Any = None, drawn: bool = False
) -> Callable[[], Built]:
    """A builder of a layer; `call` gives its outputs. `drawn` ones hold arrays that are no
    variables."""

    def build() -> Built:
        net = Net(make(nnx.Rngs(0))) if drawn else nnx.eval_shape(lambda: Net(make(nnx.Rngs(0))))
        graph, params, rest = nnx.split(net, nnx.Param, ...)
        rest = filled(rest)

        def apply(params: Any) -> Any:
            inner = nnx.merge(graph, params, rest, copy=True).layer
            return inner(*args) if call is None else call(inner)

        return Built(filled(params), apply)

    return build


def cell(make: Callable[[nnx.Rngs], Any]) -> Callable[[], Built]:
    """A recurrent cell, from a state of ones: of unit k's gates only unit k of the new state
    depends."""

    def step(inner: Any) -> Any:
        carry = jax.tree.map(jnp.ones_like, inner.initialize_carry(X.shape, nnx.Rngs(0)))
        return inner(carry, X)[1]

    return layer(make, call=step)


def kernels(*names: str, weight: Weight = LAST) -> dict[str, Weight]:
    return {f"layer/{name}/kernel": weight for name in names}


LSTM = kernels("ii", "if_", "ig", "io", "hi", "hf", "hg", "ho")
DENSE_IH = kernels("dense_i", "dense_h")
HEADS = kernels(
    "query",
    "key",
    "value",
    weight=Weight((-2, -1), hand="the projection back mixes all heads; as LinearGeneral"),
)
RANK = Weight(hand="the second factor mixes the ranks")


def sum_of(forward: Any, backward: Any) -> Any:
    return forward + backward


def stacked(make: Callable[[nnx.Rngs], Any]) -> Callable[[nnx.Rngs], Any]:
    """Three layers on a leading axis."""

    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0, out_axes=0)
    def three(rngs: nnx.Rngs) -> Any:
        return make(rngs)

    return three


def side_by_side(inner: Any) -> Any:
    """The outputs (batch, layers, out) of stacked layers."""
    return nnx.vmap(lambda one, x: one(x), in_axes=(0, None), out_axes=1)(inner, X)


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        self.up = nnx.Linear(6, 5, use_bias=False, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.up(self.norm(x))


LAYERS = [
    Layer("Linear", layer(lambda r: nnx.Linear(6, 5, rngs=r), X), {"layer/kernel": LAST}),
    Layer(
        "LinearGeneral (2 axes out)",
        layer(lambda r: nnx.LinearGeneral(6, (4, 3), rngs=r), X),
        {"layer/kernel": Weight((-2, -1))},
        2,
    ),
    Layer(
        "LinearGeneral (2 axes in)",
        layer(lambda r: nnx.LinearGeneral((3, 4), 5, axis=(-2, -1), rngs=r), jnp.ones((2, 3, 4))),
        {"layer/kernel": LAST},
    ),
    Layer(
        "Einsum",
        layer(lambda r: nnx.Einsum("bi,ihd->bhd", (6, 4, 3), (4, 3), rngs=r), X),
        {"layer/kernel": Weight((-2, -1))},
        2,
    ),
    Layer(
        "Conv (1-D)", layer(lambda r: nnx.Conv(6, 4, (3,), rngs=r), LINE), {"layer/kernel": LAST}
    ),
    Layer(
        "Conv (2-D)", layer(lambda r: nnx.Conv(6, 4, (3, 3), rngs=r), IMAGE), {"layer/kernel": LAST}
    ),
    Layer(
        "Conv (depthwise)",
        layer(lambda r: nnx.Conv(6, 12, (3, 3), feature_group_count=6, rngs=r), IMAGE),
        {"layer/kernel": LAST},
    ),
    Layer(
        "ConvTranspose",
        layer(lambda r: nnx.ConvTranspose(6, 4, (3, 3), rngs=r), IMAGE),
        {"layer/kernel": LAST},
    ),
    Layer(
        "ConvTranspose (transpose_kernel)",
        layer(lambda r: nnx.ConvTranspose(6, 4, (3, 3), transpose_kernel=True, rngs=r), IMAGE),
        {"layer/kernel": Weight((-2,))},
    ),
    Layer("Embed", layer(lambda r: nnx.Embed(5, 4, rngs=r)), {}),
    Layer("BatchNorm", layer(lambda r: nnx.BatchNorm(6, rngs=r)), {}),
    Layer("LayerNorm", layer(lambda r: nnx.LayerNorm(6, rngs=r)), {}),
    Layer("RMSNorm", layer(lambda r: nnx.RMSNorm(6, rngs=r)), {}),
    Layer("GroupNorm", layer(lambda r: nnx.GroupNorm(6, 2, rngs=r)), {}),
    Layer("InstanceNorm", layer(lambda r: nnx.InstanceNorm(6, rngs=r)), {}),
    Layer("PReLU", layer(lambda r: nnx.PReLU()), {}),
    Layer(
        "LoRA",
        layer(lambda r: nnx.LoRA(6, 2, 5, rngs=r), X),
        {"layer/lora_a": RANK, "layer/lora_b": LAST},
    ),
    Layer(
        "LoRALinear",
        layer(lambda r: nnx.LoRALinear(6, 5, lora_rank=2, rngs=r), X),
        {"layer/kernel": LAST, "layer/lora/lora_a": RANK, "layer/lora/lora_b": LAST},
    ),
    Layer(
        "MultiHeadAttention",
        layer(
            lambda r: nnx.MultiHeadAttention(2, 6, 8, 5, decode=False, rngs=r), jnp.ones((1, 3, 6))
        ),
        {**HEADS, "layer/out/kernel": LAST},
    ),
    Layer("LSTMCell", cell(lambda r: nnx.LSTMCell(6, 4, rngs=r)), LSTM),
    Layer("OptimizedLSTMCell", cell(lambda r: nnx.OptimizedLSTMCell(6, 4, rngs=r)), DENSE_IH),
    Layer("GRUCell", cell(lambda r: nnx.GRUCell(6, 4, rngs=r)), DENSE_IH),
    Layer("SimpleCell", cell(lambda r: nnx.SimpleCell(6, 4, rngs=r)), DENSE_IH),
    Layer(
        "RNN(SimpleCell)",
        layer(lambda r: nnx.RNN(nnx.SimpleCell(6, 4, rngs=r), rngs=r), jnp.ones((2, 1, 6))),
        kernels("cell/dense_i", "cell/dense_h"),
    ),
    Layer(
        "Bidirectional",
        layer(
            lambda r: nnx.Bidirectional(
                nnx.RNN(nnx.SimpleCell(6, 4, rngs=r), rngs=r),
                nnx.RNN(nnx.SimpleCell(6, 4, rngs=r), rngs=r),
                merge_fn=sum_of,
                rngs=r,
            ),
            jnp.ones((2, 1, 6)),
        ),
        kernels(*(f"{way}_rnn/cell/dense_{x}" for way in ("forward", "backward") for x in "ih")),
    ),
    Layer(
        "WeightNorm(Linear)",
        layer(lambda r: nnx.WeightNorm(nnx.Linear(6, 5, rngs=r), rngs=r), X, drawn=True),
        {"layer/layer_instance/kernel": LAST},
    ),
    Layer(
        "SpectralNorm(Linear)",
        layer(lambda r: nnx.SpectralNorm(nnx.Linear(6, 5, rngs=r), rngs=r), X),
        {"layer/layer_instance/kernel": Weight(hand="the largest singular value is that of all")},
    ),
    Layer(
        "vmap of Linear",
        layer(stacked(lambda r: nnx.Linear(6, 5, rngs=r)), call=side_by_side),
        {"layer/kernel": Weight((-1,), (-3,))},
        2,
    ),
    Layer(
        "vmap of a block",
        layer(stacked(Block), call=side_by_side),
        {"layer/up/kernel": Weight((-1,), (-3,))},
        2,
    ),
]
