"""Architectures to be cut: each is (f, params, args), small, with weights of all sizes; some give
new params (STATE).

A wrong index is always seen: every weight is drawn anew, normal and scaled by its position, so no
two units are alike. What is compared with what, and how, stands here too.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def drawn(shapes, seed=0):
    """Weights of the shapes; variances are positive, and biases, so that few units are always
    off.
    """
    rng = np.random.default_rng(seed)

    def one(keys, x):
        name = jax.tree_util.keystr(keys[-1:], simple=True)
        fan = max(1, int(np.prod(x.shape[:-1])))
        w = (
            rng.normal(size=x.shape)
            / fan**0.5
            * (1 + np.arange(x.shape[-1]) / x.shape[-1] if x.ndim else 1)
        )
        return jnp.asarray(
            np.abs(w) + 0.5 * (name == "var") if name in ("var", "bias") else w, x.dtype
        )

    return jax.tree_util.tree_map_with_path(one, shapes)


def linen(module, *x, seed=0, **kw):
    """f(params, x) of a module, whose params are all its variables."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *x, **kw))
    return lambda variables, *x: module.apply(variables, *x, **kw), drawn(shapes, seed), x


def distance(a, b):
    """Of two trees, relative to the largest number."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    scale = max(float(jnp.abs(x).max()) for x, _ in pairs)
    return max(float(jnp.abs(x - y).max()) for x, y in pairs) / scale


def value_and_grads(f, args):
    """(params, c, a tree as the outputs are) -> (outputs, gradients of the sum of c * outputs)."""

    def total(params, c):
        outs = f(params, *args)
        return sum((a * b).sum() for a, b in zip(jax.tree.leaves(outs), jax.tree.leaves(c))), outs

    both = jax.jit(jax.grad(total, has_aux=True, allow_int=True))
    return lambda params, c: both(params, c)[::-1]


def floats(tree):
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


def image(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


def tokens(n, v=30):
    return jax.random.randint(jax.random.key(1), (2, n), 0, v)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(12)(x))
        x = nn.sigmoid(nn.Dense(10)(x))  # not 0 at 0
        return nn.Dense(5)(x)


class CNN(nn.Module):
    """Pooling, and a dense layer on what is flattened."""

    train: bool = False

    @nn.compact
    def __call__(self, x):
        def norm(x):
            return nn.relu(nn.BatchNorm(not self.train)(x))

        x = nn.max_pool(norm(nn.Conv(6, (3, 3), use_bias=False)(x)), (2, 2), (2, 2))
        x = nn.avg_pool(norm(nn.Conv(8, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(10)(x.reshape(len(x), -1)))
        return nn.Dense(4)(x)


class Block(nn.Module):
    width: int
    stride: int
    option: str

    @nn.compact
    def __call__(self, x):
        def conv(k, s):
            return nn.Conv(self.width, (k, k), (s, s), use_bias=False)

        y = nn.relu(nn.BatchNorm(True)(conv(3, self.stride)(x)))
        y = nn.BatchNorm(True)(conv(3, 1)(y))
        if x.shape == y.shape:
            return nn.relu(x + y)
        if self.option == "B":
            return nn.relu(y + nn.BatchNorm(True)(conv(1, self.stride)(x)))
        more = self.width - x.shape[-1]
        x = x[:, :: self.stride, :: self.stride]
        return nn.relu(y + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2))))


class ResNet(nn.Module):
    """Shortcuts by zero padding (A) or a projection (B)."""

    option: str

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(True)(nn.Conv(4, (3, 3), use_bias=False)(x)))
        for width, stride in ((4, 1), (8, 2), (16, 2)):
            x = Block(width, stride, self.option)(x)
        return nn.Dense(5)(x.mean((1, 2)))


class MobileNet(nn.Module):
    """Depthwise convolutions, inverted residuals, squeeze and excite."""

    @nn.compact
    def __call__(self, x):
        def norm(x):
            return nn.relu6(nn.BatchNorm(True)(x))

        x = norm(nn.Conv(4, (3, 3), (2, 2), use_bias=False)(x))
        for width in (4, 6):
            y = x
            wide = 3 * x.shape[-1]
            y = norm(nn.Conv(wide, (1, 1), use_bias=False)(y))
            y = norm(nn.Conv(wide, (3, 3), feature_group_count=wide, use_bias=False)(y))
            y = nn.BatchNorm(True)(nn.Conv(width, (1, 1), use_bias=False)(y))
            x = x + y if x.shape == y.shape else y
        gate = nn.sigmoid(nn.Dense(x.shape[-1])(nn.relu(nn.Dense(3)(x.mean((1, 2))))))
        return nn.Dense(4)((x * gate[:, None, None]).mean((1, 2)))


class ResNeXt(nn.Module):
    """Grouped convolutions and group norm."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        y = nn.relu(nn.Conv(16, (1, 1))(x))
        y = nn.relu(nn.GroupNorm(4)(nn.Conv(16, (3, 3), feature_group_count=4)(y)))
        return nn.Dense(4)(nn.relu(x + nn.Conv(8, (1, 1))(y)).mean((1, 2)))


