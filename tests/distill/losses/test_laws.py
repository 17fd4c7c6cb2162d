"""The laws of a distillation loss, for every row of the table. A new loss joins by one row
there."""

import pathlib
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.distill.losses.table import BATCH, CLASSES, LOSSES, UNLISTED, L, quick

KEEP = np.array([True, True, False, True, False, True, True, True])
ALL = np.ones(BATCH, bool)


@pytest.fixture(scope="module", params=LOSSES, ids=lambda loss: loss.name)
def loss(request):
    """Of a module: pytest then runs all laws of one loss in a row, and it is compiled once."""
    return request.param


@cache
def compiled(name):
    """(student, teacher, mask, rows) -> values, and the gradients of their masked mean in student
    and teacher."""
    f = {loss.name: loss.f for loss in LOSSES}[name]

    def run(student, teacher, mask, rows):
        def total(pair):
            values = f(*pair, mask=mask, **rows)
            return L.masked_mean(values, mask), values

        (_, values), slopes = jax.value_and_grad(total, has_aux=True)((student, teacher))
        return values, slopes

    return quick(run)


def run(loss, student=None, teacher=None, mask=ALL):
    values, slopes = compiled(loss.name)(
        loss.student if student is None else student,
        loss.teacher if teacher is None else teacher,
        mask,
        loss.rows,
    )
    return np.asarray(values), slopes


def on(loss, f):
    """f(array, axis of the examples) on the student's arrays and on the teacher's."""
    pairs = ((loss.student, loss.axes[0]), (loss.teacher, loss.axes[1]))
    return [jax.tree.map(lambda x, axis=axis: f(x, axis), tree) for tree, axis in pairs]


def double(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def close(a, b, tolerance=2e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def finite(tree):
    return all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(tree))


def set_rows(x, axis, rows, value):
    x = np.array(x)
    np.moveaxis(x, axis, 0)[rows] = value
    return x


def test_it_is_the_paper_s(loss):
    values, _ = run(loss)
    assert values.shape == (BATCH,) and values.dtype == np.float32
    close(values, loss.reference(double(loss.student), double(loss.teacher), **loss.rows))


def test_its_gradient_is_the_slope_of_the_paper_s(loss):
    if not loss.slope:
        pytest.skip("a statistic is held constant")
    _, slopes = run(loss)
    student = double(loss.student)
    teacher = double(loss.teacher)
    rng = np.random.default_rng(0)
    a, b = (
        jax.tree.map(lambda x: rng.standard_normal(x.shape), tree) for tree in (student, teacher)
    )

    def step(x, h, way):
        return jax.tree.map(lambda x, w: x + h * w, x, way)

    def mean(i, j):
        return np.mean(loss.reference(step(student, i, a), step(teacher, j, b), **loss.rows))

    def along(slope, way):
        return sum(np.sum(double(g) * w) for g, w in zip(*map(jax.tree.leaves, (slope, way))))

    h = 1e-5
    close(along(slopes[0], a), (mean(h, 0) - mean(-h, 0)) / (2 * h), 1e-4)
    close(along(slopes[1], b), 0 if loss.held else (mean(0, h) - mean(0, -h)) / (2 * h), 1e-4)


def test_a_masked_example_is_as_if_it_were_not_there(loss):
    values, slopes = run(loss, mask=KEEP)
    student, teacher = on(loss, lambda x, axis: np.compress(KEEP, x, axis))
    rows = {k: v[KEEP] for k, v in loss.rows.items()}
    close(values[KEEP], loss.reference(double(student), double(teacher), **rows))
    assert (values[~KEEP] == 0).all()
    for tree, axis in zip(slopes, loss.axes):
        assert all((np.compress(~KEEP, g, axis) == 0).all() for g in jax.tree.leaves(tree))
    rotten, rotten_slopes = run(
        loss, *on(loss, lambda x, axis: set_rows(x, axis, ~KEEP, np.nan)), KEEP
    )
    np.testing.assert_array_equal(rotten, values)
    jax.tree.map(np.testing.assert_array_equal, rotten_slopes, slopes)


def test_with_everything_masked_it_is_zero(loss):
    values, slopes = run(loss, *on(loss, lambda x, axis: np.full_like(x, np.nan)), ~ALL)
    assert (values == 0).all()
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(slopes))


