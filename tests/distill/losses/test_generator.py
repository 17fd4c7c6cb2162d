"""The losses of a generator: whose means are the paper's numbers, where they are least, and what
they refuse.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.distill.losses.table import L, close, m_s, normal, quick, z_s
from tests.reference import distill_losses as reference

MEAN = normal(0, 6)
VAR = abs(normal(1, 6))
matching = quick(lambda f, mask=None: L.batch_norm_matching(f, mean=MEAN, var=VAR, mask=mask))


def test_the_masked_mean_of_batch_norm_matching_is_the_papers():
    keep = np.arange(8) != 5
    close(
        L.masked_mean(matching(m_s, keep), keep),
        reference.batch_norm_total(m_s[keep].astype(float), MEAN, VAR),
    )
    positions = np.random.default_rng(0).random((8, 4, 3)) < 0.6
    positions[2] = False
    values = matching(np.where(positions[..., None], m_s, np.nan), positions)
    close(
        L.masked_mean(values, positions),
        reference.batch_norm_total(m_s[positions].astype(float), MEAN, VAR),
    )
    assert values[2] == 0


def test_equal_moments_cost_nothing_and_pull_nowhere():
    now = {"mean": m_s.mean((0, 1, 2)), "var": m_s.var((0, 1, 2))}
    value, slope = quick(
        jax.value_and_grad(lambda f: L.masked_mean(L.batch_norm_matching(f, **now)))
    )(m_s)
    assert abs(value) < 1e-10 and np.abs(slope).max() < 1e-6


def test_descent_finds_the_moments():
    def total(f):
        return L.masked_mean(L.batch_norm_matching(f, mean=MEAN, var=VAR))

    step = quick(lambda f: f - 2 * jax.grad(total)(f))
    f = m_s
    for _ in range(200):
        f = step(f)
    close(f.mean((0, 1, 2)), MEAN, 1e-3, 1e-3), close(f.var((0, 1, 2)), VAR, 1e-2, 1e-2)


def test_the_channels_may_stand_anywhere():
    first = np.moveaxis(m_s, -1, 1)
    close(L.batch_norm_matching(first, mean=MEAN, var=VAR, channel_axis=1), matching(m_s))
    close(L.activation_magnitude(first, channel_axis=1), L.activation_magnitude(m_s))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 30))
def test_the_entropy_is_least_where_the_classes_are_alike(seed, scale):
    z = np.float32(scale) * np.random.default_rng(seed).standard_normal((8, 5)).astype(np.float32)
    value = float(L.masked_mean(entropy(z)))
    assert -np.log(5) - 1e-5 <= value <= 1e-6
    turned = np.stack(
        [np.roll(z[0], i) for i in range(5)]
    )  # each class as often as another, however sure it is
    close(L.masked_mean(entropy(turned)), -np.log(5), 1e-5)


entropy = quick(L.information_entropy)


def test_the_mean_of_the_entropy_is_over_the_examples_that_count():
    keep = np.arange(8) % 3 > 0
    p = np.asarray(jax.nn.softmax(z_s))[keep].mean(0)
    close(L.masked_mean(L.information_entropy(z_s, mask=keep), keep), np.sum(p * np.log(p)))
    tokens = L.information_entropy(z_s.reshape(2, 4, 5))
    assert tokens.shape == (2, 4)
    close(tokens.reshape(-1), L.information_entropy(z_s))


def test_the_label_is_the_top_class_or_the_one_asked_for():
    close(L.one_hot(z_s), -np.log(np.asarray(jax.nn.softmax(z_s)).max(-1)))
    y = np.array([0, 4, -100, 2, 1, 3, 0, 4])
    keep = np.arange(8) != 2
    close(L.one_hot(z_s, labels=y, mask=keep)[3], -jax.nn.log_softmax(z_s)[3, 2])
    values = quick(lambda z, y: L.one_hot(z, labels=y))(z_s, y)
    assert np.isneginf(values[2]) and (np.asarray(values)[keep] > 0).all()


REFUSED = [
    (lambda: L.one_hot(np.arange(3)), r"teacher: shape \(3,\), dtype int\d+; give floats"),
    (lambda: L.one_hot(np.float32(1)), r"teacher \(\): give logits"),
    (lambda: L.one_hot(z_s, labels=np.full(8, 5)), "labels: 5 is not one of the 5 classes"),
    (lambda: L.one_hot(z_s, labels=np.zeros(3, int)), r"labels: shape \(3,\)"),
    (lambda: L.information_entropy(z_s[:, :0]), r"teacher \(8, 0\): give logits"),
    (lambda: L.information_entropy(z_s, mask=np.ones(3, bool)), r"mask: shape \(3,\)"),
    (lambda: L.activation_magnitude(z_s[:, 0]), r"teacher: shape \(8,\)"),
    (lambda: L.activation_magnitude(m_s, channel_axis=0), "channel_axis=0: teacher has shape"),
    (
        lambda: L.batch_norm_matching(m_s, mean=MEAN[:4], var=VAR),
        r"mean: shape \(4,\); the features have 6 channels",
    ),
    (
        lambda: L.batch_norm_matching(m_s, mean=MEAN, var=np.float32(1)),
        r"var: shape \(\); the features have 6",
    ),
    (
        lambda: L.batch_norm_matching(m_s, mean=MEAN, var=-VAR),
        r"var: its least is -.*; a variance is >= 0",
    ),
    (lambda: L.batch_norm_matching(m_s, mean=jnp.arange(6), var=VAR), "mean: .*give floats"),
]


@pytest.mark.parametrize("call, message", REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
