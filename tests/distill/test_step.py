"""The step against one written by hand; compressed students, taps, projections, state, schedules,
shards; bad input.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy.testing import assert_allclose, assert_array_equal

import jaxprune as jp
from jaxprune.distill import losses
from tests.helpers import compiled_once

RNG = np.random.default_rng(1)
X = RNG.normal(size=(16, 4)).astype(np.float32)
Y = RNG.integers(0, 3, 16).astype(np.int32)
KEY = jax.random.key(0)
BATCH = {"x": X, "y": Y}


def mlp(params, x):
    h = jp.tap(jnp.tanh(x @ params["a"]), "hidden")
    return h @ params["b"]


def params(width, seed):
    rng = np.random.default_rng(seed)
    return {
        "a": rng.normal(size=(4, width)).astype(np.float32),
        "b": rng.normal(size=(width, 3)).astype(np.float32),
    }


NET = jp.distill.plain(mlp)
TEACHER = jp.distill.Online(NET, params(8, 2))
SOFT = partial(losses.soft_targets, temperature=2.0)


def by_hand(p, alpha, weight):
    """α CE(labels) + weight · T² KL(teacher ‖ student) at T = 2."""
    s = np.asarray(mlp(p, X))
    t = np.asarray(mlp(TEACHER.params, X))

    def log(z):
        return z - np.log(np.exp(z).sum(1, keepdims=True))

    hard = -log(s)[np.arange(16), Y].mean()
    soft = 4 * (np.exp(log(t / 2)) * (log(t / 2) - log(s / 2))).sum(1).mean()
    return alpha * hard + weight * soft, hard, soft


def test_the_step_is_that_of_the_paper():
    d = jp.distill.distiller(NET, [jp.distill.match(SOFT, weight=0.7)], optax.sgd(0.1), labels=0.3)
    start = params(5, 3)
    state = d.init(start, BATCH, TEACHER, key=KEY)
    new, metrics = d.step(state, BATCH, TEACHER)
    total, hard, soft = by_hand(start, 0.3, 0.7)
    assert_allclose(
        [metrics[n] for n in ("loss", "labels", "soft_targets")], [total, hard, soft], rtol=1e-5
    )

    def jloss(p):
        return (
            0.3 * optax.softmax_cross_entropy_with_integer_labels(mlp(p, X), Y).mean()
            + 0.7 * SOFT(mlp(p, X), mlp(TEACHER.params, X)).mean()
        )

    grads = jax.grad(jloss)(start)
    for name in start:
        assert_allclose(
            new.params[name], start[name] - 0.1 * np.asarray(grads[name]), rtol=1e-5, atol=1e-6
        )
    s = mlp(start, X)
    t = mlp(TEACHER.params, X)
    assert_allclose(metrics["agreement"], np.mean(np.argmax(s, 1) == np.argmax(t, 1)))
    assert_allclose(metrics["kl"], np.mean(losses.forward_kl(s, t)), rtol=1e-5)
    assert new.step == 1


def test_masked_examples_teach_nothing():
    keep = np.arange(16) % 3 > 0
    d = jp.distill.distiller(NET, [jp.distill.match(SOFT)], optax.sgd(0.1), labels=1.0)
    state = d.init(params(5, 3), BATCH, TEACHER, key=KEY)
    masked = d.step(
        state,
        {"x": np.where(keep[:, None], X, 99), "y": np.where(keep, Y, 0), "mask": keep},
        TEACHER,
    )
    alone = d.step(state, {"x": X[keep], "y": Y[keep]}, TEACHER)
    for a, b in zip(jax.tree.leaves(masked[0].params), jax.tree.leaves(alone[0].params)):
        assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert_allclose(masked[1]["agreement"], alone[1]["agreement"], rtol=1e-6)


def test_hidden_layers_with_a_trained_projection():
    term = jp.distill.match(losses.hidden_mse, "hidden", project="auto")
    optimizer = optax.multi_transform(
        {"slow": optax.sgd(0.01), "fast": optax.sgd(0.5)},
        {"student": "slow", "projections": "fast"},
    )
    d = jp.distill.distiller(NET, [term], optimizer)
    state = d.init(jax.tree.map(jnp.asarray, params(5, 3)), BATCH, TEACHER, key=KEY)
    [w] = jax.tree.leaves(state.projections)
    assert w.shape == (5, 8)
    step = compiled_once(jax.jit(d.step))
    first = None
    for _ in range(60):
        state, metrics = step(state, BATCH, TEACHER)
        first = metrics["hidden_mse"] if first is None else first
    assert metrics["hidden_mse"] < 0.5 * first
    assert_array_equal(state.params["b"], params(5, 3)["b"])  # the head takes no part


def test_the_code_of_a_compressed_student_is_trained():
    codes = jp.chain(jp.prune(0.5), jp.cluster(4)).init(jax.tree.map(jnp.asarray, params(8, 3)))
    d = jp.distill.distiller(NET, [jp.distill.match(SOFT)], optax.adam(0.02))
    state = d.init(codes, BATCH, TEACHER, key=KEY)
    step = jax.jit(d.step, donate_argnums=0)
    first = None
    mask = np.asarray(codes["a"].mask)
    indices = np.asarray(codes["a"].values.indices)
    for _ in range(80):
        state, metrics = step(state, BATCH, TEACHER)
        first = metrics["loss"] if first is None else first
    assert metrics["loss"] < 0.8 * first
    assert_array_equal(state.params["a"].mask, mask)
    assert_array_equal(state.params["a"].values.indices, indices)
    assert len(np.unique(jp.materialize(state.params)["a"])) <= 5
    assert np.isfinite(np.asarray(TEACHER.params["a"])).all()  # the teacher is not donated


def test_straight_through_as_the_view():
    view = jp.straight_through(jp.quantize(bits=2))
    d = jp.distill.distiller(NET, [jp.distill.match(SOFT)], optax.sgd(0.1), view=view)
    start = jax.tree.map(jnp.asarray, params(5, 3))
    new, metrics = d.step(d.init(start, BATCH, TEACHER, key=KEY), BATCH, TEACHER)
    hard = view(start)
    assert_allclose(metrics["loss"], SOFT(mlp(hard, X), mlp(TEACHER.params, X)).mean(), rtol=1e-5)
    grads = jax.grad(lambda p: SOFT(mlp(p, X), mlp(TEACHER.params, X)).mean())(hard)
    assert_allclose(new.params["a"], start["a"] - 0.1 * grads["a"], rtol=1e-5, atol=1e-6)


def test_sparsity_bits_alpha_and_temperature_run_on_one_counter_in_one_compiled_step():
    sparse = jp.prune(jp.schedules.cubic(0.75, begin=0, end=12))
    arms = [jp.straight_through(jp.chain(sparse, jp.quantize(bits=b))) for b in (8, 4, 3)]

    def bits_of(step):
        return jnp.sum(step >= jnp.array([4, 8]))

    def view(p, step):
        return jax.lax.switch(bits_of(step), [lambda p, a=a: a(p, step=step) for a in arms], p)

    cooling = optax.linear_schedule(8.0, 1.0, 12)
    alpha = optax.linear_schedule(0.0, 0.6, 12)
    settings = {"temperature": cooling}
    term = jp.distill.match(
        jp.distill.losses.soft_targets, weight=lambda t: 1 - alpha(t), settings=settings
    )
    d = jp.distill.distiller(NET, [term], optax.adam(0.02), labels=alpha, view=view)
    state = d.init(jax.tree.map(jnp.asarray, params(16, 3)), BATCH, TEACHER, key=KEY)
    step = compiled_once(jax.jit(d.step))
    evaluate = jp.distill.Evaluator(NET, {"x": X, "y": np.zeros(len(X), np.int32)}, view=view)
    for t in range(14):
        seen = arms[0 if t < 4 else 1 if t < 8 else 2](state.params, step=t)
        soft = jp.distill.losses.soft_targets(
            mlp(seen, X), mlp(TEACHER.params, X), temperature=cooling(t)
        )
        hard = optax.softmax_cross_entropy_with_integer_labels(mlp(seen, X), Y)
        state, metrics = step(state, BATCH, TEACHER)
        assert_allclose(
            metrics["loss"], (1 - alpha(t)) * soft.mean() + alpha(t) * hard.mean(), rtol=1e-5
        )
    hard = view(state.params, state.step)
    assert float(jnp.mean(hard["a"] == 0)) == 0.75
    assert max(len(np.unique(column)) for column in np.asarray(hard["a"]).T) <= 7
    assert_allclose(
        evaluate(state)["loss"], -jax.nn.log_softmax(mlp(hard, X))[:, 0].mean(), rtol=1e-5
    )


def test_weights_follow_the_step_counter_and_scan_equals_the_loop():
    ramp = optax.linear_schedule(0.0, 1.0, 4)
    d = jp.distill.distiller(
        NET, [jp.distill.match(SOFT, weight=ramp)], optax.sgd(0.1), labels=lambda t: 1 - ramp(t)
    )
    state = d.init(jax.tree.map(jnp.asarray, params(5, 3)), BATCH, TEACHER, key=KEY)
    looped = state
    seen = []
    for _ in range(5):
        looped, m = d.step(looped, BATCH, TEACHER)
        seen.append([m["loss"], m["labels"], m["soft_targets"]])
    for t, (total, hard, soft) in enumerate(seen):
        assert_allclose(total, (1 - t / 4) * hard + t / 4 * soft, rtol=1e-5)
    scanned, metrics = jax.lax.scan(lambda s, _: d.step(s, BATCH, TEACHER), state, None, length=5)
    assert_allclose(metrics["loss"], [row[0] for row in seen], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(scanned.params), jax.tree.leaves(looped.params)):
        assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_cached_outputs_teach_the_same():
    d = jp.distill.distiller(NET, [jp.distill.match(SOFT)], optax.sgd(0.1))
    start = params(5, 3)
    online = d.step(d.init(start, BATCH, TEACHER, key=KEY), BATCH, TEACHER)
    cached = {"x": X, "teacher": mlp(TEACHER.params, X)}
    given = jp.distill.Precomputed()
    found = d.step(d.init(start, cached, given, key=KEY), cached, given)
    assert_allclose(found[1]["loss"], online[1]["loss"], rtol=1e-6)
    assert_allclose(found[0].params["a"], online[0].params["a"], rtol=1e-6)


class Small(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(nn.Dense(6, name="dense")(x))
        return nn.Dense(3, name="head")(nn.Dropout(0.5, deterministic=not train)(nn.relu(x)))


def test_linen_with_batch_statistics_and_dropout():
    module = Small()
    variables = dict(module.init({"params": KEY, "dropout": KEY}, X))
    start = variables.pop("params")
    term = jp.distill.match(losses.hidden_mse, "dense", "hidden", project="auto")
    d = jp.distill.distiller(jp.distill.linen(module), [term], optax.sgd(0.1), labels=1.0)
    state = d.init(start, BATCH, TEACHER, key=KEY, model_state=variables)
    one, first = d.step(state, BATCH, TEACHER)
    _, same = d.step(state, BATCH, TEACHER)
    _, third = d.step(state._replace(key=jax.random.key(9)), BATCH, TEACHER)
    assert (
        first["labels"] == same["labels"] != third["labels"]
    )  # dropout draws from the state's key
    dense = X @ start["dense"]["kernel"] + start["dense"]["bias"]
    assert_allclose(
        one.model_state["batch_stats"]["norm"]["mean"],
        0.01 * np.mean(dense, 0),
        rtol=1e-4,
        atol=1e-6,
    )


class Pair(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Linear(4, 8, rngs=rngs)
        self.b = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.b(jnp.tanh(self.a(x)))


def test_nnx_students_and_teachers():
    net, p, s = jp.distill.nnx(Pair(nnx.Rngs(0)))
    big, tp, ts = jp.distill.nnx(Pair(nnx.Rngs(1)))
    terms = [jp.distill.match(SOFT), jp.distill.match(losses.hidden_mse, "a", weight=0.1)]
    d = jp.distill.distiller(net, terms, optax.sgd(0.1))
    teacher = jp.distill.Online(big, tp, ts)
    state = d.init(p, BATCH, teacher, key=KEY, model_state=s)
    first = None
    step = jax.jit(d.step)
    for _ in range(40):
        state, metrics = step(state, BATCH, teacher)
        first = metrics["loss"] if first is None else first
    assert metrics["loss"] < 0.5 * first


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_the_number_of_devices_does_not_matter(kind):
    """RKD compares the examples of the whole batch: 1 device and 8 agree."""
    terms = [jp.distill.match(losses.rkd_distance, "hidden"), jp.distill.match(SOFT)]
    d = jp.distill.distiller(NET, terms, optax.sgd(0.1))
    state = d.init(jax.tree.map(jnp.asarray, params(5, 3)), BATCH, TEACHER, key=KEY)
    one, m = jax.jit(d.step)(state, BATCH, TEACHER)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        spread = jax.device_put(BATCH, NamedSharding(mesh, PartitionSpec("data")))
        everywhere = jax.device_put((state, TEACHER), NamedSharding(mesh, PartitionSpec()))
        many, n = jax.jit(d.step)(everywhere[0], spread, everywhere[1])
    assert_allclose(m["rkd_distance"], n["rkd_distance"], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(many.params)):
        assert_allclose(a, b, rtol=1e-4, atol=1e-6)


SAME = jp.distill.match(SOFT)
WRONG = {
    "nothing": (lambda: jp.distill.distiller(NET, [], optax.sgd(1)), "nothing to learn from"),
    "one name": (
        lambda: jp.distill.distiller(NET, [SAME, SAME], optax.sgd(1)),
        r"one name, \['soft_targets'\]",
    ),
    "taken name": (
        lambda: jp.distill.distiller(NET, [SAME._replace(name="loss")], optax.sgd(1)),
        r"\['loss'\]",
    ),
    "negative": (
        lambda: jp.distill.distiller(NET, [SAME], optax.sgd(1), labels=-1.0),
        "finite number >= 0",
    ),
    "no layer": (lambda: start([jp.distill.match(SOFT, "hiden")]), "nearest: 'hidden'"),
    "no teacher's layer": (
        lambda: start([jp.distill.match(SOFT, "hidden", "hide")]),
        "nearest: 'hidden'",
    ),
    "no setting": (
        lambda: jp.distill.match(SOFT, settings={"temprature": 4.0}),
        "nearest: 'temperature'",
    ),
    "no labels": (lambda: go({"x": X}), "no 'y'"),
    "labels of another shape": (lambda: go({"x": X, "y": Y[:, None]}), r"\(16, 1\).*\(16, 3\)"),
    "no cache": (lambda: start([SAME], jp.distill.Precomputed()), "no 'teacher'"),
    "a pair as a batch": (lambda: go((X, Y)), r"give \{'x': inputs, 'y': labels\}"),
    "an array as a batch": (lambda: go(X), r"the batch is a ndarray: give a dict"),
    "a batch of other names": (
        lambda: go({"image": X, "label": Y}),
        r"no 'x'.*\['image', 'label'\]",
    ),
    "params as a teacher": (
        lambda: start([SAME], params(8, 2)),
        r"the teacher is a dict: .*Online\(network, params\)",
    ),
    "a network as a teacher": (lambda: start([SAME], NET), "a network without params"),
    "a module as a teacher": (
        lambda: start([SAME], nn.Dense(3)),
        r"Online\(jp.distill.linen\(model\), params\)",
    ),
    "a module as a student": (lambda: student(nn.Dense(3)), r"give jp.distill.linen\(model\)"),
    "an NNX module": (
        lambda: student(nnx.Linear(4, 3, rngs=nnx.Rngs(0))),
        r"give jp.distill.nnx\(model\)",
    ),
    "a function": (lambda: student(mlp), r"give jp.distill.plain\(f\)"),
    "all parts": (
        lambda: student(jp.distill.nnx(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))),
        "net, params, state",
    ),
    "the name of a loss": (lambda: start(["soft_targets"]), r"a term is a str.*match\(loss"),
}


def student(network):
    return jp.distill.distiller(network, [SAME], optax.sgd(1))


def start(terms, teacher=TEACHER):
    d = jp.distill.distiller(NET, terms, optax.sgd(1), labels=1.0)
    return d, d.init(params(5, 3), BATCH, teacher, key=KEY)


def go(batch):
    d, state = start([SAME])
    return d.step(state, batch, TEACHER)


@pytest.mark.parametrize("terms", [SOFT, [SOFT], SAME, (SAME,)])
def test_a_loss_alone_is_a_term(terms):
    (d, state), (expected, same) = start(terms), start([SAME])
    assert_array_equal(
        d.step(state, BATCH, TEACHER)[1]["loss"], expected.step(same, BATCH, TEACHER)[1]["loss"]
    )


def test_examples_without_a_label_count_neither_in_the_loss_nor_in_the_accuracy():
    d = jp.distill.distiller(NET, [partial(losses.dkd, alpha=0.5)], optax.sgd(1), labels=1.0)
    few = {"x": X[:12], "y": Y[:12]}
    state = d.init(params(5, 3), BATCH, TEACHER, key=KEY)
    _, all_labels = jax.jit(d.step)(state, few, TEACHER)
    _, ignored = jax.jit(d.step)(
        state, {"x": X, "y": np.where(np.arange(16) < 12, Y, -100)}, TEACHER
    )
    for name in ("loss", "labels", "dkd", "accuracy", "teacher_accuracy"):
        assert_allclose(ignored[name], all_labels[name], rtol=1e-5)


@pytest.mark.parametrize("case", WRONG)
def test_bad_input(case):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call()


class Dropped(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Linear(4, 8, rngs=rngs)
        self.b = nnx.Linear(8, 3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.b(self.drop(jnp.tanh(self.a(x))))


def test_an_nnx_students_random_state_goes_through_the_step():
    net, p, s = jp.distill.nnx(Dropped(nnx.Rngs(0)))
    d = jp.distill.distiller(net, [jp.distill.match(SOFT)], optax.sgd(0.1))
    state = d.init(p, BATCH, TEACHER, key=KEY, model_state=s)
    step = compiled_once(jax.jit(d.step))
    one, first = step(state, BATCH, TEACHER)
    two, second = step(one._replace(params=state.params, step=state.step), BATCH, TEACHER)
    assert first["loss"] != second["loss"]  # the counter of the dropout's stream moved on
    assert jax.tree.structure(two) == jax.tree.structure(state)