def test_a_nan_that_counts_is_seen(loss):
    values, _ = run(loss, *on(loss, lambda x, axis: set_rows(x, axis, 1, np.nan)))
    assert np.isnan(values[1]) and (loss.relational or not np.isnan(values[[0, 2]]).any())


def test_equal_features_cost_nothing_and_pull_nowhere(loss):
    if loss.zero is None:
        pytest.skip("the student cannot be the teacher")
    values, slopes = run(
        loss, *([np.ascontiguousarray(loss.student)] * 2 if same_shape(loss) else (None, None))
    )
    assert finite(slopes)
    if loss.zero and same_shape(loss):
        assert (
            np.abs(values).max() < 1e-6
            and max(np.abs(g).max() for g in jax.tree.leaves(slopes)) < 2e-6
        )


def same_shape(loss):
    def shape(tree):
        return jax.tree.map(np.shape, tree)

    return shape(loss.student) == shape(loss.teacher) and not isinstance(loss.student, tuple)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
def test_gradients_are_finite_at_constant_and_repeated_examples(loss, value):
    constant = on(loss, lambda x, axis: np.full_like(x, value))
    one = on(loss, lambda x, axis: set_rows(x, axis, [1, 2], value))
    repeated = on(loss, lambda x, axis: np.broadcast_to(np.take(x, [0], axis), x.shape).copy())
    for student, teacher in (
        constant,
        one,
        repeated,
        (None, constant[1]),
        (constant[0], None),
        (repeated[0], None),
    ):
        values, slopes = run(loss, student, teacher)
        assert np.isfinite(values).all() and finite(slopes)
        assert max(np.abs(g).max() for g in jax.tree.leaves(slopes)) < 1e3, (
            "rounding errors are taken for a direction"
        )


@pytest.mark.parametrize("scale", [1e4, 1e-12])
def test_huge_and_tiny_inputs_stay_finite(loss, scale):
    values, slopes = run(loss, *on(loss, lambda x, axis: x * np.float32(scale)))
    assert np.isfinite(values).all() and finite(slopes)


def test_impossible_classes_leave_everything_finite(loss):
    if jax.tree.leaves(loss.student)[0].shape[-1] != CLASSES:
        pytest.skip("no logits")

    def gone(x, classes):
        return np.concatenate([np.full_like(x[..., :classes], -np.inf), x[..., classes:]], -1)

    student = loss.student
    teacher = loss.teacher
    for s, t in ((2, 2), (1, 2), (2, 1), (0, 3), (3, 0), (4, 4), (5, 5), (5, 0), (0, 5)):
        values, slopes = run(loss, gone(student, s), gone(teacher, t))
        assert np.isfinite(values).all() and finite(slopes), (s, t)
    far = np.where(np.arange(5) == 2, 1e4, -1e4).astype(
        np.float32
    )  # probabilities that are 0 and 1
    values, slopes = run(loss, np.broadcast_to(far, student.shape), teacher)
    assert np.isfinite(values).all() and finite(slopes)
    values, slopes = run(loss, student, np.broadcast_to(far, teacher.shape))
    assert np.isfinite(values).all() and finite(slopes)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__)
def test_halves_are_read_as_float32(loss, dtype):
    student, teacher = on(loss, lambda x, axis: jax.ShapeDtypeStruct(np.shape(x), dtype))

    def f(s, t):
        return L.masked_mean(loss.f(s, t, **loss.rows))

    assert jax.eval_shape(f, student, teacher).dtype == jnp.float32
    computed = [
        v.aval for eqn in equations(jax.make_jaxpr(f)(student, teacher).jaxpr) for v in eqn.outvars
    ]
    assert len(computed) > 5 and not any(a.dtype == dtype for a in computed), (
        "arithmetic in half precision"
    )


