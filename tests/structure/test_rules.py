"""Each rule by itself: what it freezes, what it lets through, and what zeros survive it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from numpy.testing import assert_array_equal

import jaxprune as jp
from jaxprune.structure.importance import importance

W, V = jnp.ones((6, 12)), jnp.ones((12, 3))
X = jnp.ones((4, 6))
TABLE = jnp.arange(12.0)
CONV = ("NHWC", "HWIO", "NHWC")


def conv(x, w, groups=1):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=CONV, feature_group_count=groups)


draw = lambda rng, *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)

FREEZES = {
    "cumsum": (lambda y: jnp.cumsum(y, 1), "it is run along: cumsum at test_rules.py"),
    "sort": (lambda y: jnp.sort(y, 1), "it is sorted"),
    "largest": (lambda y: y - y.max(1, keepdims=True), "its elements are compared: reduce_max"),
    "argmax": (lambda y: y * jnp.argmax(y, 1)[:, None], "its elements are compared: argmax"),
    "top k": (lambda y: jnp.tile(lax.top_k(y, 3)[0], (1, 4)), "it is sorted: top_k"),
    "flip": (lambda y: y[:, ::-1], "it is reversed: rev"),
    "index": (lambda y: y[:, jnp.array([0, 3, 2] * 4)], "it is indexed: gather"),
    "slice at": (lambda y: jnp.tile(lax.dynamic_slice_in_dim(y, 2, 3, 1), (1, 4)), "it is indexed: dynamic_slice"),
    "update at": (lambda y: lax.dynamic_update_slice_in_dim(y, y[:, :2], 3, 1), "it is indexed: dynamic_update_slice"),
    "scatter": (lambda y: y.at[:, jnp.array([1, 4])].set(0.0), "it is indexed: scatter"),
    "pooling": (lambda y: lax.reduce_window(y, -jnp.inf, lax.max, (1, 2), (1, 1), "SAME"), "a pooling window"),
    "hole padding": (lambda y: lax.pad(y, 0.0, ((0, 0, 0), (0, 0, 1)))[:, :12], "padded inside or cropped"),
    "scan along": (lambda y: lax.scan(lambda c, v: (c, c + v), y[:, 0], y.T)[1].T, "a scan runs along it"),
    "every third": (lambda y: jnp.tile(y[:, ::3], (1, 3)), "every k-th is taken"),
    "fft": (lambda y: jnp.fft.fft(y).real, "there is no rule for fft"),
    "window": (lambda y: conv(y[:, None, :, None], jnp.ones((1, 3, 1, 1)))[:, 0, :, 0], "a spatial axis: conv_general"),
}


@pytest.mark.parametrize("name", FREEZES)
def test_what_looks_at_positions_freezes_them(name):
    f, why = FREEZES[name]
    found = jp.axes(lambda p, x: f(x @ p["w"])[:, : p["v"].shape[0]] @ p["v"], {"w": W, "v": V}, X)
    reasons = " ".join(found.frozen.get(name, "") for name in ("w[1]", "v[0]"))
    assert why in reasons and not any(g.size == 12 for g in found.groups)


PASSES = {
    "reshape and back": (lambda y: y.reshape(4, 3, 4).reshape(4, 12), [3, 4]),
    "a swap of factors": (lambda y: y.reshape(4, 3, 4).swapaxes(1, 2).reshape(4, 12), [3, 4]),
    "halves": (lambda y: jnp.concatenate([y[:, 6:], y[:, :6]], 1), [6, 6]),
    "a recurrence": (lambda y: lax.scan(lambda h, _: (jnp.tanh(h + y), None), jnp.zeros((4, 12)), None, 2)[0], [12]),
    "a gate": (lambda y: jnp.tile(y[:, :6] * jax.nn.sigmoid(y[:, 6:]), (1, 2)), [6]),
    "softmax over others": (lambda y: jax.nn.softmax(y, 0), [12]),
    "a mean": (lambda y: y - y.mean(1, keepdims=True), [12]),
    "padding": (lambda y: jnp.pad(y[:, :8], ((0, 0), (2, 2))), [8]),
    "dropout": (lambda y: jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, y.shape), y, 0), [12]),
    "a constant array": (lambda y: y * TABLE, [12]),
    "positions": (lambda y: y * jnp.arange(12.0), [12]),
    "rows": (lambda y: y[jnp.array([1, 2, 3, 0])], [12]),
    "a scatter of rows": (lambda y: y.at[1].set(0.0), [12]),
    "one hot": (lambda y: y + jnp.eye(12)[jnp.array([1, 2, 3, 4])], [12]),
}


@pytest.mark.parametrize("name", PASSES)
def test_what_moves_positions_keeps_them_apart(name):
    f, sizes = PASSES[name]
    rng = np.random.default_rng(1)
    params = {"w": draw(rng, 6, 12), "v": draw(rng, 12, 3)}
    g = lambda p, x: f(x @ p["w"]) @ p["v"]
    found = jp.axes(g, params, X)
    assert sorted(group.size for group in found.groups) == sorted(sizes), found.frozen
    score = jax.tree.map(lambda w: rng.random(w.shape), params)
    thin = jp.shrink(g, params, draw(rng, 4, 6), ratio=0.6, score=score)
    assert thin.report.error < 1e-5 and thin.report.params[1] < thin.report.params[0]


EXACT = {
    "relu": (jax.nn.relu, True),
    "capped": (lambda y: lax.clamp(-1.0, y, 6.0), True),
    "shifted clip": (lambda y: lax.clamp(1.0, y, 6.0), False),
    "exp": (jnp.exp, False),
    "expm1": (jnp.expm1, True),
    "sum of squares": (lambda y: y / (1 + jnp.square(y).sum(1, keepdims=True)), True),
    "variance": (lambda y: y / (1 + jnp.square(y - y.mean(1, keepdims=True)).sum(1, keepdims=True)), False),
    "cosine similarity of itself": (lambda y: y * jnp.einsum("bi,bi->b", y, y)[:, None], True),
    "sum of cosines": (lambda y: y * jnp.cos(y).sum(1, keepdims=True), False),
    "sum in a cond": (lambda y: lax.cond(y.sum() > -1e9, lambda y: y * jnp.cos(y).sum(), lambda y: y, y), False),
    "sum in a loop": (lambda y: lax.fori_loop(0, 3, lambda i, y: y + jnp.cos(y).sum(), y), False),
    "a bias in a loop": (lambda y: lax.scan(lambda c, _: (c + 1.0, c.sum()), y, None, length=3)[1].sum() * y, False),
    "zeros in a loop": (lambda y: lax.scan(lambda c, _: (2 * c, c.sum()), y, None, length=3)[1].sum() * y, True),
}


@pytest.mark.parametrize("name", EXACT)
def test_zeros_are_followed(name):
    """A sum of what a function makes of a cut axis, which then stands beside it."""
    f, exact = EXACT[name]
    rng = np.random.default_rng(0)
    params = {"w": draw(rng, 6, 12), "v": draw(rng, 12, 3)}
    g = lambda p, x: (lambda y: f(y) @ p["v"] + f(y).sum(1, keepdims=True))(x @ p["w"])
    [group] = jp.axes(g, params, X).groups
    assert bool(group.approximate) != exact
    thin = jp.shrink(g, params, X, ratio=0.5, approximate=True)
    assert (thin.report.error < 1e-5) == exact


def test_importance_on_a_product():
    """Rows and columns of one axis: each gets the weights that it touches."""
    f = lambda p, x: jnp.einsum("brc,r,c->b", (x @ p["w"]).reshape(4, 3, 4), p["r"], p["c"])
    w = jnp.arange(12.0).reshape(1, 12)
    params = {"w": w, "r": jnp.ones(3), "c": jnp.ones(4)}
    groups = {g.size: g for g in jp.axes(f, params, jnp.ones((4, 1))).groups}
    assert_array_equal(importance(groups[3], {"w": w}, "l1"), [6, 22, 38])
    assert_array_equal(importance(groups[4], {"w": w}, "l1"), [12, 15, 18, 21])
    assert_array_equal(importance(groups[4], {"w": w}, "max"), [8, 9, 10, 11])
    assert_array_equal(importance(groups[3], {"w": w}, "mean"), [1.5, 5.5, 9.5])
    assert_array_equal(importance(groups[3], {"w": w}, "l2"), np.sqrt([14, 126, 366]))
    assert_array_equal(importance(groups[3], {}, "l2"), [0, 0, 0])


def test_grouped_convolutions():
    """Channels of a group go in all groups alike; whole groups can go."""
    params = {"a": jnp.ones((1, 1, 3, 12)), "b": jnp.ones((1, 1, 4, 6)), "c": jnp.ones((1, 1, 6, 2))}
    found = jp.axes(lambda p, x: conv(conv(conv(x, p["a"], 1), p["b"], 3), p["c"], 1), params, jnp.ones((1, 2, 2, 3)))
    assert sorted((g.size, sorted(m.path for m in g.members)) for g in found.groups) == [
        (2, ["b", "c"]),
        (3, ["a", "b", "c"]),
        (4, ["a", "b"]),
    ]
