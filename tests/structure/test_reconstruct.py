"""`reconstruct`: against a slow reference, where nothing should be lost, and what it must leave
alone.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from numpy.testing import assert_allclose, assert_array_equal

import jaxprune as jp
from jaxprune.structure.repair.rows import columns_of, inputs, outputs, weights
from tests.reference.reconstruct import refit

RNG = np.random.default_rng(5)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def dot(contract, batch=((), ())):
    return lambda x, w: lax.dot_general(x, w, (contract, batch))


def flip(f):
    return lambda x, w: f(w, x)


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
    "strided and dilated": (
        conv(2, ((1, 2), (0, 1)), rhs_dilation=(2, 1)),
        (2, 7, 6, 3),
        (3, 2, 3, 4),
        1,
    ),
    "transposed": (conv(1, ((0, 0), (1, 0)), lhs_dilation=(2, 2)), (2, 4, 4, 3), (2, 2, 3, 5), 1),
    "grouped": (conv(groups=3), (2, 5, 5, 6), (3, 3, 2, 9), 1),
    "depthwise": (conv(groups=4), (2, 5, 5, 4), (3, 3, 1, 8), 1),
    "channels first": (
        conv(dims=("NCHW", "OIHW", "NCHW"), groups=2),
        (2, 4, 5, 6),
        (6, 2, 3, 1),
        1,
    ),
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
    assert_array_equal(columns_of(eqn, made, k, len(rows)), w)
    assert_allclose(outputs(eqn, f(x, made), k, len(rows)), rows @ w, rtol=1e-4, atol=1e-5)


def net(p, x):
    x = jax.nn.relu(x @ p["a"]["kernel"] + p["a"]["bias"])
    return jax.nn.relu(x @ p["b"]["kernel"] + p["b"]["bias"]) @ p["c"]["kernel"]


PARAMS = {
    "a": {"kernel": draw(6, 16), "bias": draw(16)},
    "b": {"kernel": draw(16, 12), "bias": draw(12)},
    "c": {"kernel": draw(12, 3)},
}


def wide(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def test_it_is_least_squares_layer_by_layer():
    """The slow way: each layer by itself, behind those before it, with its bias if it has one."""
    x = draw(40, 6)
    ridge = 0.01
    thin = jp.shrink(net, PARAMS, x, ratio=0.5)
    fitted = jp.reconstruct(net, PARAMS, thin.plan, [(x[:20],), (x[20:],)], ridge=ridge)
    p = wide(PARAMS)
    q = wide(thin.params)
    h = wide(x)
    g = wide(x)
    for name in "abc":
        bias = q[name].get("bias")
        wanted = h @ p[name]["kernel"] + p[name].get("bias", 0)
        kept = thin.plan.keep.get(f"{name}/kernel", {}).get(1, np.arange(wanted.shape[1]))
        w, b = refit(g, wanted[:, kept], q[name]["kernel"], bias, ridge)
        assert_allclose(fitted.params[name]["kernel"], w, rtol=1e-3, atol=1e-4)
        h = wanted
        g = g @ w
        if b is not None:
            assert_allclose(fitted.params[name]["bias"], b, rtol=1e-3, atol=1e-4)
            h = np.maximum(h, 0)
            g = np.maximum(g + b, 0)
    assert (
        fitted.errors["a/kernel"][0] < 1e-6
        and fitted.errors["c/kernel"][1] < fitted.errors["c/kernel"][0]
    )
    assert fitted.done["b/bias"] == "fitted as the bias of b/kernel" and not fitted.left


def test_weights_alone_can_be_asked_for():
    x = draw(40, 6)
    thin = jp.shrink(net, PARAMS, x, ratio=0.5)
    fitted = jp.reconstruct(net, PARAMS, thin.plan, [(x,)], ridge=0.1, biases=False, streams=False)
    assert set(fitted.done) == {"a/kernel", "b/kernel", "c/kernel"}
    assert_array_equal(fitted.params["b"]["bias"], thin.params["b"]["bias"])


def residual(p, x):
    """Two blocks on a stream, the second with its bias in front of a scale, and a stream computed
    after the branch.
    """
    x = x + (jax.nn.relu(x @ p["a"]) @ p["b"] + p["bb"])
    branch = (jax.nn.relu(x @ p["c"]) @ p["d"] - p["mean"]) * p["scale"] + p["shift"]
    return branch.reshape(-1, 2, 3) + jnp.pad(x[:, :4], ((0, 0), (1, 1))).reshape(-1, 2, 3)


def test_a_layer_that_is_added_to_a_stream_corrects_the_error_of_the_stream():
    p = {"a": draw(6, 10), "b": draw(10, 6), "bb": draw(6), "c": draw(6, 10), "d": draw(10, 6)}
    p |= {"mean": draw(6), "scale": jnp.array([1.0, -2.0, 0.5, 3.0, 0.0, 1.0]), "shift": draw(6)}
    x = draw(60, 6)
    thin = jp.shrink(residual, p, x, ratio=0.5, where="[ac]")
    fitted = jp.reconstruct(residual, p, thin.plan, [(x[:30],), (x[30:],)], ridge=0.02)
    q = wide(thin.params)
    x = wide(x)
    p = wide(p)
    kept = [thin.plan.keep[name][1] for name in "ac"]
    dense = x + np.maximum(x @ p["a"], 0) @ p["b"] + p["bb"]
    hidden = np.maximum(x @ q["a"], 0)  # nothing is lost of it
    b, bb = refit(hidden, dense - x, q["b"], q["bb"], 0.02)
    stream = x + hidden @ b + bb
    assert_allclose(fitted.params["b"], b, rtol=1e-3, atol=1e-4)
    assert_allclose(fitted.params["bb"], bb, rtol=1e-3, atol=1e-4)
    wanted = dense @ p["c"][:, kept[1]]
    c, _ = refit(stream, wanted, q["c"], None, 0.02)
    assert_allclose(fitted.params["c"], c, rtol=1e-3, atol=1e-4)
    out = (
        (np.maximum(dense @ p["c"], 0) @ p["d"] - p["mean"]) * p["scale"]
        + p["shift"]
        + np.pad(dense[:, :4], ((0, 0), (1, 1)))
    )
    seen = p["scale"] != 0
    wanted = (out - np.pad(stream[:, :4], ((0, 0), (1, 1))) - p["shift"]) / np.where(
        seen, p["scale"], 1
    )
    d, minus_mean = refit(np.maximum(stream @ c, 0), wanted, q["d"], -q["mean"], 0.02)
    assert_allclose(fitted.params["d"][:, seen], d[:, seen], rtol=1e-3, atol=1e-4)
    assert_allclose(fitted.params["mean"][seen], -minus_mean[seen], rtol=1e-3, atol=1e-4)
    assert_array_equal(
        fitted.params["d"][:, ~seen], thin.params["d"][:, ~seen]
    )  # a scale of 0 hides it


def cell(p, h, x):
    new = jnp.tanh(x @ p["w"] + h @ p["u"] + p["b"])
    return new, new


def recurrent(p, x):
    last, every = lax.scan(lambda h, x: cell(p, h, x), jnp.zeros((x.shape[1], p["u"].shape[0])), x)
    return every @ p["out"] + last @ p["end"]


RECURRENT = {
    "w": draw(3, 10),
    "u": 0.3 * draw(10, 10),
    "b": draw(10),
    "out": draw(10, 2),
    "end": draw(10, 2),
}


def test_the_weights_of_a_recurrent_cell_are_fitted_to_all_times():
    x = draw(7, 20, 3)
    thin = jp.shrink(recurrent, RECURRENT, x, ratio=0.6)
    fitted = jp.reconstruct(
        recurrent, RECURRENT, thin.plan, [(x[:, :10],), (x[:, 10:],)], ridge=0.05
    )
    p = wide(RECURRENT)
    q = wide(thin.params)
    kept = thin.plan.keep["w"][1]
    sums = []
    inputs = []
    h = np.zeros((20, 10))
    for now in wide(x):
        sums.append((now @ p["w"] + h @ p["u"] + p["b"])[:, kept])
        h = np.tanh(now @ p["w"] + h @ p["u"] + p["b"])
        inputs.append(now)

    def states(q):
        h = np.zeros((20, len(kept)))
        before = []
        for now in inputs:
            before.append(h)
            h = np.tanh(now @ q["w"] + h @ q["u"] + q["b"])
        return before

    for weight in fitted.errors if set(fitted.errors) == {"u", "w"} else list(fitted.errors)[:2]:
        before = np.concatenate(states(q))
        rows = np.concatenate(inputs)
        other = before @ q["u"]
        if weight == "u":
            rows = before
            other = np.concatenate(inputs) @ q["w"]
        q[weight], q["b"] = refit(rows, np.concatenate(sums) - other, q[weight], q["b"], 0.05)
    for name in ("w", "u", "b"):
        assert_allclose(fitted.params[name], q[name], rtol=2e-3, atol=1e-4)

    def off(params):
        return np.linalg.norm(thin.apply(params, x) - recurrent(RECURRENT, x))

    assert off(fitted.params) < off(thin.params)


def test_the_layers_of_a_scan_are_fitted_in_turn():
    def layer(x, w):
        return x + jax.nn.relu(x @ w["up"] + w["bias"]) @ w["down"], None

    def scanned(p, x):
        return lax.scan(layer, x, p)[0]

    p = {"bias": draw(3, 8), "down": draw(3, 8, 4), "up": draw(3, 4, 8)}
    x = draw(30, 4)
    thin = jp.shrink(scanned, p, x, ratio=0.5)
    fitted = jp.reconstruct(scanned, p, thin.plan, [(x,)], ridge=0.01)
    q = wide(thin.params)
    dense = wide(x)
    stream = wide(x)
    kept = thin.plan.keep["up"][2]
    for t in range(3):
        up, bias = refit(
            stream,
            (dense @ wide(p["up"][t]) + wide(p["bias"][t]))[:, kept],
            q["up"][t],
            q["bias"][t],
            0.01,
        )
        hidden = np.maximum(stream @ up + bias, 0)
        dense = dense + np.maximum(dense @ wide(p["up"][t]) + wide(p["bias"][t]), 0) @ wide(
            p["down"][t]
        )
        down, _ = refit(hidden, dense - stream, q["down"][t], None, 0.01)
        stream = stream + hidden @ down
        assert_allclose(fitted.params["up"][t], up, rtol=1e-3, atol=2e-4)
        assert_allclose(fitted.params["bias"][t], bias, rtol=1e-3, atol=2e-4)
        assert_allclose(fitted.params["down"][t], down, rtol=1e-3, atol=2e-4)
    assert set(fitted.errors) == {f"{name}[{t}]" for name in ("up", "down") for t in range(3)}
    first = jp.Depth(score={"up": [0.0, 1.0, 1.0]}, only=True)
    deep = jp.shrink(scanned, p, x, ratio=0.7, depth=first)
    assert deep.params["up"].shape == (2, 4, 8)
    fitted = jp.reconstruct(scanned, p, deep.plan, [(x,)])

    def off(params):
        return float(jnp.linalg.norm(deep.apply(params, x) - scanned(p, x)))

    assert set(fitted.errors) == {"up[0]", "up[1]", "down[0]", "down[1]"} and off(
        fitted.params
    ) < 0.9 * off(deep.params)


def test_a_compressed_tree_is_repaired_under_its_masks_and_around_its_codes():
    x = draw(80, 6)
    key = jax.random.key(0)
    mask = jax.random.bernoulli(key, 0.5, (16, 12))
    tree = {
        "a": {"kernel": jp.quantize(2).init(PARAMS["a"]["kernel"]), "bias": PARAMS["a"]["bias"]},
        "b": {"kernel": jp.Masked(PARAMS["b"]["kernel"], mask), "bias": PARAMS["b"]["bias"]},
        "c": PARAMS["c"],
    }
    fitted = jp.reconstruct(net, PARAMS, tree, [(x[:40],), (x[40:],)], ridge=0.03)
    p = wide(PARAMS)
    q = wide(jp.materialize(tree))
    made = fitted.params
    assert (
        made["a"]["kernel"] is tree["a"]["kernel"]
        and "code stays: Quantized" in fitted.left["a/kernel"]
    )
    first = wide(x) @ p["a"]["kernel"] + p["a"]["bias"]
    bias = q["a"]["bias"] + (first - wide(x) @ q["a"]["kernel"] - q["a"]["bias"]).mean(0)
    assert_allclose(made["a"]["bias"], bias, rtol=1e-4, atol=1e-5)
    hidden = np.maximum(wide(x) @ q["a"]["kernel"] + bias, 0)
    second = np.maximum(first, 0) @ p["b"]["kernel"] + p["b"]["bias"]
    w, b = refit(hidden, second, q["b"]["kernel"], q["b"]["bias"], 0.03, np.asarray(mask))
    assert isinstance(made["b"]["kernel"], jp.Masked) and bool(
        (made["b"]["kernel"].mask == mask).all()
    )
    assert_allclose(jp.materialize(made["b"]["kernel"]), w, rtol=1e-3, atol=1e-4)
    assert_allclose(made["b"]["bias"], b, rtol=1e-3, atol=1e-4)
    assert (
        fitted.done["b/kernel"] == "kept weights fitted under their mask"
        and fitted.done["c/kernel"] == "weights fitted"
    )

    def off(tree):
        return float(jnp.linalg.norm(net(jp.materialize(tree), x) - net(PARAMS, x)))

    assert off(made) < 0.6 * off(tree)


def test_where_nothing_is_lost_the_dense_function_comes_back():
    x = draw(50, 6)
    same = jax.tree.map(jnp.copy, PARAMS)
    fitted = jp.reconstruct(net, PARAMS, same, [(x,)])
    jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-5), fitted.params, PARAMS)
    shifted = jax.tree.map(jnp.copy, PARAMS)
    shifted["b"]["kernel"] = jp.Masked(PARAMS["b"]["kernel"] + 0.3, jnp.ones((16, 12), bool))
    fitted = jp.reconstruct(net, PARAMS, shifted, [(x,)], ridge=0.0)
    assert_allclose(net(jp.materialize(fitted.params), x), net(PARAMS, x), rtol=1e-3, atol=1e-3)


def test_what_others_can_say_is_not_lost():
    """Channels that repeat others, in a convolution inside a jit, rematerialised: the whole network
    comes back.
    """
    half = draw(3, 3, 3, 4)
    params = {"up": jnp.concatenate([half, half], 3), "down": draw(3, 3, 8, 5)}
    layer = jax.checkpoint(jax.jit(lambda w, x: jax.nn.relu(conv()(x, w))))

    def f(p, x):
        return conv(2)(layer(p["up"], x), p["down"])

    x = draw(4, 8, 8, 3)
    score = {"up": jnp.where(jnp.arange(8) < 4, 1.0, 0.5) * jnp.ones((3, 3, 3, 8)), "down": None}
    thin = jp.shrink(f, params, x, ratio=0.5, score=score)
    fitted = jp.reconstruct(f, params, thin.plan, [(x,)], ridge=0.0)
    assert_allclose(thin.apply(fitted.params, x), f(params, x), rtol=1e-3, atol=1e-3)
    assert_allclose(
        fitted.params["down"],
        params["down"][..., :4, :] + params["down"][..., 4:, :],
        rtol=1e-2,
        atol=1e-3,
    )


def test_what_is_left_alone_is_named():
    def f(p, x):
        x, _ = lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, p["layers"])
        x = lax.fori_loop(
            0, jnp.argmax(x[0] * 0) + 2, lambda i, x: jnp.tanh(x @ p["loop"]), x @ p["tied"]
        )
        return jax.nn.relu(x @ p["up"]) @ p["down"] + (x @ p["tied"].T)[:, :2] @ p["end"].astype(
            jnp.float32
        )

    end = draw(2, 2).astype(jnp.bfloat16)
    params = {
        "layers": draw(2, 6, 6),
        "loop": draw(6, 6),
        "tied": draw(6, 6),
        "up": draw(6, 8),
        "down": draw(8, 2),
        "end": end,
    }
    x = draw(9, 6)
    thin = jp.shrink(f, params, x, ratio=0.5, keep={"tied": 1.0, "loop": 1.0})
    fitted = jp.reconstruct(f, params, thin.plan, [(x,)])
    assert set(fitted.errors) == {"layers[0]", "layers[1]", "up", "down", "end"}
    assert fitted.left == {
        "tied": "it is used by dot_general, dot_general",
        "loop": "it is used by while",
    }
    assert (
        "not fitted: it is used by while" in str(fitted)
        and fitted.params["end"].dtype == jnp.bfloat16
    )
    assert_array_equal(fitted.params["tied"], params["tied"])
    whole = np.linalg.norm(thin.apply(thin.params, x) - f(params, x))
    assert np.linalg.norm(thin.apply(fitted.params, x) - f(params, x)) < 0.9 * whole


BATCH = draw(8, 6)
WRONG = {
    "no batches": (lambda plan: jp.reconstruct(net, PARAMS, plan, []), "there are none"),
    "shapes": (
        lambda plan: jp.reconstruct(net, PARAMS, plan, [(BATCH,), (BATCH[:3],)]),
        "batches of one shape",
    ),
    "ridge": (lambda plan: jp.reconstruct(net, PARAMS, plan, [(BATCH,)], ridge=-1.0), "ridge=-1.0"),
    "no ridge": (
        lambda plan: jp.reconstruct(
            net, PARAMS, plan, [(float("nan") * BATCH,)], ridge=float("nan")
        ),
        "ridge=nan",
    ),
    "NaN": (
        lambda plan: jp.reconstruct(net, PARAMS, plan, [(float("nan") * BATCH,)]),
        "a/kernel: .* NaN or Inf",
    ),
    "singular": (
        lambda plan: jp.reconstruct(net, PARAMS, plan, [(BATCH.at[:, 0].set(0),)], ridge=0.0),
        "a/kernel: .*ridge above 0",
    ),
    "plan": (
        lambda plan: jp.reconstruct(net, PARAMS | {"d": BATCH}, plan, [(BATCH,)]),
        "another model",
    ),
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
    up = np.linalg.lstsq(x, middle @ STREAM["c"])[
        0
    ]  # the block passed by: x itself is what comes in
    assert_allclose(fitted.params["c"], up, atol=1e-4)
    hidden = np.maximum(x @ up, 0)
    end = (
        middle + np.maximum(middle @ STREAM["c"], 0) @ STREAM["d"]
    )  # x is what the stream has instead of `middle`
    down = np.linalg.lstsq(hidden, end - x)[0]
    assert_allclose(fitted.params["d"], down, atol=1e-3)
    wanted = stream(STREAM, x)
    assert_allclose(fitted.params["h"], np.linalg.lstsq(x + hidden @ down, wanted)[0], atol=1e-3)

    def off(p):
        return float(jnp.linalg.norm(thin.apply(p, x) - wanted))

    assert off(fitted.params) < 0.7 * off(thin.params)


def test_blocks_and_widths_at_once_and_one_after_the_other():
    first = jp.shrink(
        stream, STREAM, BATCH, ratio=0.5, depth=jp.Depth(score={"a": 0.0}, only=True)
    ).plan
    plan = first._replace(keep={"c": {1: np.arange(4)}, "d": {0: np.arange(4)}})
    both = jp.shrink(stream, STREAM, BATCH, plan=plan)
    assert both.plan.blocks and both.params["c"].shape == (6, 4)
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
    """Equations that take nothing: an iota, a jit without arguments, an empty array, a random key
    from a constant.
    """
    positions = jax.jit(lambda: jnp.arange(3.0))()[:, None]
    mask = lax.broadcasted_iota(jnp.int32, (3, 3), 0) >= lax.broadcasted_iota(jnp.int32, (3, 3), 1)
    noise = jax.random.normal(jax.random.key(0), (3, 1))
    buffer = lax.dynamic_update_slice(lax.empty((3, 4), jnp.float32), x, (0, 0))
    hidden = mask.astype(jnp.float32) @ (buffer @ p["a"]) * positions + noise * 0
    return jax.nn.relu(hidden) @ p["w"]


def test_equations_without_operands_are_evaluated_by_all_who_evaluate():
    p = {"a": jnp.eye(4) * jnp.arange(1.0, 5.0), "w": draw(4, 2)}
    x = draw(3, 4)
    thin = jp.shrink(without_operands, p, x, ratio=0.5)
    fitted = jp.reconstruct(without_operands, p, thin.plan, [(x,), (x + 1,)])
    assert fitted.params["w"].shape == (2, 2) and np.isfinite(fitted.params["w"]).all()
    assert fitted.errors["w"][1] < fitted.errors["w"][0]
    assert jp.shrink(without_operands, p, x, ratio=0.5, approximate="mean").params["w"].shape == (
        2,
        2,
    )
    assert jp.input_rms(without_operands, p, [(x,)])["w"].shape == (4, 2)

    def tapped(p, x):
        return without_operands(p, jp.tap(x, "x"))

    assert_allclose(jp.reap(tapped, "x")(p, x)[0], without_operands(p, x), rtol=1e-6)

    def normed(p, x):
        return (without_operands(p, x) - p["mean"]) / jnp.sqrt(p["var"]) * jnp.arange(1.0, 3.0)

    p |= {"mean": draw(2), "var": jnp.ones(2)}
    assert jp.fold_batch_norm(normed, p, x).error < 1e-4