class Encoder(nn.Module):
    """A transformer of tokens: learned positions, tied embedding."""

    @nn.compact
    def __call__(self, t):
        embed = nn.Embed(30, 12)
        x = embed(t) + self.param("positions", nn.initializers.normal(), (9, 12))[: t.shape[1]]
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(3)(y, y)
        x = x + nn.Dense(12)(nn.gelu(nn.Dense(20)(nn.LayerNorm()(x))))
        return embed.attend(nn.LayerNorm()(x))


class ViT(nn.Module):
    """Patches, a class token, fused queries, keys and values."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(12, (4, 4), (4, 4))(x).reshape(len(x), -1, 12)
        token = self.param("token", nn.initializers.normal(), (1, 1, 12))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], 1)
        x = x + self.param("positions", nn.initializers.normal(), (1, x.shape[1], 12))
        y = nn.Dense(36)(nn.LayerNorm()(x)).reshape(*x.shape[:2], 3, 3, 4)
        q, k, v = jnp.moveaxis(y, 2, 0)
        a = nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q, k) / 2)
        x = x + nn.Dense(12)(jnp.einsum("bhnm,bmhd->bnhd", a, v).reshape(x.shape))
        x = x + nn.Dense(12)(nn.gelu(nn.Dense(24)(nn.LayerNorm()(x))))
        return nn.Dense(4)(nn.LayerNorm()(x)[:, 0])


class Llama(nn.Module):
    """Grouped queries, rotary positions, gated units, RMS norms."""

    @nn.compact
    def __call__(self, t):
        n = t.shape[1]
        heads = 4
        shared = 2
        d = 4
        x = nn.Embed(30, 16)(t)

        def dense(n):
            return nn.Dense(n, use_bias=False)

        angle = jnp.arange(n)[:, None] * (100.0 ** (-jnp.arange(d // 2) / (d // 2)))
        cos, sin = (jnp.concatenate([g(angle)] * 2, -1)[None, :, None] for g in (jnp.cos, jnp.sin))

        def turned(q):
            return q * cos + jnp.concatenate([-q[..., d // 2 :], q[..., : d // 2]], -1) * sin

        y = nn.RMSNorm()(x)

        def part(m):
            return dense(m * d)(y).reshape(*y.shape[:2], m, d)

        q = turned(part(heads))
        k = turned(part(shared))
        v = part(shared)
        k, v = (jnp.repeat(z, heads // shared, axis=2) for z in (k, v))
        a = jnp.einsum("bqhd,bkhd->bhqk", q, k) / d**0.5
        a = nn.softmax(jnp.where(jnp.tril(jnp.ones((n, n), bool)), a, -1e9))
        x = x + dense(16)(jnp.einsum("bhqk,bkhd->bqhd", a, v).reshape(*x.shape[:2], -1))
        y = nn.RMSNorm()(x)
        x = x + dense(16)(nn.silu(dense(24)(y)) * dense(24)(y))
        return dense(30)(nn.RMSNorm()(x))


class DenseNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        def norm(x):
            return nn.relu(nn.BatchNorm(True)(x))

        x = nn.Conv(6, (3, 3), use_bias=False)(x)
        for block in range(2):
            for _ in range(2):
                y = nn.Conv(8, (1, 1), use_bias=False)(norm(x))
                x = jnp.concatenate([x, nn.Conv(4, (3, 3), use_bias=False)(norm(y))], -1)
            if block == 0:
                x = nn.avg_pool(nn.Conv(x.shape[-1] // 2, (1, 1))(norm(x)), (2, 2), (2, 2))
        return nn.Dense(4)(norm(x).mean((1, 2)))


class Recurrent(nn.Module):
    """LSTM, GRU, and both directions, each a scan over time."""

    @nn.compact
    def __call__(self, t):
        dtype = jnp.result_type(
            float
        )  # a cell's carry is of its param_dtype, whatever its weights are
        x = nn.Embed(30, 6)(t)
        x = nn.RNN(nn.OptimizedLSTMCell(8, param_dtype=dtype))(x)
        x = nn.RNN(nn.GRUCell(6, param_dtype=dtype))(x)
        x = nn.Bidirectional(*(nn.RNN(nn.LSTMCell(4, param_dtype=dtype)) for _ in range(2)))(x)
        return nn.Dense(5)(x)


class ShuffleNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(12, (3, 3))(x))
        for _ in range(2):
            a, b = jnp.split(x, 2, -1)
            b = nn.Conv(6, (3, 3), feature_group_count=6)(nn.relu(nn.Conv(6, (1, 1))(b)))
            x = jnp.concatenate([a, nn.relu(nn.Conv(6, (1, 1))(b))], -1)
            x = x.reshape(*x.shape[:3], 2, 6).swapaxes(3, 4).reshape(x.shape)
        return nn.Dense(4)(nn.relu(nn.Conv(10, (1, 1))(x)).mean((1, 2)))


class PixelShuffle(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(16, (3, 3))(nn.relu(nn.Conv(6, (3, 3))(x)))
        b, h, w, c = x.shape
        x = (
            x.reshape(b, h, w, 2, 2, c // 4)
            .transpose(0, 1, 3, 2, 4, 5)
            .reshape(b, 2 * h, 2 * w, c // 4)
        )
        return nn.Conv(3, (3, 3))(nn.relu(x))


class UNet(nn.Module):
    """Skips by concatenation, transposed convolution, resizing."""

    @nn.compact
    def __call__(self, x):
        a = nn.relu(nn.Conv(4, (3, 3))(x))
        b = nn.relu(nn.Conv(8, (3, 3))(nn.max_pool(a, (2, 2), (2, 2))))
        up = nn.ConvTranspose(4, (2, 2), (2, 2))(b)
        x = jnp.concatenate([a, jax.image.resize(b, (*a.shape[:3], 8), "nearest"), up], -1)
        return nn.Conv(3, (1, 1))(nn.relu(nn.GroupNorm(4)(nn.Conv(8, (3, 3))(x))))


class ScannedLayer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(8)(nn.relu(nn.Dense(12)(x))), None


class Scanned(nn.Module):
    """A scan over rematerialised layers, then a cond and a loop."""

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            nn.remat(ScannedLayer),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        x, _ = layers()(nn.Dense(8)(x), None)
        x = jax.lax.cond(x.sum() > 0, nn.tanh, lambda z: z * 0.5, x)
        x = jax.lax.fori_loop(0, 3, lambda _, z: jnp.sin(z * 0.9), x)
        return nn.Dense(4)(x)


class Experts(nn.Module):
    """A mixture of experts with stacked weights, the two best of four."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        e = 4
        one = self.param("up", nn.initializers.lecun_normal(), (e, 8, 10))
        two = self.param("down", nn.initializers.lecun_normal(), (e, 10, 8))
        gates = nn.softmax(nn.Dense(e)(x))
        best, which = jax.lax.top_k(gates, 2)
        gates = jnp.zeros_like(gates).at[jnp.arange(len(x))[:, None], which].set(best)
        y = jnp.einsum("bef,efd,be->bd", nn.relu(jnp.einsum("bd,edf->bef", x, one)), two, gates)
        return nn.Dense(3)(x + y)


