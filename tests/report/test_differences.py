"""Comparing arrays: errors by hand, the ends of the float range, and what is never said to be
equal."""

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.report import differences
from jaxprune.report.differences import difference, together

INF = math.inf
NAN = math.nan


def row(a, b, dtype=np.float32):
    return difference("w", np.array(a, dtype), np.array(b, dtype))


def test_errors_by_hand():
    found = row([3.0, 0.0, 4.0, 1.0], [3.0, 1.0, 0.0, 1.0])
    assert (found.changed, found.max_error, found.new_zeros, found.lost_zeros) == (2, 4, 1, 1)
    assert found.relative == pytest.approx((17 / 26) ** 0.5)
    assert found.sqnr == pytest.approx(10 * math.log10(26 / 17))
    assert not found.same and not found.exact


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.complex64]
)
def test_equal_infinities_and_nans_are_equal(dtype):
    found = row([1, INF, -INF, NAN], [1, INF, -INF, NAN], dtype)
    assert found.exact and found.sqnr == INF and found.relative == 0


@pytest.mark.parametrize(
    "a, b", [(INF, -INF), (NAN, INF), (NAN, 0.0), (1.0, NAN), (INF, 3.0), (0.0, -INF)]
)
def test_what_is_not_finite_and_differs_is_counted_and_hides_nothing(a, b):
    found = row([10.0, 1.0, a], [10.0, 0.0, b])
    assert (found.changed, found.not_finite) == (2, 1) and not found.same
    assert found.max_error == 1 and found.sqnr == pytest.approx(
        10 * math.log10(101)
    )  # of the finite entries
    alone = row([10.0, a], [10.0, b])
    assert not alone.same and alone.not_finite == 1


def test_zeros_of_another_sign_and_nans_of_other_bits_are_equal_but_not_exact():
    other_nan = np.array([0x7FC00001], np.uint32).view(np.float32)[0]
    found = row([-0.0, 1.0, NAN], [0.0, 1.0, other_nan])
    assert found.same and not found.exact and found.other_bits == 2


@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e150, 1e-160, 1e300])
def test_squares_that_leave_the_range_of_floats(scale):
    dtype = np.float32 if 1e-30 <= scale <= 1e30 else np.float64
    found = row(np.array([10.0, 1.0]) * scale, np.array([10.0, 0.0]) * scale, dtype)
    assert found.sqnr == pytest.approx(10 * math.log10(101), rel=1e-6)
    assert found.relative == pytest.approx(101**-0.5, rel=1e-6)


def test_the_widest_difference_of_two_floats():
    largest = np.finfo(np.float64).max
    found = row([largest, 1.0], [-largest, 1.0], np.float64)
    assert found.relative == pytest.approx(2) and found.sqnr == pytest.approx(-20 * math.log10(2))
    least = np.nextafter(0, 1)
    tiny = row([least, 0.0], [2 * least, 0.0], np.float64)
    assert tiny.changed == 1 and tiny.max_error == least and tiny.sqnr == pytest.approx(0)


@pytest.mark.parametrize(
    "a, b, dtype, error",
    [
        (2**63 - 1, 2**63 - 2, np.int64, 1),  # one float64
        (-(2**63), 2**63 - 1, np.int64, 2.0**64),
        (2**64 - 1, 0, np.uint64, 2.0**64),
        (-128, 127, np.int8, 255),
        (True, False, bool, 1),
    ],
)
def test_integers_and_booleans(a, b, dtype, error):
    found = row([a], [b], dtype)
    assert found.changed == 1 and found.max_error == error and not found.same


@pytest.mark.parametrize(
    "a, b, sqnr, relative", [([0.0], [1.0], -INF, INF), ([0.0], [0.0], INF, 0), ([], [], INF, 0)]
)
def test_zero_references_and_empty_arrays(a, b, sqnr, relative):
    assert (row(a, b).sqnr, row(a, b).relative) == (sqnr, relative)


