"""Distillation without data: the generator's step and the student's against ones written by hand;
bad input.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import jaxprune as jp
from jaxprune.distill import losses
from tests.helpers import compiled_once

KEY = jax.random.key(0)
quick = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)  # it compiles in half the time
BATCH = 32
CLASSES = 3
LATENT = 4


def matrix(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def mlp(params, x):
    h = jp.tap(x @ params["a"], "before")
    return jp.tap(jnp.tanh(h), "hidden") @ params["b"]


def paint(params, z):
    return jnp.tanh(z @ params)


NET = jp.distill.plain(mlp)
PAINTER = jp.distill.plain(paint)
TEACHER = jp.distill.Online(NET, {"a": matrix(0, 6, 8), "b": 2 * matrix(1, 8, CLASSES)})
MEAN = matrix(2, 8)
VAR = jnp.abs(matrix(3, 8))
ALL = {"features": "hidden", "statistics": {"before": (MEAN, VAR)}, "student": NET}
SOFT = jp.distill.match(losses.soft_targets)
STUDENT = jp.distill.distiller(NET, [SOFT], optax.sgd(0.1))
LEAN = jp.distill.distiller(NET, [], optax.sgd(0.1), labels=1.0)


def student_params():
    return {"a": matrix(4, 6, 4), "b": matrix(5, 4, CLASSES)}


def make(distiller=STUDENT, generator=PAINTER, optimizer=None, **kw):
    sizes = {"classes": CLASSES, "latent": LATENT, "batch": BATCH}
    return jp.distill.data_free(distiller, generator, optimizer or optax.sgd(0.5), **sizes | kw)


def start(free, teacher=TEACHER, x=None, generator_params=None, **kw):
    w = matrix(6, LATENT + CLASSES, 6) if generator_params is None else generator_params
    return free.init(student_params(), x, teacher, key=KEY, generator_params=w, **kw)


def drawn():
    """z and y of the first step: the generator makes them its images, and the student's metrics are
    its batch.
    """
    shows = jp.distill.Distiller(
        lambda *args, **kw: (), lambda state, batch, teacher: (state, batch)
    )
    free = make(shows, jp.distill.plain(lambda w, z: z @ w))
    teacher = jp.distill.Online(
        jp.distill.plain(lambda w, x: x @ w), matrix(0, LATENT + CLASSES, CLASSES)
    )
    state = start(free, teacher, generator_params=jnp.eye(LATENT + CLASSES))
    batch = quick(free.step)(state, {}, teacher)[1]
    return np.asarray(batch["x"]), np.asarray(batch["y"])


Z, Y = drawn()


def written(w, weights, conditional=True):
    """The generator's loss as it stands in the papers, of the first step's draws."""
    x = jnp.tanh((Z if conditional else Z[:, :LATENT]) @ w)
    h = x @ TEACHER.params["a"]
    f = jnp.tanh(h)
    p = jax.nn.softmax(f @ TEACHER.params["b"])
    y = Y if conditional else jnp.argmax(p, -1)
    hot = -jnp.log(p[jnp.arange(BATCH), y]).mean()
    entropy = jnp.sum(p.mean(0) * jnp.log(p.mean(0)))
    excited = -jnp.abs(f).mean()
    moments = jnp.sum((h.mean(0) - MEAN) ** 2) + jnp.sum((h.var(0) - VAR) ** 2)
    q = jax.nn.softmax(mlp(student_params(), x))
    m = (p + q) / 2
    differ = jnp.mean(jnp.sum(p * jnp.log(p / m) + q * jnp.log(q / m), 1) / 2)
    parts = jnp.stack([hot, entropy, excited, moments, -differ])
    return jnp.sum(jnp.asarray(weights) * parts), parts


def test_latents_are_normal_and_labels_uniform():
    z = Z[:, :LATENT]
    y = Z[:, LATENT:]
    assert_array_equal(y, np.eye(CLASSES)[Y])
    assert abs(z.mean()) < 0.3 and abs(z.std() - 1) < 0.2 and set(Y) == {0, 1, 2}


def test_the_generator_s_step_is_the_gradient_of_the_written_formula():
    weights = [0.7, 3.0, 0.4, 0.2, 1.5]
    free = make(one_hot=0.7, entropy=3.0, activation=0.4, batch_norm=0.2, competition=1.5, **ALL)
    state = start(free)
    new, metrics = quick(free.step)(state, {}, TEACHER)
    (total, parts), slope = quick(jax.value_and_grad(written, has_aux=True))(
        state.generator, weights
    )
    names = [
        "generator/one_hot",
        "generator/entropy",
        "generator/activation",
        "generator/batch_norm",
    ]
    names.append("generator/competition")
    assert_allclose([metrics[n] for n in names], parts, rtol=1e-4)
    assert_allclose(metrics["generator/loss"], total, rtol=1e-4)
    assert_allclose(new.generator, state.generator - 0.5 * slope, rtol=1e-4, atol=1e-5)
    assert new.step == new.student.step == 1


def test_the_student_s_step_is_the_distiller_s_on_the_same_images():
    free = make()
    state = start(free)
    new, metrics = quick(free.step)(state, {}, TEACHER)
    images = {"x": paint(state.generator, Z), "y": Y}
    alone, told = quick(STUDENT.step)(state.student, images, TEACHER)
    for a, b in zip(jax.tree.leaves(new.student.params), jax.tree.leaves(alone.params)):
        assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert_allclose(metrics["loss"], told["loss"], rtol=1e-5)
    assert_allclose(metrics["agreement"], told["agreement"])


def test_the_student_s_loss_does_not_reach_the_generator():
    """Whatever is asked of the student, the generator goes the same way."""
    loud = jp.distill.distiller(NET, [SOFT._replace(weight=100.0)], optax.sgd(0.1), labels=5.0)
    quiet, shouted = (
        quick(free.step)(start(free), {}, TEACHER)[0] for free in (make(), make(loud))
    )
    assert_array_equal(quiet.generator, shouted.generator)
    assert np.abs(np.asarray(quiet.student.params["a"] - shouted.student.params["a"])).max() > 1e-3


def test_no_gradient_reaches_the_teacher():
    free = make(**ALL)
    state = start(free)

    def total(teacher):
        new, metrics = free.step(state, {}, teacher)
        return sum(
            jnp.sum(x)
            for x in (new.generator, *jax.tree.leaves(new.student.params), *metrics.values())
        )

    assert all(not np.any(g) for g in jax.tree.leaves(quick(jax.grad(total))(TEACHER)))


def test_without_labels_the_teacher_names_the_class():
    free = make(LEAN, conditional=False, entropy=2.0)
    state = start(free, generator_params=matrix(6, LATENT, 6))
    step = quick(free.step)
    new, metrics = step(state, {}, TEACHER)
    slope_of = quick(jax.grad(partial(written, conditional=False), has_aux=True))
    slope = slope_of(state.generator, [1.0, 2.0, 0.0, 0.0, 0.0])[0]
    assert_allclose(new.generator, state.generator - 0.5 * slope, rtol=1e-4, atol=1e-5)
    images = paint(state.generator, Z[:, :LATENT])
    named = losses.one_hot(
        mlp(student_params(), images), labels=np.argmax(mlp(TEACHER.params, images), 1)
    )
    assert_allclose(metrics["labels"], named.mean(), rtol=1e-5)  # what the student learns


def test_weights_follow_the_schedule():
    free = make(one_hot=lambda t: jnp.where(t == 1, 1.0, 0.0), entropy=0.0)
    state = start(free)
    step = quick(free.step)
    one, first = step(state, {}, TEACHER)
    two, second = step(one, {}, TEACHER)
    assert (
        first["generator/loss"] == 0 and second["generator/loss"] == second["generator/one_hot"] > 0
    )
    assert_array_equal(one.generator, state.generator)
    assert np.any(np.asarray(two.generator) != np.asarray(one.generator))


def test_scan_equals_the_loop_and_bits_repeat_without_a_second_compile():
    free = make(optimizer=optax.adam(0.01), **ALL)
    step = compiled_once(quick(free.step, donate_argnums=0))
    runs = []
    for _ in range(2):
        state = start(free)
        for _ in range(4):
            state, metrics = step(state, {}, TEACHER)
        runs.append((state, metrics))

    def data(tree):
        return [
            jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
            for x in tree
        ]

    for a, b in zip(*(data(jax.tree.leaves(run)) for run in runs)):
        assert_array_equal(a, b)
    scanned, told = jax.lax.scan(
        lambda s, _: free.step(s, {}, TEACHER), start(free), None, length=4
    )
    assert_allclose(told["generator/loss"][-1], metrics["generator/loss"], rtol=1e-4)
    assert_allclose(scanned.generator, state.generator, rtol=1e-4, atol=1e-6)
    assert (
        jax.random.key_data(KEY) is not None and np.isfinite(TEACHER.params["a"]).all()
    )  # neither was donated


def test_every_step_draws_anew():
    free = make(optimizer=optax.sgd(0.0))
    state = start(free)
    step = quick(free.step)
    one, first = step(state, {}, TEACHER)
    _, second = step(one, {}, TEACHER)
    _, other = step(state._replace(key=jax.random.key(9)), {}, TEACHER)
    assert len({float(m["generator/one_hot"]) for m in (first, second, other)}) == 3


def test_the_student_learns_the_teacher_without_data():
    free = make(
        jp.distill.distiller(NET, [SOFT], optax.adam(0.01)),
        optimizer=optax.adam(0.01),
        features="hidden",
    )
    step = quick(free.step, donate_argnums=0)
    state = start(free)
    state, first = step(state, {}, TEACHER)
    for _ in range(300):
        state, metrics = step(state, {}, TEACHER)
    x = matrix(7, 500, 6)

    def top(params):
        return np.argmax(mlp(params, np.tanh(x)), 1)

    before, after = (
        np.mean(top(p) == top(TEACHER.params)) for p in (student_params(), state.student.params)
    )
    assert after > max(before + 0.2, 0.85)
    assert metrics["generator/one_hot"] < 0.5 * first["generator/one_hot"]
    assert metrics["generator/entropy"] < -0.95 * np.log(CLASSES)


class Painter(nn.Module):
    @nn.compact
    def __call__(self, z):
        h = nn.BatchNorm(use_running_average=False, momentum=0.9, name="norm")(
            nn.Dense(6, name="dense")(z)
        )
        return nn.Dropout(0.5, deterministic=False)(h)


class Judge(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.BatchNorm(use_running_average=True, name="norm")(nn.Dense(5, name="dense")(x))
        return nn.Dense(CLASSES, name="head")(nn.relu(h))


def test_generators_with_batch_statistics_and_teachers_with_batch_norms():
    painter = Painter()
    judge = Judge()
    made = dict(painter.init({"params": KEY, "dropout": KEY}, Z))
    w = made.pop("params")
    theirs = dict(judge.init(KEY, matrix(8, 2, 6)))
    stored = theirs["batch_stats"]["norm"]
    teacher = jp.distill.Online(
        jp.distill.linen(judge), theirs["params"], {"batch_stats": theirs["batch_stats"]}
    )
    free = make(
        generator=jp.distill.linen(painter),
        optimizer=optax.adam(0.05),
        statistics={"dense": (stored["mean"], stored["var"])},
    )
    state = start(free, teacher, generator_params=w, generator_state=made)
    step = quick(free.step)
    new, metrics = step(state, {}, teacher)
    hidden = Z @ w["dense"]["kernel"]
    assert_allclose(
        new.generator_state["batch_stats"]["norm"]["mean"],
        0.1 * hidden.mean(0),
        rtol=1e-4,
        atol=1e-5,
    )
    _, other = step(state._replace(key=jax.random.key(9)), {}, teacher)
    assert (
        metrics["generator/batch_norm"] > 0
        and metrics["generator/one_hot"] != other["generator/one_hot"]
    )
    first = metrics["generator/batch_norm"]
    for _ in range(60):
        state, metrics = step(state, {}, teacher)
    assert metrics["generator/batch_norm"] < 0.8 * first


def test_compressed_students_and_teachers():
    codes = jp.chain(jp.prune(0.5), jp.cluster(4)).init(student_params())
    teacher = jp.distill.Online(NET, jp.quantize(bits=8).init(TEACHER.params))
    free = make(student=NET)
    w = matrix(6, LATENT + CLASSES, 6)
    state = free.init(codes, None, teacher, key=KEY, generator_params=w)
    new, metrics = quick(free.step)(state, {}, teacher)
    assert_array_equal(new.student.params["a"].mask, codes["a"].mask)
    assert np.any(np.asarray(new.generator) != np.asarray(w)) and np.isfinite(metrics["loss"])


def test_an_ensemble_may_teach():
    other = jp.distill.Online(NET, {"a": matrix(10, 6, 8), "b": matrix(11, 8, CLASSES)})
    both = jp.distill.Ensemble((TEACHER, other))
    free = make(features="[01]/hidden")
    state = start(free, both)
    _, metrics = quick(free.step)(state, {}, both)
    x = paint(state.generator, Z)
    excited = [np.abs(np.tanh(x @ t.params["a"])).mean() for t in (TEACHER, other)]
    assert_allclose(metrics["generator/activation"], -np.mean(excited), rtol=1e-5)
    with pytest.raises(ValueError, match="nearest: '0/hidden', '1/hidden'"):
        start(make(features="2/hidden"), both)


def test_projections_of_the_student():
    hint = jp.distill.match(losses.hidden_mse, "hidden", project="auto")
    free = make(jp.distill.distiller(NET, [SOFT, hint], optax.sgd(0.1)))
    state = start(free)
    step = quick(free.step)
    new, metrics = step(state, {}, TEACHER)
    [w], [moved] = (
        jax.tree.leaves(state.student.projections),
        jax.tree.leaves(new.student.projections),
    )
    assert (
        w.shape == (4, 8)
        and np.any(np.asarray(w) != np.asarray(moved))
        and metrics["hidden_mse"] > 0
    )


narrow, flat = (
    jp.distill.plain(f) for f in (lambda w, z: z @ w[:, :5], lambda w, z: (z @ w).sum(-1))
)
half, pair, whole = (
    jp.distill.plain(f)
    for f in (lambda w, z: (z @ w)[:9], lambda w, z: (z, z), lambda w, z: jnp.int32(z @ w))
)
WRONG = {
    "no classes": (lambda: make(classes=0), r"data_free\(classes=0\)"),
    "no latents": (lambda: make(latent=-1), r"data_free\(latent=-1\)"),
    "half a batch": (
        lambda: make(batch=0.5),
        r"data_free\(batch=0.5\): give an integer of at least 1",
    ),
    "negative": (
        lambda: make(one_hot=-1.0),
        r"data_free\(one_hot=-1.0\): give one finite number >= 0",
    ),
    "infinite": (lambda: make(batch_norm=np.inf), r"data_free\(batch_norm=inf\)"),
    "classes": (
        lambda: start(make(classes=4), generator_params=matrix(6, 8, 6)),
        r"classes=4.*\(32, 3\); .*\(32, 4\)",
    ),
    "features": (lambda: start(make(features="hiden")), r"features='hiden'\).*nearest: 'hidden'"),
    "one of two": (
        lambda: start(make(**ALL | {"features": "hiden"})),
        r"features='hiden'\).*nearest: 'hidden'",
    ),
    "a tap of statistics": (
        lambda: start(make(statistics={"befor": (MEAN, VAR)})),
        r"'befor'.*nearest: 'before'",
    ),
    "width": (
        lambda: start(make(statistics={"before": (MEAN[:5], VAR)})),
        r"'before': mean: shape \(5,\).* 8 chan",
    ),
    "a teacher without taps": (
        lambda: start(make(features="x"), BARE),
        r"features='x'\).*nearest: 'output'",
    ),
    "met twice": (lambda: start(make(statistics={"h": (MEAN, VAR)}), TWICE), "'h' is met 2 times"),
    "images": (
        lambda: start(make(generator=narrow)),
        r"the teacher does not take .*, float32 \(32, 5\): dot_general",
    ),
    "no images": (
        lambda: start(make(generator=flat)),
        r"makes float32 \(32,\); it must make float images",
    ),
    "fewer images": (lambda: start(make(generator=half)), r"makes float32 \(9, 6\)"),
    "two images": (lambda: start(make(generator=pair)), r"makes tuple \(\)"),
    "integers": (lambda: start(make(generator=whole)), r"makes int32 \(32, 6\)"),
    "student": (
        lambda: start(make(), x=np.zeros((1, 7))),
        r"takes images \(7,\); the generator makes \(6,\)",
    ),
    "another student": (
        lambda: start(make(student=OTHER)),
        r"student \(32, 4\) and teacher \(32, 3\): classes differ",
    ),
    "given": (lambda: start(make(), jp.distill.Precomputed()), r"does not take .*no 'teacher'"),
}
OTHER = jp.distill.plain(lambda params, x: x @ params["a"])
BARE = jp.distill.Online(jp.distill.plain(lambda w, x: x @ w), matrix(9, 6, CLASSES))
TWICE = jp.distill.Online(
    jp.distill.plain(lambda w, x: (jp.tap(x @ w["a"], "h") + jp.tap(x @ w["a"], "h")) @ w["b"]),
    TEACHER.params,
)


@pytest.mark.parametrize("case", WRONG)
def test_bad_input(case):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call()
