"""One step for all leaves, cheap levels: against NumPy that reads like the formula, and the
targets."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxprune as jp
from jaxprune.coding.code_lengths import entropy_bits
from jaxprune.numerics import rate
from tests.helpers import is_code, model, normal


def host(x):
    return np.asarray(x, np.float64)


def laplace(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).laplace(size=shape), jnp.float32)


def reference(w, step, c, rounds=rate.ROUNDS):
    """min (a − k)² + c ℓ_k over the two neighbours, weight by weight; lengths from the levels of
    the round before."""
    a = abs(np.asarray(w, np.float64).ravel()) / step
    q = np.round(a).astype(int)
    for _ in range(rounds):
        n = np.bincount(q, minlength=int(a.max()) + 3) + 0.5
        top = 2**15
        bits = np.log2(n.sum() + (top - n.size) / 2) - np.log2(n) + (np.arange(n.size) > 0)
        for i, x in enumerate(a):
            low = int(np.floor(x))
            cost = [(x - k) ** 2 + c * bits[k] for k in (low, low + 1)]
            q[i] = low + int(cost[1] < cost[0])
    return (np.sign(np.asarray(w)).ravel() * q).reshape(np.shape(w))


@pytest.mark.parametrize("step", [0.1, 0.5, 1.5])
def test_levels_minimise_distortion_and_length(step):
    w = laplace((40, 30))
    tree = jp.entropy_quantize(step=step).init(w)
    want = reference(w, np.float64(np.float32(step)), rate.SLOPE)
    assert (
        np.mean(np.asarray(tree.q) != want) < 2e-3
    )  # float32 may fall to the other side of a border
    assert np.any(want != np.round(host(w) / step)), "no weight moved: the test shows nothing"
    assert tree.q.dtype == jnp.int16 and tree.scale.shape == (1, 1)
    np.testing.assert_array_equal(
        host(jp.materialize(tree)), host(np.float32(step) * np.asarray(tree.q, np.float32))
    )


def test_host_compiled_and_sharded_kernels_agree():
    w = laplace((64, 40))
    eager = rate.quantize(w, 0.3)
    np.testing.assert_array_equal(eager, jax.jit(rate.quantize)(w, 0.3))
    mask = laplace((64, 40), 1) > 0
    np.testing.assert_array_equal(rate.quantize(w, 0.3, mask), jax.jit(rate.quantize)(w, 0.3, mask))
    assert np.all(np.asarray(rate.quantize(w, 0.3, mask))[~np.asarray(mask)] == 0)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(0.05, 2.0))
def test_a_larger_slope_never_needs_more_bits(seed, step):
    data = rate.ordered([np.asarray(laplace((50, 20), seed))])
    few = [rate.trial(data, step, c) for c in (0.0, 0.05, 0.1, 0.2, 0.4)]
    for a, b in itertools.pairwise(few):
        assert b.bits <= a.bits * (1 + 1e-3) and b.noise >= a.noise * (1 - 1e-3)


def test_a_trial_counts_what_the_levels_cost():
    leaves = [np.asarray(laplace((30, 20), s)) * (1 + s) for s in range(3)]
    leaves[1][:10] = 0
    found = rate.trial(rate.ordered(leaves), 0.4, 0.1)
    bits = noise = 0
    for w, border in zip(leaves, found.border):
        q = rate.signed(rate.place(rate.magnitudes(w, np.float32(0.4)), border, 0), w).astype(int)
        bits += entropy_bits(np.bincount((q - q.min()).ravel()))
        noise += np.sum((host(w) - 0.4 * q) ** 2)
    assert found.bits == pytest.approx(bits, rel=1e-6) and found.noise == pytest.approx(
        noise, rel=1e-5
    )


@pytest.mark.parametrize("pruned", [0.0, 0.8])
@pytest.mark.parametrize("target", [12.0, 25.0, 40.0])
def test_an_sqnr_is_just_reached(target, pruned):
    params = {"a": laplace((60, 50)), "c": 3 * laplace((3, 3, 8, 16), 1)}
    sparse = jp.prune(pruned, allocate=jp.allocate.global_).init(params)
    tree = jp.entropy_quantize(sqnr=target).init(sparse)
    reached = jp.measure.sqnr(jp.materialize(sparse), tree)
    assert target <= reached <= target + 0.02
    scales = {float(x.values.scale.squeeze()) for x in jax.tree.leaves(tree, is_leaf=is_code)}
    assert len(scales) == 1, "one step for all leaves"


def test_fewer_bits_than_plain_rounding_at_the_same_sqnr():
    w = laplace((300, 300))
    tree = jp.entropy_quantize(sqnr=10).init(w)
    plain = [np.round(host(w) / s) for s in np.geomspace(0.5, 2, 400)]
    sqnr = [
        10 * np.log10(np.sum(host(w) ** 2) / np.sum((host(w) - s * q) ** 2))
        for s, q in zip(np.geomspace(0.5, 2, 400), plain)
    ]
    rounded = plain[max(i for i, db in enumerate(sqnr) if db >= 10)]

    def bits(q):
        return entropy_bits(np.unique(q, return_counts=True)[1])

    assert bits(np.asarray(tree.q)) < 0.97 * bits(rounded)


@pytest.mark.parametrize("pruned", [0.0, 0.9])
@pytest.mark.parametrize("target", [0.4, 2.0, 4.0])
def test_bits_per_weight_are_just_kept_to(target, pruned):
    params = {"a": laplace((100, 50)), "c": 3 * laplace((3, 3, 16, 16), 1)}
    tree = jp.entropy_quantize(bits_per_weight=target).init(jp.prune(pruned).init(params))
    codes = [x.values for x in jax.tree.leaves(tree, is_leaf=is_code)]
    bits = sum(entropy_bits(np.unique(x.q, return_counts=True)[1]) for x in codes) / sum(
        x.q.size for x in codes
    )
    assert bits <= target * (1 + 1e-6)
    assert bits >= 0.97 * target or pruned, "the budget is used"


def test_a_kept_weight_at_level_0_is_pruned():
    sparse = jp.prune(0.5).init({"kernel": laplace((30, 20))})
    for c in (jp.entropy_quantize(step=2.0), jp.entropy_quantize(sqnr=3)):
        code = c.init(sparse)["kernel"]
        np.testing.assert_array_equal(np.asarray(code.mask), np.asarray(code.values.q) != 0)
        assert int(code.mask.sum()) < int(sparse["kernel"].mask.sum()), (
            "none went: the test shows nothing"
        )
        assert not np.any(np.asarray(code.mask) & ~np.asarray(sparse["kernel"].mask))


def test_pruned_weights_do_not_count():
    w = laplace((30, 20))
    mask = laplace((30, 20), 1) > 0
    a, b = (jp.Masked(jnp.where(mask, w, x), mask) for x in (1e30, jnp.nan))
    for c in (
        jp.entropy_quantize(step=0.25),
        jp.entropy_quantize(sqnr=20),
        jp.entropy_quantize(bits_per_weight=2),
    ):
        one, two = (c.init({"kernel": x})["kernel"] for x in (a, b))
        np.testing.assert_array_equal(one.values.q, two.values.q)
        np.testing.assert_array_equal(one.values.scale, two.values.scale)


@pytest.mark.slow
def test_a_step_may_be_traced_and_vmapped():
    w = laplace((30, 20))
    curve = jax.vmap(lambda s: jp.measure.distortion(w, jp.entropy_quantize(step=s).init(w)))(
        jnp.array([0.1, 0.3, 1.0])
    )
    for s, d in zip((0.1, 0.3, 1.0), curve):
        assert float(d) == pytest.approx(
            jp.measure.distortion(w, jp.entropy_quantize(step=s).init(w)), rel=1e-3
        )


def test_16_bit_weights_reach_their_sqnr_and_project():
    w = laplace((60, 50)).astype(jnp.bfloat16)
    tree = jp.entropy_quantize(sqnr=30).init({"kernel": w})
    assert jp.materialize(tree)["kernel"].dtype == jnp.bfloat16
    assert jp.measure.sqnr({"kernel": w}, tree) >= 30
    once = jp.materialize(jp.entropy_quantize(step=0.1).init(w))
    np.testing.assert_array_equal(once, jp.materialize(jp.entropy_quantize(step=0.1).init(once)))


def test_a_codebook_is_reached_by_its_field():
    tree = jp.cluster(k=8).init({"kernel": laplace((30, 20))})
    small = jp.at(jp.where.field("codebook"), jp.entropy_quantize(step=0.01)).init(tree)
    assert isinstance(small["kernel"].codebook, jp.Quantized)
    np.testing.assert_allclose(
        small["kernel"].codebook.materialize(), tree["kernel"].codebook, atol=0.0101
    )


def test_levels_that_do_not_fit_are_refused_and_saturate_under_trace():
    w = jnp.array([[1.0, -40000.0]])
    with pytest.raises(ValueError, match=r"level 40000.*step >= 1.22"):
        jp.entropy_quantize(step=1).init({"kernel": w})
    np.testing.assert_array_equal(jax.jit(jp.entropy_quantize(step=1).init)(w).q, [[1, -32767]])


@pytest.mark.parametrize(
    "given, says",
    [
        ({}, "one of step=, sqnr= and"),
        ({"step": 0.1, "sqnr": 20}, "step and sqnr"),
        ({"step": 0}, "positive"),
        ({"step": -0.1}, "positive"),
        ({"step": float("nan")}, "finite"),
        ({"step": jnp.inf}, "finite"),
        ({"step": jnp.ones(2)}, "one positive"),
        ({"sqnr": 0}, "positive"),
        ({"sqnr": float("inf")}, "finite"),
        ({"bits_per_weight": -1}, "positive"),
    ],
)
def test_bad_budgets_are_refused(given, says):
    with pytest.raises(ValueError, match=says):
        jp.entropy_quantize(**given)


def test_bad_leaves_are_refused():
    c = jp.entropy_quantize(sqnr=20)
    with pytest.raises(ValueError, match="all weights of kernel"):
        c.init({"kernel": jnp.zeros((4, 4))})
    with pytest.raises(ValueError, match=r"kernel.*1 NaN"):
        c.init({"kernel": normal((4, 4)).at[0, 0].set(jnp.nan)})
    with pytest.raises(ValueError, match=r"is empty"):
        jp.at(jp.where.every_leaf, c).init({"kernel": jnp.zeros((0, 4))})
    with pytest.raises(ValueError, match="not a float array"):
        jp.at({"kernel": True}, c).init({"kernel": jnp.ones((4, 4), jnp.int32)})
    with pytest.raises(ValueError, match="traced: give step"):
        jax.jit(c.init)({"kernel": normal((4, 4))})
    with pytest.raises(ValueError, match=r"sqnr=200.*do not reach"):
        jp.entropy_quantize(sqnr=200).init(model())


def test_all_zeros_and_a_leaf_of_one_weight():
    assert not np.any(jp.entropy_quantize(step=0.1).init(jnp.zeros((3, 3))).q)
    one = jp.entropy_quantize(sqnr=40).init(jnp.full((1, 1), 0.3))
    assert float(jp.materialize(one)[0, 0]) == pytest.approx(0.3, rel=0.01)
    two = jp.entropy_quantize(sqnr=20).init({"a": normal((9, 9)), "c": jnp.zeros((9, 9))})
    assert not np.any(two["c"].q)


def test_bits_per_weight_are_met_in_the_file_or_refused(tmp_path):
    rng = np.random.default_rng(0)
    outliers = rng.normal(size=(200, 200))
    outliers[0, :2] = [1e5, -1e5]
    met = {
        "signs": np.sign(rng.normal(size=(200, 200))),
        "three values": rng.choice([-0.7, 0.0, 1.3], (200, 200)),
        "normal": rng.normal(size=(200, 200)),
        "laplace": rng.laplace(size=(200, 200)),
        "cauchy": np.clip(rng.standard_cauchy((200, 200)), -300, 300),
    }
    for name, x in met.items():
        path = tmp_path / "weights"
        jp.save(
            path, jp.entropy_quantize(bits_per_weight=3).init({"w": jnp.asarray(x, jnp.float32)})
        )
        # Beside the levels a file has a manifest and a table of frequencies, about two bytes a
        # level.
        assert 8 * path.stat().st_size / x.size < 3.15, name
    with pytest.raises(ValueError, match="100000, has the last level of 16 bits already"):
        jp.entropy_quantize(bits_per_weight=3).init({"w": jnp.asarray(outliers, jnp.float32)})