def test_other_dtypes_and_shapes_are_a_difference_whatever_the_values():
    other_dtype = difference("w", np.ones(2, np.float32), np.ones(2))
    assert (
        not other_dtype.same
        and other_dtype.note == "float32 became float64"
        and not other_dtype.changed
    )
    other_shape = difference("w", np.ones(2), np.ones((2, 1)))
    assert not other_shape.same and not other_shape.compared
    assert not together("all", [other_dtype]).same and not together("all", [other_shape]).same
    assert together("all", []).exact


def test_blocks_add_up(monkeypatch):
    draw = np.random.default_rng(0)
    a = draw.normal(size=101).astype(np.float32)
    b = np.where(draw.random(101) < 0.3, 0, a).astype(np.float32)
    a[7] = NAN
    b[50] = INF
    whole = difference("w", a, b)
    monkeypatch.setattr(differences, "BLOCK", 10)
    parts = difference("w", a, b)
    for name, value in whole._asdict().items():
        assert getattr(parts, name) == (
            pytest.approx(value) if isinstance(value, float) else value
        ), name


# --- the same laws for `jp.measure.sqnr` and `distortion`, on the host and under trace ---


def both_ways(f, params, tree):
    """f on concrete arrays, and compiled."""
    return float(f(params, tree)), float(jax.jit(f)(params, tree))


def test_kept_leaves_do_not_make_a_loss_look_small():
    w = jnp.array([[10.0, 1.0]])
    tree = {"kernel": jp.prune(0.5).init(w), "variance": 1e4 * jnp.ones(64)}
    for found in both_ways(jp.measure.sqnr, {"kernel": w, "variance": 1e4 * jnp.ones(64)}, tree):
        assert found == pytest.approx(10 * math.log10(101), rel=1e-5)
    # but a leaf that should be kept and differs does count
    for found in both_ways(jp.measure.sqnr, {"kernel": w, "variance": jnp.ones(64)}, tree):
        assert found < -40


def test_one_codebook_for_a_tree_is_a_code_of_each_leaf():
    params = {
        "a": jnp.arange(6.0).reshape(2, 3),
        "c": jnp.arange(8.0).reshape(2, 4),
        "bias": 1e4 * jnp.ones(3),
    }
    tree = jp.cluster(k=3, scope="tree").init(params)
    assert max(both_ways(jp.measure.sqnr, params, tree)) < 40


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_sqnr_of_large_and_small_weights(scale):
    w = scale * jnp.array([[10.0, 1.0]])
    for found in both_ways(jp.measure.sqnr, w, jp.prune(0.5).init(w)):
        assert found == pytest.approx(10 * math.log10(101), rel=1e-5)


def test_a_causal_mask_beside_the_weights_loses_nothing():
    w = jnp.array([[10.0, 1.0]])
    mask = jnp.array([0.0, -INF, NAN])
    tree = {"kernel": jp.prune(0.5).init(w), "mask": mask}
    for found in both_ways(jp.measure.sqnr, {"kernel": w, "mask": mask}, tree):
        assert found == pytest.approx(10 * math.log10(101), rel=1e-5)
    for found in both_ways(jp.measure.distortion, {"kernel": w, "mask": mask}, tree):
        assert found == 1
    for found in both_ways(jp.measure.distortion, {"kernel": w, "mask": jnp.zeros(3)}, tree):
        assert found == INF
    for found in both_ways(jp.measure.sqnr, {"kernel": w, "mask": jnp.zeros(3)}, tree):
        assert found == -INF


@pytest.mark.parametrize(
    "a, b, expected", [([0.0], [0.0], INF), ([0.0], [1.0], -INF), ([], [], INF)]
)
def test_sqnr_of_zeros_and_of_nothing(a, b, expected):
    for found in both_ways(jp.measure.sqnr, {"w": jnp.array(a)}, {"w": jnp.array(b)}):
        assert found == expected
    assert jp.measure.sqnr({}, {}) == INF and jp.measure.distortion({}, {}) == 0
