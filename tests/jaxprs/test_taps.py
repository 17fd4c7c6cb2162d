"""Taps: read and replaced by name, through every kind of call, in linen, NNX and plain
functions.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from numpy.testing import assert_allclose, assert_array_equal

import jaxprune as jp
from tests.helpers import compiled_once

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
W = np.linspace(-0.5, 0.7, 9, dtype=np.float32).reshape(3, 3)


def layer(w, x, name="h"):
    return jp.tap(jnp.tanh(x @ w), name)


def scanned(ws, x):
    return lax.scan(lambda x, w: (layer(w, x), x.sum()), x, ws)


def by_hand(ws, x):
    found = []
    for w in ws:
        x = np.tanh(x @ w)
        found.append(x)
    return found


WS = np.stack([W, -W.T, W @ W])
CALLS = {
    "plain": layer,
    "jit": lambda w, x: jax.jit(layer)(w, x),
    "remat": lambda w, x: jax.checkpoint(layer)(w, x),
    "remat in jit": lambda w, x: jax.jit(jax.checkpoint(layer))(w, x),
    "cond": lambda w, x: lax.cond(x.sum() > 100, lambda w, x: layer(2 * w, x), layer, w, x),
    "switch": lambda w, x: lax.switch(1, [lambda w, x: layer(x=x, w=-w), layer], w, x),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_tap_is_found_in_every_call(call):
    out, taps = jp.reap(CALLS[call], "h")(W, X)
    assert list(taps) == ["h"]
    assert_allclose(taps["h"], np.tanh(X @ W), rtol=1e-6)
    assert_allclose(out, np.tanh(X @ W), rtol=1e-6)


@pytest.mark.parametrize("call", CALLS)
def test_a_planted_value_comes_out(call):
    new = jnp.arange(12, dtype=jnp.float32).reshape(4, 3)
    assert_array_equal(jp.plant(CALLS[call], {"h": new})(W, X), new)
    assert_allclose(
        jp.plant(CALLS[call], {"h": lambda h: 3 * h})(W, X), 3 * np.tanh(X @ W), rtol=1e-6
    )


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_stacks(reverse):
    def f(ws, x):
        return lax.scan(lambda x, w: (layer(w, x), x.sum()), x, ws, reverse=reverse)

    (last, sums), taps = jp.reap(f, "h")(WS, X)
    hs = by_hand(WS[::-1] if reverse else WS, X)
    ordered = hs[::-1] if reverse else hs
    assert_allclose(taps["h"], np.stack(ordered), rtol=1e-5)
    assert_allclose(last, hs[-1], rtol=1e-5)
    assert_allclose(sums, f(WS, X)[1], rtol=1e-5)


def test_planting_in_a_scan_takes_one_slice_a_turn():
    new = jnp.arange(36, dtype=jnp.float32).reshape(3, 4, 3)
    last, sums = jp.plant(scanned, {"h": new})(WS, X)
    assert_array_equal(last, new[2])
    assert_allclose(sums, [X.sum(), new[0].sum(), new[1].sum()], atol=1e-6)


def test_scans_in_scans_stack_twice():
    def twice(ws, x):
        return lax.scan(lambda x, _: (scanned(ws, x)[0], None), x, None, length=2)[0]

    found = jp.reap(twice, "h")(WS, X)[1]["h"]
    assert_allclose(found.reshape(6, 4, 3), np.stack(by_hand([*WS, *WS], X)), rtol=1e-5)


def test_a_name_met_often_gives_a_tuple_in_order():
    def often(ws, x):
        return layer(ws[1], layer(ws[0], x))

    out, taps = jp.reap(often, "h")(WS, X)
    assert isinstance(taps["h"], tuple)
    for found, wanted in zip(taps["h"], by_hand(WS[:2], X), strict=True):
        assert_allclose(found, wanted, rtol=1e-5)
    a = jnp.ones((4, 3))
    b = jnp.zeros((4, 3))
    out, taps = jp.reap(jp.plant(often, {"h": (a, b)}), "h")(WS, X)
    assert_array_equal(out, b)
    assert_array_equal(taps["h"], (a, b))


def test_the_gradient_is_that_of_the_function():
    def loss(ws):
        return sum(jnp.sum(h**2) for h in jp.reap(scanned, "h")(ws, X)[1]["h"])

    def direct(ws):
        return sum(jnp.sum(h**2) for h in (layer(ws[0], X), layer(ws[1], layer(ws[0], X))))

    both = jax.grad(lambda ws: loss(ws) - jnp.sum(scanned(ws, X)[0] ** 2))(WS)
    assert_allclose(both, jax.grad(direct)(WS), atol=1e-5)


def test_vmap_and_jit():
    f = jp.reap(layer, "h")
    many = jax.vmap(f, (0, None))(WS, X)[1]["h"]
    assert_allclose(many, np.tanh(X @ WS), rtol=1e-5)
    step = compiled_once(jax.jit(f))
    assert_allclose(step(WS[0], X)[1]["h"], many[0], rtol=1e-6)
    assert_allclose(step(WS[1], X)[1]["h"], many[1], rtol=1e-6)


def test_only_whole_names_match():
    def f(x):
        return jp.tap(jp.tap(x, "a") + 1, "ab") + 1

    assert list(jp.reap(f, "a")(X)[1]) == ["a"]
    assert list(jp.reap(f, "a.*")(X)[1]) == ["a", "ab"]
    assert list(jp.tap_names(f, X)) == ["a", "ab"]


def test_trees_are_tapped_leaf_by_leaf():
    def f(x):
        return jp.tap({"up": x + 1, "down": (x - 1, "no array")}, "both")["up"]

    assert_array_equal(jp.reap(f, "both/down/0")(X)[1]["both/down/0"], X - 1)


def test_custom_derivatives_without_a_tap_stay_theirs():
    def f(x):
        return jp.tap(jax.nn.relu(x), "h").sum()

    g = jax.grad(lambda x: jp.reap(f, "h")(x)[0])(jnp.array([0.0, 1.0, -1.0]))
    assert_array_equal(g, [0, 1, 0])  # relu's own rule has 0 at 0


def test_static_arguments_stay_static():
    def f(x, *, train):
        return jp.tap(x if train else -x, "h")

    assert_array_equal(jp.reap(f, "h")(X, train=False)[0], -X)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return nn.relu(nn.Dense(3, name="dense")(x)), None


class Tower(nn.Module):
    scan: bool = False

    @nn.compact
    def __call__(self, x):
        block = nn.remat(Block)
        if not self.scan:
            for i in range(3):
                x, _ = block(name=f"block_{i}")(x)
            return x
        # The model itself does not collect intermediates under its scan.
        return nn.scan(block, {"params": 0}, length=3, split_rngs={"params": True})(name="blocks")(
            x, None
        )[0]


def test_linen_modules_have_taps_of_their_own():
    model = Tower()
    params = model.init(jax.random.key(0), X)
    out, taps = jp.reap(model.apply, r"block_(\d)/dense")(params, X)
    x = X
    for i in range(3):
        dense = params["params"][f"block_{i}"]["dense"]
        assert_allclose(taps[f"block_{i}/dense"], x @ dense["kernel"] + dense["bias"], rtol=1e-5)
        x = np.maximum(taps[f"block_{i}/dense"], 0)
    assert_array_equal(out, model.apply(params, X))


def test_linen_under_a_scan():
    model = Tower(scan=True)
    params = model.init(jax.random.key(0), X)
    out, taps = jp.reap(model.apply, "blocks/dense")(params, X)
    dense = params["params"]["blocks"]["dense"]
    assert taps["blocks/dense"].shape == (3, 4, 3)
    assert_allclose(taps["blocks/dense"][0], X @ dense["kernel"][0] + dense["bias"][0], rtol=1e-5)
    assert_allclose(out, np.maximum(taps["blocks/dense"][2], 0), rtol=1e-5)


def test_linen_state_goes_through():
    model = nn.Sequential([nn.BatchNorm(use_running_average=False), nn.Dense(2)])
    variables = model.init(jax.random.key(0), X)

    def f(v, x):
        return model.apply(v, x, mutable=["batch_stats"])

    (out, state), taps = jp.reap(f, "layers_1")(variables, X)
    assert_allclose(out, taps["layers_1"])
    assert_allclose(state["batch_stats"]["layers_0"]["mean"], 0.01 * X.mean(0), atol=1e-6)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = jnp.tanh(block(x))
        return self.head(x)


def test_nnx_modules_are_tapped_in_a_copy():
    model = Net(nnx.Rngs(0))
    kinds = [type(m) for _, m in nnx.iter_modules(model)]
    copy = jp.tap_modules(model, r"blocks/\d")
    graph, state = nnx.split(copy)
    out, taps = jp.reap(lambda s, x: nnx.merge(graph, s)(x), ".*")(state, X)
    assert list(taps) == ["blocks/0", "blocks/1"]
    assert_allclose(
        taps["blocks/0"], X @ model.blocks[0].kernel[...] + model.blocks[0].bias[...], rtol=1e-5
    )
    assert_allclose(out, model(X), rtol=1e-6)
    assert [type(m) for _, m in nnx.iter_modules(model)] == kinds
    assert jax.tree.structure(state) == jax.tree.structure(nnx.state(model))


def test_shards_stay_shards():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    at = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jax.device_put(np.tile(X, (4, 1)), at)
    taps = jax.jit(jp.reap(layer, "h"))(W, x)[1]
    assert taps["h"].sharding.is_equivalent_to(at, 2)


BAD = {
    "nothing matches": (lambda x: jp.tap(x, "layer_1"), {}, "layer_2", "'layer_1'"),
    "no taps at all": (lambda x: x + 1, {}, "h", "there are none.*jitted before"),
    "while": (
        lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: jp.tap(x + 1, "h"), x),
        {},
        "h",
        "'while'",
    ),
    "uneven branches": (
        lambda x: lax.cond(x.sum() > 0, lambda x: jp.tap(x, "h"), lambda x: jp.tap(x, "hh"), x),
        {},
        "h+",
        r"\['hh'\], \['h'\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_to_reap(case):
    f, _, where, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        jp.reap(f, where)(jnp.asarray(X))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"g": jnp.ones(3)}, "no tap matches 'g'.*'h'"),
        ({"h": jnp.ones((3, 4))}, r"float32\[4, 3\].*float32\[3, 4\]"),
        ({"h": jnp.ones((4, 3), int)}, r"float32\[4, 3\].*int32\[4, 3\]"),
        ({"h": lambda h: h.sum()}, r"float32\[4, 3\].*float32\[\]"),
        ({"h": jnp.ones((4, 3)), "nope": 1.0}, "no tap matches 'nope'"),
    ],
)
def test_bad_input_to_plant(values, message):
    with pytest.raises(ValueError, match=message):
        jp.plant(layer, values)(W, X)


def test_values_for_a_name_met_twice_are_a_tuple():
    with pytest.raises(ValueError, match="met 2 times"):
        jp.plant(lambda x: jp.tap(jp.tap(x, "h"), "h"), {"h": jnp.ones((4, 3))})(X)


def test_a_name_is_needed_and_a_module_must_match():
    with pytest.raises(ValueError, match="needs a name"):
        jp.tap(X, "")
    with pytest.raises(ValueError, match="'head'"):
        jp.tap_modules(Net(nnx.Rngs(0)), "heads")
