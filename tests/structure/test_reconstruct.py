"""`reconstruct`: against a slow reference, where nothing should be lost, and what it must leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from numpy.testing import assert_allclose, assert_array_equal

import jaxprune as jp
from jaxprune.structure.rows import inputs, outputs, weights

RNG = np.random.default_rng(5)
draw = lambda *shape: jnp.asarray(RNG.normal(size=shape), jnp.float32)
dot = lambda contract, batch=((), ()): lambda x, w: lax.dot_general(x, w, (contract, batch))
flip = lambda f: lambda x, w: f(w, x)


def conv(stride=1, padding="SAME", groups=1, dims=("NHWC", "HWIO", "NHWC"), **kw):
    how = {"dimension_numbers": dims, "feature_group_count": groups, **kw}
    return lambda x, w: lax.conv_general_dilated(x, w, (stride, stride), padding, **how)


# name -> (f(x, w), shapes of x and w, which operand of the equation w is)
EQUATIONS = {
    "dense": (dot(((1,), (0,))), (5, 4), (4, 3), 1),
    "three axes": (dot(((2,), (0,))), (2, 5, 4), (4, 3, 2), 1),
    "two contracted, out of order": (dot(((3, 1), (2, 0))), (2, 5, 3, 4), (5, 6, 4), 1),
    "batched": (dot(((2,), (1,)), ((0,), (0,))), (3, 5, 4), (3, 4, 2), 1),
    "batched at the end": (dot(((0,), (2,)), ((2,), (1,))), (4, 5, 3), (2, 3, 4), 1),
    "weight first": (flip(dot(((0,), (1,)))), (5, 4), (4, 3, 2), 0),
    "weight first, batched": (flip(dot(((2,), (1,)), ((0,), (0,)))), (3, 4, 5), (3, 2, 4), 0),
    "convolution": (conv(), (2, 5, 6, 3), (3, 3, 3, 4), 1),
    "strided and dilated": (conv(2, ((1, 2), (0, 1)), rhs_dilation=(2, 1)), (2, 7, 6, 3), (3, 2, 3, 4), 1),
    "transposed": (conv(1, ((0, 0), (1, 0)), lhs_dilation=(2, 2)), (2, 4, 4, 3), (2, 2, 3, 5), 1),
    "grouped": (conv(groups=3), (2, 5, 5, 6), (3, 3, 2, 9), 1),
    "depthwise": (conv(groups=4), (2, 5, 5, 4), (3, 3, 1, 8), 1),
    "channels first": (conv(dims=("NCHW", "OIHW", "NCHW"), groups=2), (2, 4, 5, 6), (6, 2, 3, 1), 1),
    "odd layouts": (conv(dims=("CWNH", "WOIH", "HNWC")), (3, 5, 2, 6), (2, 4, 3, 3), 1),
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_an_equation_is_a_product_of_matrices(name):
    f, shape, kernel, k = EQUATIONS[name]
    x = draw(*shape)
    eqn = jax.make_jaxpr(f)(x, jnp.zeros(kernel)).eqns[-1]
    rows = inputs(eqn, x, kernel, k)
    n = int(np.prod(kernel)) // (rows.shape[0] * rows.shape[2])
    w = RNG.normal(size=(rows.shape[0], rows.shape[2], n)).astype(np.float32)
    made = weights(eqn, w, kernel, k)
    assert made.shape == kernel
    assert_allclose(outputs(eqn, f(x, made), k, len(rows)), rows @ w, rtol=1e-4, atol=1e-5)


def net(p, x):
    x = jax.nn.relu(x @ p["a"]["kernel"] + p["a"]["bias"])
    return jax.nn.relu(x @ p["b"]["kernel"] + p["b"]["bias"]) @ p["c"]["kernel"]


PARAMS = {
    "a": {"kernel": draw(6, 16), "bias": draw(16)},
    "b": {"kernel": draw(16, 12), "bias": draw(12)},
    "c": {"kernel": draw(12, 3)},
}


def test_it_is_least_squares_layer_by_layer():
    """The slow way: each layer by itself, behind those before it."""
    x, ridge = draw(40, 6), 0.01
    thin = jp.shrink(net, PARAMS, x, ratio=0.5)
    fitted = jp.reconstruct(net, PARAMS, thin.plan, [(x[:20],), (x[20:],)], ridge=ridge)
    wide = lambda tree: jax.tree.map(lambda a: np.asarray(a, np.float64), tree)
    p, q, h, g = wide(PARAMS), wide(thin.params), np.asarray(x, np.float64), np.asarray(x, np.float64)
    for name in "abc":
        wanted = h @ p[name]["kernel"]
        w = q[name]["kernel"]
        kept = thin.plan.keep.get(f"{name}/kernel", {}).get(1, np.arange(wanted.shape[1]))
        scatter, rest = g.T @ g, wanted[:, kept] - g @ w
        w = w + np.linalg.solve(scatter + ridge * np.trace(scatter) / len(w) * np.eye(len(w)), g.T @ rest)
        assert_allclose(fitted.params[name]["kernel"], w, rtol=1e-3, atol=1e-4)
        before, after = np.linalg.norm(rest), np.linalg.norm(wanted[:, kept] - g @ w)
        assert_allclose(
            fitted.errors[f"{name}/kernel"], np.array([before, after]) / np.linalg.norm(wanted[:, kept]), 1e-3, 1e-6
        )
        if name != "c":
            h = np.maximum(wanted + p[name]["bias"], 0)
            g = np.maximum(g @ w + q[name]["bias"], 0)
            assert_array_equal(fitted.params[name]["bias"], thin.params[name]["bias"])
    assert fitted.errors["a/kernel"][0] < 1e-6 and fitted.errors["c/kernel"][1] < fitted.errors["c/kernel"][0]
    assert not fitted.left


def test_what_others_can_say_is_not_lost():
    """Channels that repeat others, in a convolution inside a jit, rematerialised: the whole network comes back."""
    half = draw(3, 3, 3, 4)
    params = {"up": jnp.concatenate([half, half], 3), "down": draw(3, 3, 8, 5)}
    layer = jax.checkpoint(jax.jit(lambda w, x: jax.nn.relu(conv()(x, w))))
    f = lambda p, x: conv(2)(layer(p["up"], x), p["down"])
    x = draw(4, 8, 8, 3)
    score = {"up": jnp.where(jnp.arange(8) < 4, 1.0, 0.5) * jnp.ones((3, 3, 3, 8)), "down": None}
    thin = jp.shrink(f, params, x, ratio=0.5, score=score)
    fitted = jp.reconstruct(f, params, thin.plan, [(x,)], ridge=0.0)
    assert_allclose(thin.apply(fitted.params, x), f(params, x), rtol=1e-3, atol=1e-3)
    assert_allclose(
        fitted.params["down"], params["down"][..., :4, :] + params["down"][..., 4:, :], rtol=1e-2, atol=1e-3
    )


def test_what_is_left_alone_is_named():
    def f(p, x):
        x, _ = lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, p["layers"])
        x = x @ p["tied"]
        return jax.nn.relu(x @ p["up"]) @ p["down"] + (x @ p["tied"].T)[:, :2] @ p["end"].astype(jnp.float32)

    end = draw(2, 2).astype(jnp.bfloat16)
    params = {"layers": draw(2, 6, 6), "tied": draw(6, 6), "up": draw(6, 8), "down": draw(8, 2), "end": end}
    x = draw(9, 6)
    thin = jp.shrink(f, params, x, ratio=0.5, keep={"tied": 1.0})
    fitted = jp.reconstruct(f, params, thin.plan, [(x,)])
    assert set(fitted.errors) == {"up", "down", "end"}
    assert fitted.left == {
        "layers": "it is used by scan",
        "tied": "it is used by dot_general, transpose",
    }
    assert "not fitted: it is used by scan" in str(fitted) and fitted.params["end"].dtype == jnp.bfloat16
    assert_array_equal(fitted.params["tied"], params["tied"])
    whole = np.linalg.norm(thin.apply(thin.params, x) - f(params, x))
    assert np.linalg.norm(thin.apply(fitted.params, x) - f(params, x)) < 0.9 * whole


BATCH = draw(8, 6)
WRONG = {
    "no batches": (lambda plan: jp.reconstruct(net, PARAMS, plan, []), "there are none"),
    "shapes": (lambda plan: jp.reconstruct(net, PARAMS, plan, [(BATCH,), (BATCH[:3],)]), "batches of one shape"),
    "ridge": (lambda plan: jp.reconstruct(net, PARAMS, plan, [(BATCH,)], ridge=-1.0), "ridge=-1.0"),
    "no ridge": (
        lambda plan: jp.reconstruct(net, PARAMS, plan, [(float("nan") * BATCH,)], ridge=float("nan")),
        "ridge=nan",
    ),
    "NaN": (lambda plan: jp.reconstruct(net, PARAMS, plan, [(float("nan") * BATCH,)]), "a/kernel: .* NaN or Inf"),
    "singular": (
        lambda plan: jp.reconstruct(net, PARAMS, plan, [(BATCH.at[:, 0].set(0),)], ridge=0.0),
        "a/kernel: .*ridge above 0",
    ),
    "plan": (lambda plan: jp.reconstruct(net, PARAMS | {"d": BATCH}, plan, [(BATCH,)]), "another model"),
}


def stream(p, x):
    block = jax.jit(lambda x, up, down: x + jax.nn.relu(x @ up) @ down)
    x = jax.checkpoint(block)(x, p["a"], p["b"])
    x = block(x, p["c"], p["d"])
    return x @ p["h"]


STREAM = {"a": draw(6, 8), "b": draw(8, 6), "c": draw(6, 8), "d": draw(8, 6), "h": draw(6, 3)}


def test_behind_a_block_that_is_left_out_layers_are_fitted_to_what_they_gave_with_it():
    score = jp.Depth(score={"a": 0.0}, only=True)
    thin = jp.shrink(stream, STREAM, BATCH, ratio=0.5, depth=score)
    x = draw(50, 6)
    fitted = jp.reconstruct(stream, STREAM, thin.plan, [(x[:25],), (x[25:],)], ridge=0.0)
    assert list(fitted.errors) == ["c", "d", "h"] and fitted.params["a"] is None and not fitted.left
    middle = x + np.maximum(x @ STREAM["a"], 0) @ STREAM["b"]
    up = np.linalg.lstsq(x, middle @ STREAM["c"])[0]  # the block passed by: x itself is what comes in
    assert_allclose(fitted.params["c"], up, atol=1e-4)
    hidden = np.maximum(x @ up, 0)
    down = np.linalg.lstsq(hidden, np.maximum(middle @ STREAM["c"], 0) @ STREAM["d"])[0]
    assert_allclose(fitted.params["d"], down, atol=1e-3)
    wanted = stream(STREAM, x)
    assert_allclose(fitted.params["h"], np.linalg.lstsq(x + hidden @ down, wanted)[0], atol=1e-3)
    off = lambda p: float(jnp.linalg.norm(thin.apply(p, x) - wanted))
    assert off(fitted.params) < 0.7 * off(thin.params)


def test_blocks_and_widths_at_once_and_one_after_the_other():
    both = jp.shrink(stream, STREAM, BATCH, params=0.45, depth=jp.Depth(score={"a": 0.0}))
    assert both.plan.blocks and any(both.plan.keep[path] for path in ("c", "d"))
    fitted = jp.reconstruct(stream, STREAM, both.plan, [(BATCH,)])
    assert jax.tree.map(jnp.shape, fitted.params) == jax.tree.map(jnp.shape, both.params)
    deep = jp.shrink(stream, STREAM, BATCH, ratio=0.5, depth=jp.Depth(only=True))
    thin = jp.shrink(deep.apply, deep.params, BATCH, ratio=0.5)
    fitted = jp.reconstruct(deep.apply, deep.params, thin.plan, [(BATCH,)])
    assert len(fitted.errors) == 3 and len(jax.tree.leaves(fitted.params)) == 3


@pytest.mark.parametrize("case", WRONG)
def test_bad_input(case):
    plan = jp.shrink(net, PARAMS, BATCH, ratio=0.5).plan
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call(plan)


def without_operands(p, x):
    """Equations that take nothing: an iota, a jit without arguments, an empty array, a random key from a constant."""
    positions = jax.jit(lambda: jnp.arange(3.0))()[:, None]
    mask = lax.broadcasted_iota(jnp.int32, (3, 3), 0) >= lax.broadcasted_iota(jnp.int32, (3, 3), 1)
    noise = jax.random.normal(jax.random.key(0), (3, 1))
    buffer = lax.dynamic_update_slice(lax.empty((3, 4), jnp.float32), x, (0, 0))
    hidden = mask.astype(jnp.float32) @ (buffer @ p["a"]) * positions + noise * 0
    return jax.nn.relu(hidden) @ p["w"]


def test_equations_without_operands_are_evaluated_by_all_who_evaluate():
    p, x = {"a": jnp.eye(4) * jnp.arange(1.0, 5.0), "w": draw(4, 2)}, draw(3, 4)
    thin = jp.shrink(without_operands, p, x, ratio=0.5)
    fitted = jp.reconstruct(without_operands, p, thin.plan, [(x,), (x + 1,)])
    assert fitted.params["w"].shape == (2, 2) and np.isfinite(fitted.params["w"]).all()
    assert fitted.errors["w"][1] < fitted.errors["w"][0]
    assert jp.shrink(without_operands, p, x, ratio=0.5, approximate="mean").params["w"].shape == (2, 2)
    assert jp.input_rms(without_operands, p, [(x,)])["w"].shape == (4, 2)
    tapped = lambda p, x: without_operands(p, jp.tap(x, "x"))
    assert_allclose(jp.reap(tapped, "x")(p, x)[0], without_operands(p, x), rtol=1e-6)
    normed = lambda p, x: (without_operands(p, x) - p["mean"]) / jnp.sqrt(p["var"]) * jnp.arange(1.0, 3.0)
    p |= {"mean": draw(2), "var": jnp.ones(2)}
    assert jp.fold_batch_norm(normed, p, x).error < 1e-4
