"""Units that differ: other head dimensions in each head, other channels in each layer, expert and
group of channels.
"""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from numpy.testing import assert_allclose, assert_array_equal

import jaxprune as jp
from jaxprune.structure.apply.carriers import Carriers
from jaxprune.structure.choose.planner import Choice, planned
from tests.structure.models import distance, value_and_grads
from tests.structure.test_rules import conv

RNG = np.random.default_rng(5)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape) / max(1, shape[0]) ** 0.5, jnp.float32)


X = draw(2, 5, 12)
ROWS = draw(6, 8)


def attended(q, k, v):
    a = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
    return jnp.einsum("bhqk,bkhd->bqhd", a, v)


def fused(p, x):
    """Queries, keys and values in one kernel, heads and their dimensions on one axis."""
    parts = (z.reshape(*z.shape[:2], 3, 4) for z in jnp.split(x @ p["qkv"] + p["bias"], 3, axis=-1))
    return attended(*parts).reshape(x.shape) @ p["out"]


def grouped_queries(p, x):
    def heads(w, n):
        return (x @ w).reshape(*x.shape[:2], n, -1)

    k, v = (jnp.repeat(heads(p[name], 2), 2, axis=2) for name in "kv")
    return attended(heads(p["q"], 4), k, v).reshape(*x.shape[:2], -1) @ p["o"]


def experts(p, x):
    """The two best of four."""
    best, which = lax.top_k(jax.nn.softmax(x @ p["gate"]), 2)
    gates = jnp.zeros((len(x), 4), x.dtype).at[jnp.arange(len(x))[:, None], which].set(best)
    hidden = jax.nn.relu(jnp.einsum("bd,edf->bef", x, p["up"]) + p["bias"])
    return jnp.einsum("bef,efd,be->bd", hidden, p["down"], gates)


def grouped(p, x):
    y = jax.nn.relu(conv(x, p["a"]))
    return conv(jax.nn.relu(conv(y, p["w"], 4) + p["b"]), p["z"])


def layers_of_heads(p, x):
    def layer(x, w):
        def heads(w):
            return (x @ w).reshape(*x.shape[:2], 3, 4)

        y = attended(*map(heads, (w["q"], w["k"], w["v"]))).reshape(*x.shape[:2], -1)
        return x + y @ w["o"], None

    return lax.scan(layer, x, p)[0]


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(8)(nn.relu(nn.Dense(12)(x))), None


def flax(module, x, *rest):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, *rest))

    def first(out):
        return out[0] if isinstance(out, tuple) else out

    return (
        lambda p, x: first(module.apply(p, x, *rest)),
        jax.tree.map(lambda s: draw(*s.shape), shapes),
        x,
    )


layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)


def own(f, x, **shapes):
    return (f, {name: draw(*shape) for name, shape in shapes.items()}, x)


# name -> (f, params, x), and how many groups there are whose units can differ
CASES = {
    "heads": (lambda: flax(nn.MultiHeadDotProductAttention(3), X), 2),
    "heads on one axis": (lambda: own(fused, X, qkv=(12, 36), bias=(36,), out=(12, 12)), 2),
    "grouped queries": (
        lambda: own(grouped_queries, X, q=(12, 16), k=(12, 8), v=(12, 8), o=(16, 12)),
        3,
    ),
    "scanned layers": (lambda: flax(layers(), ROWS, None), 1),
    "scanned layers of heads": (
        lambda: own(layers_of_heads, X, **dict.fromkeys("qkvo", (3, 12, 12))),
        2,
    ),
    "experts": (
        lambda: own(experts, ROWS, gate=(8, 4), up=(4, 8, 10), bias=(4, 10), down=(4, 10, 8)),
        1,
    ),
    "groups of channels": (
        lambda: own(
            grouped, draw(2, 3, 3, 3), a=(1, 1, 3, 16), w=(1, 1, 4, 24), b=(24,), z=(1, 1, 24, 2)
        ),
        2,
    ),
}


