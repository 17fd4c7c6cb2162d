"""fit is the step in a loop, to the bit; what it evaluates, keeps, writes and says."""

import contextlib
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy.testing import assert_allclose, assert_array_equal

import jaxprune as jp
from tests.distill.toy import (
    DATA,
    KEY,
    NET,
    TEACHER,
    X,
    Y,
    conv,
    distiller,
    mlp,
    params,
    same,
    start,
)

fit = jp.distill.fit
Shuffled = jp.distill.Shuffled
QUIET = {"progress": False}


def by_hand(d, state, batches, n):
    step = jax.jit(d.step)
    seen = []
    for i in range(n):
        state, metrics = step(state, batches(i), TEACHER)
        seen.append(metrics)
    return state, seen


@pytest.mark.parametrize("inner", ["python", "scan"])
def test_fit_is_the_step_in_a_loop(inner):
    d = distiller()
    batches = Shuffled(DATA, 16, seed=1)
    state = start(d)
    found = fit(d, state, batches, TEACHER, steps=23, inner=inner, inner_steps=5, **QUIET)
    expected, _ = by_hand(d, state, batches.at, 23)
    for a, b in zip(jax.tree.leaves(found.state.params), jax.tree.leaves(expected.params)):
        assert_allclose(a, b, rtol=2e-5, atol=1e-6)
    assert found.inner == inner and int(found.state.step) == 23 and found.stopped == "steps"
    assert_array_equal(state.params["a"], params(5, 3)["a"])  # not donated


def test_the_inner_loop_is_chosen_by_the_step_and_chunks_do_not_matter():
    d = distiller()
    c = distiller(jp.distill.plain(conv))

    def run(d, k):
        return fit(d, start(d), Shuffled(DATA, 16), TEACHER, steps=12, inner_steps=k, **QUIET)

    assert [run(d, 4).inner, run(c, 4).inner] == ["scan", "python"]
    assert same(run(d, 4).state, run(d, 7).state)


@pytest.mark.parametrize("inner", ["python", "scan"])
@pytest.mark.parametrize("kind", ["list", "generator", "device"])
def test_any_iterable_gives_the_same(kind, inner):
    d = distiller()
    batches = Shuffled(DATA, 16)
    want = fit(d, start(d), batches, TEACHER, steps=8, inner="python", **QUIET)
    listed = [batches.at(i) for i in range(8)]
    source = {
        "list": listed,
        "generator": (b for b in listed),
        "device": [jax.tree.map(jnp.asarray, b) for b in listed],
    }
    found = fit(d, start(d), source[kind], TEACHER, steps=8, inner=inner, **QUIET)
    assert_allclose(found.state.params["a"], want.state.params["a"], rtol=1e-5, atol=1e-6)


def test_a_list_is_an_epoch_and_comes_again():
    d = distiller()
    batches = Shuffled(DATA, 16)
    listed = [batches.at(i) for i in range(3)]
    found = fit(d, start(d), listed, TEACHER, steps=7, inner="python", **QUIET)
    expected, _ = by_hand(d, start(d), lambda i: listed[i % 3], 7)
    assert_allclose(found.state.params["a"], expected.params["a"], rtol=1e-5, atol=1e-6)


