"""Budgets where units are few, large, or positions of a product; weights that are NaN; models of
which nothing goes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import jaxprune as jp
from jaxprune.structure.choose.budget import Step
from jaxprune.structure.choose.near import NEAR, near_budget

RNG = np.random.default_rng(7)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


X = draw(2, 6)


def shuffled(p, x):
    h = jax.nn.relu(x @ p["a"]).reshape(-1, 4, 2, 2).swapaxes(1, 2).reshape(-1, 16)
    return h @ p["b"]


def heads(p, x):
    """Three heads of four dimensions on one axis, over the two rows of x."""
    q, k, v = ((x @ p[name]).reshape(2, 3, 4) for name in "qkv")
    mixed = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k)), v)
    return mixed.reshape(2, 12) @ p["o"]


def heads_on_axes(p, x):
    """The same with heads and dimensions on axes of their own."""
    q, k, v = (jnp.einsum("te,ehd->thd", x, p[name]) for name in "qkv")
    mixed = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k)), v)
    return jnp.einsum("qhd,hde->qe", mixed, p["o"])


def grouped_queries(p, x):
    """Two heads of keys, each for two heads of queries, of four dimensions."""
    q = (x @ p["q"]).reshape(2, 2, 2, 4)
    k = (x @ p["k"]).reshape(2, 2, 4)
    scores = jax.nn.softmax(jnp.einsum("qkgd,tkd->kgqt", q, k))
    mixed = jnp.einsum("kgqt,tkd->qkgd", scores, (x @ p["v"]).reshape(2, 2, 4))
    return mixed.reshape(2, 16) @ p["o"]


PRODUCTS = {
    "channel shuffle": (shuffled, {"a": draw(6, 16), "b": draw(16, 3)}, lambda s: [s["a"][1]], 16),
    "heads": (
        heads,
        {"q": draw(6, 12), "k": draw(6, 12), "v": draw(6, 12), "o": draw(12, 3)},
        lambda s: [s["q"][1], s["v"][1]],
        24,
    ),
    "heads on axes of their own": (
        heads_on_axes,
        {"q": draw(6, 3, 4), "k": draw(6, 3, 4), "v": draw(6, 3, 4), "o": draw(3, 4, 3)},
        lambda s: [s["q"][1] * s["q"][2], s["v"][1] * s["v"][2]],
        24,
    ),
    "grouped queries": (
        grouped_queries,
        {"q": draw(6, 16), "k": draw(6, 8), "v": draw(6, 8), "o": draw(16, 3)},
        lambda s: [s["q"][1], s["o"][0]],
        32,
    ),
}


@pytest.mark.parametrize("scope", ["global", "group"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_ratio_is_of_positions_where_an_axis_is_a_product(name, scope):
    f, params, positions, size = PRODUCTS[name]
    for ratio in (0.75, 0.5):
        thin = jp.shrink(f, params, X, ratio=ratio, scope=scope)
        left = (
            sum(positions(jax.tree.map(jnp.shape, thin.params, is_leaf=lambda x: x is None))) / size
        )
        assert ratio - 0.13 <= left <= ratio, (ratio, left)
    if name == "channel shuffle":
        assert left == 0.5


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (8, 16):
            x = nn.relu(nn.GroupNorm(4)(nn.Conv(width, (3, 3))(x)))
        return nn.Dense(4)(x.mean((1, 2)))


class Shuffling(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (1, 1), feature_group_count=4)(nn.relu(nn.Conv(16, (3, 3))(x))))
        x = x.reshape(*x.shape[:3], 4, 4).swapaxes(3, 4).reshape(x.shape)
        x = nn.relu(nn.Conv(16, (3, 3), feature_group_count=16)(x))
        return nn.Dense(4)(x.mean((1, 2)))


class Excited(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.Conv(24, (1, 1))(nn.relu(nn.Conv(8, (3, 3))(x))))
        y = nn.relu(nn.Conv(24, (3, 3), feature_group_count=24)(y))
        gates = nn.sigmoid(nn.Dense(24)(nn.relu(nn.Dense(6)(y.mean((1, 2))))))
        return nn.Dense(4)((y * gates[:, None, None]).mean((1, 2)))


IMAGES = draw(1, 6, 6, 3)


@pytest.mark.parametrize("net", [Normed, Shuffling, Excited])
def test_budgets_are_met_closely_where_steps_are_large(net):
    variables = net().init(jax.random.key(1), IMAGES)
    for name, budget in (("flops", 0.5), ("params", 0.6)):
        report = jp.shrink(net().apply, variables, IMAGES, **{name: budget}).report
        before, after = getattr(report, name)
        assert 0.93 * budget < after / before <= budget
        assert bool(report.short) == (after / before < (1 - NEAR) * budget)


def test_what_keeps_it_from_the_budget_is_reported():
    thin = jp.shrink(
        LINE, {"a": draw(6, 16), "bias": draw(16), "b": draw(16, 2)}, X, ratio=0.7, round_to=8
    )
    assert thin.params["a"].shape[1] == 8
    words = (
        "71.4% of the budget is used: the smallest step back, 8 of the 16 units of a[1], would "
        "make it 142.9%"
    )
    assert words in str(thin.report)


def test_steps_near_a_budget():
    """Steps of 3 and 4 out of 20 where 8 may go: a prefix takes 6 or 10, 3 + 4 + 1 lose the
    least.
    """
    size = [3, 3, 4, 1, 1]
    order = [Step(g, np.array([g]), float(g)) for g in range(5)]

    def fill(steps):
        return (20 - sum(size[s.group] for s in steps)) / 12.5

    taken = near_budget(order, 3, 0, fill)
    assert [s.group for s in taken] == [0, 2, 3]
    exact = near_budget(order, 3, 0, lambda steps: (20 - sum(size[s.group] for s in steps)) / 10)
    assert [s.group for s in exact] == [0, 1, 2]
    must = near_budget(order, 3, 3, lambda steps: 0.1)
    assert len(must) == 3


ODD = {"a": draw(6, 8), "bias": draw(8), "b": draw(8, 2)}


def LINE(p, x):
    return jnp.tanh(x @ p["a"] + p["bias"]) @ p["b"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("leaf, at", [("a", (0, 3)), ("bias", (3,)), ("b", (3, 1))])
@pytest.mark.parametrize("scope", ["global", "group"])
def test_a_unit_with_nan_goes_first_and_decides_for_no_other(value, leaf, at, scope):
    odd = {**ODD, leaf: ODD[leaf].at[at].set(value)}
    zero = {name: x.at[(slice(None), 3) if name == "a" else (3,)].set(0) for name, x in ODD.items()}
    thin = jp.shrink(LINE, odd, X, ratio=0.5, scope=scope)
    assert_array_equal(
        thin.plan.keep["a"][1], jp.shrink(LINE, zero, X, ratio=0.5, scope=scope).plan.keep["a"][1]
    )
    assert 3 not in thin.plan.keep["a"][1] and thin.report.odd == {leaf: (1, 0)}
    assert f"NaN or Inf in {leaf}: 1 before, 0 left" in str(thin.report)


def test_a_head_with_nan_loses_it_where_units_differ():
    def f(p, x):
        return jax.lax.scan(lambda x, w: (x + jax.nn.relu(x @ w["up"]) @ w["down"], None), x, p)[0]

    p = {"up": jnp.ones((2, 6, 4)).at[0, :, 0].set(0.1), "down": jnp.ones((2, 4, 6))}
    p["up"] = p["up"].at[1, 2, 3].set(np.nan)
    thin = jp.shrink(f, p, X, ratio=0.75, uneven=True)
    assert thin.plan.keep["up"][2][:, 0].tolist() == [[1, 2, 3], [0, 1, 2]] and thin.report.odd == {
        "up": (1, 0)
    }


def test_scores_with_nan_are_refused_with_their_number_and_place():
    scores = {"a": ODD["a"].at[2, 5].set(np.nan).at[3, 0].set(np.inf), "bias": None, "b": None}
    with pytest.raises(
        ValueError, match=r"score of a has NaN or Inf: 2 of 48, the first at \[2, 5\]"
    ):
        jp.shrink(LINE, ODD, X, ratio=0.5, score=scores)


class Training(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(nn.BatchNorm(use_running_average=False)(nn.Dense(16)(x))))


def test_that_nothing_can_be_cut_says_why_and_the_state_that_it_names_helps():
    variables = Training().init(jax.random.key(0), X)

    def f(v, x):
        return Training().apply(v, x, mutable=["batch_stats"])

    with pytest.raises(ValueError, match="nothing can be cut") as caught:
        jp.shrink(f, variables, X, ratio=0.5)
    text = str(caught.value)
    assert "an output of the function" in text and "an argument of the function" in text
    assert len(text.splitlines()) <= 10
    state = text.split("give state=")[1].strip("'")
    assert jp.shrink(f, variables, X, ratio=0.5, state=state).params["params"]["Dense_0"][
        "kernel"
    ].shape == (8, 2)
    with pytest.raises(
        ValueError, match=r"where selects params/Dense_0/kernel.* of which nothing can be cut"
    ):
        jp.shrink(f, variables, X, ratio=0.5, where=".*/kernel")


def test_that_nothing_can_be_cut_names_the_line():
    def f(p, x):
        return jnp.fft.fft(x @ p["a"]).real @ p["b"]

    with pytest.raises(
        ValueError, match=r"a\[1\], b\[0\]: there is no rule for fft at test_budgets.py:\d+"
    ):
        jp.shrink(f, {"a": ODD["a"], "b": ODD["b"]}, X, ratio=0.5)