def wide(case):
    f, params, x = case
    return f, *jax.tree.map(lambda a: a.astype(jnp.float64), (params, x))


def at_random(params, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: rng.random(a.shape), params)


SLOW = {"heads", "grouped queries", "scanned layers", "groups of channels"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CASES]
)
def test_what_differs_is_lossless_where_each_has_dead_units_of_its_own(name):
    ratio = (
        0.4 if name == "groups of channels" else 0.5
    )  # so small that units go, and not heads or groups alone
    with jax.enable_x64(True):
        f, params, x = wide(CASES[name][0]())
        thin = jp.shrink(
            f,
            params,
            x,
            ratio=ratio,
            scope="group",
            keep={".*": 2},
            score=at_random(params),
            uneven=True,
        )
        differ = [line for line in thin.report.uneven.values() if line.startswith("differs along")]
        assert len(differ) == CASES[name][1] and thin.report.error <= 1e-12
        dead = thin.plan.mask(params)
        full = value_and_grads(f, (x,))
        c = RNG.normal(size=jax.eval_shape(f, params, x).shape)
        y, grads = full(dead, c)
        z, small_grads = value_and_grads(thin.apply, (x,))(thin.params, c)
        assert distance(y, z) <= 1e-12 and distance(thin.cut(grads), small_grads) <= 1e-12
        # a model that has these dead units is not changed by cutting as many, but if all must cut
        # the same
        how = Choice(None, "l2", "group", "mean", None, 1, {".*": 2}, False)
        found = jp.coupled_axes(f, params, x)
        again, even = (
            planned(found, dead, {"ratio": ratio}, how._replace(uneven=uneven), None)[0]
            for uneven in (True, False)
        )
        assert all(
            again.small(path) == even.small(path) == thin.plan.small(path) for path in found.shapes
        )
        assert (
            distance(dead, again.mask(dead)) == 0
            and distance(y, full(even.mask(dead), c)[0]) > 0.01
        )


# [batch, heads, dimensions] -> the same: one of these makes all heads keep the same dimensions, and
# is named
SAME = {
    "a shared bias": (lambda z, p: z + p["d"], "d"),
    "rotary positions": (lambda z, p: z * jnp.cos(jnp.arange(4.0)), "iota"),
    "a constant": (lambda z, p: z + np.arange(4, dtype=np.float32), "a constant"),
    "a sum over heads": (lambda z, p: z * z.sum(1, keepdims=True), "reduce_sum"),
    "heads with heads": (
        lambda z, p: z * jnp.einsum("bhd,bgd->bhg", z, z).sum(2)[..., None],
        "dot_general",
    ),
    "the head before": (lambda z, p: z + jnp.roll(z, 1, 1), "w"),
    "heads in reverse": (lambda z, p: z * z[:, ::-1], "rev"),
    "heads run along": (lambda z, p: jnp.cumsum(z, 1), "cumsum"),
    "a carry": (
        lambda z, p: lax.scan(lambda c, v: (c + v, c * v), z[:, 0], z.swapaxes(0, 1))[1].swapaxes(
            0, 1
        ),
        "w",
    ),
    "heads by number": (lambda z, p: z + z[:, np.array([2, 0, 1])], "gather"),
}


def by_head(change):
    return lambda p, x: change((x @ p["w"]).reshape(-1, 3, 4), p).reshape(len(x), -1) @ p["o"]


HEADS = {"w": draw(8, 12), "o": draw(12, 5), "d": draw(4)}


@pytest.mark.parametrize("name", SAME)
def test_where_heads_meet_all_keep_the_same(name):
    change, culprit = SAME[name]
    f = by_head(change)
    found = jp.coupled_axes(f, HEADS, ROWS)
    carriers = Carriers(found.leaf_axes, found.programs)
    [v] = [v for g, v in zip(found.groups, found.variables) if g.size == 4]
    assert carriers(v) == [] and culprit in carriers.lost[v], carriers.lost[v]


