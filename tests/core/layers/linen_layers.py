"""The layers of Flax linen."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.core.layers.probe import Built, Layer, Weight, filled

X = jnp.ones((2, 6))
LAST = Weight()


def linen(module: nn.Module, *args: Any, name: str = "", pick: Any = None, **kw: Any) -> Any:
    """A builder; the module stands in a parent, under the name that linen gives it."""

    def build() -> Built:
        class Net(nn.Module):
            @nn.compact
            def __call__(self, *args: Any) -> Any:
                return module.clone(parent=self, name=None)(*args, **kw)

        net = Net()
        variables = filled(jax.eval_shape(net.init, jax.random.key(0), *args))

        def apply(params: Any) -> Any:
            out = net.apply(
                {**variables, "params": params}, *args, mutable=list(variables.keys() - {"params"})
            )[0]
            return out if pick is None else pick(out)

        return Built(variables["params"], apply)

    return build


def whole(net: nn.Module, *args: Any) -> Any:
    """A builder of a module that stands by itself."""

    def build() -> Built:
        variables = filled(jax.eval_shape(net.init, jax.random.key(0), *args))
        return Built(
            variables["params"], lambda params: net.apply({**variables, "params": params}, *args)
        )

    return build


def linen_around(wrapper: Any, inner: nn.Module, **kw: Any) -> Any:
    """A builder of a normalised layer."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return wrapper(inner.clone(parent=None))(x, **kw)

    return whole(Net(), X)


def cell(module: Any, *shape: int) -> Any:
    """A recurrent cell, from a state of ones: of unit k's gates only unit k of the new state
    depends."""
    inputs = jnp.ones((2, *shape))

    def build() -> Built:
        class Net(nn.Module):
            @nn.compact
            def __call__(self, x: Any) -> Any:
                inner = module.clone(parent=self, name=None)
                carry = jax.tree.map(
                    jnp.ones_like, inner.initialize_carry(jax.random.key(0), x.shape)
                )
                return inner(carry, x)[1]

        net = Net()
        variables = filled(jax.eval_shape(net.init, jax.random.key(0), inputs))
        return Built(variables["params"], lambda params: net.apply({"params": params}, inputs))

    return build


def gates(module: str, *names: str) -> dict[str, Weight]:
    return {f"{module}/{name}/kernel": LAST for name in names}


MIX = "the projection back mixes all heads; as DenseGeneral"
ATTENTION = {
    **{f"{{}}/{name}/kernel": Weight((-2, -1), hand=MIX) for name in ("query", "key", "value")},
    "{}/out/kernel": Weight(hand="as DenseGeneral over two axes"),
}


def attention(module: str) -> dict[str, Weight]:
    return {path.format(module): weight for path, weight in ATTENTION.items()}


def sum_of(forward: Any, backward: Any) -> Any:
    return forward + backward


