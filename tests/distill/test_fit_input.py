"""What is wrong with the arguments, the data, the folder or the disk is told, and the last
checkpoint stays.
"""

import gc
import resource
import shutil
import signal
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxprune as jp
from jaxprune.distill import losses
from tests.distill.toy import DATA, KEY, NET, TEACHER, X, Y, distiller, mlp, params, same, start

# Orbax closes its event loop after the first failure; what the other leaves answer then is told to
# nobody.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

Shuffled = jp.distill.Shuffled
BATCH = {name: x[:16] for name, x in DATA.items()}


def fit(batches=None, d=None, teacher=TEACHER, **kw):
    d = distiller() if d is None else d
    batches = Shuffled(DATA, 16) if batches is None else batches
    given = isinstance(teacher, jp.distill.Precomputed)
    state = start(d, teacher, CACHED) if given else start(d)
    return jp.distill.fit(
        d, state, batches, teacher, **{"steps": 6, "progress": False, "inner_steps": 2, **kw}
    )


def mesh():
    return NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec("data"))


WRONG = {
    "no steps": (lambda: fit(steps=0), r"steps=0\): give an integer"),
    "half a step": (lambda: fit(steps=2.5), r"steps=2\.5"),
    "no chunk": (lambda: fit(inner_steps=0), "inner_steps=0"),
    "no such loop": (lambda: fit(inner="loop"), "inner='loop'"),
    "no such mode": (lambda: fit(mode="best"), "mode='best'"),
    "patience without an evaluation": (lambda: fit(patience=3), "give evaluate="),
    "monitor": (
        lambda: fit(evaluate=lambda s: {"bleu": 1.0}),
        r"monitor='accuracy'\): evaluate gives \['bleu'\]",
    ),
    "empty": (lambda: fit([]), "ended after 0: there are none"),
    "ended": (lambda: fit(iter([BATCH] * 4)), "ended after 4: it can be iterated once only"),
    "another shape": (
        lambda: fit([BATCH, {k: v[:9] for k, v in BATCH.items()}]),
        r"batch 1 .*\(9, 4\).*first had.*\(16, 4\).*drop the remainder",
    ),
    "another field": (lambda: fit([BATCH, {"x": X[:16]}]), "batch 1 has the shapes"),
    "label too small": (lambda: fit([BATCH | {"y": np.full(16, -1)}]), r"label -1 at \[0\]"),
    "no examples": (lambda: Shuffled({}, 1), "have no examples"),
    "unequal": (lambda: Shuffled({"x": X, "y": Y[:5]}, 1), "'x': 96, 'y': 5"),
    "scalar": (lambda: Shuffled({"x": np.float32(1)}, 1), "'x': None"),
    "larger than the data": (lambda: Shuffled(DATA, 97), "there are 96 examples"),
    "index twice": (lambda: Shuffled(DATA, 2, index="y"), "index='y'"),
    "mesh": (
        lambda: fit(Shuffled(DATA, 12), sharding=mesh()),
        r"\(12, 4\) does not divide.*'data': 8.*another batch size",
    ),
    "evaluator": (lambda: jp.distill.Evaluator(NET, {"x": X}), "needs 'x' and 'y'"),
    "classes": (
        lambda: fit(
            teacher=jp.distill.Online(NET, params(8, 1) | {"b": np.ones((8, 4), np.float32)})
        ),
        r"\(16, 3\).*\(16, 4\)|\(16, 4\).*\(16, 3\)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input(case):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call()


CACHED = DATA | {"teacher": np.asarray(mlp(TEACHER.params, X))}


def poisoned(at, field, value):
    listed = [{k: v.copy() for k, v in Shuffled(CACHED, 16).at(i).items()} for i in range(6)]
    listed[at][field][3] = value
    return listed


@pytest.mark.parametrize("inner", ["python", "scan"])
def test_a_loss_that_is_not_finite_stops_and_names_its_term(tmp_path, inner):
    said = {"checkpoint_every": 2, "inner": inner, "teacher": jp.distill.Precomputed()}
    with pytest.raises(
        jp.distill.Diverged, match=r"step 4: 'soft_targets' is nan.*checkpoint.*before"
    ) as e:
        fit(poisoned(4, "teacher", np.nan), folder=tmp_path, **said)
    assert (e.value.step, e.value.terms) == (4, ("soft_targets",))
    found = fit(Shuffled(CACHED, 16), folder=tmp_path, **said)  # clean data: on from step 4
    assert same(found.state, fit(Shuffled(CACHED, 16), **said).state)


def test_a_label_out_of_range_is_told(tmp_path):
    with pytest.raises(jp.distill.Diverged, match=r"step 2: 'labels' is nan.*a label out of range"):
        fit(poisoned(2, "y", 3))


@pytest.mark.parametrize("label", [-1, 3])
@pytest.mark.parametrize("place", [np.asarray, jnp.asarray])
def test_masked_examples_need_no_label_and_others_do(label, place):
    """On the device nothing can be looked at before the step: there a label out of range makes the
    loss NaN.
    """
    y = Y.copy()
    mask = np.ones(96, bool)
    y[::5] = label
    mask[::5] = False
    clean = Shuffled(DATA | {"mask": mask}, 16)
    hidden = Shuffled({"x": X, "y": place(y), "mask": mask}, 16)
    assert same(fit(hidden).state.params, fit(clean).state.params)
    with pytest.raises(
        ValueError,
        match="'labels' is nan" if label == 3 or place is jnp.asarray else r"label -1 at \[0\]",
    ):
        fit(Shuffled({"x": X, "y": place(y)}, 16))


def test_a_step_too_long_diverges_without_a_folder():
    d = distiller(optimizer=optax.scale(-3e38))
    with pytest.raises(jp.distill.Diverged, match="No folder, no checkpoint"):
        fit(d=d, steps=20)


@pytest.mark.parametrize("inner", ["python", "scan"])
def test_an_update_that_spoils_the_params_is_no_checkpoint(tmp_path, inner):
    """The loss of step 3 is finite and its update is not: what the checkpoint of step 4 would hold
    is of no use.
    """

    # one program, but for n
    def at(n):
        return optax.scale_by_schedule(lambda t: jnp.where(t == n, jnp.inf, 1.0))

    breaking = optax.chain(optax.adam(0.02), at(3))
    said = {"folder": tmp_path, "checkpoint_every": 2, "inner": inner}
    with pytest.raises(
        jp.distill.Diverged, match=r"step 3: 'update' is nan.*checkpoint.*before$"
    ) as e:
        fit(d=distiller(optimizer=breaking), **said)
    assert (e.value.step, e.value.terms) == (3, ("update",))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()] == ["2"]
    sound = optax.chain(optax.adam(0.02), at(99))
    assert same(
        fit(d=distiller(optimizer=sound), **said).state,
        fit(d=distiller(optimizer=sound), inner=inner).state,
    )


def test_infinities_that_an_optimizer_keeps_are_its_own():
    """`reduce_on_plateau` begins with the best loss that it has seen, an infinite one."""
    with_best = optax.GradientTransformation(
        lambda p: jnp.asarray(jnp.inf), lambda g, s, p=None: (g, s)
    )
    found = fit(d=distiller(optimizer=optax.chain(optax.sgd(0.1), with_best)))
    assert int(found.state.step) == 6


def test_a_label_out_of_range_is_told_of_a_term_too():
    """The losses drop a traced label that is no class; in a step it would be hidden by the mean."""
    d = distiller(terms=[jp.distill.match(losses.dkd)], labels=0.0)
    with pytest.raises(jp.distill.Diverged, match=r"step 2: 'dkd' is nan.*a label out of range"):
        fit(poisoned(2, "y", 3), d=d)


def test_a_checkpoint_of_another_model_or_teacher(tmp_path):
    fit(folder=tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint of another teacher .*another folder"):
        fit(folder=tmp_path, teacher=jp.distill.Online(NET, params(8, 3)), steps=8)
    d = distiller(optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match="checkpoint of another student"):
        fit(folder=tmp_path, d=d, steps=8)
    wide = distiller()
    state = wide.init(params(6, 3), BATCH, TEACHER, key=KEY)
    with pytest.raises(ValueError, match="checkpoint of another student"):
        jp.distill.fit(
            wide, state, Shuffled(DATA, 16), TEACHER, steps=8, folder=tmp_path, progress=False
        )
    assert same(fit(folder=tmp_path, steps=8).state, fit(steps=8).state)  # nothing was harmed


@pytest.fixture
def quiet_end():
    """Orbax's threads have answered before the next test looks."""
    yield
    gc.collect()
    time.sleep(0.5)


def test_a_broken_checkpoint_is_told(tmp_path, quiet_end):
    fit(folder=tmp_path)
    [step] = [p for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    shutil.rmtree(step / "state" / "d") if (step / "state" / "d").exists() else shutil.rmtree(
        step / "state"
    )
    with pytest.raises(
        ValueError, match=r"checkpoints/6 cannot be read .*Delete it to start again"
    ):
        fit(folder=tmp_path, steps=8)


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, quiet_end):
    """The process may write no file larger than 60 bytes: the next checkpoint has no room."""
    d = distiller()
    fit(folder=tmp_path, d=d, steps=2, checkpoint_every=2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60, before[1]))
        with pytest.raises(
            OSError, match=r"checkpoint of step 4 .* was not written; that of step 2 stays"
        ):
            fit(folder=tmp_path, d=d, steps=4, checkpoint_every=2, writer=_Nowhere())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert same(
        fit(folder=tmp_path, d=d, steps=6, checkpoint_every=2).state,
        fit(d=d, checkpoint_every=2).state,
    )


class _Nowhere:
    def write_scalars(self, step, scalars):
        pass


def test_a_teacher_without_the_layers(tmp_path):
    term = jp.distill.match(partial(losses.hidden_mse), "hidden", "hiden")
    d = jp.distill.distiller(NET, [term], optax.sgd(0.1))
    with pytest.raises(ValueError, match="nearest: 'hidden'"):
        start(d)


def test_metrics_that_are_not_finite_are_null(tmp_path):
    writer = jp.distill.Jsonl(tmp_path / "deep" / "m.jsonl")
    writer.write_scalars(jnp.int32(1), {"a": float("nan"), "b": jnp.float32(2)})
    assert (tmp_path / "deep" / "m.jsonl").read_text() == '{"step": 1, "a": null, "b": 2.0}\n'
