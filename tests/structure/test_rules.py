"""Each rule by itself: what it freezes, what it lets through, and what zeros survive it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from numpy.testing import assert_allclose, assert_array_equal

import jaxprune as jp
from jaxprune.structure.choose.importance import importance

W = jnp.ones((6, 12))
V = jnp.ones((12, 3))
X = jnp.ones((4, 6))
TABLE = jnp.arange(12.0)
CONV = ("NHWC", "HWIO", "NHWC")


def conv(x, w, groups=1):
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=CONV, feature_group_count=groups
    )


def draw(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


FREEZES = {
    "cumsum": (lambda y: jnp.cumsum(y, 1), "it is run along: cumsum at test_rules.py"),
    "sort": (lambda y: jnp.sort(y, 1), "it is sorted"),
    "largest": (lambda y: y - y.max(1, keepdims=True), "its elements are compared: reduce_max"),
    "argmax": (lambda y: y * jnp.argmax(y, 1)[:, None], "its elements are compared: argmax"),
    "top k": (lambda y: jnp.tile(lax.top_k(y, 3)[0], (1, 4)), "it is sorted: top_k"),
    "flip": (lambda y: y[:, ::-1], "it is reversed: rev"),
    "index": (lambda y: y[:, jnp.array([0, 3, 2] * 4)], "it is indexed: gather"),
    "slice at": (
        lambda y: jnp.tile(lax.dynamic_slice_in_dim(y, 2, 3, 1), (1, 4)),
        "it is indexed: dynamic_slice",
    ),
    "update at": (
        lambda y: lax.dynamic_update_slice_in_dim(y, y[:, :2], 3, 1),
        "it is indexed: dynamic_update_slice",
    ),
    "scatter": (lambda y: y.at[:, jnp.array([1, 4])].set(0.0), "it is indexed: scatter"),
    "pooling": (
        lambda y: lax.reduce_window(y, -jnp.inf, lax.max, (1, 2), (1, 1), "SAME"),
        "a pooling window",
    ),
    "hole padding": (
        lambda y: lax.pad(y, 0.0, ((0, 0, 0), (0, 0, 1)))[:, :12],
        "padded inside or cropped",
    ),
    "scan along": (
        lambda y: lax.scan(lambda c, v: (c, c + v), y[:, 0], y.T)[1].T,
        "a scan runs along it",
    ),
    "every third": (lambda y: jnp.tile(y[:, ::3], (1, 3)), "every k-th is taken"),
    "fft": (lambda y: jnp.fft.fft(y).real, "there is no rule for fft"),
    "window": (
        lambda y: conv(y[:, None, :, None], jnp.ones((1, 3, 1, 1)))[:, 0, :, 0],
        "a spatial axis: conv_general",
    ),
}


@pytest.mark.parametrize("name", FREEZES)
def test_what_looks_at_positions_freezes_them(name):
    f, why = FREEZES[name]
    found = jp.coupled_axes(
        lambda p, x: f(x @ p["w"])[:, : p["v"].shape[0]] @ p["v"], {"w": W, "v": V}, X
    )
    reasons = " ".join(found.frozen.get(name, "") for name in ("w[1]", "v[0]"))
    assert why in reasons and not any(
        m.path == "w" and g.size == 12 for g in found.groups for m in g.members
    )


PASSES = {
    "reshape and back": (lambda y: y.reshape(4, 3, 4).reshape(4, 12), [3, 4]),
    "a swap of factors": (lambda y: y.reshape(4, 3, 4).swapaxes(1, 2).reshape(4, 12), [3, 4]),
    "halves": (lambda y: jnp.concatenate([y[:, 6:], y[:, :6]], 1), [6, 6]),
    "a recurrence": (
        lambda y: lax.scan(lambda h, _: (jnp.tanh(h + y), None), jnp.zeros((4, 12)), None, 2)[0],
        [12],
    ),
    "pairs that are woven": (lambda y: jnp.stack([-y[:, 1::2], y[:, ::2]], -1).reshape(4, 12), [6]),
    "a stack": (lambda y: jnp.stack([y[:, :6], y[:, 6:]], 1).reshape(4, 12), [6]),
    "a carry that is replaced": (
        lambda y: lax.scan(lambda h, _: (jnp.tanh(y), h.sum()), jnp.zeros((4, 12)), None, 2)[0],
        [12],
    ),
    "a gate": (lambda y: jnp.tile(y[:, :6] * jax.nn.sigmoid(y[:, 6:]), (1, 2)), [2, 6]),
    "softmax over others": (lambda y: jax.nn.softmax(y, 0), [12]),
    "a mean": (lambda y: y - y.mean(1, keepdims=True), [12]),
    "padding": (lambda y: jnp.pad(y[:, :8], ((0, 0), (2, 2))), [2, 2, 8]),
    "dropout": (
        lambda y: jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, y.shape), y, 0),
        [12],
    ),
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

    def g(p, x):
        return f(x @ p["w"]) @ p["v"]

    found = jp.coupled_axes(g, params, X)
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
    "variance": (
        lambda y: y / (1 + jnp.square(y - y.mean(1, keepdims=True)).sum(1, keepdims=True)),
        False,
    ),
    "cosine similarity of itself": (lambda y: y * jnp.einsum("bi,bi->b", y, y)[:, None], True),
    "sum of cosines": (lambda y: y * jnp.cos(y).sum(1, keepdims=True), False),
    "sum in a cond": (
        lambda y: lax.cond(y.sum() > -1e9, lambda y: y * jnp.cos(y).sum(), lambda y: y, y),
        False,
    ),
    "sum in a loop": (lambda y: lax.fori_loop(0, 3, lambda i, y: y + jnp.cos(y).sum(), y), False),
    "differences of pairs": (lambda y: jnp.abs(y[:, :, None] - y[:, None]).sum(2), False),
    "outer with cosines": (lambda y: (y[:, :, None] * jnp.cos(y)[:, None]).sum(2), False),
    "outer by einsum": (
        lambda y: jnp.square(jnp.einsum("bi,bj->bij", y, jnp.cos(y))).sum(2),
        False,
    ),
    "outer with itself": (lambda y: (y[:, :, None] * y[:, None]).sum(2), True),
    "pairs in a product": (
        lambda y: jnp.abs(y[:, :, None] + y[:, None]).reshape(4, 144).sum(1)[:, None] * y,
        False,
    ),
    "a broadcast along itself": (
        lambda y: (jnp.zeros((12, 12)) * y[:1] + y[0][:, None]).sum(1) * y,
        False,
    ),
    "norms with eps": (lambda y: y / (1e-9 + jnp.linalg.norm(y, axis=0)), True),
    "filled": (lambda y: y.at[jnp.array([0, 1, 2, 9])].get(mode="fill", fill_value=1.0), False),
    "filled with nothing": (
        lambda y: y.at[jnp.array([0, 1, 2, 9])].get(mode="fill", fill_value=0.0),
        True,
    ),
    "the larger of two numbers": (lambda y: y + lax.max(-1.0, -2.0), False),
    "tiles and products": (
        lambda y: (
            jnp.abs(jnp.tile(y, (1, 12)) + (y[:, :, None] * y[:, None]).reshape(4, 144)).sum(1)[
                :, None
            ]
            * y
        ),
        False,
    ),
    "a bias in a loop": (
        lambda y: lax.scan(lambda c, _: (c + 1.0, c.sum()), y, None, length=3)[1].sum() * y,
        False,
    ),
    "zeros in a loop": (
        lambda y: lax.scan(lambda c, _: (2 * c, c.sum()), y, None, length=3)[1].sum() * y,
        True,
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_zeros_are_followed(name):
    """A sum of what a function makes of a cut axis, which then stands beside it."""
    f, exact = EXACT[name]
    rng = np.random.default_rng(0)
    params = {"w": draw(rng, 6, 12), "v": draw(rng, 12, 3)}

    def g(p, x):
        return (lambda y: f(y) @ p["v"] + f(y).sum(1, keepdims=True))(x @ p["w"])

    [group] = jp.coupled_axes(g, params, X).groups
    assert bool(group.approximate) != exact
    thin = jp.shrink(g, params, X, ratio=0.5, approximate=True)
    assert (thin.report.error < 1e-5) == exact


def test_what_is_not_finite_with_zeros_is_said_and_may_be_allowed():
    rng = np.random.default_rng(0)
    params = {"w": draw(rng, 6, 12), "v": draw(rng, 12, 3)}

    def f(p, x):
        return (x @ (p["w"] / jnp.linalg.norm(p["w"], axis=0))) @ p["v"]

    with pytest.raises(ValueError, match=r"would not be exact|not finite \(0 / 0"):
        jp.shrink(f, params, X, ratio=0.5)
    thin = jp.shrink(f, params, X, ratio=0.5, approximate=True)
    assert np.isfinite(np.asarray(thin.apply(thin.params, X))).all() and not thin.report.finite
    [group] = jp.coupled_axes(
        lambda p, x: (lambda y: y / jnp.linalg.norm(y, axis=0))(x @ p["w"]).sum(1), params, X
    ).groups
    assert group.approximate  # the sum leaves out 0 / 0

    def batch(p, x):
        return (lambda y: y / y.std(0))(x @ p["w"]) @ p["v"]

    with pytest.raises(ValueError, match=r"would not be exact|not finite \(0 / 0"):
        jp.shrink(batch, params, draw(rng, 4, 6), ratio=0.5)


def test_every_function_is_checked():
    """The second is not pure: the first alone would pass."""
    rng = np.random.default_rng(0)
    calls = []
    params = {"w": draw(rng, 6, 12), "v": draw(rng, 12, 3)}

    def fine(p, x):
        return x @ p["w"] @ p["v"]

    def moody(p, x):
        calls.append(1)
        return fine(p, x) * len(calls)

    with pytest.raises(ValueError, match="differs from f"):
        jp.shrink([fine, moody], params, X, ratio=0.5)


def test_derivatives_of_every_order_are_the_functions_own():
    """The rule of sinc calls another function with a rule of its own."""
    rng = np.random.default_rng(0)
    params = {"w": draw(rng, 4, 6), "v": draw(rng, 6, 2)}
    x = jnp.zeros((1, 4))

    def f(p, x):
        return jnp.sinc(x @ p["w"]) @ p["v"]

    thin = jp.shrink(f, params, x, ratio=0.5, approximate=True)

    def second(g, p):
        return jax.hessian(lambda x: g(p, x).sum())(x)

    assert np.abs(second(f, thin.params)).max() > 1
    assert_allclose(second(thin.apply, thin.params), second(f, thin.params), rtol=1e-4, atol=1e-4)

    def third(g, p):
        return jax.jacfwd(jax.hessian(lambda x: g(p, x).sum()))(x + 0.3)

    assert_allclose(third(thin.apply, thin.params), third(f, thin.params), rtol=1e-3, atol=1e-3)

    # relu's rule makes zeros of x's shape
    def relu(p, x):
        return jnp.square(jax.nn.relu(x @ p["w"] + 0.1)) @ p["v"]

    thin = jp.shrink(relu, params, x, ratio=0.5, approximate=True)
    assert_allclose(
        second(thin.apply, thin.params), second(relu, thin.params), rtol=1e-4, atol=1e-4
    )

    @jax.custom_jvp
    def through(x):
        return jnp.round(x)

    through.defjvp(lambda x, t: (through(*x), 3 * through(*x) * t[0]))

    def g(p, x):
        return through(x @ p["w"]) @ p["v"]

    thin = jp.shrink(g, params, x, ratio=0.5)

    def second(g, p):
        return jax.hessian(lambda x: g(p, x).sum())(jnp.full((1, 4), 0.7))

    assert np.abs(second(g, thin.params)).max() > 1
    assert_allclose(second(thin.apply, thin.params), second(g, thin.params), rtol=1e-5)


def test_static_arguments_that_are_equal_and_not_the_same():
    params = {"w": W, "v": V}

    def f(p, x, k):
        return (jnp.copysign(x @ p["w"] @ p["v"], k), jnp.int32(3) * k)

    thin = jp.shrink(lambda p, x: f(p, x, 1.0), params, X, ratio=0.5)
    g = thin.of(f)
    for k in (2, 2.0, 1, 1.0, True, 0.0, -0.0):
        (ours, times), (theirs, expected) = g(thin.params, X, k), f(thin.params, X, k)
        assert_array_equal(ours, theirs)
        assert times.dtype == expected.dtype


def test_numbers_as_params_and_complex_weights():
    half = {"w": W.astype(jnp.bfloat16), "v": V.astype(jnp.bfloat16), "s": 2.0}
    x = X.astype(jnp.bfloat16)
    thin = jp.shrink(lambda p, x: (x @ p["w"]) * p["s"] @ p["v"], half, x, ratio=0.5)
    assert thin.apply(thin.params, x).dtype == jnp.bfloat16
    params = {"w": jnp.ones((6, 12), jnp.complex64).at[:, 3].set(9j), "v": V + 0j}

    def f(p, x):
        return x @ p["w"] @ p["v"]

    thin = jp.shrink(f, params, X + 0j, ratio=1 / 12, score=lambda p: {"w": p["w"]})
    assert_array_equal(thin.plan.keep["w"][1], [3])
    with pytest.raises(
        ValueError, match="has a score"
    ):  # complex numbers are none of where.weights
        jp.shrink(f, params, X + 0j, ratio=0.5)


def test_a_param_that_meets_itself_and_kernels_that_are_vmapped():
    [group] = jp.coupled_axes(lambda p, x: x @ p @ p.T, W, X).groups
    assert group.size == 12

    def mapped(p, x):
        return jax.vmap(conv, (None, 0))(x, p["k"]).mean((0, 2, 3)) @ p["v"]

    params = {"k": draw(np.random.default_rng(0), 3, 1, 1, 2, 5), "v": jnp.ones((5, 2))}
    thin = jp.shrink(mapped, params, jnp.ones((1, 4, 4, 2)), ratio=0.6, where="k")
    assert thin.params["k"].size < params["k"].size and thin.report.error < 1e-5


def test_importance_on_a_product():
    """Rows and columns of one axis: each gets the weights that it touches."""

    def f(p, x):
        return jnp.einsum("brc,r,c->b", (x @ p["w"]).reshape(4, 3, 4), p["r"], p["c"])

    w = jnp.arange(12.0).reshape(1, 12)
    params = {"w": w, "r": jnp.ones(3), "c": jnp.ones(4)}
    groups = {g.size: g for g in jp.coupled_axes(f, params, jnp.ones((4, 1))).groups}
    assert_array_equal(importance(groups[3], {"w": w}, "l1"), [6, 22, 38])
    assert_array_equal(importance(groups[4], {"w": w}, "l1"), [12, 15, 18, 21])
    assert_array_equal(importance(groups[4], {"w": w}, "max"), [8, 9, 10, 11])
    assert_array_equal(importance(groups[3], {"w": w}, "mean"), [1.5, 5.5, 9.5])
    assert_array_equal(importance(groups[3], {"w": w}, "l2"), np.sqrt([14, 126, 366]))
    assert_array_equal(importance(groups[3], {}, "l2"), [0, 0, 0])


def test_grouped_convolutions():
    """Channels of a group go in all groups alike; whole groups can go."""
    params = {
        "a": jnp.ones((1, 1, 3, 12)),
        "b": jnp.ones((1, 1, 4, 6)),
        "c": jnp.ones((1, 1, 6, 2)),
    }
    found = jp.coupled_axes(
        lambda p, x: conv(conv(conv(x, p["a"], 1), p["b"], 3), p["c"], 1),
        params,
        jnp.ones((1, 2, 2, 3)),
    )
    assert sorted((g.size, sorted(m.path for m in g.members)) for g in found.groups) == [
        (2, ["b", "c"]),
        (3, ["a", "b", "c"]),
        (4, ["a", "b"]),
    ]
