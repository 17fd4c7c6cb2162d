"""What pruning promises beyond the laws: exact counts, ties, thresholds, NaN, schedules, patterns,
refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxprune as jp
from tests.helpers import bits, compiled_once, model, normal, nothing_compiled


def kept(tree):
    return int(np.sum(np.asarray(tree.mask)))


def by_sorting(w, remove):
    """The mask that a stable sort gives: the smallest go, and of equals those of the highest
    index."""
    order = np.lexsort((-np.arange(w.size), np.abs(w).ravel()))
    mask = np.ones(w.size, bool)
    mask[order[:remove]] = False
    return mask.reshape(w.shape)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 60), st.floats(0, 0.999), st.integers(0, 4), st.integers(0, 99))
def test_exactly_the_rounded_count_goes_and_ties_keep_the_lowest_index(n, sparsity, levels, seed):
    w = np.random.default_rng(seed).integers(-levels, levels + 1, (n, 2)).astype(np.float32)
    tree = jp.prune(sparsity).init(jnp.asarray(w))
    np.testing.assert_array_equal(
        np.asarray(tree.mask), by_sorting(w, min(round(sparsity * w.size), w.size - 1))
    )


def test_global_pruning_equals_one_sort_over_the_whole_tree():
    params = {"p": jnp.round(normal((20, 30)) * 3), "q": jnp.round(normal((7, 11), 1) * 3)}
    tree = jp.prune(0.6, allocate=jp.allocate.global_).init(params)
    flat = np.concatenate([np.asarray(params[k]).ravel() for k in "pq"])
    mask = np.concatenate([np.asarray(tree[k].mask).ravel() for k in "pq"])
    np.testing.assert_array_equal(mask, by_sorting(flat, round(0.6 * flat.size)))


def test_global_pruning_concatenates_nothing():
    params = {"p": normal((20, 30)), "q": normal((7, 11), 1)}
    text = str(jax.make_jaxpr(jp.prune(0.6, allocate=jp.allocate.global_).init)(params))
    assert "concatenate" not in text and " sort" not in text


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_weight_equal_to_the_threshold_is_kept(dtype):
    w = jnp.array([[0.25, -0.25, 0.2490234375, -3.0]], dtype)
    assert jp.prune(threshold=0.25).init(w).mask.tolist() == [[True, True, False, True]]


def test_nan_goes_first_and_leaves_zero_behind():
    w = jnp.array([[jnp.nan, 0.0, 1.0, jnp.inf, -jnp.nan, 2.0]])
    tree = jp.prune(2 / 6).init(w)
    assert tree.mask.tolist() == [[False, True, True, True, False, True]]
    assert np.all(bits(jp.materialize(tree))[0].reshape(6, 4)[[0, 4]] == 0)


def test_pruned_negative_weights_are_plus_zero():
    out = np.asarray(jp.materialize(jp.prune(0.5).init(-jnp.abs(normal((8, 8))))))
    assert np.sum(out == 0) == 32 and not np.any(np.signbit(out[out == 0]))


def test_a_schedule_ends_at_its_target_and_never_revives():
    c = jp.prune(jp.schedules.cubic(0.9, begin=10, end=95))
    tree = c.init(model())
    params = model()
    update = compiled_once(jax.jit(lambda t, s: c.update(t, step=s)))
    before = np.ones((16, 24), bool)
    for step in range(0, 111, 10):
        tree = update(tree, step)
        after = np.asarray(tree["dense"]["kernel"].mask)
        assert not np.any(after & ~before)
        before = after
    assert before.sum() == params["dense"]["kernel"].size - round(
        0.9 * params["dense"]["kernel"].size
    )


def test_one_shot_waits():
    c = jp.prune(jp.schedules.one_shot(0.5, at=3))
    tree = c.init(jnp.eye(4))
    assert kept(tree) == 16 and kept(c.update(tree, step=3)) == 8


def test_a_rate_distortion_curve_is_one_compilation():
    params = model()
    levels = jnp.linspace(0, 0.95, 32)

    @jax.jit
    def curve(levels):
        def loss(s):
            dense = jp.materialize(jp.prune(s, allocate=jp.allocate.global_).init(params))
            return sum(
                jnp.sum((dense[k]["kernel"] - params[k]["kernel"]) ** 2) for k in ("conv", "dense")
            )

        return jax.vmap(loss)(levels)

    losses = np.asarray(curve(levels))
    other = levels[::-1]
    with nothing_compiled():
        curve(other)
    assert losses.shape == (32,) and losses[0] == 0 and np.all(np.diff(losses) >= 0)
    alone = jp.materialize(jp.prune(float(levels[16]), allocate=jp.allocate.global_).init(params))
    exact = sum(
        float(jnp.sum((alone[k]["kernel"] - params[k]["kernel"]) ** 2)) for k in ("conv", "dense")
    )
    assert losses[16] == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("name", ["uniform", "erk", "global_", "lamp"])
@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.9])
def test_allocations_meet_the_total_exactly(name, sparsity):
    params = {"p": normal((30, 50)), "q": normal((10, 10), 1), "r": normal((100, 3), 2)}
    tree = jp.prune(sparsity, allocate=getattr(jp.allocate, name)).init(params)
    gone = sum(x.mask.size - kept(x) for x in tree.values())
    slack = 1.5 if name == "uniform" else 0  # each leaf rounds by itself
    assert abs(gone - round(sparsity * 1900)) <= slack


def test_erk_keeps_leaves_with_few_weights_for_their_sides_denser():
    n = {"wide": 10_000, "mid": 2_500, "tiny": 16}
    params = {"wide": jnp.ones((100, 100)), "mid": jnp.ones((50, 50)), "tiny": jnp.ones((4, 4))}
    counts = jp.allocate.erk(params, None, 0.8)
    density = {k: 1 - counts[k] / n[k] for k in n}
    assert counts["tiny"] == 0 and sum(counts.values()) == round(0.8 * 12_516)
    assert density["mid"] / density["wide"] == pytest.approx(
        2.0, rel=1e-2
    )  # (50+50)/50² over (100+100)/100²


def test_lamp_is_the_paper_s_score():
    rng = np.random.default_rng(0)
    params = {
        "a": rng.standard_normal(40).astype(np.float32),
        "b": 10 * rng.standard_normal(25).astype(np.float32),
    }
    scores = {}
    for k, w in params.items():
        scores[k] = np.array(
            [w[i] ** 2 / sum(v**2 for v in w if v**2 >= w[i] ** 2) for i in range(w.size)]
        )
    cut = np.sort(np.concatenate(list(scores.values())))[32]
    counts = jp.allocate.lamp({k: jnp.asarray(w) for k, w in params.items()}, None, 32 / 65)
    assert {k: int(c) for k, c in counts.items()} == {
        k: int(np.sum(s < cut)) for k, s in scores.items()
    }


def test_n_m_runs_along_the_contraction_axis():
    w = normal((3, 3, 8, 6))
    mask = np.asarray(jp.prune(pattern=jp.patterns.n_m(2, 4)).init(w).mask)
    assert np.all(mask.reshape(3, 3, 2, 4, 6).sum(3) == 2)
    best = np.sort(np.abs(np.asarray(w)).reshape(3, 3, 2, 4, 6), 3)[:, :, :, 2:].sum()
    assert np.abs(np.asarray(w))[mask].sum() == pytest.approx(best, rel=1e-6)


def test_blocks_and_channels_go_whole():
    w = normal((8, 12))
    blocks = np.asarray(jp.prune(0.5, pattern=jp.patterns.block(4, 3)).init(w).mask).reshape(
        2, 4, 4, 3
    )
    sums = np.abs(np.asarray(w)).reshape(2, 4, 4, 3).sum((1, 3))
    whole = blocks.all((1, 3))
    assert (
        np.array_equal(whole, blocks.any((1, 3)))
        and whole.sum() == 4
        and sums[whole].min() > sums[~whole].max()
    )
    units = np.asarray(jp.prune(0.25, pattern=jp.patterns.channel(-2)).init(w).mask)
    assert np.array_equal(units.all(1), units.any(1)) and units.all(1).sum() == 6


def test_a_removed_unit_takes_its_bias_only_where_it_is_an_output():
    params = {"kernel": jnp.diag(jnp.array([3.0, 0.1, 2.0])), "bias": jnp.ones(3), "b": jnp.ones(4)}
    out = jp.prune(threshold=0.5, pattern=jp.patterns.channel(-1)).init(params)
    assert out["bias"].mask.tolist() == [True, False, True] and not isinstance(out["b"], jp.Masked)
    inputs = jp.prune(threshold=0.5, pattern=jp.patterns.channel(-2)).init(params)
    assert not isinstance(inputs["bias"], jp.Masked)


def test_a_score_decides_and_may_be_a_tree_or_a_function():
    w = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    score = jnp.array([[4.0, 3.0], [-2.0, 1.0]])
    want = [[True, True], [False, False]]
    assert jp.prune(0.5, score={"k": score}).init({"k": w})["k"].mask.tolist() == want
    assert jp.prune(0.5, score=lambda p: {"k": score}).init({"k": w})["k"].mask.tolist() == want
    grads = {"k": jnp.array([[9.0, 9.0], [0.0, 0.0]])}
    assert (
        jp.prune(0.5, score=jp.scores.saliency).init({"k": w}, grads=grads)["k"].mask.tolist()
        == want
    )


def test_random_scores_need_a_key_and_depend_on_the_path_alone():
    c = jp.prune(0.5, score=jp.scores.random)
    key = jax.random.key(3)
    q = jnp.ones((6, 6))
    small = c.init({"q": q}, key=key)
    large = c.init({"p": jnp.ones((5, 5)), "q": q}, key=key)
    np.testing.assert_array_equal(small["q"].mask, large["q"].mask)
    with pytest.raises(ValueError, match=r"random needs key: .*key=jax\.random\.key"):
        c.init({"q": q})


BAD = {
    "above one": (lambda: jp.prune(1.0), r"prune\(sparsity=1\.0\).*\[0, 1\)"),
    "negative": (lambda: jp.prune(-0.1), r"\[0, 1\)"),
    "ninety": (lambda: jp.prune(90), r"prune\(sparsity=90\)"),
    "nothing given": (lambda: jp.prune(), "one of sparsity="),
    "two given": (lambda: jp.prune(0.5, threshold=1.0), "one of sparsity="),
    "n above m": (lambda: jp.patterns.n_m(5, 4), r"n_m\(n=5, m=4\)"),
    "n:m with a sparsity": (
        lambda: jp.prune(0.5, pattern=jp.patterns.n_m(2, 4)),
        "fixes the sparsity",
    ),
    "an axis that is no word": (
        lambda: jp.patterns.channel("inputs"),
        r"channel\(axis='inputs'\): choose one of 'outputs'",
    ),
    "block of nothing": (lambda: jp.patterns.block(0, 4), "at least 1"),
    "schedule": (lambda: jp.schedules.cubic(0.9, 10, 10), "end must come after begin"),
    "schedule target": (lambda: jp.schedules.cubic(1.5, 0, 10), r"\[0, 1\)"),
    "axis n:m does not divide": (
        lambda: jp.prune(pattern=jp.patterns.n_m(2, 4)).init({"k": jnp.ones((6, 8))}),
        r"^k: float32.*\(6, 8\).*not a multiple of 4",
    ),
    "axis that is not there": (
        lambda: jp.prune(0.5, pattern=jp.patterns.channel(3)).init({"k": jnp.ones((6, 8))}),
        r"^k: float32.*channel\(3\).*\(6, 8\)",
    ),
    "block does not divide": (
        lambda: jp.prune(0.5, pattern=jp.patterns.block(4, 4)).init({"k": jnp.ones((6, 8))}),
        r"^k: float32.*block\(4, 4\).*\(6, 8\)",
    ),
    "empty leaf": (
        lambda: jp.prune(0.5).init({"k": jnp.ones((0, 4))}),
        r"k: float32\[0, 4\] is empty.*size\(min=1\)",
    ),
    "integer leaf": (
        lambda: jp.prune(0.5, where={"k": True}).init({"k": jnp.ones((4, 4), jnp.int32)}),
        r"k: int32\[4, 4\] is not a float array",
    ),
    "only integers": (
        lambda: jp.prune(0.5).init({"k": jnp.ones((4, 4), jnp.int32)}),
        "matches nothing",
    ),
    "threshold removes everything": (
        lambda: jp.prune(threshold=9).init({"k": jnp.full((2, 2), 0.5)}),
        r"threshold=9 removes every weight of k: float32\[2, 2\], whose largest \|w\| is 0\.5",
    ),
    "path rule": (
        lambda: jp.prune({"kernle": 0.5}).init({"kernel": jnp.ones((2, 2))}),
        r"'kernle'.*Nearest: 'kernel'",
    ),
    "score of another shape": (
        lambda: jp.prune(0.5, score={"k": jnp.ones(3)}).init({"k": jnp.ones((2, 2))}),
        r"score of k: float32\[2, 2\] has the shape \(3,\)",
    ),
    "score lacks a leaf": (
        lambda: jp.prune(0.5, score={"j": jnp.ones((2, 2))}).init({"k": jnp.ones((2, 2))}),
        r"score tree has no leaf 'k'",
    ),
    "schedule leaves its range": (
        lambda: jp.prune(lambda t: jnp.float32(1.2)).init({"k": jnp.ones((2, 2))}),
        "gives 1.2",
    ),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_input_is_refused_with_path_shape_value_and_fix(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_rule_that_matches_nothing_lists_the_nearest_paths():
    with pytest.raises(ValueError) as caught:
        jp.prune(0.5, where=jp.where.path("dens/kernel")).init(model())
    text = str(caught.value)
    assert "path('dens/kernel')" in text and text.index("dense/kernel") < text.index("conv/kernel")
    assert all(name in text for name in ("embed/embedding", "dense/bias", "steps"))


def test_pruning_again_never_revives():
    w = normal((10, 10))
    twice = jp.chain(jp.prune(0.5), jp.prune(0.2)).init(w)
    np.testing.assert_array_equal(twice.mask, jp.prune(0.5).init(w).mask)
    falling = jp.prune(lambda t: jnp.where(t < 1, 0.5, 0.1))
    assert kept(falling.update(falling.init(w), step=1)) == 50


def test_path_rules_match_whole_paths():
    with pytest.raises(ValueError, match="matches no path"):
        jp.prune({"dense": 0.5}).init({"dense": {"kernel": normal((4, 4))}})


def test_scores_of_minus_infinity_do_not_bring_pruned_weights_back():
    """A log of a saliency of 0 is −inf; what is pruned already is lower still."""
    w = {"kernel": jnp.arange(1.0, 17.0).reshape(4, 4)}
    half = jp.prune(0.5).init(w)
    more = jp.prune(0.75, score={"kernel": jnp.full((4, 4), -jnp.inf)}).init(half)
    assert int(more["kernel"].mask.sum()) == 4
    assert not bool(jnp.any(more["kernel"].mask & ~half["kernel"].mask))
