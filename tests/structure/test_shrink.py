"""`shrink` and `axes`: budgets, rules, what is refused, and all that a plan can be used for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_allclose, assert_array_equal

import jaxprune as jp
from tests.helpers import nothing_compiled

RNG = np.random.default_rng(3)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


PARAMS = {
    "a": {"kernel": draw(6, 32), "bias": draw(32)},
    "b": {"kernel": draw(32, 24), "bias": draw(24)},
    "out": {"kernel": draw(24, 5)},
}
X = draw(4, 6)


def mlp(p, x):
    x = jax.nn.relu(x @ p["a"]["kernel"] + p["a"]["bias"])
    x = jax.nn.relu(x @ p["b"]["kernel"] + p["b"]["bias"])
    return x @ p["out"]["kernel"]


def centred(p, x):
    """Its variance is a sum over what may be cut of something that is not 0 there."""
    x = x @ p["a"]["kernel"] + p["a"]["bias"]
    x = x - x.mean(-1, keepdims=True)
    return (x / (1 + (x**2).mean(-1, keepdims=True))) @ p["b"]["kernel"]


@pytest.mark.parametrize("name", ["flops", "params", "bytes", "ratio"])
@pytest.mark.parametrize("scope", ["global", "group", "isomorphic"])
def test_budgets_are_met_and_by_as_little_as_can_be(name, scope):
    thin = jp.shrink(mlp, PARAMS, X, **{name: 0.5}, scope=scope)
    if name == "ratio":
        assert sum(n for _, n in thin.report.groups) == 28
        return
    before, after = getattr(thin.report, name)
    assert 0.45 < after / before <= 0.5
    assert (
        after
        == {
            "flops": jp.flops(mlp, thin.params, X),
            "params": sum(x.size for x in jax.tree.leaves(thin.params)),
            "bytes": sum(x.nbytes for x in jax.tree.leaves(thin.params)),
        }[name]
    )


def test_the_least_important_go():
    small = jax.tree.map(jnp.copy, PARAMS)
    for i in (3, 11, 30):  # three weak units
        small["a"]["kernel"] = small["a"]["kernel"].at[:, i].multiply(0.01)
        small["b"]["kernel"] = small["b"]["kernel"].at[i].multiply(0.01)
    thin = jp.shrink(mlp, small, X, ratio=1 - 3 / 56)
    assert_array_equal(thin.plan.keep["a/kernel"][1], np.delete(np.arange(32), [3, 11, 30]))
    assert_array_equal(thin.params["a"]["bias"], np.delete(small["a"]["bias"], [3, 11, 30]))
    assert thin.widths == {"a/kernel": (6, 29), "a/bias": (29,), "b/kernel": (29, 24)}


def test_scores_of_any_leaves():
    gates = jax.tree.map(lambda x: None, PARAMS) | {"a": {"kernel": None, "bias": jnp.arange(32.0)}}
    thin = jp.shrink(mlp, PARAMS, X, ratio=0.5, score=gates, where="a/.*", reduce="max")
    assert_array_equal(thin.plan.keep["a/bias"][0], np.arange(16, 32))

    def taylor(p):
        return jp.scores.saliency(p, grads=jax.grad(lambda p: mlp(p, X).sum())(p))

    assert jp.shrink(mlp, PARAMS, X, flops=0.5, score=taylor).report.error < 1e-5


def test_widths_are_round_and_limits_are_kept():
    thin = jp.shrink(mlp, PARAMS, X, flops=0.5, round_to=8, keep={"b/kernel": (16, 16)})
    assert thin.params["b"]["kernel"].shape == (8, 16) or thin.params["b"]["kernel"].shape == (
        16,
        16,
    )
    thin = jp.shrink(mlp, PARAMS, X, ratio=0.6, keep={"a/.*": 0.9})
    assert thin.params["a"]["kernel"].shape[1] >= 29
    thin = jp.shrink(mlp, PARAMS, X, ratio=1.0, keep={"a/kernel": (None, 0.25)})
    assert thin.params["a"]["kernel"].shape == (6, 8) and thin.params["b"]["kernel"].shape == (
        8,
        24,
    )


def test_the_nearest_budget_is_named_and_can_be_met():
    with pytest.raises(ValueError, match=r"params=0.001 cannot be met.*Nearest: params=") as caught:
        jp.shrink(mlp, PARAMS, X, params=0.001)
    nearest = float(str(caught.value).split("Nearest: params=")[1].split(",")[0])
    thin = jp.shrink(mlp, PARAMS, X, params=nearest + 1e-4)
    assert thin.params["a"]["kernel"].shape == (6, 1)


def test_approximate_groups_are_refused_allowed_and_named():
    params = {"a": PARAMS["a"], "b": {"kernel": PARAMS["b"]["kernel"]}}
    [group] = jp.coupled_axes(centred, params, X).groups
    assert len(group.approximate) == 1 and "reduce_sum at test_shrink.py" in group.approximate[0]
    with pytest.raises(
        ValueError, match=r"would not be exact \(reduce_sum at test_shrink.py.*approximate=True"
    ):
        jp.shrink(centred, params, X, ratio=0.5)
    thin = jp.shrink(centred, params, X, ratio=0.5, approximate=True)
    assert thin.report.error > 1e-3 and "approximate: a/" in str(thin.report)


def test_an_unknown_primitive_freezes_what_it_touches_and_is_named():
    def f(p, x):
        return jnp.fft.fft(x @ p["a"]["kernel"]).real @ p["b"]["kernel"] @ p["out"]["kernel"]

    groups = jp.coupled_axes(f, PARAMS, X)
    assert [g.name for g in groups.groups] == ["b/kernel[1]"]
    assert "there is no rule for fft at test_shrink.py" in groups.frozen["a/kernel[1]"]
    thin = jp.shrink(f, PARAMS, X, ratio=0.5)
    assert thin.params["a"]["kernel"].shape == (6, 32) and any(
        "fft" in name for name in thin.report.unknown
    )


def test_a_custom_gradient_stays_and_a_custom_derivative_is_cut():
    @jax.custom_vjp
    def straight(x):
        return jnp.sign(x)

    straight.defvjp(lambda x: (jnp.sign(x), None), lambda _, g: (7 * g,))

    def f(p, x):
        return straight(x @ p["a"]["kernel"]) @ jax.nn.relu(p["b"]["kernel"]) @ p["out"]["kernel"]

    thin = jp.shrink(f, PARAMS, X, ratio=0.5)
    assert thin.params["a"]["kernel"].shape == (6, 32) and thin.params["b"]["kernel"].shape == (
        32,
        12,
    )
    grads = jax.grad(lambda p: f(p, X).sum())(thin.plan.mask(PARAMS))
    ours = jax.grad(lambda p: thin.apply(p, X).sum())(thin.params)
    for a, b in zip(jax.tree.leaves(thin.cut(grads)), jax.tree.leaves(ours)):
        assert_allclose(a, b, rtol=1e-4, atol=1e-4)

    @jax.custom_jvp
    def odd(x):
        return x * 2

    odd.defjvp(lambda x, t: (odd(*x), 5 * t[0]))

    def g(p, x):
        return odd(x @ p["a"]["kernel"]) @ p["b"]["kernel"]

    thin = jp.shrink(g, {"a": PARAMS["a"], "b": PARAMS["b"]}, X, ratio=0.5)
    cut = jax.grad(lambda p: thin.apply(p, X).sum())(thin.params)["a"]["kernel"]
    assert_allclose(cut, 5 * jnp.outer(X.sum(0), thin.params["b"]["kernel"].sum(1)), rtol=1e-5)


def test_the_small_function_is_as_any_other():
    thin = jp.shrink(mlp, PARAMS, X, flops=0.5)
    masked = thin.plan.mask(PARAMS)
    step = jax.jit(thin.apply)
    for n in (4, 1, 9):  # other batch sizes than the one it was made on
        x = draw(n, 6)
        assert_allclose(step(thin.params, x), mlp(masked, x), rtol=1e-5, atol=1e-4)
    x = draw(9, 6)
    with nothing_compiled():
        step(thin.params, x)
    each = jax.vmap(thin.apply, (None, 0))(thin.params, X[:, None])
    assert_allclose(each[:, 0], mlp(masked, X), rtol=1e-5, atol=1e-4)
    members = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), thin.params)
    assert_allclose(
        jax.vmap(thin.apply, (0, None))(members, X)[0], mlp(masked, X), rtol=1e-5, atol=1e-4
    )
    exported = jax.export.export(step)(thin.params, X)
    assert_allclose(exported.call(thin.params, X), mlp(masked, X), rtol=1e-5, atol=1e-4)
    again = jp.shrink(thin.apply, thin.params, X, flops=0.5)
    assert again.report.flops[1] < 0.27 * thin.report.flops[0] and again.report.error < 1e-5


def test_a_plan_cuts_whatever_is_named_as_the_params(tmp_path):
    thin = jp.shrink(mlp, PARAMS, X, flops=0.5)
    state = optax.adam(0.1).init(PARAMS)
    moments = thin.cut(state)
    assert jax.tree.map(jnp.shape, moments[0].mu) == jax.tree.map(jnp.shape, thin.params)
    assert moments[0].count.shape == ()
    for a, b in zip(
        jax.tree.leaves(thin.expand(thin.params)), jax.tree.leaves(thin.plan.mask(PARAMS))
    ):
        assert_array_equal(a, b)
    thin.plan.save(tmp_path / "plan.json")
    loaded = jp.Plan.load(tmp_path / "plan.json")
    again = jp.shrink(mlp, PARAMS, X, plan=loaded)
    for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(thin.params)):
        assert_array_equal(a, b)
    wider = jax.tree.map(lambda x: jnp.pad(x, [(0, 1)] * x.ndim), PARAMS)
    with pytest.raises(ValueError, match="another model"):
        jp.shrink(mlp, wider, draw(4, 7), plan=loaded)
    with pytest.raises(ValueError, match=r"a/bias is \(33,\)|a/kernel is|the plan is for"):
        loaded.cut(wider)
    with pytest.raises(ValueError, match="no leaf is named"):
        loaded.cut({"c": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"a/bias is \(32,\); after the cut it is"):
        thin.apply(PARAMS, X)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(ValueError, match="not a plan"):
        jp.Plan.load(tmp_path / "plan.json")


def test_training_and_decoding_share_a_plan():
    """A training step's new statistics and a decoder's new cache are cut as the params that they
    replace.
    """

    def train(p, x):
        y = x @ p["w"]
        mean = 0.9 * p["mean"] + 0.1 * y.mean(0)
        return jax.nn.relu(y - mean) @ p["v"], {"mean": mean}

    def decode(p, token):
        cache = jax.lax.dynamic_update_slice(p["cache"], (token @ p["w"])[None], (0, 0))
        return jax.nn.relu(cache.sum(0)) @ p["v"], {"cache": cache}

    params = {"w": draw(6, 16), "mean": draw(16), "v": draw(16, 3), "cache": jnp.zeros((4, 16))}
    token = draw(6)
    calls = [(train, (X,)), (decode, (token,))]
    groups = jp.coupled_axes(calls, params, state="1/(mean|cache)")
    assert [sorted(m.path for m in g.members) for g in groups.groups] == [
        ["cache", "mean", "v", "w"]
    ]
    thin = jp.shrink(calls, params, ratio=0.5, state="1/(mean|cache)")
    y, new = thin.apply(thin.params, X)
    masked = thin.plan.mask(params)
    assert new["mean"].shape == (8,) and thin.params["cache"].shape == (4, 8)
    assert_allclose(y, train(masked, X)[0], rtol=1e-5, atol=1e-5)
    y, new = thin.of(decode, "1/cache")(thin.params, token)
    assert_allclose(y, decode(masked, token)[0], rtol=1e-5, atol=1e-5)
    assert_allclose(new["cache"], thin.cut(decode(masked, token)[1])["cache"], rtol=1e-5, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"does not fit this function: cache\[1\].*cannot be cut: an output"
    ):
        thin.of(decode)(thin.params, token)
    assert jp.coupled_axes(calls[0][0], {k: params[k] for k in ("w", "mean", "v")}, X).groups == ()


def test_half_precision_and_sharded_params():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    thin = jp.shrink(mlp, half, X.astype(jnp.bfloat16), flops=0.5)
    assert thin.params["a"]["kernel"].dtype == jnp.bfloat16
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(PARAMS, NamedSharding(mesh, P()))
    sharded["a"]["kernel"] = jax.device_put(
        PARAMS["a"]["kernel"], NamedSharding(mesh, P(None, "x"))
    )
    thin, plain = (jp.shrink(mlp, p, X, flops=0.5, round_to=8) for p in (sharded, PARAMS))
    for a, b in zip(jax.tree.leaves(thin.params), jax.tree.leaves(plain.params)):
        assert_array_equal(a, b)
    assert_allclose(thin.apply(thin.params, X), plain.apply(plain.params, X), rtol=1e-5, atol=1e-4)


def test_loops_are_cut():
    def f(p, x):
        return (
            jax.lax.while_loop(
                lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(c[1] @ p["w"])), (0, x @ p["a"])
            )[1]
            @ p["v"]
        )

    params = {"a": draw(6, 16), "w": draw(16, 16), "v": draw(16, 2)}
    thin = jp.shrink(f, params, X, ratio=0.5)
    assert thin.params["w"].shape == (8, 8) and thin.report.error < 1e-5


def printing(p, x):
    jax.debug.print("{}", x.sum())
    return mlp(p, x)


SMALL = {"w": jnp.ones((6, 4)), "v": jnp.ones((4, 2))}


def LINE(p, x):
    return x @ p["w"] @ p["v"]


ODD = jp.Plan({"v": (4, 2), "w": (6, 4)}, {"w": {1: [3, 1]}, "v": {0: [3, 1]}})
SYMBOLS = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 6"), jnp.float32)
WRONG = {
    "no budget": (lambda: jp.shrink(LINE, SMALL, X), "give a budget"),
    "budget and plan": (
        lambda: jp.shrink(LINE, SMALL, X, ratio=0.5, plan=jp.Plan({}, {})),
        "give a budget",
    ),
    "more than all": (
        lambda: jp.shrink(LINE, SMALL, X, flops=1.5),
        r"flops=1.5: a budget is a fraction",
    ),
    "nothing": (lambda: jp.shrink(LINE, SMALL, X, flops=0.0), "a budget is a fraction"),
    "where": (
        lambda: jp.shrink(LINE, SMALL, X, ratio=0.5, where="u"),
        "where='u' matches nothing",
    ),
    "no rule": (lambda: jp.shrink(LINE, SMALL, X, ratio=0.5, where=3), "rule of jp.where"),
    "keep": (
        lambda: jp.shrink(LINE, SMALL, X, ratio=0.5, keep={"u": 2}),
        "matches no leaf that can be cut",
    ),
    "keep none": (
        lambda: jp.shrink(LINE, SMALL, X, ratio=0.5, keep={"v": 0}),
        "a number of units from 1",
    ),
    "keep more than there is room": (
        lambda: jp.shrink(LINE, SMALL, X, ratio=0.5, keep={"v": (3, 2)}),
        "3 at least and 2",
    ),
    "no plan": (lambda: jp.shrink(LINE, SMALL, X, plan="plan.json"), "jp.Plan.load"),
    "a plan out of order": (lambda: jp.shrink(LINE, SMALL, X, plan=ODD), "cannot keep"),
    "where is no pattern": (
        lambda: jp.shrink(LINE, SMALL, X, ratio=0.5, where="("),
        "no regular expression",
    ),
    "keep is no pattern": (
        lambda: jp.shrink(LINE, SMALL, X, ratio=0.5, keep={"(": 2}),
        "no regular expression",
    ),
    "state is no pattern": (
        lambda: jp.coupled_axes(LINE, SMALL, X, state="("),
        "no regular expression",
    ),
    "half a unit": (lambda: jp.shrink(LINE, SMALL, X, ratio=0.5, round_to=2.5), "round_to=2.5"),
    "a string as a param": (
        lambda: jp.coupled_axes(LINE, SMALL | {"name": "net"}, X),
        "name is no array",
    ),
    "symbols": (lambda: jp.coupled_axes(LINE, SMALL, SYMBOLS), "symbolic"),
    "round": (lambda: jp.shrink(LINE, SMALL, X, ratio=0.5, round_to=0), "round_to=0"),
    "reduce": (
        lambda: jp.shrink(LINE, SMALL, X, ratio=0.5, reduce="sum"),
        r"reduce=.sum..*choose one of",
    ),
    "normalize": (
        lambda: jp.shrink(LINE, SMALL, X, ratio=0.5, normalize="l2"),
        "normalize='l2'.*choose one of",
    ),
    "score": (
        lambda: jp.shrink(LINE, SMALL, X, ratio=0.5, score={"w": jnp.ones(3), "v": None}),
        r"score of w is \(3,\)",
    ),
    "scores": (lambda: jp.shrink(LINE, SMALL, X, ratio=0.5, score=[1.0]), "name them alike"),
    "NaN score": (
        lambda: jp.shrink(LINE, SMALL, X, ratio=0.5, score={"w": SMALL["w"] * np.nan, "v": None}),
        "NaN",
    ),
    "side effects": (lambda: jp.coupled_axes(printing, PARAMS, X), "printing has side effects"),
    "a string": (lambda: jp.coupled_axes(lambda p, x: "y", SMALL, X), "not an array"),
    "branches": (
        lambda: jp.coupled_axes(lambda p, x: x if x.sum() > 0 else -x, SMALL, X),
        "cannot be traced",
    ),
    "shapes of values": (
        lambda: jp.coupled_axes(lambda p, x: x[x > 0] @ p["w"], SMALL, X),
        "cannot be traced",
    ),
    "compressed": (lambda: jp.coupled_axes(LINE, jp.prune(0.5).init(SMALL), X), "v is compressed"),
    "no params": (lambda: jp.coupled_axes(LINE, {}, X), "0 leaves"),
    "state": (lambda: jp.coupled_axes(LINE, SMALL, X, state="new"), "matches no output"),
    "state of no param": (
        lambda: jp.coupled_axes(lambda p, x: {"u": LINE(p, x)}, SMALL, X, state="u"),
        "'u'.* is no param",
    ),
    "all frozen": (
        lambda: jp.shrink(lambda p, x: x @ p["w"], {"w": SMALL["w"]}, X, ratio=0.5),
        "nothing can be cut",
    ),
    "traced": (
        lambda: jax.jit(lambda p: jp.shrink(LINE, p, X, ratio=0.5).params)(SMALL),
        "outside of jit",
    ),
    "plan": (lambda: jp.shrink(LINE, SMALL, X, plan=jp.Plan({"w": (6, 4)}, {})), "another model"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input(case):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_plan_that_the_function_does_not_allow():
    plan = jp.Plan({"v": (4, 2), "w": (6, 4)}, {"w": {1: np.array([0, 1])}})
    with pytest.raises(
        ValueError, match=r"does not fit this function: w\[1\]: other arrays that are cut with it"
    ):
        jp.shrink(LINE, SMALL, X, plan=plan)


def test_a_function_that_is_not_pure_is_caught():
    calls = []

    def moody(p, x):
        calls.append(1)
        return LINE(p, x) * len(calls)

    with pytest.raises(ValueError, match=r"differs from f with zeros.*not pure"):
        jp.shrink(moody, {"w": draw(6, 4), "v": draw(4, 2)}, X, ratio=0.5)


def test_an_argument_that_cannot_be_hashed_is_given_as_it_is():
    options = type("Options", (), {"scale": 2.0, "__hash__": None})()

    def f(p, x, options):
        return options.scale * LINE(p, x)

    thin = jp.shrink(f, {"w": draw(6, 4), "v": draw(4, 2)}, X, options, ratio=0.5)
    once = thin.apply(thin.params, X, options)
    options.scale = 4.0  # nothing is remembered that would not see it
    assert_allclose(thin.apply(thin.params, X, options), 2 * once, rtol=1e-6)
