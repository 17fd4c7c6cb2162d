"""Terms: pairs of layers by captured groups, projections, weights; and what is wrong with a pattern
is told.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import jaxprune as jp
from jaxprune.distill import losses, matching
from jaxprune.distill.matching import Context, Projection
from jaxprune.distill.terms import OUTPUT, Pair, pairs, scheduled

match = jp.distill.match
RNG = np.random.default_rng(0)
A, B, C = (RNG.normal(size=(4, 3)).astype(np.float32) for _ in range(3))
WIDE = RNG.normal(size=(4, 5)).astype(np.float32)


def evaluate(term, found, student, teacher, maps, mask=None):
    """The value with trained maps by tap."""
    own = {name: {"project": w} for name, w in maps.items()}
    return matching.evaluate(term, found, student, teacher, own, {}, Context({}, None, mask))[0]


def init_projections(*args):
    """Trained maps by tap; these losses remember nothing."""
    params, memories = matching.init_projections(*args)
    assert memories == {}
    return {name: own["project"] for name, own in params.items()}


def mse(s, t, mask=None):
    return jnp.sum((s - t) ** 2, -1)


def test_pairs_are_made_by_what_the_groups_capture():
    term = match(mse, r"s(\d)/(\w)", r"(?:t|u)(\d)-(\w)")
    found = pairs(term, {"s1/a": 0, "s2/b": 0, "x": 0}, {"u2-b": 0, "t1-a": 0, "y": 0})
    assert found == (Pair("s1/a", "t1-a"), Pair("s2/b", "u2-b"))


def test_without_groups_pairs_are_made_in_order():
    assert pairs(match(mse, "s.", "t."), {"s1": 0, "s0": 0}, {"t9": 0, "t8": 0}) == (
        Pair("s1", "t9"),
        Pair("s0", "t8"),
    )


def test_one_pattern_serves_both_and_none_means_the_outputs():
    assert pairs(match(mse, "h"), {"h": 0}, {"h": 0, "g": 0}) == (Pair("h", "h"),)
    assert pairs(match(mse), {}, {}) == (Pair(OUTPUT, OUTPUT),)


def test_the_value_is_the_mean_over_pairs_and_kept_examples():
    term = match(mse, r"h(\d)")
    keep = np.array([True, False, True, False])
    student = {"h1": A, "h2": B}
    teacher = {"h2": C, "h1": B}
    found = evaluate(term, pairs(term, student, teacher), student, teacher, {}, mask=keep)
    by_hand = [((A - B) ** 2).sum(1)[keep].mean(), ((B - C) ** 2).sum(1)[keep].mean()]
    assert_allclose(found, np.mean(by_hand), rtol=1e-6)
    assert found.dtype == jnp.float32


def test_a_loss_of_the_library_with_its_settings():
    term = match(partial(losses.soft_targets, temperature=3.0))
    found = evaluate(term, pairs(term, {}, {}), {OUTPUT: A}, {OUTPUT: B}, {})
    assert term.name == "soft_targets"
    assert_allclose(found, losses.soft_targets(A, B, temperature=3.0).mean(), rtol=1e-6)


def test_the_teacher_has_no_gradient_and_the_student_has():
    term = match(mse)

    def value(s, t):
        return evaluate(term, pairs(term, {}, {}), {OUTPUT: s}, {OUTPUT: t}, {})

    ours, theirs = jax.grad(value, (0, 1))(A, B)
    assert_allclose(ours, 2 * (A - B) / 4, rtol=1e-6)
    assert_array_equal(theirs, np.zeros_like(B))


def specs(**arrays):
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()}


def test_projections_are_made_where_channels_differ():
    term = match(mse, r"h(\d)", project="auto")
    ours = {"h1": A, "h2": B}
    theirs = {"h1": C, "h2": WIDE}
    found = pairs(term, ours, theirs)
    made = init_projections(term, found, specs(**ours), specs(**theirs), jax.random.key(0))
    assert {name: w.shape for name, w in made.items()} == {"h2": (3, 5)}
    value = evaluate(term, found, ours, theirs, made)
    by_hand = [
        ((A - C) ** 2).sum(1).mean(),
        ((B @ np.asarray(made["h2"]) - WIDE) ** 2).sum(1).mean(),
    ]
    assert_allclose(value, np.mean(by_hand), rtol=1e-5)


def test_a_projection_of_the_given_axis():
    term = match(
        lambda s, t, mask=None: jnp.sum((s - t) ** 2, (1, 2)), "h", project="auto", channel_axis=1
    )
    ours = {"h": np.stack([A, B])}
    theirs = {"h": RNG.normal(size=(2, 6, 3)).astype(np.float32)}
    found = pairs(term, ours, theirs)
    made = init_projections(term, found, specs(**ours), specs(**theirs), jax.random.key(0))
    assert made["h"].shape == (4, 6)
    by_hand = [
        ((np.asarray(made["h"]).T @ x - y) ** 2).sum() for x, y in zip(ours["h"], theirs["h"])
    ]
    assert_allclose(evaluate(term, found, ours, theirs, made), np.mean(by_hand), rtol=1e-5)


def test_a_projection_of_ones_own_and_one_of_linen():
    import flax.linen as nn

    double = Projection(lambda key, x: {"by": jnp.float32(2)}, lambda p, x: p["by"] * x)
    for project, shape in ((double, (4, 3)), (nn.Dense(5), (4, 5))):
        term = match(mse, "h", project=project)
        theirs = {"h": RNG.normal(size=shape).astype(np.float32)}
        found = pairs(term, {"h": A}, theirs)
        made = init_projections(term, found, specs(h=A), specs(**theirs), jax.random.key(0))
        by_hand = ((np.asarray(project.apply(made["h"], A)) - theirs["h"]) ** 2).sum(1).mean()
        assert_allclose(evaluate(term, found, {"h": A}, theirs, made), by_hand, rtol=1e-5)


def told(term, batch, key=None, mask=None):
    """The value on a batch of its own."""
    return matching.evaluate(
        term, pairs(term, {}, {}), {OUTPUT: A}, {OUTPUT: B}, {}, {}, Context(batch, key, mask)
    )[0]


def test_labels_and_a_key_come_to_losses_that_require_them():
    y = np.array([0, 2, 1, 1])
    mask = np.array([True, True, False, True])
    term = match(partial(losses.dkd, temperature=2.0))
    assert_allclose(
        told(term, {"y": y}), losses.dkd(A, B, labels=y, temperature=2.0).mean(), rtol=1e-6
    )
    masked = told(term, {"y": np.where(mask, y, -1)}, mask=mask)
    assert_allclose(
        masked, losses.dkd(A[mask], B[mask], labels=y[mask], temperature=2.0).mean(), rtol=1e-5
    )
    assert np.isnan(jax.jit(lambda y: told(term, {"y": y}))(np.where(mask, y, 3)))
    alone = told(match(losses.born_again), {"y": y})  # what may do without is not given them
    assert_allclose(alone, losses.born_again(A, B).mean(), rtol=1e-6)

    def shuffled(seed):
        return float(told(match(losses.born_again_permuted), {}, jax.random.key(seed)))

    assert shuffled(0) == shuffled(0) != shuffled(1)
    with pytest.raises(
        ValueError, match=r"dkd asks for labels, and the batch has no 'y'; it has \['x'\]"
    ):
        told(term, {"x": A})


def test_weights_are_numbers_or_schedules():
    import optax

    assert scheduled(match(mse, weight=0.3).weight, 7) == 0.3
    assert_allclose(
        scheduled(match(mse, weight=optax.linear_schedule(0.0, 1.0, 10)).weight, 3), 0.3, rtol=1e-6
    )


TAPS = {"layer1": 0, "layer2": 0}
WRONG = {
    "nothing": (("later(.)", "layer(.)"), "student='later.*nearest: 'layer1'"),
    "nothing of the teacher": (("layer(.)", "block(.)"), "teacher='block.*nearest: 'layer1'"),
    "no partner": (("layer(.)", "layer(1)"), "no partner for 'layer2'"),
    "unequal counts": (("layer.", "layer1"), r"matches 2 layers.*and.*'layer1' 1 of"),
    "two of one": (
        ("(l)ayer.", "(l)ayer1"),
        r"'layer1' and 'layer2' of the student both capture \('l',\)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_patterns(case):
    patterns, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        pairs(match(mse, *patterns), TAPS, TAPS)


@pytest.mark.parametrize(
    "kw, message",
    [
        ({"teacher": "h"}, "give student="),
        ({"student": "(a)(b)", "teacher": "(a)b"}, "2 groups and 1"),
        ({"weight": -1.0}, "weight=.*one finite number >= 0"),
        ({"weight": float("nan")}, "weight=.*one finite number >= 0"),
        ({"project": "linear"}, "'auto', or an object with init and apply"),
        (
            {"loss": losses.overhaul},
            r"overhaul needs margin: give functools.partial\(overhaul, margin=…\)",
        ),
    ],
)
def test_bad_terms(kw, message):
    with pytest.raises(ValueError, match=message):
        match(**{"loss": mse, **kw})


@pytest.mark.parametrize("shape", [(4, 2, 3), (5, 3), (4, 2, 5)])
def test_projections_map_channels_only(shape):
    term = match(mse, "h", project="auto")
    with pytest.raises(ValueError, match=r"project='auto' maps axis -1 only"):
        init_projections(
            term,
            (Pair("h", "h"),),
            specs(h=A),
            specs(h=np.zeros(shape, np.float32)),
            jax.random.key(0),
        )