class Dropped(nn.Module):
    """Dropout, and gated units."""

    @nn.compact
    def __call__(self, x, key):
        x = nn.Dropout(0.3)(nn.relu(nn.Dense(12)(x)), deterministic=False, rng=key)
        a, b = jnp.split(nn.Dense(16)(x), 2, -1)
        return nn.Dense(3)(a * nn.sigmoid(b))


class Cached(nn.Module):
    """One token more, beside the keys and values of those before it."""

    @nn.compact
    def __call__(self, t):
        x = nn.Embed(30, 12)(t)
        attend = nn.MultiHeadDotProductAttention(3, decode=True)
        x = x + attend(nn.RMSNorm()(x))
        return nn.Dense(5)(nn.relu(nn.Dense(10)(nn.RMSNorm()(x))))


def trained():
    """Batch norm in train mode, which returns its new statistics."""
    module = CNN(train=True)
    x = image(4, 8, 8, 3)
    _, variables, _ = linen(module, x)
    return lambda v, x: module.apply(v, x, mutable=["batch_stats"]), variables, (x,)


def decoding():
    """A step of a decoder: the cache is among the params, and its new value among the outputs."""
    module = Cached()
    past = tokens(6)
    t = tokens(1)
    variables = drawn(jax.eval_shape(lambda: module.init(jax.random.key(0), past)))
    cache = jax.tree.map(lambda x: x if x.ndim else jnp.full_like(x, 3), variables["cache"])
    return (
        lambda v, t: module.apply(v, t, mutable=["cache"]),
        dict(variables) | {"cache": cache},
        (t,),
    )