def test_doubles_stay_doubles(loss):
    with jax.enable_x64(True):
        pair = on(loss, lambda x, axis: jax.ShapeDtypeStruct(np.shape(x), np.float64))
        mixed = on(loss, lambda x, axis: jax.ShapeDtypeStruct(np.shape(x), np.float32))
        for student, teacher in (pair, (pair[0], mixed[1])):
            assert (
                jax.eval_shape(
                    lambda s, t: L.masked_mean(loss.f(s, t, **loss.rows)), student, teacher
                ).dtype
                == np.float64
            )


def equations(jaxpr):
    """Of a jaxpr and of those inside it."""
    for eqn in jaxpr.eqns:

        def is_jaxpr(p):
            return hasattr(p, "eqns") or hasattr(p, "jaxpr")

        inside = [
            getattr(p, "jaxpr", p)
            for p in jax.tree.leaves(eqn.params, is_leaf=is_jaxpr)
            if is_jaxpr(p)
        ]
        yield from (e for p in inside for e in equations(p)) if inside else (eqn,)


def test_it_may_be_abstract_and_batched(loss):
    shape = jax.eval_shape(lambda s, t: loss.f(s, t, **loss.rows), loss.student, loss.teacher)
    assert shape.shape == (BATCH,) and shape.dtype == jnp.float32 and not shape.weak_type
    two = jax.tree.map(lambda x: np.stack([x, x]), (loss.student, loss.teacher))
    assert jax.eval_shape(jax.vmap(lambda s, t: loss.f(s, t, **loss.rows)), *two).shape == (
        2,
        BATCH,
    )


def placed(loss, mesh):
    """The arguments of the loss, their examples spread over the mesh."""

    def place(x, axis):
        return jax.device_put(x, NamedSharding(mesh, P(*(None,) * axis, "data")))

    return *on(loss, place), place(KEEP, 0), {k: place(v, 0) for k, v in loss.rows.items()}


def test_eight_devices_see_one_batch(loss):
    if not loss.relational and loss.name not in ("top_k", "crd"):
        pytest.skip("its examples do not meet")
    alone, slopes = run(loss, mask=KEEP)
    kind = (
        AxisType.Explicit if loss.name in ("top_k", "crd", "dist", "rkd_angle") else AxisType.Auto
    )
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        values, sharded = compiled(loss.name)(*placed(loss, mesh))
    close(values, alone, 1e-6)
    assert values.sharding.is_equivalent_to(NamedSharding(mesh, P("data")), 1)
    jax.tree.map(lambda a, b: close(a, b, 1e-5), sharded, slopes)


def test_values_and_gradients_stay_where_the_examples_are(loss):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        values, slopes = compiled(loss.name).eval_shape(*placed(loss, mesh))
    assert values.sharding.spec == P("data")
    for tree, axis in zip(slopes, loss.axes):
        assert all(g.sharding.spec[axis] == "data" for g in jax.tree.leaves(tree))


def test_every_public_name_is_in_the_table_or_has_a_place():
    public = {n for n in dir(L) if not n.startswith("_") and callable(getattr(L, n))}
    assert public == {loss.name.split()[0] for loss in LOSSES} | set(UNLISTED)
    page = (pathlib.Path(__file__).parents[3] / "docs/distillation.md").read_text()
    assert not {name for name in public if f"`{name}`" not in page}
    for name in public - {"TopK", "CRDBank"}:
        assert (
            ">>>" in getattr(L, name).__doc__ and "Source" in getattr(L, name).__doc__
        ) or name in UNLISTED


def test_masked_mean():
    values = jnp.array([1.0, 2.0, jnp.nan, 6.0])
    assert float(L.masked_mean(values, mask=jnp.array([True, False, False, True]))) == 3.5
    assert float(L.masked_mean(values, mask=jnp.zeros(4, bool))) == 0
    positions = jnp.array([[True, False], [False, True], [False, False], [False, False]])
    assert float(L.masked_mean(values, mask=positions)) == 1.5
    assert float(L.masked_mean(jnp.ones(4099, jnp.bfloat16))) == 1.0
    with pytest.raises(ValueError, match="mask: shape"):
        L.masked_mean(values, mask=jnp.ones(3, bool))