class Blocks(nn.Module):
    """Three layers in a scan."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x: Any, _: Any) -> Any:
                y = nn.Dense(5)(nn.LayerNorm()(x))
                return nn.Dense(6)(y), y

        stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return stack()(x, None)[1]


class Heads(nn.Module):
    """Three layers side by side, with the outputs (batch, layers, out)."""

    axis: int = 0

    @nn.compact
    def __call__(self, x: Any) -> Any:
        each = nn.vmap(
            nn.Dense,
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            in_axes=None,
            out_axes=1,
            axis_size=3,
        )
        return each(5)(x)


IMAGE = jnp.ones((1, 5, 5, 6))
LINE = jnp.ones((1, 5, 6))

LAYERS = [
    Layer("Dense", linen(nn.Dense(5), X), {"Dense_0/kernel": LAST}),
    Layer(
        "DenseGeneral (2 axes out)",
        linen(nn.DenseGeneral((4, 3)), X),
        {"DenseGeneral_0/kernel": Weight((-2, -1))},
        2,
    ),
    Layer(
        "DenseGeneral (2 axes in)",
        linen(nn.DenseGeneral(5, axis=(-2, -1)), jnp.ones((2, 3, 4))),
        {"DenseGeneral_0/kernel": LAST},
    ),
    Layer(
        "Einsum",
        linen(nn.Einsum((6, 4, 3), "bi,ihd->bhd"), X),
        {"Einsum_0/kernel": Weight((-2, -1))},
        2,
    ),
    Layer("Conv (1-D)", linen(nn.Conv(4, (3,)), LINE), {"Conv_0/kernel": LAST}),
    Layer("Conv (2-D)", linen(nn.Conv(4, (3, 3)), IMAGE), {"Conv_0/kernel": LAST}),
    Layer(
        "Conv (3-D)",
        linen(nn.Conv(4, (2, 2, 2)), jnp.ones((1, 3, 3, 3, 6))),
        {"Conv_0/kernel": LAST},
    ),
    Layer(
        "Conv (grouped)",
        linen(nn.Conv(4, (3, 3), feature_group_count=2), IMAGE),
        {"Conv_0/kernel": LAST},
    ),
    Layer(
        "Conv (depthwise)",
        linen(nn.Conv(12, (3, 3), feature_group_count=6), IMAGE),
        {"Conv_0/kernel": LAST},
    ),
    Layer(
        "ConvLocal (1-D)",
        linen(nn.ConvLocal(4, (3,)), LINE, pick=lambda y: y),
        {"ConvLocal_0/kernel": Weight((-1,), (-3,))},
        2,
    ),
    Layer(
        "ConvLocal (2-D)",
        linen(nn.ConvLocal(4, (3, 3)), IMAGE),
        {"ConvLocal_0/kernel": Weight((-1,), (-4, -3))},
        3,
    ),
    Layer(
        "ConvTranspose (1-D)",
        linen(nn.ConvTranspose(4, (3,)), LINE),
        {"ConvTranspose_0/kernel": LAST},
    ),
    Layer(
        "ConvTranspose (2-D)",
        linen(nn.ConvTranspose(4, (3, 3)), IMAGE),
        {"ConvTranspose_0/kernel": LAST},
    ),
    Layer(
        "ConvTranspose (transpose_kernel)",
        linen(nn.ConvTranspose(4, (3, 3), transpose_kernel=True), IMAGE),
        {"ConvTranspose_0/kernel": Weight((-2,))},
    ),
    Layer("Embed", linen(nn.Embed(5, 4), jnp.zeros((2,), int)), {}),
    Layer("BatchNorm", linen(nn.BatchNorm(use_running_average=True), X), {}),
    Layer("LayerNorm", linen(nn.LayerNorm(), X), {}),
    Layer(
        "LayerNorm (2 axes)",
        linen(nn.LayerNorm(reduction_axes=(-2, -1), feature_axes=(-2, -1)), jnp.ones((2, 3, 4))),
        {},
    ),
    Layer("RMSNorm", linen(nn.RMSNorm(), X), {}),
    Layer("GroupNorm", linen(nn.GroupNorm(2), X), {}),
    Layer("InstanceNorm", linen(nn.InstanceNorm(), IMAGE), {}),
    Layer("PReLU", linen(nn.PReLU(), X), {}),
    Layer(
        "LSTMCell",
        cell(nn.LSTMCell(4), 6),
        gates("LSTMCell_0", "ii", "if", "ig", "io", "hi", "hf", "hg", "ho"),
    ),
    Layer(
        "OptimizedLSTMCell",
        cell(nn.OptimizedLSTMCell(4), 6),
        gates("OptimizedLSTMCell_0", "ii", "if", "ig", "io", "hi", "hf", "hg", "ho"),
    ),
    Layer(
        "GRUCell", cell(nn.GRUCell(4), 6), gates("GRUCell_0", "ir", "iz", "in", "hr", "hz", "hn")
    ),
    Layer("MGUCell", cell(nn.MGUCell(4), 6), gates("MGUCell_0", "if", "in", "hf", "hn")),
    Layer("SimpleCell", cell(nn.SimpleCell(4), 6), gates("SimpleCell_0", "i", "h")),
    Layer(
        "ConvLSTMCell",
        cell(nn.ConvLSTMCell(4, (3, 3)), 5, 5, 6),
        gates("ConvLSTMCell_0", "ih", "hh"),
    ),
    Layer(
        "WeightNorm(Dense)",
        linen_around(nn.WeightNorm, nn.Dense(5)),
        {"WeightNorm_0/layer_instance/kernel": LAST},
    ),
    Layer(
        "SpectralNorm(Dense)",
        linen_around(nn.SpectralNorm, nn.Dense(5), update_stats=False),
        {
            "SpectralNorm_0/layer_instance/kernel": Weight(
                hand="the largest singular value is that of all"
            )
        },
    ),
    Layer(
        "RNN(GRUCell)",
        linen(nn.RNN(nn.GRUCell(4)), jnp.ones((2, 1, 6))),
        gates("RNN_0/cell", "ir", "iz", "in", "hr", "hz", "hn"),
    ),
    Layer(
        "Bidirectional",
        linen(
            nn.Bidirectional(nn.RNN(nn.SimpleCell(4)), nn.RNN(nn.SimpleCell(4)), merge_fn=sum_of),
            jnp.ones((2, 1, 6)),
        ),
        {
            **gates("Bidirectional_0/forward_rnn/cell", "i", "h"),
            **gates("Bidirectional_0/backward_rnn/cell", "i", "h"),
        },
    ),
    Layer(
        "MultiHeadDotProductAttention",
        linen(
            nn.MultiHeadDotProductAttention(2, qkv_features=8, out_features=5), jnp.ones((1, 3, 6))
        ),
        attention("MultiHeadDotProductAttention_0"),
    ),
    Layer(
        "MultiHeadAttention",
        linen(
            nn.MultiHeadAttention(2, qkv_features=8, out_features=5, normalize_qk=True),
            jnp.ones((1, 3, 6)),
        ),
        attention("MultiHeadAttention_0"),
    ),
    Layer(
        "SelfAttention",
        linen(nn.SelfAttention(2), jnp.ones((1, 3, 6))),
        attention("SelfAttention_0"),
    ),
    Layer(
        "scan of Dense",
        whole(Blocks(), X),
        {
            f"ScanBlock_0/{name}/kernel": Weight((-1,), (-3,), "a layer feeds the next")
            for name in ("Dense_0", "Dense_1")
        },
    ),
    Layer("vmap of Dense", whole(Heads(), X), {"VmapDense_0/kernel": Weight((-1,), (-3,))}, 2),
    Layer(
        "vmap of Dense (axis 1)",
        whole(Heads(1), X),
        {"VmapDense_0/kernel": Weight((-1,), (-2,))},
        2,
    ),
]
