"""FLOPs: hand counts, XLA's own count, control flow, and the count that skips zeros."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from jaxprune.core.arrays import Clustered, Common, Masked, is_code, materialize
from jaxprune.jaxprs.flops import flops, flops_by_primitive, sparse_flops, unpadded_flops


def shape(*n):
    return jax.ShapeDtypeStruct(n, jnp.float32)


NHWC = ("NHWC", "HWIO", "NHWC")


def conv(x, w, stride=1, padding="VALID", **kw):
    n = w.ndim - 2
    return lax.conv_general_dilated(x, w, (stride,) * n, padding, dimension_numbers=NHWC, **kw)


def mlp(params, x):
    for w, b in params[:-1]:
        x = jax.nn.relu(x @ w + b)
    return x @ params[-1][0] + params[-1][1]


def cnn(params, x):
    for w in params[:-1]:
        x = jax.nn.relu(conv(x, w))
    return x.mean((1, 2)) @ params[-1]


LENET = [(shape(784, 300), shape(300)), (shape(300, 100), shape(100)), (shape(100, 10), shape(10))]
CNN = [shape(3, 3, 3, 16), shape(3, 3, 16, 32), shape(32, 10)]


def xla(f, *args):
    return jax.jit(f).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(
    "f, args, count",
    [
        (jnp.matmul, (shape(5, 30), shape(30, 10)), 2 * 5 * 30 * 10),
        (
            partial(jnp.einsum, "bij,bjk->bik"),
            (shape(7, 5, 30), shape(7, 30, 10)),
            2 * 7 * 5 * 30 * 10,
        ),
        (partial(jnp.einsum, "ijk,jlk->il"), (shape(2, 3, 4), shape(3, 5, 4)), 2 * 2 * 5 * 12),
        (partial(jnp.einsum, "i,j->ij"), (shape(3), shape(4)), 2 * 12),
        (jnp.exp, (shape(3, 4),), 12),
        (jnp.add, (shape(3, 1), shape(1, 4)), 12),
        (jnp.sum, (shape(3, 4),), 12),
        (partial(jnp.max, axis=0), (shape(3, 4),), 12),
        (jnp.cumsum, (shape(9),), 9),
        (lambda x: x.reshape(4, 3).T[::2, 1:].astype(jnp.bfloat16), (shape(3, 4),), 0),
        (
            lambda x, i: x.at[i].get(mode="clip", wrap_negative_indices=False),
            (shape(9, 5), jnp.zeros(3, int)),
            0,
        ),
        (jnp.sort, (shape(9),), 0),
        (
            lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (2, 2), "VALID"),
            (shape(8, 8),),
            16 * 4,
        ),
        (
            lambda x, i: x.at[i].add(x[:3], wrap_negative_indices=False),
            (shape(9, 5), jnp.zeros(3, int)),
            15,
        ),
    ],
)
def test_primitives(f, args, count):
    assert flops(f, *args) == count


@pytest.mark.parametrize(
    "x, w, kw, taps",
    [
        ((2, 8, 8, 6), (3, 3, 6, 10), {}, 6 * 6 * 9 * 6),
        ((2, 8, 8, 6), (3, 3, 6, 10), {"padding": "SAME"}, 8 * 8 * 9 * 6),
        ((2, 8, 8, 6), (3, 3, 6, 10), {"stride": 2, "padding": "SAME"}, 4 * 4 * 9 * 6),
        ((2, 8, 8, 6), (3, 3, 6, 10), {"rhs_dilation": (2, 2)}, 4 * 4 * 9 * 6),
        ((2, 8, 8, 6), (3, 3, 1, 10 * 6), {"feature_group_count": 6}, 6 * 6 * 9 * 1),
        ((2, 8, 8, 6), (3, 3, 6, 10), {"batch_group_count": 2}, 6 * 6 * 9 * 6),
        # a transposed convolution that doubles: each input element meets each of 16 window places
        # once
        (
            (2, 4, 4, 6),
            (4, 4, 6, 10),
            {"padding": [(2, 2), (2, 2)], "lhs_dilation": (2, 2)},
            8 * 8 * 4 * 6,
        ),
    ],
)
def test_convolutions(x, w, kw, taps):
    out = jax.eval_shape(partial(conv, **kw), shape(*x), shape(*w)).shape
    assert flops(partial(conv, **kw), shape(*x), shape(*w)) == 2 * out[0] * out[-1] * taps


@given(
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 4),
)
@settings(max_examples=40, deadline=None)
def test_taps_of_a_dilated_convolution_against_a_loop(n, window, stride, step, holes, pad):
    x = shape(1, n, 1)
    w = shape(window, 1, 1)

    def f(x, w):
        return lax.conv_general_dilated(
            x,
            w,
            (stride,),
            [(pad, pad + 1)],
            (holes,),
            (step,),
            dimension_numbers=("NHC", "HIO", "NHC"),
        )

    there = np.zeros(pad + (n - 1) * holes + 1 + pad + 1, int)
    there[pad : pad + (n - 1) * holes + 1 : holes] = 1
    taps = 0
    real = 0
    for o in range(jax.eval_shape(f, x, w).shape[1]):
        for k in range(window):
            taps += (o * stride + k * step - pad) % holes == 0
            real += there[o * stride + k * step]
    assert flops(f, x, w) == 2 * taps and unpadded_flops(f, x, w) == 2 * real


def test_lenet_by_hand():
    products = 2 * 32 * (784 * 300 + 300 * 100 + 100 * 10)
    assert flops_by_primitive(mlp, LENET, shape(32, 784)) == {
        "dot_general": products,
        "add": 32 * 410,
        "max": 32 * 400,
    }
    assert flops(mlp, LENET, shape(32, 784)) == products + 32 * 810


@pytest.mark.parametrize(
    "f, params, x", [(mlp, LENET, shape(32, 784)), (cnn, CNN, shape(4, 20, 20, 3))]
)
def test_xla_counts_the_same(f, params, x):
    assert flops(f, params, x) == pytest.approx(xla(f, params, x), rel=0.03)


def test_padding_is_the_difference_from_xla():
    f = partial(conv, padding="SAME")
    x = shape(1, 16, 16, 8)
    w = shape(3, 3, 8, 8)
    assert flops(f, x, w) == 2 * 64 * (3 * 16) ** 2
    assert xla(f, x, w) == unpadded_flops(f, x, w) == 2 * 64 * (3 * 16 - 2) ** 2


def test_control_flow():
    x = shape(4, 6)
    w = shape(6, 6)
    once = 2 * 4 * 36

    def step(c, _):
        return (c @ jnp.zeros((6, 6)), ())

    assert flops(lambda x: lax.scan(step, x, None, length=7)[0], x) == 7 * once
    assert (
        flops(lambda x, w: lax.scan(lambda c, w: (c @ w, ()), x, w)[0], x, shape(5, 6, 6))
        == 5 * once
    )
    assert flops(lambda x, w: lax.while_loop(lambda c: True, lambda c: c @ w, x), x, w) == once

    def branches(x, w):
        return lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: jnp.sin(x))

    assert flops_by_primitive(branches, x, w) == {"dot_general": 2 * once, "gt": 1}
    assert flops(lambda x, w: lax.map(lambda r: r @ w, x), x, w) == once

    def inner(c, _):
        return (lax.scan(step, c, None, length=3)[0], ())

    assert flops(lambda x: lax.scan(inner, x, None, length=2)[0], x) == 6 * once


def test_calls_are_entered():
    x = shape(4, 6)
    w = shape(6, 6)
    once = 2 * 4 * 36
    own = jax.custom_vjp(lambda x, w: x @ w)
    own.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))
    assert flops(jax.jit(jax.jit(jnp.matmul)), x, w) == once
    assert flops(jax.checkpoint(jnp.matmul), x, w) == once
    assert flops(own, x, w) == once
    assert flops(jax.nn.relu, x) == 24
    assert (
        flops(jax.grad(lambda x, w: jnp.sum(x @ w)), x, w) == 2 * once + 24
    )  # the value is traced too
    assert flops(jax.vmap(jnp.matmul, (0, None)), shape(3, 4, 6), w) == 3 * once
    # LU 2/3·6³ = 144 and two triangular solves of 36; the other three jaxprs of a linear solve do
    # not run
    by = flops_by_primitive(jnp.linalg.solve, shape(6, 6), shape(6))
    assert by["lu"] == 144 and by["triangular_solve"] == 72


def test_a_shard_map_runs_on_every_device():
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    P = PartitionSpec
    f = jax.shard_map(
        lambda x, w: lax.psum(x @ w, "b"),
        mesh=mesh,
        in_specs=(P("a", "b"), P("b")),
        out_specs=P("a"),
    )
    assert flops_by_primitive(f, shape(4, 8), shape(8, 6))["dot_general"] == 2 * 4 * 8 * 6


def test_what_cannot_be_seen_is_an_error():
    with pytest.raises(ValueError, match="svd"):
        flops(jnp.linalg.svd, shape(4, 4))
    with pytest.raises(ValueError, match="pure_callback"):
        flops(lambda x: jax.pure_callback(np.sin, x, x), shape(4))


def test_static_keywords_and_compressed_trees():
    def f(w, x, *, train):
        return jnp.tanh(x @ w) if train else x @ w

    assert flops(f, shape(6, 5), shape(4, 6), train=False) == 240
    assert flops(f, shape(6, 5), x=shape(4, 6), train=True) == 260
    code = Masked(Clustered(jnp.ones(4), jnp.zeros((6, 5), jnp.uint8)), jnp.ones((6, 5), bool))
    assert flops(lambda c, x: x @ c.materialize(), code, shape(4, 6)) >= 240


# --- zeros skipped ---


def masked(n, m, every):
    """Weights of which one in `every` is kept."""
    w = np.random.default_rng(0).standard_normal((n, m), np.float32)
    return Masked(jnp.asarray(w), jnp.asarray(np.arange(n * m).reshape(n, m) % every == 0))


def test_sparse_flops_by_hand():
    weights = [masked(784, 300, 10), masked(300, 100, 4), jnp.ones((100, 10))]
    params = [(w, jnp.zeros(w.shape[-1])) for w in weights]
    nonzeros = 23520 + 7500 + 1000
    assert sparse_flops(mlp, params, shape(32, 784)) == 2 * 32 * nonzeros + 32 * 810
    dense = jax.tree.map(materialize, params, is_leaf=is_code)
    assert sparse_flops(mlp, dense, shape(32, 784)) == 2 * 32 * nonzeros + 32 * 810


@pytest.mark.parametrize(
    "f",
    [
        lambda w, x: x @ w,
        lambda w, x: (w.T @ x.T).T,
        lambda w, x: x @ w.reshape(5, 6).T.reshape(6, 5),
        lambda w, x: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16),
        lambda w, x: jax.jit(lambda w, x: x @ jnp.transpose(w).T)(w, x),
        lambda w, x: x @ jax.jit(jnp.transpose)(w.T),
        lambda w, x: jax.checkpoint(lambda w: x @ w)(w),
        lambda w, x: lax.cond(x[0, 0] * 0 > 1, lambda: x @ w, lambda: jnp.zeros((4, 5))),
        lambda w, x: lax.stop_gradient(w) @ x[:, :5].T,
        lambda w, x: lax.scan(lambda c, r: (c, r @ w), 0, x)[1],
        lambda w, x: x @ lax.scan(lambda c, row: (c, row), 0, w)[1],
    ],
)
def test_weights_are_followed(f):
    all_ = 2 * 4 * 6 * 5
    kept = 2 * 4 * 6
    assert (
        flops(f, shape(6, 5), shape(4, 6)) - sparse_flops(f, masked(6, 5, 5), shape(4, 6))
        == all_ - kept
    )


@pytest.mark.parametrize(
    "f",
    [
        lambda w, x: x @ (w + 1),
        lambda w, x: x @ jnp.concatenate([w[:3], w[3:]]),
        lambda w, x: x @ (2 * w),
    ],
)
def test_changed_weights_are_not(f):
    assert sparse_flops(f, masked(6, 5, 5), shape(4, 6)) == flops(f, shape(6, 5), shape(4, 6))


def test_scanned_layers_convolutions_and_carries():
    stack = jnp.asarray(np.random.default_rng(0).random((3, 8, 8)) < 0.3, jnp.float32)

    def layers(p, x):
        return lax.scan(lambda c, w: (c @ w, ()), x, p)[0]

    assert sparse_flops(layers, stack, shape(2, 8)) == 2 * 2 * np.count_nonzero(stack)
    kernel = np.zeros((3, 3, 4, 6), np.float32)
    kernel[1] = 1
    assert sparse_flops(lambda w, x: conv(x, w), kernel, shape(2, 8, 8, 4)) == 2 * 2 * 36 * 72

    def carried(w, x):
        return lax.fori_loop(0, 3, lambda i, w: w @ w + 1, w)

    assert sparse_flops(carried, jnp.eye(4), 0) == flops(carried, jnp.eye(4), 0)


def test_two_weights_count_by_the_sparser():
    def f(p, x):
        return p[0] @ p[1]

    assert sparse_flops(f, [masked(6, 5, 5), masked(5, 7, 7)], 0) == 2 * 6 * 5 * 7 // 7


def test_a_common_codebook():
    leaf = Masked(Clustered(None, jnp.zeros((6, 5), jnp.uint8)), jnp.arange(30).reshape(6, 5) < 10)
    assert (
        sparse_flops(lambda p, x: x @ p["w"], Common(jnp.ones(2), {"w": leaf}), shape(4, 6))
        == 2 * 4 * 10
    )


def test_traced_weights_are_an_error():
    with pytest.raises(ValueError, match="concrete"):
        jax.jit(lambda w: sparse_flops(lambda w, x: x @ w, w, shape(4, 6)))(jnp.ones((6, 5)))
