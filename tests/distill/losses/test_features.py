"""Losses on feature maps: axes, sizes, masks of positions, closed forms, and what they refuse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.distill.losses.inputs import pooled
from tests.distill.losses.table import L, close, m_s, m_t, normal, quick, small, wide
from tests.reference import distill_losses as reference

margin = -abs(normal(10, 6))
raw = normal(9, 6)
MAPS = {
    "hint": L.hint,
    "attention_transfer": L.attention_transfer,
    "nst": L.nst,
    "vid": partial(L.vid, raw_variance=raw),
    "activation_boundary": L.activation_boundary,
    "overhaul": partial(L.overhaul, margin=margin),
}
every_map = pytest.mark.parametrize("f", MAPS.values(), ids=MAPS)


@every_map
def test_channels_stand_where_they_are_said_to(f):
    def first(x):
        return np.moveaxis(x, -1, 1)

    for axis in (1, -3):
        close(quick(partial(f, channel_axis=axis))(first(m_s), first(m_t)), quick(f)(m_s, m_t))
    keep = (
        np.random.default_rng(0).random((8, 4, 3)) < 0.7
    )  # positions do not move with the channels
    close(
        quick(partial(f, channel_axis=1, mask=keep))(first(m_s), first(m_t)),
        quick(partial(f, mask=keep))(m_s, m_t),
    )


def test_flows_find_their_channels():
    def first(x):
        return np.moveaxis(x, -1, 1)

    f = quick(partial(L.fsp, channel_axis=1))
    g = quick(L.fsp)
    close(f((first(m_s), first(small)), (first(m_t), first(small))), g((m_s, small), (m_t, small)))


@every_map
def test_a_masked_position_is_as_if_it_were_not_there(f):
    keep = np.zeros(m_s.shape[:-1], bool)
    keep[:, :3, :2] = True
    keep[5] = False
    rotten = [np.where(keep[..., None], x, np.nan) for x in (m_s, m_t)]
    values = quick(partial(f, mask=keep))(*rotten)
    inside = quick(f)(m_s[:, :3, :2], m_t[:, :3, :2])
    close(values, np.where(np.arange(8) == 5, 0, inside))


@every_map
def test_a_text_has_one_axis_of_positions_and_a_vector_none(f):
    close(f(m_s.reshape(8, 12, 6), m_t.reshape(8, 12, 6)), f(m_s, m_t))
    if f in (MAPS["attention_transfer"], MAPS["nst"]):
        with pytest.raises(ValueError, match=r"student: shape \(8, 6\); give feature maps"):
            f(m_s[:, 0, 0], m_t[:, 0, 0])
    else:
        close(f(m_s[:, 0, 0], m_t[:, 0, 0]), f(m_s[:, :1, :1], m_t[:, :1, :1]))


def test_the_larger_map_is_pooled_whosever_it_is():
    close(L.hint(small, m_t), L.hint(m_t, small))
    for n, k in ((7, 3), (5, 4), (6, 2), (4, 1)):
        x = normal(n, 2, n, 5, 2)
        close(pooled(jnp.asarray(x), (k, 3)), [reference.pool(one, (k, 3)) for one in x])


def test_half_the_size_times_the_mean_is_the_paper_s_hint():
    close(L.hint(m_s, m_t) * m_s[0].size / 2, 0.5 * ((m_s - m_t) ** 2).sum((1, 2, 3)))


def test_attention_has_no_scale():
    close(L.attention_transfer(3 * m_s, m_t), L.attention_transfer(m_s, m_t))
    paper, code = (L.attention_transfer(m_s, m_t, form=form) for form in ("paper", "code"))
    close(paper**2 / 12, code)


def test_cosines_of_huge_and_tiny_vectors():
    f = quick(L.hidden_cosine)
    m_x = np.ascontiguousarray(m_t[:, 0, 0])
    wanted = f(m_s[:, 0, 0], m_x)
    for scale in (1e-25, 1e25):
        close(f(m_s[:, 0, 0] * np.float32(scale), m_x), wanted)


@pytest.mark.parametrize("kernel", ["linear", "polynomial", "gaussian"])
def test_channels_are_a_set(kernel):
    order = np.array([3, 0, 5, 1, 4, 2])
    close(L.nst(m_s[..., order], m_t, kernel=kernel), L.nst(m_s, m_t, kernel=kernel))
    close(L.nst(m_s, m_s[..., order], kernel=kernel), np.zeros(8))
    assert (np.asarray(L.nst(m_s, wide, kernel=kernel)) > 1e-3).all()


def test_variances_are_trained_to_the_mean_squared_error():
    error = np.mean((m_s - m_t) ** 2, (0, 1, 2))
    start = L.vid_raw_variance(6, variance=5.0)
    close(jnp.logaddexp(start, 0) + 1e-5, np.full(6, 5.0))
    best = np.concatenate([np.asarray(L.vid_raw_variance(1, variance=float(v))) for v in error])

    def loss(raw):
        return L.masked_mean(L.vid(m_s, m_t, raw_variance=raw))

    assert np.abs(jax.grad(loss)(best)).max() < 1e-6 < 1e-3 < np.abs(jax.grad(loss)(start)).min()
    assert loss(best) < loss(start)
    close(L.vid_raw_variance(1, variance=1e-3, eps=1e-5), [np.log(np.expm1(1e-3 - 1e-5))], 1e-4)


def test_boundaries_are_sides():
    teacher = np.array([[-3.0, 0.0, 0.5, 2.0]], np.float32)
    close(L.activation_boundary(np.array([[-1.0, -1.0, 1.0, 7.0]]), teacher), [0])
    close(L.activation_boundary(np.zeros((1, 4)), teacher, margin=2.0), [16])
    crossed = jax.grad(lambda s: L.activation_boundary(s, teacher)[0])(
        np.array([[0.5, -2.0, 0.5, 3.0]], np.float32)
    )
    close(crossed, [[3, 0, -1, 0]])


def test_the_margin_is_the_mean_of_the_negative_part():
    mean = np.array([0.3, -2.0, 1.0, 9.0, -1.0, 2.0])
    std = np.array([1.0, 0.5, -2.0, 1.0, 0.0, 0.0])
    draws = mean[:3] + std[:3] * np.random.default_rng(0).standard_normal((200_000, 3))
    wanted = [d[d < 0].mean() for d in draws.T]
    got = quick(L.overhaul_margin)(mean.astype(np.float32), std.astype(np.float32))
    close(got[:3], wanted, 0.01)
    close(got[3:], [-3, -1, 0])
    extreme = quick(L.overhaul_margin)(
        np.float32([-50, 3, 0, 0, 0, 0]), np.float32([1, 1e-8, 0, 0, 0, 0])
    )
    close(extreme[0], -50), close(extreme[1], -3e-8)


def test_below_the_margin_the_student_is_free():
    slope = jax.grad(
        lambda s: L.overhaul(s, np.float32([[-5.0, -5.0, -0.5, 2.0]]), margin=-np.ones(4))[0]
    )
    close(slope(np.float32([[-9.0, 0.0, -0.7, 1.0]])), [[0, 2, 0, -2]])


def test_margins_may_be_arrays_of_jax_under_jit():
    fixed = jnp.asarray(margin)  # concrete, while what is computed of it there is traced
    close(
        quick(lambda s, t: L.overhaul(s, t, margin=fixed))(m_s, m_t),
        L.overhaul(m_s, m_t, margin=margin),
    )


def test_flows_of_one_network_meet_at_the_smaller_size():
    big = np.repeat(np.repeat(m_s, 2, 1), 2, 2)
    close(L.fsp((big, m_s), (m_t, m_t)), L.fsp((m_s, m_s), (m_t, m_t)))


REFUSED = [
    (
        lambda: L.hint(m_s, wide),
        r"student \(8, 4, 3, 6\) and teacher \(8, 4, 3, 7\) .*project the student to 7",
    ),
    (lambda: L.hint(m_s, m_t[:7]), "give maps of one batch"),
    (lambda: L.hint(m_s, m_t[:, 0]), "one number of axes"),
    (
        lambda: L.hint(m_s, m_t, channel_axis=0),
        "channel_axis=0: student has shape .* axis 0 is the batch",
    ),
    (lambda: L.hint(m_s, m_t, channel_axis=-4), "channel_axis=-4"),
    (lambda: L.nst(m_s, m_t, channel_axis=4), "channel_axis=4: .* one of 1 to 3, or of -3 to -1"),
    (lambda: L.hint(m_s, m_t, mask=np.ones((8, 4), bool)), r"mask: shape \(8, 4\)"),
    (lambda: L.hint(small, m_t, mask=np.ones((8, 4, 3), bool)), r"mask: shape \(8, 4, 3\)"),
    (
        lambda: L.attention_transfer(m_s, m_t, form="theirs"),
        "form='theirs': choose one of code, paper",
    ),
    (lambda: L.attention_transfer(m_s, m_t, p=0.5), "p=0.5: give a number >= 1"),
    (lambda: L.nst(m_s, m_t, kernel="rbf"), "kernel='rbf'"),
    (lambda: L.hidden_mse(m_s, wide), "Project the student"),
    (lambda: L.hidden_cosine(m_s[0], m_t), r"student \(4, 3, 6\)"),
    (lambda: L.fsp(m_s, m_t), "student: a flow goes between two layers"),
    (lambda: L.fsp((m_s, small), (m_t, wide)), "flows of .* project the student's"),
    (
        lambda: L.fsp((m_s, small[:4]), (m_t, m_t)),
        "student's first .* and student's second .* one batch",
    ),
    (
        lambda: L.vid(m_s, m_t, raw_variance=np.ones(5)),
        r"raw_variance: shape \(5,\); the maps have 6 channels",
    ),
    (lambda: L.vid_raw_variance(3, variance=0.0), "variance=0.0"),
    (lambda: L.activation_boundary(m_s, m_t, margin=0.0), "margin=0.0"),
    (lambda: L.overhaul(m_s, m_t, margin=np.ones(6)), "margin: its largest is 1.0"),
    (lambda: L.overhaul(m_s, m_t, margin=-np.ones(3)), r"margin: shape \(3,\)"),
    (lambda: L.overhaul_margin(np.ones(3), np.ones(2)), r"mean \(3,\) and std \(2,\)"),
]


@pytest.mark.parametrize("call, message", REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
