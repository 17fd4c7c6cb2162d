"""Losses on logits: their limits, identities and ends, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.distill.losses.table import L, close, labels, normal, quick, z_s, z_t
from tests.reference import distill_losses as reference

y = labels["labels"]


def test_at_a_high_temperature_the_gradient_is_the_logits_difference():
    slope = quick(jax.grad(lambda s: L.soft_targets(s, z_t, temperature=1e3).sum()))(z_s)

    def centred(z):
        return z - z.mean(-1, keepdims=True)

    close(slope, (centred(z_s) - centred(z_t)) / 5, rtol=0.02, atol=0.002)
    close(
        L.soft_targets(z_s, z_t, temperature=1e3),
        reference.soft_targets(z_s.astype(float), z_t.astype(float), temperature=1e3),
        1e-4,
    )
    close(
        L.soft_targets(centred(z_s), centred(z_t), temperature=1e4),
        L.logit_mse(centred(z_s), centred(z_t)) / 2,
        0.01,
    )


def test_the_gradient_is_temperature_times_the_difference_of_probabilities():
    slope = quick(jax.grad(lambda s: L.soft_targets(s, z_t, temperature=3.0).sum()))(z_s)
    close(slope, 3 * (jax.nn.softmax(z_s / 3) - jax.nn.softmax(z_t / 3)))


def test_small_divergences_keep_their_digits():
    near = z_t + normal(3, *z_t.shape, scale=1e-3)
    values = L.forward_kl(near, z_t)
    close(
        values,
        reference.forward_kl(near.astype(float), z_t.astype(float), temperature=1.0),
        2e-3,
        0,
    )
    assert (np.asarray(values) > 0).all() and (np.asarray(L.forward_kl(z_t, z_t)) == 0).all()


def test_tokens_are_examples():
    s = z_s.reshape(2, 4, 5)
    t = z_t.reshape(2, 4, 5)
    keep = np.arange(8).reshape(2, 4) % 3 > 0
    values = quick(lambda s, t: L.soft_targets(s, t, mask=keep))(s, t)
    assert values.shape == (2, 4)
    flat = np.asarray(L.soft_targets(z_s, z_t))
    close(values, flat.reshape(2, 4) * keep)
    close(L.masked_mean(values, keep), flat[keep.reshape(-1)].mean())
    close(quick(L.soft_targets)(z_s[1], z_t[1]), flat[1])


def test_decoupled_is_coupled_where_the_paper_says():
    target = L.dkd(z_s, z_t, labels=y, alpha=1.0, beta=0.0, temperature=3.0)
    others = L.dkd(z_s, z_t, labels=y, alpha=0.0, beta=1.0, temperature=3.0)
    sure = np.take_along_axis(np.asarray(jax.nn.softmax(z_t / 3)), y[:, None], -1)[:, 0]
    close(target + (1 - sure) * others, L.soft_targets(z_s, z_t, temperature=3.0))


def test_decoupled_of_a_teacher_that_is_certain():
    certain = np.array(
        [[200.0, 1.0, 0.0]], np.float32
    )  # log(1 - p) of rounded probabilities would be -inf
    student = np.array([[200.0, 0.0, 1.0]], np.float32)
    p = np.exp([1.0, 0.0]) / (1 + np.e)
    q = np.exp([0.0, 1.0]) / (1 + np.e)
    values = quick(lambda s, t: L.dkd(s, t, labels=np.array([0]), beta=1.0, temperature=1.0))(
        student, certain
    )
    close(values, [np.sum(p * np.log(p / q))])


def test_the_ends_of_the_jensen_shannon_divergence():
    forward = L.forward_kl(z_s, z_t)
    reverse = L.reverse_kl(z_s, z_t)
    close(L.jsd(z_s, z_t, beta=0.0), forward)
    close(L.jsd(z_s, z_t, beta=1), reverse)
    close(L.jsd(z_s, z_t, beta=1e-3) / 1e-3, forward, 0.02)
    close(L.jsd(z_s, z_t, beta=1 - 1e-3) / 1e-3, reverse, 0.05)
    close(L.jsd(z_s, z_t, beta=0.5), L.jsd(z_t, z_s, beta=0.5))
    close(L.jsd(z_s, z_t, beta=0.2), L.jsd(z_t, z_s, beta=0.8))
    traced = quick(lambda b: L.jsd(z_s, z_t, beta=b))
    for beta, wanted in ((0.0, forward), (1.0, reverse), (0.3, L.jsd(z_s, z_t, beta=0.3))):
        close(traced(beta), wanted)


def test_a_schedule_may_be_traced():
    f = quick(lambda t, a: L.soft_and_hard(z_s, z_t, labels=y, alpha=a, temperature=t))
    close(f(3.0, 0.7), L.soft_and_hard(z_s, z_t, labels=y, alpha=0.7, temperature=3))
    close(f(2.0, 1.0), L.soft_targets(z_s, z_t, temperature=2.0))
    close(
        f(2.0, 0.0), -np.take_along_axis(np.asarray(jax.nn.log_softmax(z_s)), y[:, None], -1)[:, 0]
    )


def test_a_temperature_may_be_learned():
    part = np.where(np.arange(5) < 2, -np.inf, z_t).astype(np.float32)
    slope = quick(jax.grad(lambda t: L.soft_targets(z_s, part, temperature=t).sum()))
    whole = quick(lambda t: L.soft_targets(z_s, part, temperature=t).sum())
    close(slope(2.0), (whole(2.05) - whole(1.95)) / 0.1, 1e-2)


def test_a_student_cannot_hide_its_mass_in_the_tail():
    teacher = np.log(np.array([[0.5, 0.3, 0.1, 0.1]], np.float32))
    hidden = np.log(np.array([[0.05, 0.03, 0.01, 0.91]], np.float32))
    value, slope = quick(jax.value_and_grad(lambda s: L.top_k(s, teacher, k=2)[0]))(hidden)
    assert value > 1.5 and np.abs(slope).max() > 0.1

    # what other libraries compare
    def renormalised(z):
        return jax.nn.log_softmax(z[:, :2])

    close(renormalised(hidden), renormalised(teacher))


def test_more_classes_tell_more_and_all_of_them_all():
    by_k = np.stack(
        quick(lambda s, t: [L.top_k(s, t, k=k, temperature=2.0) for k in range(1, 6)])(z_s, z_t)
    )
    assert (np.diff(by_k, axis=0) > -1e-5).all()
    close(by_k[-1], L.soft_targets(z_s, z_t, temperature=2.0))


def test_a_stored_teacher_is_the_teacher():
    stored = quick(lambda t: L.top_k_teacher(t, 2, temperature=2.0))(z_t)
    assert stored.log_probs.shape == stored.indices.shape == (8, 2) and stored.log_tail.shape == (
        8,
    )
    total = jnp.exp(stored.log_probs).sum(-1) + jnp.exp(stored.log_tail)
    close(total, np.ones(8))
    mask = np.arange(8) != 3
    rotten = stored._replace(
        log_probs=stored.log_probs.at[3].set(jnp.nan), indices=stored.indices.at[3].set(99)
    )
    wanted = np.asarray(quick(lambda s, t: L.top_k(s, t, k=2, temperature=2.0))(z_s, z_t))
    read = quick(lambda t, mask: L.top_k(z_s, t, temperature=2.0, mask=mask))
    close(read(rotten, mask), wanted * mask)
    close(read(stored, np.ones(8, bool)), wanted)
    close(L.top_k(z_s, rotten, temperature=2.0, mask=mask), wanted * mask)


def test_standardised_logits_have_no_place_and_no_scale():
    f = quick(L.standardise)
    z = np.asarray(f(z_t))
    close(z.mean(-1), np.zeros(8)), close(z.std(-1), np.ones(8))
    close(f(7 * z_t - 3), z, atol=1e-5)
    few = np.where(np.arange(5) < 2, np.float32([[3, 1, 0, 0, 0]]), -np.float32(np.inf)) + 0 * z_t
    close(f(few), np.broadcast_to([1, -1, -np.inf, -np.inf, -np.inf], (8, 5)))
    close(f(np.full_like(z_t, 0.1)), np.zeros((8, 5)))
    close(quick(L.standardised_targets)(5 * z_t + 1, z_t), np.zeros(8), atol=1e-5)


def test_the_masked_mean_of_dist_is_the_paper_s():
    keep = np.arange(8) != 5
    kw = {"inter": 2.0, "intra": 0.7, "temperature": 1.5}
    mean = L.masked_mean(L.dist(z_s, z_t, mask=keep, **kw), keep)
    close(mean, reference.dist_total(z_s[keep].astype(float), z_t[keep].astype(float), **kw))


def test_what_an_impossible_class_costs():
    s = np.array([[0.0, 0.0, 0.0]], np.float32)
    t = np.array([[0.0, 0.0, -np.inf]], np.float32)
    f = quick(
        lambda s, t: jnp.stack(
            [L.forward_kl(s, t), L.reverse_kl(s, t), L.jsd(s, t), L.logit_mse(s, t + 1)]
        )
    )
    close(f(s, t)[0], [np.log(1.5)])  # exact: the student gives it 1/3
    close(f(t, t), [[0], [0], [0], [1]])
    close(f(s, t)[1], [2 / 3 * np.log(2 / 3) + 1 / 3 * (np.log(1 / 3) + 87.3365)], 1e-4)
    close(f(s, t)[3], [1])  # over the other two
    down = quick(jax.grad(lambda z: L.reverse_kl(z, t)[0]))(s)
    assert (
        down[0, 2] > 1 and down[0, 0] < 0
    )  # descent takes mass from the class that the teacher excludes
    gone = np.full((1, 3), -np.inf, np.float32)
    close(f(s, gone), np.zeros((4, 1))), close(f(gone, t), np.zeros((4, 1)))


ON_LABELS = {
    "soft_and_hard": lambda y, mask: L.soft_and_hard(z_s, z_t, labels=y, mask=mask),
    "dkd": lambda y, mask: L.dkd(z_s, z_t, labels=y, mask=mask),
    "born_again": lambda y, mask: L.born_again(z_s, z_t, labels=y, mask=mask),
    "born_again_confidence": lambda y, mask: L.born_again_confidence(z_s, z_t, labels=y, mask=mask),
    "one_hot": lambda y, mask: L.one_hot(z_s, labels=y, mask=mask),
}


@pytest.mark.parametrize("name", ON_LABELS)
def test_a_label_of_minus_100_is_in_no_mean_and_one_that_is_no_class_is_nan(name):
    loss = ON_LABELS[name]
    keep = np.arange(8) != 2
    without = quick(loss)
    for bad in (-100, -1, 5):
        labels = np.where(keep, y, bad)
        wanted = L.masked_mean(without(y, keep), keep)
        close(L.masked_mean(without(labels, keep), keep), wanted)  # a masked label is not looked at
        values = without(labels, np.ones(8, bool))
        if bad == -100:
            close(L.masked_mean(values), wanted)
            close(L.masked_mean(loss(labels, None)), wanted)
            assert np.isneginf(values.mean())  # whoever forgets masked_mean sees it
        else:
            assert np.isnan(values[2]) and np.isnan(L.masked_mean(values))
            with pytest.raises(
                ValueError, match=f"labels: {bad} is not one of the 5 classes.*the label -100"
            ):
                loss(labels, None)


def test_ignored_labels_have_no_gradient_and_unsigned_ones_all_count():
    labels = np.where(np.arange(8) == 2, -100, y)
    slope = quick(jax.grad(lambda s: L.masked_mean(L.soft_and_hard(s, z_t, labels=labels))))(z_s)
    assert (
        np.isfinite(slope).all()
        and (np.asarray(slope)[2] == 0).all()
        and (np.asarray(slope)[3] != 0).any()
    )
    close(L.dkd(z_s, z_t, labels=y.astype(np.uint8)), L.dkd(z_s, z_t, labels=y))
    nothing = quick(lambda labels: L.masked_mean(L.soft_and_hard(z_s, z_t, labels=labels)))(
        np.full(8, -100)
    )
    close(nothing, 0)


def test_disagreement():
    d = np.asarray(jp.distill.disagreement(z_t, z_s, 1.0))
    close(d.sum(-1), np.ones(8))
    q = np.asarray(jax.nn.softmax(z_s))
    close(
        d * q / (d * q).sum(-1, keepdims=True), jax.nn.softmax(z_t)
    )  # it is what the student lacks
    close(jp.distill.disagreement(z_t, z_s, 3.0), jax.nn.softmax((z_t - z_s) / 3))
    close(jp.distill.disagreement(z_t, z_t + 4, 2.0), np.full((8, 5), 0.2))
    part = np.where(np.arange(5) < 2, -np.inf, z_t)
    close(jp.distill.disagreement(part, z_s, 1.0)[:, :2], np.zeros((8, 2)))
    assert np.asarray(jp.distill.disagreement(z_t, part, 1.0))[:, :2].sum(-1).min() > 0.99
    close(
        jp.distill.disagreement(np.full((1, 3), -np.inf), np.zeros((1, 3)), 1.0), np.zeros((1, 3))
    )


stored = L.top_k_teacher(z_t, 2)
REFUSED = [
    (
        lambda: L.soft_targets(z_s, z_t, temperature=0.0),
        "temperature=0.0: give one positive, finite number",
    ),
    (lambda: L.soft_targets(z_s, z_t, temperature=-1), "temperature=-1"),
    (lambda: L.soft_targets(z_s, z_t, temperature=np.array([1.0, 2.0])), "temperature="),
    (lambda: L.soft_targets(z_s, z_t, temperature=jnp.inf), "temperature=inf"),
    (
        lambda: L.soft_targets(z_s, z_t[:, :4]),
        r"student \(8, 5\) and teacher \(8, 4\): classes differ",
    ),
    (lambda: L.reverse_kl(z_s, z_t[:7]), r"student \(8, 5\) and teacher \(7, 5\): shapes differ"),
    (lambda: L.forward_kl(z_s, z_t[None]), r"teacher \(1, 8, 5\): shapes differ"),
    (
        lambda: L.soft_targets(np.arange(3), np.arange(3.0)),
        r"student: shape \(3,\), dtype int32; give floats",
    ),
    (lambda: L.logit_mse(z_s, z_t, mask=np.ones(8)), "mask: dtype float32; give booleans"),
    (lambda: L.logit_mse(z_s, z_t, mask=np.ones(5, bool)), r"mask: shape \(5,\); .* shape \(8,\)"),
    (lambda: L.logit_mse(1.0, 2.0), r"student \(\) and teacher \(\)"),
    (lambda: L.jsd(z_s, z_t, beta=1.5), "beta=1.5: give one number from 0 to 1"),
    (lambda: L.jsd(z_s, z_t, beta=-0.1), "beta=-0.1"),
    (lambda: L.soft_and_hard(z_s, z_t, labels=y, alpha=2.0), "alpha=2.0"),
    (
        lambda: L.soft_and_hard(z_s, z_t, labels=y[:4]),
        r"labels: shape \(4,\), dtype int32; for logits \(8, 5\)",
    ),
    (lambda: L.soft_and_hard(z_s, z_t, labels=z_s[:, 0]), "labels: .* dtype float32"),
    (lambda: L.dkd(z_s[:, :1], z_t[:, :1], labels=0 * y), "1 classes; this loss needs at least 2"),
    (lambda: L.top_k(z_s, z_t), "k=0: give an integer of at least 1"),
    (lambda: L.top_k(z_s, z_t, k=6), r"k=6: teacher has shape \(8, 5\)"),
    (lambda: L.top_k_teacher(z_t, 2.0), "k=2.0"),
    (lambda: L.top_k(z_s, stored, k=2), "k=2: the teacher is a TopK of 2 classes already"),
    (lambda: L.top_k(z_s[:4], stored), r"teacher: log_probs \(8, 2\)"),
    (lambda: L.top_k(z_s[:, :1], stored), "indices reach beyond the 1 classes"),
    (lambda: jp.distill.disagreement(z_t, z_s, 0.0), "temperature=0.0"),
    (lambda: jp.distill.disagreement(z_t, z_s[:, :3]), "classes differ"),
]


@pytest.mark.parametrize("call, message", REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
