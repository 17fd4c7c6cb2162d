"""Teachers: ensembles, the student itself and its average; and losses that train or remember
something.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

import jaxprune as jp
from jaxprune.distill import losses
from tests.helpers import compiled_once

RNG = np.random.default_rng(4)
X = RNG.normal(size=(6, 4)).astype(np.float32)
Y = RNG.integers(0, 3, 6).astype(np.int32)
BATCH = {"x": X, "y": Y, "index": np.arange(6, dtype=np.int32)}
KEY = jax.random.key(3)


def mlp(params, x):
    return jp.tap(jnp.tanh(x @ params["a"]), "hidden") @ params["b"]


NET = jp.distill.plain(mlp)


def params(width, seed):
    rng = np.random.default_rng(seed)
    return {
        "a": rng.normal(size=(4, width)).astype(np.float32),
        "b": rng.normal(size=(width, 3)).astype(np.float32),
    }


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


ONE, TWO = (jp.distill.Online(NET, params(8, seed)) for seed in (1, 2))


class Normed(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.norm(self.linear(x)))


class NormedLinen(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x))


def nnx_teacher(train):
    model = Normed(nnx.Rngs(0))
    model.set_attributes(deterministic=not train, use_running_average=not train)
    return jp.distill.Online(*jp.distill.nnx(model))


def linen_teacher(train):
    variables = dict(NormedLinen().init(KEY, X))
    return jp.distill.Online(
        jp.distill.linen(NormedLinen(), train=train), variables.pop("params"), variables
    )


@pytest.mark.parametrize("make", [nnx_teacher, linen_teacher])
def test_a_teacher_in_train_mode_warns_and_one_that_is_not_does_not(make):
    """Tests run with warnings as errors: the calls without `pytest.warns` say nothing."""
    ask = jax.jit(lambda teacher: teacher(BATCH, None)["output"])
    assert_allclose(
        ask(make(train=False))[:2], make(train=False)({"x": X[:2]}, None)["output"], rtol=1e-5
    )
    jp.distill.Ensemble((make(train=False),) * 2)(BATCH, None)
    with pytest.warns(
        UserWarning, match=r"changes its state in a forward pass \(.*mean.*model.eval\(\)"
    ):
        ask(make(train=True))
    with pytest.warns(UserWarning, match="in train mode"):
        jp.distill.Ensemble((make(train=True),) * 2)(BATCH, None)
    dataclasses.replace(make(train=True), warn=False)(BATCH, None)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("mean", ["logits", "probabilities"])
def test_an_ensemble_is_the_mean_of_its_members(mean, stacked):
    each = [np.asarray(mlp(t.params, X)) for t in (ONE, TWO)]
    expected = (
        np.mean(each, 0) if mean == "logits" else np.log(np.mean([softmax(z) for z in each], 0))
    )
    members = jax.tree.map(lambda *w: np.stack(w), ONE, TWO) if stacked else (ONE, TWO)
    found = jax.jit(lambda t: t(BATCH, KEY))(jp.distill.Ensemble(members, mean, stacked))
    assert_allclose(found["output"], expected, rtol=1e-4, atol=1e-5)


def test_the_layers_of_an_ensembles_members_have_names():
    ensemble = jp.distill.Ensemble((ONE, TWO))
    term = jp.distill.match(losses.hidden_mse, "hidden", "1/hidden", project="auto")
    d = jp.distill.distiller(NET, [term], optax.sgd(0.1))
    state = d.init(params(5, 3), BATCH, ensemble, key=KEY)
    w = state.projections["hidden_mse"]["hidden"]["project"]

    def hidden(p):
        return np.tanh(X @ p["a"])

    _, metrics = d.step(state, BATCH, ensemble)
    by_hand = ((hidden(params(5, 3)) @ np.asarray(w) - hidden(TWO.params)) ** 2).mean()
    assert_allclose(metrics["hidden_mse"], by_hand, rtol=1e-5)


def test_members_with_other_classes_are_refused():
    other = jp.distill.Online(jp.distill.plain(lambda w, x: x @ w), np.ones((4, 5), np.float32))
    with pytest.raises(ValueError, match=r"\(6, 3\), \(6, 5\).*equal ones"):
        jp.distill.Ensemble((ONE, other))(BATCH, KEY)
    with pytest.raises(ValueError, match="'logits' or 'probabilities'"):
        jp.distill.Ensemble((ONE,), mean="votes")
    with pytest.raises(ValueError, match="one teacher at least"):
        jp.distill.Ensemble(())


def test_the_student_between_its_own_layers():
    """The hidden layer learns what the output knows: no second network runs."""
    two = jp.distill.plain(
        lambda p, x: jp.tap(jnp.tanh(x @ p["a"]) @ p["early"], "early") @ p["late"]
    )
    p = {
        "a": params(8, 1)["a"],
        "early": params(8, 2)["b"],
        "late": RNG.normal(size=(3, 3)).astype(np.float32),
    }
    term = jp.distill.match(partial(losses.soft_targets, temperature=2.0), "early", "late")
    late = jp.distill.plain(lambda p, x: jp.tap(two.apply(p, {}, x, None)[0], "late"))
    d = jp.distill.distiller(two, [term], optax.sgd(0.1))
    teacher = jp.distill.Itself(late)
    new, metrics = d.step(d.init(p, BATCH, teacher, key=KEY), BATCH, teacher)
    early = np.tanh(X @ p["a"]) @ p["early"]
    assert_allclose(
        metrics["soft_targets"],
        losses.soft_targets(early, early @ p["late"], temperature=2.0).mean(),
        rtol=1e-4,
    )
    assert_array_equal(new.params["late"], p["late"])  # the teacher's side has no gradient


def test_the_average_of_the_student_teaches():
    d = jp.distill.distiller(
        NET, [jp.distill.match(losses.logit_mse)], optax.sgd(0.5), labels=1.0, ema=0.9
    )
    teacher = jp.distill.EMA(NET)
    state = d.init(jax.tree.map(jnp.asarray, params(5, 3)), BATCH, teacher, key=KEY)
    mean = params(5, 3)
    step = compiled_once(jax.jit(d.step))
    for _ in range(4):
        expected = np.mean((np.asarray(mlp(state.params, X)) - np.asarray(mlp(mean, X))) ** 2)
        state, metrics = step(state, BATCH, teacher)
        assert_allclose(metrics["logit_mse"], expected, rtol=1e-4, atol=1e-7)
        mean = jax.tree.map(lambda m, w: 0.9 * m + 0.1 * np.asarray(w), mean, state.params)
    for a, b in zip(jax.tree.leaves(jp.distill.ema_params(state)), jax.tree.leaves(mean)):
        assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_average_of_a_compressed_student_is_compressed():
    codes = jp.prune(0.5).init(jax.tree.map(jnp.asarray, params(8, 3)))
    d = jp.distill.distiller(NET, [], optax.sgd(0.1), labels=1.0, ema=0.5)
    state, _ = d.step(d.init(codes, BATCH, ONE, key=KEY), BATCH, ONE)
    mean = jp.distill.ema_params(state)
    assert_array_equal(mean["a"].mask, codes["a"].mask)
    assert_allclose(
        mean["a"].values, 0.5 * (codes["a"].values + state.params["a"].values), rtol=1e-6
    )


def test_without_an_average_there_is_none():
    d = jp.distill.distiller(NET, [jp.distill.match(losses.logit_mse)], optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"no moving average.*ema=0\.999"):
        d.init(params(5, 3), BATCH, jp.distill.EMA(NET), key=KEY)
    with pytest.raises(ValueError, match=r"ema=1\.0"):
        jp.distill.distiller(NET, [], optax.sgd(0.1), labels=1.0, ema=1.0)


def test_the_variances_of_vid_are_trained():
    term = jp.distill.match(jp.distill.vid_loss(variance=2.0), "hidden", project="auto")
    d = jp.distill.distiller(NET, [term], optax.sgd(0.1))
    state = d.init(jax.tree.map(jnp.asarray, params(5, 3)), BATCH, ONE, key=KEY)
    own = state.projections["vid"]["hidden"]
    s = np.tanh(X @ params(5, 3)["a"]) @ np.asarray(own["project"])
    t = np.tanh(X @ ONE.params["a"])
    new, metrics = jax.jit(d.step)(state, BATCH, ONE)
    assert_allclose(metrics["vid"], np.mean(0.5 * ((t - s) ** 2 / 2 + np.log(2))), rtol=1e-4)
    raw = jax.grad(lambda r: jnp.mean(losses.vid(s, t, raw_variance=r)))(own["loss"])
    assert_allclose(new.projections["vid"]["hidden"]["loss"], own["loss"] - 0.1 * raw, rtol=1e-4)
    assert np.abs(raw).min() > 0


def test_the_bank_of_crd_remembers_and_lies_in_the_state():
    term = jp.distill.match(jp.distill.crd_loss(10, features=4, negatives=5), "hidden", weight=0.8)
    d = jp.distill.distiller(NET, [term], optax.sgd(0.1))
    state = d.init(jax.tree.map(jnp.asarray, params(5, 3)), BATCH, ONE, key=KEY)
    first = state.aux["memories"]["crd"]["hidden"]
    own = state.projections["crd"]["hidden"]["loss"]
    step = compiled_once(jax.jit(d.step))
    state, metrics = step(state, BATCH, ONE)
    bank = state.aux["memories"]["crd"]["hidden"]
    assert bool(bank.ready) and not bool(first.ready)
    assert_array_equal(bank.teacher[6:], first.teacher[6:])  # not in the batch
    view = np.tanh(X @ ONE.params["a"]) @ np.asarray(own["teacher"])
    view /= np.linalg.norm(view, axis=1, keepdims=True)
    row = 0.5 * np.asarray(first.teacher[:6]) + 0.5 * view
    assert_allclose(
        bank.teacher[:6], row / np.linalg.norm(row, axis=1, keepdims=True), rtol=1e-4, atol=1e-5
    )
    started = metrics["crd"]
    for _ in range(30):
        state, metrics = step(state, BATCH, ONE)
    assert metrics["crd"] < started
    with pytest.raises(ValueError, match="has no 'index'; it has \\['x'\\]"):
        d.step(state, {"x": X}, ONE)


def test_a_state_with_the_bank_of_crd_can_be_donated():
    term = jp.distill.match(jp.distill.crd_loss(10, features=4, negatives=5), "hidden", weight=0.8)
    d = jp.distill.distiller(NET, [term], optax.sgd(0.1))
    state = d.init(jax.tree.map(jnp.asarray, params(5, 3)), BATCH, ONE, key=KEY)
    state, metrics = jax.jit(d.step, donate_argnums=0)(
        state, BATCH, ONE
    )  # refused if an array is there twice
    assert int(state.step) == 1 and np.isfinite(metrics["crd"])


def test_the_centre_of_dino_moves():
    views = {"x": np.stack([X, X + 0.1])}
    d = jp.distill.distiller(
        NET, [jp.distill.match(jp.distill.dino_loss(momentum=0.75))], optax.sgd(0.1), ema=0.9
    )
    teacher = jp.distill.EMA(NET)
    state = d.init(jax.tree.map(jnp.asarray, params(5, 3)), views, teacher, key=KEY)
    new, metrics = d.step(state, views, teacher)
    z = np.asarray(mlp(params(5, 3), views["x"]))
    assert_allclose(
        new.aux["memories"]["dino"]["output"], 0.25 * z.mean((0, 1)), rtol=1e-4, atol=1e-6
    )
    assert_allclose(
        metrics["dino"], losses.dino(z, z, centre=np.zeros(3, np.float32)).mean(), rtol=1e-4
    )


def test_half_precision_computes_in_it_and_keeps_float32():
    seen = []
    net = jp.distill.plain(lambda p, x: seen.append((x.dtype, p["a"].dtype)) or mlp(p, x))
    d = jp.distill.distiller(
        net, [jp.distill.match(losses.logit_mse)], optax.sgd(0.1), labels=1.0, dtype=jnp.bfloat16
    )
    state = d.init(jax.tree.map(jnp.asarray, params(5, 3)), BATCH, ONE, key=KEY)
    new, metrics = d.step(state, BATCH, ONE)
    assert set(seen) == {(jnp.dtype("bfloat16"), jnp.dtype("bfloat16"))}
    assert new.params["a"].dtype == metrics["loss"].dtype == jnp.float32
    whole = jp.distill.distiller(
        NET, [jp.distill.match(losses.logit_mse)], optax.sgd(0.1), labels=1.0
    ).step(state, BATCH, ONE)
    assert_allclose(new.params["a"], whole[0].params["a"], atol=0.02)
    assert np.any(np.asarray(new.params["a"]) != np.asarray(whole[0].params["a"]))


def test_accumulated_gradients_are_those_of_the_whole_batch():
    halves = [{"x": X[:3], "y": Y[:3]}, {"x": X[3:], "y": Y[3:]}]
    terms = [jp.distill.match(losses.soft_targets)]
    whole = jp.distill.distiller(NET, terms, optax.adam(0.1), labels=0.5)
    parts = jp.distill.distiller(NET, terms, optax.MultiSteps(optax.adam(0.1), 2), labels=0.5)

    def start(d):
        return d.init(jax.tree.map(jnp.asarray, params(5, 3)), BATCH, ONE, key=KEY)

    once, _ = whole.step(start(whole), BATCH, ONE)
    state = start(parts)
    step = compiled_once(jax.jit(parts.step))
    for half in halves:
        state, _ = step(state, half, ONE)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(once.params)):
        assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_accuracies_are_among_the_metrics():
    d = jp.distill.distiller(NET, [jp.distill.match(losses.logit_mse)], optax.sgd(0.1))
    _, metrics = d.step(d.init(params(5, 3), BATCH, ONE, key=KEY), BATCH, ONE)

    def right(p):
        return np.mean(np.asarray(mlp(p, X)).argmax(1) == Y)

    assert_allclose(
        [metrics["accuracy"], metrics["teacher_accuracy"]], [right(params(5, 3)), right(ONE.params)]
    )