def test_what_leaves_heads_to_themselves():
    """Constants and positions of each head are cut as its weights are; a group that is cut evenly
    says why.
    """

    def table(z):
        return np.cos(np.arange(12)).reshape(3, 4).astype(z.dtype) + lax.broadcasted_iota(
            z.dtype, (3, 4), 1
        )

    f = by_head(lambda z, p: jax.nn.relu(z * table(z)) * jnp.square(z).sum(2, keepdims=True))
    params = {"w": HEADS["w"], "o": HEADS["o"]}
    thin = jp.shrink(
        f, params, ROWS, ratio=0.7, keep={"w": 2}, score=at_random(params), uneven=True
    )
    assert thin.report.error < 1e-6 and thin.report.uneven == {
        "o[0]/3": "is the same everywhere: what it comes with elsewhere is missing in w",
        "o[0]/4": "differs along o[0]",
    }
    assert "o[0]/4 differs along o[0]" in str(thin.report)


def test_layers_that_share_something_keep_the_same():
    def f(p, x):
        def layer(c, w):
            return (c + jnp.tanh(c @ w["up"] + p["shared"]) @ w["down"], None)

        return lax.scan(layer, x, {name: p[name] for name in ("up", "down")})[0]

    params = {"up": draw(3, 8, 6), "down": draw(3, 6, 8), "shared": draw(6)}
    thin = jp.shrink(f, params, ROWS, ratio=0.5, uneven=True)
    assert list(thin.report.uneven.values()) == [
        "is the same everywhere: what it comes with elsewhere is missing in shared"
    ]
    assert thin.plan.keep["up"][2].ndim == 1 and thin.report.error < 1e-6


UP = {"up": draw(3, 8, 6), "down": draw(3, 6, 8)}


def STACK(p, x):
    return lax.scan(lambda c, w: (c + jax.nn.relu(c @ w["up"]) @ w["down"], None), x, p)[0]


def test_a_plan_of_units_that_differ_cuts_saves_and_comes_back(tmp_path):
    thin = jp.shrink(STACK, UP, ROWS, ratio=0.5, score=at_random(UP), uneven=True)
    at = thin.plan.keep["up"][2]
    assert at.shape == (3, 1, 3) and thin.widths == {"up": (3, 8, 3), "down": (3, 3, 8)}
    assert thin.report.flops[1] == jp.flops(thin.apply, thin.params, ROWS)
    for i in range(3):
        assert_array_equal(thin.params["up"][i], UP["up"][i][:, at[i, 0]])
        assert_array_equal(thin.params["down"][i], UP["down"][i][at[i, 0]])
    moments = thin.cut(optax.adam(0.1).init(UP))[0].mu
    assert moments["up"].shape == (3, 8, 3)
    for a, b in zip(jax.tree.leaves(thin.expand(thin.params)), jax.tree.leaves(thin.plan.mask(UP))):
        assert_array_equal(a, b)
    masked = STACK(thin.plan.mask(UP), ROWS)
    each = jax.jit(jax.vmap(thin.apply, (None, 0)))(thin.params, ROWS[:, None])[:, 0]
    assert_allclose(each, masked, rtol=1e-5, atol=1e-5)
    thin.plan.save(tmp_path / "plan.json")
    loaded = jp.Plan.load(tmp_path / "plan.json")
    again = jp.shrink(STACK, UP, ROWS, plan=loaded)
    assert_array_equal(again.params["up"], thin.params["up"])
    smaller = jp.shrink(thin.apply, thin.params, ROWS, flops=0.7, uneven=True)
    assert smaller.params["up"].shape == (3, 8, 2) and smaller.report.error < 1e-6

    # another function of the same params, whose layers share their hidden units
    def shared(p, x):
        return STACK(p, x) + p["up"].sum((0, 1)) @ p["down"].sum(0)

    with pytest.raises(
        ValueError, match=r"does not fit this function: down\[1\]: it must keep the same everywhere"
    ):
        thin.of(shared)(thin.params, ROWS)


