"""Every number that a public function takes: right whatever its type, or an error that names the
argument.
"""

import inspect
import math
import tempfile
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.helpers import normal

W = {"kernel": normal((8, 8))}
X = jnp.ones((2, 8))
TREE = jp.prune(0.5).init(W)
HALF = jp.prune(0.5)
losses = jp.distill.losses
LOGITS = normal((4, 3)), normal((4, 3), 1)
MAPS = normal((2, 4, 4, 3)), normal((2, 4, 4, 3), 1)
LABELS = jnp.array([0, 1, 2, 0])
NET = jp.distill.plain(lambda w, x: x @ w)
DATA = {"x": np.ones((6, 3), np.float32), "y": np.zeros(6, np.int32)}
BANK = losses.crd_init(jax.random.key(0), 6, 3)
OWN = jnp.array([0, 1, 2, 3])
OTHERS = jnp.array([[4], [5], [4], [5]])

VALUES = {"nan": math.nan, "inf": math.inf, "-1": -1, "1.5": 1.5, "text": "x", "True": True}
ALLOWED = {
    "count": (),  # integers from 1 (or another least number) on
    "axis": ("-1",),
    "fraction": (),  # [0, 1), [0, 1] or (0, 1]
    "positive": ("1.5",),
    "weight": ("1.5",),  # at least 0
    "finite": ("-1", "1.5"),
}


class Row(NamedTuple):
    """A numeric argument.

    Attributes:
      function: that takes it.
      argument: its name.
      kind: of `ALLOWED`.
      call: a value of it -> a result.
      good: a value that is right.
      runs: whether the good values are tried as well (False where a call takes long).
    """

    function: Any
    argument: str
    kind: str
    call: Callable[[Any], Any]
    good: Any
    runs: bool = True


def distiller(**kw):
    return jp.distill.distiller(NET, [jp.distill.match(losses.logit_mse)], optax.sgd(0.1), **kw)


def data_free(**kw):
    sizes = {"classes": 3, "latent": 2, "batch": 4} | kw
    return jp.distill.data_free(distiller(), NET, optax.sgd(0.1), **sizes)


def fit(**kw):
    teacher = jp.distill.Online(NET, jnp.eye(3))
    d = distiller()
    state = d.init(jnp.zeros((3, 3)), {"x": DATA["x"]}, teacher, key=jax.random.key(0))
    given = {"evaluate": lambda s: {"accuracy": 1.0}, "steps": 1, "progress": False} | kw
    return jp.distill.fit(d, state, jp.distill.Shuffled(DATA, 2), teacher, **given)


def write_cache(**kw):
    return jp.distill.write_cache(
        f"{tempfile.mkdtemp()}/cache", lambda x: x, jnp.eye(3), fingerprint="0" * 64, **kw
    ).augmentations


def shrink(**kw):
    def f(p, x):
        return jax.nn.relu(x @ p["kernel"]) @ p["out"]["kernel"]

    return jp.shrink(f, W | {"out": {"kernel": normal((8, 2))}}, X, **({"flops": 0.5} | kw))


def loss_of(transform):
    return transform.update(jax.tree.map(jnp.zeros_like, W), transform.init(W), W)[0]


def keyword(function, name, *args, **kw):
    return lambda x: function(*args, **kw, **{name: x})


PAIR = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
GROUPS = jp.coupled_axes(lambda p, x: x @ p["a"] @ p["b"], PAIR, jnp.ones((1, 2))).groups
STACK = {"kernel": normal((3, 4, 4))}
BN = {"w": jnp.eye(2), "mean": jnp.ones(2), "var": 4 * jnp.ones(2)}


def batch_norm(p, x):
    return (x @ p["w"] - p["mean"]) * jax.lax.rsqrt(p["var"] + 1e-5)


def file_of_w():
    path = f"{tempfile.mkdtemp()}/w.jp"
    jp.save(path, W)
    return path


FILE = file_of_w()
MESH = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

