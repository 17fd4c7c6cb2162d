"""What removed units send out goes into the biases that follow: beside NumPy, and beside f with
constants.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import jaxprune as jp

RNG = np.random.default_rng(11)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


X = draw(9, 6)
P = {
    "a": {"w": draw(6, 8), "b": draw(8)},
    "c": {"w": draw(8, 7), "b": draw(7)},
    "d": {"w": draw(7, 3), "b": draw(3)},
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def net(p, x, act=jax.nn.sigmoid):
    for name in ("a", "c"):
        x = act(x @ p[name]["w"] + p[name]["b"])
    return x @ p["d"]["w"] + p["d"]["b"]


def by_hand(p, thin, x, constants):
    """The large network in which a unit that was cut sends out a constant."""
    keep = thin.plan.keep
    for name, constant in zip(("a", "c"), constants):
        x = sigmoid(x @ p[name]["w"] + p[name]["b"])
        gone = np.delete(np.arange(x.shape[1]), keep[f"{name}/b"][0])
        x[:, gone] = constant if np.isscalar(constant) else constant[gone]
    return x @ p["d"]["w"] + p["d"]["b"]


def test_a_sigmoid_that_is_cut_leaves_one_half():
    plain, thin = (jp.shrink(net, P, X, ratio=0.5, approximate=how) for how in (False, "fold"))
    want = by_hand(P, thin, X, (0.5, 0.5))
    other = draw(4, 6)
    assert_allclose(thin.apply(thin.params, X), want, rtol=1e-4, atol=1e-5)
    assert_allclose(
        thin.apply(thin.params, other), by_hand(P, thin, other, (0.5, 0.5)), rtol=1e-4, atol=1e-5
    )
    assert np.abs(plain.apply(plain.params, X) - want).max() > 0.1
    assert sorted(thin.report.folds.biases) == ["c/b", "d/b"] and thin.report.folds.exact
    assert thin.report.folds.error < 1e-5 and "folded into c/b" in str(thin.report)
    gone = np.delete(np.arange(7), thin.plan.keep["c/b"][0])
    assert_allclose(
        thin.params["d"]["b"], P["d"]["b"] + 0.5 * P["d"]["w"][gone].sum(0), rtol=1e-5, atol=1e-6
    )


def test_units_as_they_are_leave_their_mean():
    thin = jp.shrink(net, P, X, ratio=0.5, approximate="mean")
    first = sigmoid(X @ P["a"]["w"] + P["a"]["b"])
    gone = np.delete(np.arange(len(first[0])), thin.plan.keep["a/b"][0])
    if "c/b" in thin.report.folds.biases:
        want = P["c"]["b"] + first.mean(0)[gone] @ P["c"]["w"][gone]
        assert_allclose(
            thin.params["c"]["b"], thin.cut({"c": {"b": want}})["c"]["b"], rtol=1e-4, atol=1e-5
        )
    assert_allclose(thin.apply(thin.params, X).mean(0), net(P, X).mean(0), rtol=1e-4, atol=1e-5)
    assert thin.report.folds.error is None and thin.report.error < 1e-5
    errors = [
        np.abs(np.asarray(t.apply(t.params, X)) - np.asarray(net(P, X))).mean()
        for t in (thin, jp.shrink(net, P, X, ratio=0.5))
    ]
    assert errors[0] < errors[1]


def test_what_is_zero_at_zero_leaves_nothing():
    def relu(p, x):
        return net(p, x, jax.nn.relu)

    folded, plain = (jp.shrink(relu, P, X, ratio=0.5, approximate=how) for how in ("fold", False))
    assert folded.report.folds.biases == {} and folded.report.folds.lost == ()
    assert "nothing was folded" in str(folded.report)
    for a, b in zip(jax.tree.leaves(folded.params), jax.tree.leaves(plain.params)):
        np.testing.assert_array_equal(a, b)


class Images(nn.Module):
    """A bias that is not cut with the channel, borders or none, a norm in place of a bias."""

    padding: str

    @nn.compact
    def __call__(self, x):
        x = nn.softplus(nn.Conv(6, (3, 3))(x))
        x = nn.sigmoid(
            nn.BatchNorm(True)(nn.Conv(5, (3, 3), padding=self.padding, use_bias=False)(x))
        )
        x = nn.softplus(nn.Conv(8, (1, 1), feature_group_count=1)(x)).mean((1, 2))
        return nn.Dense(3)(nn.tanh(nn.Dense(4)(x)))


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_convolutions_and_the_mean_of_a_norm(padding):
    x = draw(2, 7, 7, 3)
    module = Images(padding)
    variables = module.init(jax.random.key(0), x)
    variables = jax.tree.map(lambda v: jnp.asarray(np.abs(draw(*v.shape)) * 0.2 + 0.02), variables)
    thin = jp.shrink(module.apply, variables, x, ratio=0.5, approximate="fold", scope="group")
    folds = thin.report.folds
    assert sorted(folds.biases) == [
        "batch_stats/BatchNorm_0/mean",
        "params/Conv_2/bias",
        "params/Dense_1/bias",
    ]
    assert folds.lost == () and folds.exact == (padding == "VALID")
    assert (folds.error < 1e-5) == (padding == "VALID") and thin.report.error < 1e-5
    unfolded = jp.shrink(module.apply, variables, x, plan=thin.plan)
    change = (
        thin.params["batch_stats"]["BatchNorm_0"]["mean"]
        - unfolded.params["batch_stats"]["BatchNorm_0"]["mean"]
    )
    kernel = np.asarray(variables["params"]["Conv_1"]["kernel"])
    gone = np.delete(np.arange(6), thin.plan.keep["params/Conv_0/bias"][0])
    every = np.log(2) * kernel[:, :, gone].sum(2)[..., thin.plan.keep["params/Conv_1/kernel"][3]]
    met = (
        np.ones((3, 3)) if padding == "VALID" else np.outer([6, 7, 6], [6, 7, 6]) / 49
    )  # outputs that a tap is in
    assert_allclose(change, -(every * met[..., None]).sum((0, 1)), rtol=1e-4)


def test_scans_residuals_and_scales_hand_on_what_is_missing():
    p = {
        "up": draw(6, 8),
        "stack": draw(3, 8, 10),
        "bias": draw(3, 8),
        "back": draw(3, 10, 8),
        "out": draw(8, 3),
    }

    def f(p, x):
        def layer(h, w):
            y = jax.nn.sigmoid(h @ w[0]) @ w[1]
            return h + (2.0 * y + w[2]), None

        return jax.lax.scan(layer, x @ p["up"], (p["stack"], p["back"], p["bias"]))[0] @ p["out"]

    thin = jp.shrink(f, p, X, ratio=0.5, approximate="fold", keep={"up": 8})
    assert (
        list(thin.report.folds.biases) == ["bias"]
        and thin.report.folds.exact
        and thin.report.folds.error < 1e-5
    )
    gone = np.delete(np.arange(10), thin.plan.keep["stack"][2])
    assert_allclose(
        thin.params["bias"], p["bias"] + p["back"][:, gone].sum(1), rtol=1e-4, atol=1e-5
    )


def test_where_no_bias_follows_it_is_said():
    p = {"a": draw(6, 8), "c": draw(8, 4), "d": draw(4, 3), "t": draw(4)}

    def bare(p, x):
        return jnp.tanh(jax.nn.sigmoid(x @ p["a"]) @ p["c"]) @ p["d"]

    lost = jp.shrink(bare, p, X, ratio=0.5, approximate="fold", where="a").report.folds
    assert (
        not lost.biases
        and len(lost.lost) == 1
        and "tanh at test_fold.py" in lost.lost[0]
        and not lost.exact
    )
    assert lost.error > 1e-3

    def last(p, x):
        return jax.nn.sigmoid(x @ p["a"]) @ p["c"]

    assert jp.shrink(last, p, X, ratio=0.5, approximate="fold").report.folds.lost == (
        "an output of the function",
    )

    def twice(p, x):
        return jnp.tanh(jax.nn.sigmoid(x @ p["a"]) @ p["c"] + p["t"]) * jnp.exp(p["t"]) @ p["d"]

    found = jp.shrink(twice, p, X, ratio=0.5, approximate="fold", where="a").report.folds
    assert not found.biases and "t is also used by exp at test_fold.py" in found.lost[0]
    with pytest.raises(
        ValueError, match="approximate='folded': give True, False, 'fold' or 'mean'"
    ):
        jp.shrink(bare, p, X, ratio=0.5, approximate="folded")


def convolved(p, x):
    """Convolution, relu, batch norm, maximum over pairs: twice; then a product."""
    for n in "ab":
        x = jax.lax.conv_general_dilated(
            x, p[n]["w"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )
        x = jax.nn.relu(x + p[n]["b"])
        x = (x - p[n]["mean"]) * jax.lax.rsqrt(p[n]["var"] + 1e-3) * p[n]["scale"] + p[n]["shift"]
        x = x.reshape(len(x), -1, 2, x.shape[-1]).max(2)
    return x.reshape(len(x), -1) @ p["out"]["w"] + p["out"]["b"]


def test_means_are_never_worse_than_nothing_behind_norms_and_pooling():
    p = {"out": {"w": draw(4 * 12, 3), "b": draw(3)}}
    for n, width in (("a", 1), ("b", 12)):
        p[n] = {"w": draw(5, width, 12), "var": 1 + np.abs(draw(12)), "scale": 1 + np.abs(draw(12))}
        p[n] |= {"b": draw(12), "mean": draw(12), "shift": draw(12)}
    x = draw(64, 16, 1)
    want = convolved(p, x)
    for ratio in (0.8, 0.5):
        mean, drop = (
            jp.shrink(convolved, p, x, ratio=ratio, approximate=how) for how in ("mean", True)
        )
        off = [float(jnp.square(t.apply(t.params, x) - want).mean()) for t in (mean, drop)]
        assert off[0] < off[1]
        assert_allclose(mean.apply(mean.params, x).mean(0), want.mean(0), rtol=1e-3, atol=1e-3)
