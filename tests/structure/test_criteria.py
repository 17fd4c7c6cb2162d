"""Criteria beside NumPy: each from its formula, on arrays whose sides differ, so that a swapped
axis is seen.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import jaxprune as jp
from jaxprune.structure.choose.importance import comparable, importance

RNG = np.random.default_rng(5)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


W = draw(3, 2, 4, 5)  # HWIO
TWO = {"a": draw(6, 8), "b": draw(8), "c": draw(8, 3)}


def line(p, x):
    return jax.nn.relu(x @ p["a"] + p["b"]) @ p["c"]


X = draw(7, 6)


def test_lamp_is_w2_over_what_is_at_least_as_large():
    square = W.ravel() ** 2
    want = [v / square[square >= v].sum() for v in square]
    assert_allclose(jp.scores.lamp({"w": W})["w"].ravel(), want, rtol=1e-5)
    assert jp.scores.lamp(jnp.zeros(3)).tolist() == [0, 0, 0]


def test_fpgm_is_the_distance_to_all_other_filters():
    scores = jp.scores.fpgm({"w": W, "b": draw(5)})
    want = [sum(np.linalg.norm(W[..., i] - W[..., j]) for j in range(5)) for i in range(5)]
    assert scores["b"] is None and scores["w"].shape == W.shape
    assert_allclose(np.sqrt((np.asarray(scores["w"]) ** 2).sum((0, 1, 2))), want, rtol=1e-5)
    want = [sum(np.linalg.norm(W[:, :, i] - W[:, :, j]) for j in range(4)) for i in range(4)]
    assert_allclose(jp.scores.fpgm({"w": W}, axis=2)["w"][0, 0, :, 0] * 30**0.5, want, rtol=1e-5)
    kernel = draw(6, 8)
    kernel[:, 5] = kernel[:, 2] = kernel.mean(1)  # two that the others can stand for
    thin = jp.shrink(line, TWO | {"a": kernel}, X, ratio=6 / 8, score=jp.scores.fpgm, scope="group")
    assert_array_equal(thin.plan.keep["b"][0], [0, 1, 3, 4, 6, 7])
    masked = jp.prune(2 / 8, pattern=jp.patterns.channel(-1), score=jp.scores.fpgm).init(
        {"kernel": jnp.asarray(kernel)}
    )
    assert_array_equal(masked["kernel"].mask.all(0), [1, 1, 0, 1, 1, 0, 1, 1])


def test_a_score_of_some_leaves_prunes_them():
    params = {"kernel": jnp.asarray(W), "scale": jnp.ones(3)}
    for score in ("magnitude", jp.scores.lamp, jp.scores.random):
        some = jp.prune(0.5, score=jp.scores.only("kernel", score)).init(
            params, key=jax.random.key(0)
        )
        assert_array_equal(
            some["kernel"].mask,
            jp.prune(0.5, score=score).init(params, key=jax.random.key(0))["kernel"].mask,
        )


def test_obd_is_half_w2_h():
    bent = np.diag(np.float32([1, 2, 3, 4, 5, -6])) + 0.1 * np.triu(draw(6, 6), 1)
    bent = bent + bent.T

    def loss(p, s):
        return 0.5 * s * p["w"] @ bent @ p["w"]

    w = draw(6)
    batches = [(jnp.float32(1.0),), (jnp.float32(3.0),)]
    got = jp.scores.obd(loss, {"w": w}, batches, key=jax.random.key(0), probes=60)["w"]
    assert_allclose(got, 0.5 * w**2 * np.maximum(2 * np.diag(bent), 0), rtol=0.1)
    exact = jp.scores.obd(
        lambda p: jnp.sum(p["w"] ** 3), {"w": w, "n": jnp.arange(2)}, [()], key=jax.random.key(1)
    )
    assert_allclose(exact["w"], 0.5 * w**2 * np.maximum(6 * w, 0), rtol=1e-5)
    with pytest.raises(ValueError, match="no batches"):
        jp.scores.obd(loss, {"w": w}, [], key=jax.random.key(0))


def test_network_slimming_ranks_by_scales_alone():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.relu(nn.BatchNorm(True)(nn.Dense(8)(x))))

    variables = Net().init(jax.random.key(0), X)
    scale = np.array([3, -1, 0.1, 7, -8, 0.2, 5, 4], np.float32)
    variables["params"]["BatchNorm_0"]["scale"] = scale
    score = jp.scores.only(jp.where.path(".*/scale"))
    thin = jp.shrink(Net().apply, variables, X, ratio=0.5, score=score)
    assert_array_equal(thin.params["params"]["BatchNorm_0"]["scale"], scale[[3, 4, 6, 7]])
    with pytest.raises(ValueError, match="matches nothing in this tree"):
        jp.shrink(
            Net().apply, variables, X, ratio=0.5, score=jp.scores.only(jp.where.path("scale"))
        )


def test_activations_of_a_matrix_product():
    rms = jp.input_rms(line, TWO, [(X[:3],), (X[3:],)])
    hidden = np.maximum(X @ TWO["a"] + TWO["b"], 0)
    assert rms["b"] is None
    assert_allclose(rms["a"], np.broadcast_to(np.sqrt((X**2).mean(0))[:, None], (6, 8)), rtol=1e-5)
    active = np.sqrt((hidden**2).mean(0))
    assert_allclose(rms["c"], np.broadcast_to(active[:, None], (8, 3)), rtol=1e-5)
    [group] = jp.coupled_axes(line, TWO, X).groups
    assert_allclose(importance(group, {"c": rms["c"]}, "mean"), active, rtol=1e-5)
    wanda = jp.scores.wanda(rms)(TWO)
    assert wanda["b"] is None
    assert_allclose(wanda["c"], np.abs(TWO["c"]) * active[:, None], rtol=1e-5)
    thin = jp.shrink(
        line,
        TWO,
        X,
        ratio=0.5,
        score=lambda p: {"a": None, "b": None, "c": rms["c"]},
        reduce="mean",
    )
    assert_array_equal(thin.plan.keep["c"][0], np.sort(np.argsort(active)[4:]))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_activations_of_a_convolution(groups):
    x = draw(2, 5, 6, 4)
    kernel = draw(3, 3, 4 // groups, 8)

    def conv(p, x):
        return jax.lax.conv_general_dilated(
            x,
            p["k"].transpose(3, 2, 0, 1),
            (2, 1),
            "SAME",
            None,
            None,
            ("NHWC", "OIHW", "NHWC"),
            groups,
        )

    rms = np.asarray(jp.input_rms(conv, {"k": kernel}, [(x,)])["k"])
    total = np.zeros((3, 3, 4))
    count = np.zeros((3, 3, 1))
    for i in range(3):  # output rows: 2 i + h - 1 in, 5 rows in all
        for j in range(6):
            for h in range(3):
                for w in range(3):
                    a = 2 * i + h - 1
                    b = j + w - 1
                    if 0 <= a < 5 and 0 <= b < 6:
                        total[h, w] += (x[:, a, b] ** 2).sum(0)
                        count[h, w] += 2
    want = np.sqrt(total / count)
    inner = 4 // groups
    of = 8 // groups
    for o in range(8):
        assert_allclose(rms[..., o], want[..., o // of * inner : (o // of + 1) * inner], rtol=1e-4)


def test_activations_in_loops_and_branches():
    """Weights that a scan slices and weights that it keeps, remat, a cond, a while."""
    p = {"stack": draw(3, 4, 4), "same": draw(4, 4), "up": draw(6, 4)}

    def f(p, x):
        def turn(h, w):
            return (jnp.tanh(jax.checkpoint(jnp.matmul)(h, w) @ p["same"]), h.sum())

        h, _ = jax.lax.scan(turn, x @ p["up"], p["stack"])
        h = jax.lax.cond(h.sum() > 1e9, lambda h: h, lambda h: h @ p["same"], h)
        return jax.lax.while_loop(
            lambda c: c[0] < 2, lambda c: (c[0] + 1, jax.nn.relu(c[1] @ p["same"])), (0, h)
        )[1]

    rms = jp.input_rms(f, p, [(X,)])
    h = X @ p["up"]
    seen = []
    for t, w in enumerate(p["stack"]):
        assert_allclose(
            rms["stack"][t], np.broadcast_to(np.sqrt((h**2).mean(0))[:, None], (4, 4)), rtol=1e-4
        )
        seen.append(h @ w)
        h = np.tanh(h @ w @ p["same"])
    for _ in range(3):
        seen.append(h)
        h = np.maximum(h @ p["same"], 0) if len(seen) > 4 else h @ p["same"]
    assert_allclose(rms["same"][:, 0], np.sqrt((np.concatenate(seen) ** 2).mean(0)), rtol=1e-4)
    with pytest.raises(ValueError, match="no batches"):
        jp.input_rms(f, p, [])


def test_values_of_groups_are_brought_to_one_scale():
    _, b = values = [np.array([1.0, 3.0, 2.0]), np.array([10.0, 20.0])]
    params = {"u": draw(2, 3), "v": draw(3, 2), "w": draw(2, 4)}
    groups = jp.coupled_axes(lambda p, x: x @ p["u"] @ p["v"] @ p["w"], params, X[:, :2])

    def of(how, scope="global"):
        return comparable(list(groups.groups), values, scope, how)

    assert_allclose(of("mean")[1], b / 15)
    assert_allclose(of("max")[0], [1 / 3, 1, 2 / 3])
    assert_allclose(of("lamp")[0], [1 / 14, 1, 4 / 13])
    assert_allclose(of("none")[1], b)
    assert_allclose(np.concatenate(of("none", "group")), [1 / 6, 5 / 6, 1 / 2, 1 / 4, 3 / 4])
