"""Folded networks compute what they did, with batch norms that store nothing; what cannot be folded
says why.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxprune as jp
from tests.helpers import normal


def bn(p, x, axis=-1, eps=1e-5):
    def put(v):
        return v.reshape([-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])

    return (x - put(p["mean"])) * (lax.rsqrt(put(p["var"]) + eps) * put(p["scale"])) + put(
        p["shift"]
    )


def stats(n, seed=0):
    return {"mean": normal(n, seed), "var": 0.2 + normal(n, seed + 1) ** 2} | {
        "scale": normal(n, seed + 2),
        "shift": normal(n, seed + 3),
    }


def constant(p):
    return all(bool(jnp.all(p[k] == v)) for k, v in (("mean", 0), ("var", 1), ("scale", 1)))


def randomised(tree):
    flat, made = jax.tree.flatten(tree)
    return jax.tree.unflatten(
        made, [0.3 + abs(normal(x.shape, i, x.dtype)) for i, x in enumerate(flat)]
    )


def test_dense_with_a_bias():
    def f(p, x):
        return jax.nn.relu(bn(p["bn"], x @ p["w"] + p["bias"]))

    p = {"w": normal((5, 7)), "bias": normal(7), "bn": stats(7)}
    got = jp.fold_batch_norm(f, p, normal((2, 5)))
    a = np.asarray(p["bn"]["scale"]) / np.sqrt(np.asarray(p["bn"]["var"]) + 1e-5)
    np.testing.assert_allclose(
        got.params["w"], np.asarray(p["w"]) * a * np.sqrt(1 + 1e-5), rtol=1e-5
    )
    want = (np.asarray(p["bias"]) - np.asarray(p["bn"]["mean"])) * a + np.asarray(p["bn"]["shift"])
    np.testing.assert_allclose(got.params["bn"]["shift"], want, rtol=1e-4, atol=1e-5)
    assert constant(got.params["bn"]) and not jnp.any(got.params["bias"])
    assert (
        got.left == () and got.folded[0][0] == "w" and set(got.folded[0][1]) > {"bias", "bn/scale"}
    )
    x = normal((9, 5), 7)
    np.testing.assert_allclose(f(got.params, x), f(p, x), atol=1e-4)


LAYOUTS = [
    (("NHWC", "HWIO", "NHWC"), (2, 6, 6, 4), (3, 3, 4, 8), 1, -1),
    (("NCHW", "OIHW", "NCHW"), (2, 4, 6, 6), (8, 4, 3, 3), 1, 1),
    (("NHWC", "HWIO", "NHWC"), (2, 6, 6, 4), (3, 3, 2, 8), 2, -1),
    (("NHWC", "HWIO", "NHWC"), (2, 6, 6, 4), (3, 3, 1, 4), 4, -1),
]


@pytest.mark.parametrize(
    "numbers, x, k, groups, axis", LAYOUTS, ids=["NHWC", "NCHW", "grouped", "depthwise"]
)
def test_convolutions(numbers, x, k, groups, axis):
    def f(p, x):
        y = lax.conv_general_dilated(
            x, p["k"], (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )
        return jnp.tanh(bn(p["bn"], y, axis))

    out = k[0] if numbers[1] == "OIHW" else k[-1]
    p = {"k": normal(k), "bn": stats(out, 3)}
    got = jp.fold_batch_norm(jax.jit(f), p, normal(x, 9))
    assert constant(got.params["bn"]) and got.error < 1e-5
    np.testing.assert_allclose(f(got.params, normal(x, 11)), f(p, normal(x, 11)), atol=1e-4)


def test_a_transposed_weight_and_a_weight_on_the_left():
    p = {"k": normal((7, 5)), "bn": stats(7)}
    for f in (
        lambda p, x: bn(p["bn"], x @ p["k"].T),
        lambda p, x: bn(p["bn"], jnp.einsum("oi,bi->bo", p["k"], x)),
    ):
        got = jp.fold_batch_norm(f, p, normal((2, 5)))
        assert constant(got.params["bn"]) and got.params["k"].shape == (7, 5)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        for n in (4, 4):
            y = nn.BatchNorm(use_running_average=True)(nn.Conv(n, (3, 3))(x))
            x = nn.relu(y if x.shape[-1] != n else x + y)
        return nn.Dense(3)(x.mean((1, 2)))


def test_linen():
    x = normal((2, 6, 6, 3))
    net = Linen()
    p = randomised(net.init(jax.random.key(0), x))
    got = jp.fold_batch_norm(net.apply, p, x)
    assert len(got.folded) == 2 and got.left == ()
    assert jax.tree.structure(got.params) == jax.tree.structure(p)
    assert bool(jnp.all(got.params["batch_stats"]["BatchNorm_1"]["var"] == 1))


def test_nnx():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
            self.bn = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)

        def __call__(self, x):
            return jax.nn.relu(self.bn(self.conv(x)))

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    got = jp.fold_batch_norm(
        lambda s, x: nnx.merge(graph, s)(x), randomised(state), normal((2, 6, 6, 3))
    )
    assert len(got.folded) == 1 and type(got.params) is type(state)


def test_what_is_left_alone_says_why():
    def f(p, x):
        good = bn(p["good"], x @ p["w0"])
        late = bn(p["late"], jax.nn.relu(good))
        shared = late @ p["w1"]
        twice = bn(p["twice"], shared @ p["w2"]) + shared @ p["w2"]
        y = twice @ p["w3"]
        own = (y - y.mean(0)) * lax.rsqrt(y.var(0) + 1e-5) * p["train"] + y
        return own

    p = {f"w{i}": normal((4, 4), i) for i in range(4)}
    p |= {name: stats(4, 10 * i) for i, name in enumerate(("good", "late", "twice"))} | {
        "train": normal(4)
    }
    got = jp.fold_batch_norm(f, p, normal((3, 4)))
    left = dict(got.left)
    assert [w for w, _ in got.folded] == ["w0"]
    assert (
        "max" in left["late/scale"] and "w2" in left["twice/scale"] and "eval mode" in left["train"]
    )
    for name in ("w1", "w2", "w3", "train"):
        assert got.params[name] is p[name]


def test_nothing_to_fold_is_an_error_that_says_why():
    with pytest.raises(ValueError, match="nothing to fold"):
        jp.fold_batch_norm(lambda p, x: x @ p, normal((3, 3)), normal((2, 3)))

    def f(p, x):
        return bn(p["bn"], jax.nn.relu(x @ p["w"]))

    with pytest.raises(ValueError, match=r"bn/scale: it follows max"):
        jp.fold_batch_norm(f, {"w": normal((3, 3)), "bn": stats(3)}, normal((2, 3)))


def test_traced_params_are_refused():
    def f(p, x):
        return bn(p["bn"], x @ p["w"])

    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(lambda p: jp.fold_batch_norm(f, p, normal((2, 3))).params)(
            {"w": normal((3, 3)), "bn": stats(3)}
        )


def test_a_residual_network_is_folded_whole():
    from experiments import resnet

    p = {
        "conv1": {"kernel": normal((3, 3, 3, 4))},
        "linear": {"kernel": normal((16, 10)), "bias": normal(10)},
    }
    widths = [("1", 4, 4), ("2", 4, 8), ("3", 8, 16)]
    p |= {f"layer{s}.0.conv1": {"kernel": normal((3, 3, i, o), 1)} for s, i, o in widths}
    p |= {f"layer{s}.0.conv2": {"kernel": normal((3, 3, o, o), 2)} for s, _, o in widths}
    norms = {
        name.replace("conv", "bn"): x["kernel"].shape[-1] for name, x in p.items() if "conv" in name
    }
    names = ("mean", "var", "scale", "bias")
    p |= {name: dict(zip(names, stats(n).values())) for name, n in norms.items()}
    got = jp.fold_batch_norm(resnet.apply, p, normal((1, 32, 32, 3)))
    assert len(got.folded) == 7 and got.left == ()
    np.testing.assert_allclose(
        resnet.apply(got.params, normal((2, 32, 32, 3), 5)),
        resnet.apply(p, normal((2, 32, 32, 3), 5)),
        rtol=1e-3,
        atol=1e-2,
    )


@pytest.mark.parametrize("dtype, tolerance", [("bfloat16", 0.06), ("float16", 0.01)])
def test_small_dtypes_and_more_channels_than_they_count(dtype, tolerance):
    def f(p, x):
        return bn(p["bn"], x @ p["w"])

    p = {"w": normal((5, 700)), "bn": stats(700)}
    small = jax.tree.map(lambda x: x.astype(dtype), p)
    got = jp.fold_batch_norm(f, small, normal((2, 5)).astype(dtype), tolerance=tolerance)
    assert constant(got.params["bn"]) and got.params["w"].dtype == dtype
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), small)
    want = jp.fold_batch_norm(f, wide, normal((2, 5))).params["bn"]["shift"]
    np.testing.assert_allclose(
        got.params["bn"]["shift"].astype(jnp.float32), want, rtol=0.05, atol=0.1
    )