ROWS = [
    Row(jp.prune, "sparsity", "fraction", lambda x: jp.prune(x).init(W), 0.5),
    Row(jp.prune, "threshold", "finite", lambda x: jp.prune(threshold=x), 0.1),
    Row(jp.cluster, "k", "count", lambda x: jp.cluster(x).init(W), 4),
    Row(jp.cluster, "bits", "count", lambda x: jp.cluster(bits=x).init(W), 2),
    Row(jp.cluster, "scope", "count", lambda x: jp.cluster(2, scope=(x,)).init(W), 4, False),
    Row(jp.share, "k", "count", lambda x: jp.share(k=x).init(W), 2),
    Row(jp.share, "similarity", "fraction", lambda x: jp.share(similarity=x).init(W), 0.5),
    Row(jp.share, "axis", "axis", lambda x: jp.share(k=2, axis=x).init(W), -2),
    Row(jp.quantize, "bits", "count", lambda x: jp.quantize(x).init(W), 4),
    Row(jp.quantize, "scale", "positive", lambda x: jp.quantize(scale=x).init(W), 16.0),
    Row(jp.quantize, "group", "count", lambda x: jp.quantize(8, group=x).init(W), 4),
    Row(jp.quantize, "axis", "axis", lambda x: jp.quantize(8, axis=x).init(W), -2),
    Row(
        jp.entropy_quantize, "step", "positive", lambda x: jp.entropy_quantize(step=x).init(W), 0.1
    ),
    Row(
        jp.entropy_quantize, "sqnr", "positive", lambda x: jp.entropy_quantize(sqnr=x).init(W), 20.0
    ),
    Row(
        jp.entropy_quantize,
        "bits_per_weight",
        "positive",
        lambda x: jp.entropy_quantize(bits_per_weight=x).init(W),
        3.0,
    ),
    Row(jp.factorize, "rank", "count", lambda x: jp.factorize(rank=x).init(W), 2),
    Row(jp.factorize, "energy", "fraction", lambda x: jp.factorize(energy=x).init(W), 0.5),
    Row(jp.over, "axis", "axis", lambda x: jp.over(x, HALF).init(STACK), 0),
    Row(jp.every, "n", "count", lambda x: jp.every(x, HALF), 2),
    Row(jp.between, "begin", "count", lambda x: jp.between(x, 9, HALF), 2),
    Row(jp.between, "end", "count", lambda x: jp.between(0, x, HALF), 2),
    Row(jp.attract, "mu", "weight", lambda x: loss_of(jp.attract(HALF, x)), 0.5),
    Row(jp.project, "every", "count", lambda x: loss_of(jp.project(HALF, every=x)), 1),
    Row(jp.rate_penalty, "strength", "weight", lambda x: loss_of(jp.rate_penalty(x)), 0.5),
    Row(
        jp.rate_penalty, "width", "positive", lambda x: loss_of(jp.rate_penalty(1.0, width=x)), 0.5
    ),
    Row(
        jp.rate_penalty,
        "value_bits",
        "finite",
        lambda x: loss_of(jp.rate_penalty(1.0, value_bits=x)),
        5.0,
    ),
    Row(jp.group_penalty, "strength", "weight", lambda x: jp.group_penalty(GROUPS, x), 0.5),
    Row(jp.load, "max_bytes", "count", lambda x: jp.load(FILE, max_bytes=x), 10_000),
    Row(
        jp.fold_batch_norm,
        "tolerance",
        "positive",
        keyword(jp.fold_batch_norm, "tolerance", batch_norm, BN, jnp.ones((1, 2))),
        0.01,
    ),
    *(
        Row(
            jp.shrink,
            name,
            "fraction",
            lambda x, name=name: shrink(**{"flops": None, name: x}),
            0.5,
            False,
        )
        for name in ("flops", "params", "bytes", "ratio", "latency")
    ),
    Row(jp.shrink, "round_to", "count", lambda x: shrink(round_to=x), 2, False),
    Row(jp.shrink, "tolerance", "fraction", lambda x: shrink(tolerance=x), 0.5, False),
    Row(jp.Depth, "least", "fraction", lambda x: shrink(depth=jp.Depth(least=x)), 0.5, False),
    Row(jp.Depth, "most", "fraction", lambda x: shrink(depth=jp.Depth(most=x)), 0.5, False),
    Row(
        jp.reconstruct,
        "ridge",
        "weight",
        lambda x: jp.reconstruct(lambda p, x: x @ p["kernel"], W, TREE, [(X,)], ridge=x),
        0.5,
        False,
    ),
    Row(
        jp.measure.deep_compression_bits,
        "value_bits",
        "count",
        lambda x: jp.measure.deep_compression_bits(jp.cluster(4).init(W), value_bits=x),
        4,
    ),
    Row(
        jp.measure.deep_compression_bits,
        "gap_width",
        "count",
        lambda x: jp.measure.deep_compression_bits(TREE, gap_width=x),
        4,
    ),
    Row(jp.where.ndim, "n", "count", lambda x: jp.where.ndim(x)(W), 2),
    Row(jp.where.ndim, "min", "count", lambda x: jp.where.ndim(min=x)(W), 2),
    Row(jp.where.size, "n", "count", lambda x: jp.where.size(x)(W), 64),
    Row(jp.where.size, "min", "count", lambda x: jp.where.size(min=x)(W), 2),
    Row(
        jp.patterns.n_m, "n", "count", lambda x: jp.prune(pattern=jp.patterns.n_m(x, 4)).init(W), 2
    ),
    Row(
        jp.patterns.n_m, "m", "count", lambda x: jp.prune(pattern=jp.patterns.n_m(1, x)).init(W), 2
    ),
    Row(
        jp.patterns.n_m,
        "axis",
        "axis",
        lambda x: jp.prune(pattern=jp.patterns.n_m(1, 2, x)).init(W),
        -2,
    ),
    Row(
        jp.patterns.block,
        "shape",
        "count",
        lambda x: jp.prune(0.5, pattern=jp.patterns.block(x, 2)).init(W),
        2,
    ),
    Row(
        jp.patterns.channel,
        "axis",
        "axis",
        lambda x: jp.prune(0.5, pattern=jp.patterns.channel(x)).init(W),
        -2,
    ),
    Row(jp.schedules.cubic, "final", "fraction", lambda x: jp.schedules.cubic(x, 0, 9)(5), 0.5),
    Row(
        jp.schedules.cubic,
        "initial",
        "fraction",
        lambda x: jp.schedules.cubic(0.9, 0, 9, initial=x)(5),
        0.5,
    ),
    Row(jp.schedules.cubic, "begin", "count", lambda x: jp.schedules.cubic(0.9, x, 9)(5), 2),
    Row(jp.schedules.cubic, "end", "count", lambda x: jp.schedules.cubic(0.9, 0, x)(5), 9),
    Row(
        jp.schedules.cubic,
        "power",
        "positive",
        lambda x: jp.schedules.cubic(0.9, 0, 9, power=x)(5),
        2,
    ),
    Row(jp.schedules.one_shot, "final", "fraction", lambda x: jp.schedules.one_shot(x)(5), 0.5),
    Row(jp.schedules.one_shot, "at", "count", lambda x: jp.schedules.one_shot(0.5, x)(5), 2),
    Row(jp.scores.fpgm, "axis", "axis", lambda x: jp.scores.fpgm(W, axis=x), -2),
    Row(
        jp.scores.obd,
        "probes",
        "count",
        lambda x: jp.scores.obd(
            lambda w, x: jnp.sum(w["kernel"] ** 2 * x), W, [(1.0,)], key=jax.random.key(0), probes=x
        ),
        2,
    ),
    *(
        Row(f, "sparsity", "fraction", lambda x, f=f: f(W, None, x), 0.5)
        for f in (jp.allocate.uniform, jp.allocate.erk, jp.allocate.global_, jp.allocate.lamp)
    ),
    Row(
        jp.distill.match, "weight", "weight", lambda x: jp.distill.match(losses.hint, weight=x), 0.5
    ),
    Row(
        jp.distill.match,
        "channel_axis",
        "axis",
        lambda x: jp.distill.match(losses.hint, channel_axis=x),
        1,
    ),
    Row(jp.distill.distiller, "labels", "weight", lambda x: distiller(labels=x), 0.5),
    Row(jp.distill.distiller, "ema", "fraction", lambda x: distiller(ema=x), 0.5),
    *(
        Row(jp.distill.data_free, name, "count", lambda x, name=name: data_free(**{name: x}), 2)
        for name in ("classes", "latent", "batch")
    ),
    *(
        Row(jp.distill.data_free, name, "weight", lambda x, name=name: data_free(**{name: x}), 0.5)
        for name in ("one_hot", "entropy", "activation", "batch_norm", "competition")
    ),
    Row(jp.distill.data_free, "channel_axis", "axis", lambda x: data_free(channel_axis=x), 1),
    *(
        Row(jp.distill.fit, name, "count", lambda x, name=name: fit(**{name: x}), 1, False)
        for name in ("steps", "evaluate_every", "checkpoint_every", "inner_steps", "patience")
    ),
    Row(jp.distill.Shuffled, "batch", "count", lambda x: jp.distill.Shuffled(DATA, x).at(0), 2),
    Row(jp.distill.Shuffled, "seed", "count", lambda x: jp.distill.Shuffled(DATA, 2, x).at(0), 2),
    Row(jp.distill.Evaluator, "batch", "count", lambda x: jp.distill.Evaluator(NET, DATA, x), 2),
    Row(jp.distill.fsdp, "least", "count", lambda x: jp.distill.fsdp(W, MESH, "data", least=x), 8),
    Row(jp.distill.write_cache, "augmentation", "count", lambda x: write_cache(augmentation=x), 2),
    Row(jp.distill.write_cache, "batch", "count", lambda x: write_cache(batch=x), 2),
    Row(jp.distill.write_cache, "shard", "count", lambda x: write_cache(shard=x), 2),
    Row(jp.distill.crd_loss, "examples", "count", lambda x: jp.distill.crd_loss(x), 6),
    Row(jp.distill.crd_loss, "features", "count", lambda x: jp.distill.crd_loss(6, features=x), 6),
    Row(
        jp.distill.crd_loss, "negatives", "count", lambda x: jp.distill.crd_loss(6, negatives=x), 6
    ),
    Row(
        jp.distill.crd_loss,
        "temperature",
        "positive",
        lambda x: jp.distill.crd_loss(6, temperature=x),
        0.5,
    ),
    Row(
        jp.distill.crd_loss,
        "momentum",
        "fraction",
        lambda x: jp.distill.crd_loss(6, momentum=x),
        0.5,
    ),
    Row(
        jp.distill.vid_loss, "variance", "positive", lambda x: jp.distill.vid_loss(variance=x), 0.5
    ),
    Row(jp.distill.vid_loss, "eps", "positive", lambda x: jp.distill.vid_loss(eps=x), 0.5),
    Row(
        jp.distill.vid_loss,
        "channel_axis",
        "axis",
        lambda x: jp.distill.vid_loss(channel_axis=x),
        1,
    ),
    Row(
        jp.distill.dino_loss,
        "student_temperature",
        "positive",
        lambda x: jp.distill.dino_loss(student_temperature=x),
        0.5,
    ),
    Row(
        jp.distill.dino_loss,
        "teacher_temperature",
        "positive",
        lambda x: jp.distill.dino_loss(teacher_temperature=x),
        0.5,
    ),
    Row(
        jp.distill.dino_loss,
        "momentum",
        "fraction",
        lambda x: jp.distill.dino_loss(momentum=x),
        0.5,
    ),
    *(
        Row(f, "temperature", "positive", keyword(f, "temperature", *LOGITS), 2.0)
        for f in (
            losses.forward_kl,
            losses.reverse_kl,
            losses.jsd,
            losses.soft_targets,
            losses.standardised_targets,
            losses.dist,
        )
    ),
    Row(losses.jsd, "beta", "fraction", keyword(losses.jsd, "beta", *LOGITS), 0.5),
    Row(
        losses.soft_and_hard,
        "temperature",
        "positive",
        keyword(losses.soft_and_hard, "temperature", *LOGITS, labels=LABELS),
        2.0,
    ),
    Row(
        losses.soft_and_hard,
        "alpha",
        "fraction",
        keyword(losses.soft_and_hard, "alpha", *LOGITS, labels=LABELS),
        0.5,
    ),
    *(
        Row(
            losses.dkd,
            name,
            "weight" if name != "temperature" else "positive",
            keyword(losses.dkd, name, *LOGITS, labels=LABELS),
            2.0,
        )
        for name in ("alpha", "beta", "temperature")
    ),
    *(
        Row(losses.dist, name, "weight", keyword(losses.dist, name, *LOGITS), 2.0)
        for name in ("inter", "intra")
    ),
    Row(losses.top_k, "k", "count", lambda x: losses.top_k(*LOGITS, k=x), 2),
    Row(
        losses.top_k,
        "temperature",
        "positive",
        lambda x: losses.top_k(*LOGITS, k=2, temperature=x),
        2.0,
    ),
    Row(losses.top_k_teacher, "k", "count", lambda x: losses.top_k_teacher(LOGITS[1], x), 2),
    Row(
        losses.top_k_teacher,
        "temperature",
        "positive",
        lambda x: losses.top_k_teacher(LOGITS[1], 2, temperature=x),
        2.0,
    ),
    Row(
        losses.attention_transfer,
        "p",
        "positive",
        keyword(losses.attention_transfer, "p", *MAPS),
        2,
    ),
    Row(
        losses.activation_boundary,
        "margin",
        "positive",
        keyword(losses.activation_boundary, "margin", *MAPS),
        2.0,
    ),
    Row(
        losses.correlation_congruence,
        "gamma",
        "positive",
        keyword(losses.correlation_congruence, "gamma", *LOGITS),
        0.5,
    ),
    Row(
        losses.correlation_congruence,
        "order",
        "count",
        keyword(losses.correlation_congruence, "order", *LOGITS),
        2,
    ),
    Row(
        losses.vid,
        "eps",
        "positive",
        keyword(losses.vid, "eps", *MAPS, raw_variance=jnp.ones(3)),
        0.5,
    ),
    Row(losses.vid_raw_variance, "channels", "count", losses.vid_raw_variance, 3),
    Row(
        losses.vid_raw_variance,
        "variance",
        "positive",
        lambda x: losses.vid_raw_variance(3, variance=x),
        0.5,
    ),
    Row(
        losses.vid_raw_variance, "eps", "positive", lambda x: losses.vid_raw_variance(3, eps=x), 0.5
    ),
    *(
        Row(f, "channel_axis", "axis", keyword(f, "channel_axis", *MAPS, **more), 3)
        for f, more in (
            (losses.hint, {}),
            (losses.attention_transfer, {}),
            (losses.nst, {}),
            (losses.activation_boundary, {}),
            (losses.vid, {"raw_variance": jnp.ones(3)}),
            (losses.overhaul, {"margin": -jnp.ones(3)}),
        )
    ),
    Row(losses.fsp, "channel_axis", "axis", lambda x: losses.fsp(MAPS, MAPS, channel_axis=x), 3),
    Row(
        losses.activation_magnitude,
        "channel_axis",
        "axis",
        lambda x: losses.activation_magnitude(MAPS[0], channel_axis=x),
        3,
    ),
    Row(
        losses.batch_norm_matching,
        "channel_axis",
        "axis",
        lambda x: losses.batch_norm_matching(
            MAPS[0], mean=jnp.ones(3), var=jnp.ones(3), channel_axis=x
        ),
        3,
    ),
    Row(
        losses.crd_init, "examples", "count", lambda x: losses.crd_init(jax.random.key(0), x, 3), 4
    ),
    Row(
        losses.crd_init, "features", "count", lambda x: losses.crd_init(jax.random.key(0), 3, x), 4
    ),
    Row(
        losses.crd_negatives,
        "count",
        "count",
        lambda x: losses.crd_negatives(jax.random.key(0), OWN, count=x, examples=6),
        4,
    ),
    Row(
        losses.crd_negatives,
        "examples",
        "count",
        lambda x: losses.crd_negatives(jax.random.key(0), OWN, count=2, examples=x),
        6,
    ),
    Row(
        losses.crd,
        "temperature",
        "positive",
        lambda x: losses.crd(*LOGITS, bank=BANK, indices=OWN, negatives=OTHERS, temperature=x),
        0.5,
    ),
    Row(
        losses.crd_update,
        "temperature",
        "positive",
        lambda x: losses.crd_update(BANK, *LOGITS, indices=OWN, negatives=OTHERS, temperature=x),
        0.5,
    ),
    Row(
        losses.crd_update,
        "momentum",
        "fraction",
        lambda x: losses.crd_update(BANK, *LOGITS, indices=OWN, negatives=OTHERS, momentum=x),
        0.5,
    ),
    Row(
        losses.deep_mutual,
        "temperature",
        "positive",
        lambda x: losses.deep_mutual(LOGITS[0], jnp.stack(LOGITS), temperature=x),
        2.0,
    ),
    *(
        Row(
            losses.dino,
            name,
            "positive",
            keyword(
                losses.dino, name, normal((2, 4, 3)), normal((2, 4, 3), 1), centre=jnp.zeros(3)
            ),
            0.5,
        )
        for name in ("student_temperature", "teacher_temperature")
    ),
    Row(
        losses.dino_centre,
        "momentum",
        "fraction",
        lambda x: losses.dino_centre(jnp.zeros(3), normal((2, 4, 3)), momentum=x),
        0.5,
    ),
]
IDS = [f"{row.function.__name__} {row.argument}" for row in ROWS]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_number_is_right_or_an_error_names_the_argument(row, value):
    if value in ALLOWED[row.kind]:
        if row.runs and row.kind != "axis":
            row.call(VALUES[value])
        return
    with pytest.raises((ValueError, TypeError)) as error:
        row.call(VALUES[value])
    assert row.argument in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.runs], ids=[i for i, row in zip(IDS, ROWS) if row.runs]
)
def test_numbers_of_numpy_and_jax_are_as_good_as_those_of_python(row):
    expected = jax.tree.leaves(row.call(row.good))
    for x in (np.array(row.good), np.asarray(row.good)[()], jnp.asarray(row.good)):
        for mine, other in zip(expected, jax.tree.leaves(row.call(x)), strict=True):
            if hasattr(mine, "dtype") and not jnp.issubdtype(mine.dtype, jax.dtypes.prng_key):
                mine = np.asarray(mine, np.float64)
                other = np.asarray(other, np.float64)
                np.testing.assert_allclose(mine, other, rtol=2e-5, atol=1e-6)