def test_a_shifted_index_of_one_head_is_caught():
    f = by_head(lambda z, p: jnp.tanh(z))
    params = {"w": HEADS["w"], "o": HEADS["o"]}
    thin = jp.shrink(
        f, params, ROWS, ratio=0.8, keep={"w": 2}, where="w", uneven=True, score=at_random(params)
    )
    y = thin.apply(thin.params, ROWS)
    for head in range(thin.params["w"].shape[1] // 2):
        turned = (
            thin.params["w"]
            .at[:, 2 * head : 2 * head + 2]
            .set(thin.params["w"][:, [2 * head + 1, 2 * head]])
        )
        assert distance(y, thin.apply(thin.params | {"w": turned}, ROWS)) > 1e-3
    kept = {"o": {0: np.array([0, 1, 4, 5, 9, 10])}, "w": {1: np.array([0, 1, 5, 6, 9, 10])}}
    shifted = jp.Plan(thin.plan.shapes, kept)
    with pytest.raises(ValueError, match="other arrays that are cut with it keep other positions"):
        jp.shrink(f, params, ROWS, plan=shifted)


FILES = {
    "ragged": ({"up": {2: [[[0, 1]], [[1, 2]], [[1]]]}}, r"up\[2\] keeps .*all of one length"),
    "halves": ({"up": {2: [0.5]}}, r"up\[2\] keeps \[0.5\]"),
    "rank": ({"up": {2: [[0, 1], [1, 2], [1, 2]]}}, r"up\[2\] of 6 positions cannot keep"),
    "order": ({"up": {2: [[[0, 1]], [[1, 2]], [[2, 1]]]}}, r"up\[2\] of 6 positions cannot keep"),
    "rows": ({"up": {2: [[[0, 1]], [[1, 2]]]}}, r"up: shape mismatch"),
    "both": (
        {"up": {0: [[[0, 0]], [[1, 2]]], 2: [[[0, 1]], [[1, 2]]]}},
        r"up: what is kept of axes \[0, 2\] depends on each other",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_contradict_themselves(tmp_path, name):
    keep, message = FILES[name]
    file = {"format": "jaxprune plan 1", "shapes": {"up": [3, 8, 6]}, "keep": keep}
    (tmp_path / "plan.json").write_text(json.dumps(file))
    with pytest.raises(ValueError, match=message):
        jp.Plan.load(tmp_path / "plan.json")


def test_each_head_keeps_as_many():
    f = by_head(lambda z, p: jnp.tanh(z))
    params = {"w": HEADS["w"], "o": HEADS["o"]}
    kept = np.array([0, 1, 4, 5, 8])
    plan = jp.Plan({"o": (12, 5), "w": (8, 12)}, {"w": {1: kept}, "o": {0: kept}})
    with pytest.raises(
        ValueError, match=r"o\[0\]: it keeps \[2, 2, 1\] of 4 positions: keep as many everywhere"
    ):
        jp.shrink(f, params, ROWS, plan=plan)


def test_derivatives_of_higher_order():
    params = {"up": draw(2, 8, 4), "down": draw(2, 4, 8)}
    thin = jp.shrink(STACK, params, ROWS, ratio=0.5, score=at_random(params), uneven=True)

    def second(f, p):
        return jax.jvp(jax.grad(lambda p: jnp.sum(f(p, ROWS) ** 2)), (p,), (p,))[1]

    assert (
        distance(thin.cut(second(STACK, thin.plan.mask(params))), second(thin.apply, thin.params))
        < 1e-5
    )


def test_units_that_differ_are_not_folded():
    f = by_head(lambda z, p: jax.nn.sigmoid(z))
    params = {"w": HEADS["w"], "o": HEADS["o"]}
    kept = np.array([0, 1, 5, 6, 9, 10])
    plan = jp.Plan({"o": (12, 5), "w": (8, 12)}, {"o": {0: kept}, "w": {1: kept}})
    assert jp.shrink(f, params, ROWS, plan=plan).report.error < 1e-6
    with pytest.raises(ValueError, match="approximate='fold' is for units that are cut alike"):
        jp.shrink(f, params, ROWS, plan=plan, approximate="fold")