MODELS = {
    "mlp": lambda: linen(MLP(), image(4, 6)),
    "cnn": lambda: linen(CNN(), image(2, 8, 8, 3)),
    "resnet A": lambda: linen(ResNet("A"), image(2, 8, 8, 3)),
    "resnet B": lambda: linen(ResNet("B"), image(2, 8, 8, 3)),
    "mobilenet": lambda: linen(MobileNet(), image(2, 8, 8, 3)),
    "resnext": lambda: linen(ResNeXt(), image(2, 6, 6, 3)),
    "encoder": lambda: linen(Encoder(), tokens(7)),
    "vit": lambda: linen(ViT(), image(2, 8, 8, 3)),
    "llama": lambda: linen(Llama(), tokens(5)),
    "densenet": lambda: linen(DenseNet(), image(2, 8, 8, 3)),
    "recurrent": lambda: linen(Recurrent(), tokens(5)),
    "shufflenet": lambda: linen(ShuffleNet(), image(2, 6, 6, 3)),
    "pixel shuffle": lambda: linen(PixelShuffle(), image(2, 4, 4, 3)),
    "u-net": lambda: linen(UNet(), image(2, 8, 8, 3)),
    "scanned": lambda: linen(Scanned(), image(4, 6)),
    "experts": lambda: linen(Experts(), image(4, 6)),
    "dropout": lambda: linen(Dropped(), image(4, 6), jax.random.key(7)),
    "batch norm in train mode": trained,
    "decoding with a cache": decoding,
}
STATE = {"batch norm in train mode": "1/batch_stats/.*", "decoding with a cache": "1/cache/.*"}