OTHER_WAYS = {
    "Packed", "Quantized", "Shared", "Stacked", "LowRank", "Tucker", "Clustered", "Common",
    "Masked", "Binary", "Dense",
    "Plan", "Timings", "Folded", "Diverged", "Fitted", "Piece", "Sizes", "Leaf", "Term", "State",
    "DataFreeState",
    # values that functions make, or that are checked where they are used
    "TopK", "Manifest", "Top",
}  # fmt: skip
NUMERIC = ("int", "float")


def public_functions():
    """(name, function) of everything in jaxprune, its modules of functions, distill and its
    losses.
    """
    rooms = [
        jp,
        jp.allocate,
        jp.patterns,
        jp.schedules,
        jp.scores,
        jp.measure,
        jp.where,
        jp.distill,
        jp.distill.losses,
    ]
    for room in rooms:
        for name in dir(room):
            thing = getattr(room, name)
            home = getattr(thing, "__module__", "")
            whole = room in (jp, jp.distill, losses) and home.startswith("jaxprune")
            public = (
                not name.startswith("_")
                and callable(thing)
                and not isinstance(thing, jp.Compression)
            )
            if public and (whole or home == room.__name__):
                yield name, thing


def is_number(parameter):
    text = str(parameter.annotation)
    words = (
        text.replace("[", " ")
        .replace("]", " ")
        .replace("|", " ")
        .replace(",", " ")
        .replace("'", " ")
        .split()
    )
    if isinstance(parameter.annotation, type):
        words = [parameter.annotation.__name__]
    return any(word in NUMERIC for word in words) and "dict" not in text and "Mapping" not in text


def test_every_numeric_argument_of_a_public_function_is_in_the_table():
    known = {(id(row.function), row.argument) for row in ROWS}
    missing = set()
    for name, function in public_functions():
        if name in OTHER_WAYS or isinstance(function, types.ModuleType):
            continue
        try:
            parameters = inspect.signature(function).parameters.values()
        except ValueError:  # of a class of errors
            continue
        missing |= {
            f"{name} {p.name}"
            for p in parameters
            if is_number(p) and (id(function), p.name) not in known
        }
    # Fields of a pattern, sizes that were measured, and functions of numbers.
    others = {
        "Pattern axes",
        "Pattern spread",
        "leaf_sizes stored",
        "total n",
        "total sparsity",
        "recipe schedule",
        "write_cache progress",
    }
    assert missing <= others, missing - others