def test_every_epoch_is_a_permutation_of_its_own():
    batches = Shuffled(DATA | {"i": np.arange(96)}, 16, seed=4, index="which")
    epochs = [np.concatenate([batches.at(6 * e + i)["i"] for i in range(6)]) for e in range(3)]
    assert all(sorted(e) == list(range(96)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 3
    assert_array_equal(batches.at(5)["which"], batches.at(5)["i"])
    assert_array_equal(batches.at(5)["x"], X[batches.at(5)["i"]])
    other = Shuffled(DATA | {"i": np.arange(96)}, 16, seed=5)
    assert other.at(0)["i"].tolist() != batches.at(0)["i"].tolist()


def test_the_best_is_kept_and_patience_ends_the_run(tmp_path):
    """The evaluation says 1, 3, 2, 2, …: the second is best, and after three more without a better
    one it is over.
    """
    d = distiller()
    seen = []

    def evaluate(state):
        seen.append(jax.tree.map(np.asarray, state.params))
        return {"score": [1.0, 3.0, 2.0, 2.0, 2.0, 9.0][len(seen) - 1]}

    said = {"evaluate": evaluate, "evaluate_every": 4, "monitor": "score", "patience": 3}
    found = fit(
        d, start(d), Shuffled(DATA, 16), TEACHER, steps=100, folder=tmp_path, **said, **QUIET
    )
    assert (found.stopped, found.best_step, found.score, int(found.state.step)) == (
        "patience",
        8,
        3.0,
        20,
    )
    assert_array_equal(found.best["params"]["a"], seen[1]["a"])
    assert [row["step"] for row in found.evaluations] == [4, 8, 12, 16, 20]
    again = fit(
        d, start(d), Shuffled(DATA, 16), TEACHER, steps=100, folder=tmp_path, **said, **QUIET
    )
    assert again.stopped == "patience" and same(again.best, found.best) and len(seen) == 5


def test_the_smallest_may_be_best():
    d = distiller()
    scores = iter([5.0, 4.0, 6.0])

    def evaluate(state):
        return {"loss": next(scores)}

    found = fit(
        d,
        start(d),
        Shuffled(DATA, 16),
        TEACHER,
        steps=6,
        evaluate=evaluate,
        evaluate_every=2,
        monitor="loss",
        mode="min",
        **QUIET,
    )
    assert (found.best_step, found.score) == (4, 4.0)


def test_without_an_evaluation_the_last_is_kept():
    d = distiller()
    found = fit(d, start(d), Shuffled(DATA, 16), TEACHER, steps=5, **QUIET)
    assert (
        found.best_step == 5
        and same(found.best["params"], found.state.params)
        and np.isnan(found.score)
    )


def test_the_evaluator_counts_right_answers():
    evaluate = jp.distill.Evaluator(NET, DATA, batch=36)
    state = start(distiller())
    z = np.asarray(mlp(params(5, 3), X), np.float64)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    found = evaluate(state)
    assert_allclose(
        [found["loss"], found["accuracy"]],
        [-log_p[np.arange(96), Y].mean(), (z.argmax(1) == Y).mean()],
        rtol=1e-5,
    )
    assert evaluate.teacher(TEACHER, state)["accuracy"] == 1.0


def test_a_teacher_worse_than_the_student_is_warned_about():
    bad = jp.distill.Online(NET, params(8, 9))
    evaluate = jp.distill.Evaluator(NET, DATA)
    d = distiller(labels=20.0)
    with pytest.warns(
        UserWarning, match=r"teacher's accuracy is 0\.\d+, the student's 0\.\d+.*teaches its errors"
    ):
        fit(d, start(d), Shuffled(DATA, 16), bad, steps=150, evaluate=evaluate, **QUIET)


@pytest.mark.filterwarnings("error")
def test_a_good_teacher_is_not():
    evaluate = jp.distill.Evaluator(NET, DATA)
    d = distiller()
    fit(d, start(d), Shuffled(DATA, 16), TEACHER, steps=20, evaluate=evaluate, **QUIET)
    cached = jp.distill.Evaluator(NET, DATA)
    data = DATA | {"teacher": np.asarray(mlp(TEACHER.params, X))}
    given = jp.distill.Precomputed()
    fit(d, start(d, given, data), Shuffled(data, 16), given, steps=20, evaluate=cached, **QUIET)
    silent = jax.tree_util.Partial(lambda batch, key: {})
    d = distiller(terms=[])
    fit(d, start(d, silent), Shuffled(DATA, 16), silent, steps=20, evaluate=cached, **QUIET)


def test_a_bad_cached_teacher_is_warned_about_where_the_split_has_its_logits():
    data = DATA | {"teacher": np.asarray(mlp(params(8, 9), X))}
    given = jp.distill.Precomputed()
    d = distiller(labels=20.0)
    with pytest.warns(UserWarning, match=r"teacher's accuracy is"):
        fit(
            d,
            start(d, given, data),
            Shuffled(data, 16),
            given,
            steps=150,
            evaluate=jp.distill.Evaluator(NET, data),
            **QUIET,
        )


def test_metrics_are_means_over_chunks(tmp_path):
    d = distiller()
    batches = Shuffled(DATA, 16)
    fit(
        d,
        start(d),
        batches,
        TEACHER,
        steps=10,
        inner_steps=4,
        evaluate_every=5,
        folder=tmp_path,
        **QUIET,
    )
    _, seen = by_hand(d, start(d), batches.at, 10)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 5, 8, 10]
    loss = np.array([m["loss"] for m in seen])
    assert_allclose(
        [row["loss"] for row in rows],
        [loss[:4].mean(), loss[4], loss[5:8].mean(), loss[8:].mean()],
        rtol=1e-4,
    )
    assert {"labels", "soft_targets", "kl", "agreement", "accuracy", "teacher_accuracy"} <= rows[
        0
    ].keys()


def test_a_writer_of_ones_own():
    seen = []

    class Mine:
        def write_scalars(self, step, scalars):
            seen.append((step, sorted(scalars)))

    d = distiller()
    fit(
        d,
        start(d),
        Shuffled(DATA, 16),
        TEACHER,
        steps=3,
        writer=Mine(),
        evaluate=jp.distill.Evaluator(NET, DATA),
        **QUIET,
    )
    assert (3, ["validation/accuracy", "validation/loss"]) in seen and len(seen) == 6


def test_operations_are_counted():
    d = distiller()
    found = fit(d, start(d), Shuffled(DATA, 16), TEACHER, steps=1, **QUIET)

    def forward(width):
        return 2 * 16 * (4 * width + width * 3) + 16 * width

    assert found.flops["teacher"] == forward(8)
    assert found.flops["step"] > forward(8) + 2.5 * forward(5)


def test_progress_says_what_is_going_on(capfd, monkeypatch):
    monkeypatch.setattr("jaxprune.distill.progress.PATIENCE", 0.0)
    monkeypatch.setattr("jaxprune.distill.progress.EVERY", 0.0)
    d = distiller()
    fit(d, start(d), Shuffled(DATA, 16), TEACHER, steps=4, inner_steps=2, evaluate_every=4)
    said = capfd.readouterr().err
    assert (
        "scan loop; operations: step" in said
        and "step 2/4" in said
        and "steps/s" in said
        and "s left" in said
    )


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("inner", ["python", "scan"])
def test_on_eight_devices_it_is_the_same(kind, inner, tmp_path):
    d = distiller()
    one = fit(d, start(d), Shuffled(DATA, 16), TEACHER, steps=6, inner=inner, **QUIET)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    with contextlib.nullcontext() if kind == AxisType.Auto else jax.set_mesh(mesh):

        def run(n):
            return fit(
                d,
                start(d),
                Shuffled(DATA, 16),
                TEACHER,
                steps=n,
                inner=inner,
                sharding=sharding,
                folder=tmp_path,
                **QUIET,
            )

        run(3)
        many = run(6)  # goes on from a checkpoint on the mesh
    for a, b in zip(jax.tree.leaves(one.state.params), jax.tree.leaves(many.state.params)):
        assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inner", ["python", "scan"])
def test_params_that_are_spread_by_rule_learn_the_same(inner):
    d = distiller()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    wide = {
        "a": np.float32(np.random.default_rng(0).normal(size=(4, 24))),
        "b": np.ones((24, 3), np.float32) / 9,
    }

    def make(p):
        return d.init(jax.tree.map(jnp.asarray, p), DATA, TEACHER, key=KEY)

    one = fit(d, make(wide), Shuffled(DATA, 16), TEACHER, steps=6, inner=inner, **QUIET)
    spread = jp.distill.fsdp(wide, mesh, "data", least=80)
    specs = {"a": PartitionSpec(None, "data"), "b": PartitionSpec()}
    assert {k: x.sharding.spec for k, x in spread.items()} == specs
    assert jp.distill.fsdp(wide, mesh, "data", least=0)["b"].sharding.spec == PartitionSpec("data")
    cube = jp.distill.fsdp({"w": np.ones((16, 5, 24)), "v": np.ones((3, 5))}, mesh, "data", least=0)
    assert [cube[k].sharding.spec for k in "wv"] == [
        PartitionSpec(None, None, "data"),
        PartitionSpec(),
    ]
    batches = NamedSharding(mesh, PartitionSpec("data"))
    many = fit(
        d,
        make(spread),
        Shuffled(DATA, 16),
        TEACHER,
        steps=6,
        inner=inner,
        sharding=batches,
        **QUIET,
    )
    for name, x in many.state.params.items():
        assert_allclose(one.state.params[name], x, rtol=1e-4, atol=1e-5)
        moments = [
            m for m in jax.tree.leaves(many.state.opt_state) if getattr(m, "shape", None) == x.shape
        ]
        part = spread[name].addressable_shards[0].data.shape
        assert moments and all(m.addressable_shards[0].data.shape == part for m in (x, *moments))
    with pytest.raises(ValueError, match=r"the mesh has \{'data': 8\}, and no axis 'model'"):
        jp.distill.fsdp(wide, mesh, "model")


def test_a_compressed_student_in_the_loop():
    codes = jp.chain(jp.prune(0.5), jp.quantize(bits=8)).init(
        jax.tree.map(jnp.asarray, params(8, 3))
    )
    d = distiller()
    state = d.init(codes, DATA, TEACHER, key=KEY)
    found = fit(d, state, Shuffled(DATA, 16), TEACHER, steps=40, **QUIET)
    zero = np.asarray(jp.materialize(codes)["a"]) == 0
    assert np.all(np.asarray(jp.materialize(found.state.params)["a"])[zero] == 0)
    evaluate = jp.distill.Evaluator(NET, DATA)
    assert evaluate(found.state)["loss"] < evaluate(state)["loss"]


def test_tensorboard_gets_a_point_a_curve(monkeypatch):
    points = []

    class Summary:
        def __init__(self, folder):
            assert folder == "logs"

        def add_scalar(self, name, value, step):
            points.append((name, value, step))

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Summary))
    jp.distill.Tensorboard("logs").write_scalars(
        jnp.int32(7), {"loss": jnp.float32(0.5), "kl": 1.0}
    )
    assert points == [("loss", 0.5, 7), ("kl", 1.0, 7)]
