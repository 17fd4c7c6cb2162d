"""Peers, former selves and averages of selves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.distill.losses.table import L, close, labels, normal, quick, z_s, z_t

y = labels["labels"]
peers = normal(11, 3, 8, 5)
views = normal(12, 4, 8, 5)
global_views = normal(13, 2, 8, 5)
centre = normal(14, 5)


def test_mutual_learning_is_the_mean_over_peers():
    close(quick(L.deep_mutual)(z_s, peers), np.mean([L.forward_kl(z_s, p) for p in peers], 0))
    close(quick(L.deep_mutual)(z_s, z_t[None]), L.forward_kl(z_s, z_t))


def test_a_cohort_learns_each_from_the_others():
    def total(cohort):
        others = [cohort[jnp.array([j for j in range(3) if j != i])] for i in range(3)]
        return sum(L.deep_mutual(cohort[i], others[i]).sum() for i in range(3))

    slopes = quick(jax.grad(total))(peers)
    q = jax.nn.softmax(peers)
    close(slopes[0], q[0] - (q[1] + q[2]) / 2)


def test_born_again_is_soft_targets_at_temperature_one():
    close(L.born_again(z_s, z_t), L.soft_targets(z_s, z_t, temperature=1.0))
    hard = L.soft_and_hard(z_s, z_t, labels=y, alpha=0.0)
    close(L.born_again(z_s, z_t, labels=y), L.born_again(z_s, z_t) + hard)


def test_confidence_weighs_and_its_mean_is_a_weighted_mean():
    keep = np.arange(8) != 6
    w = np.where(keep, jax.nn.softmax(z_t).max(-1), 0)
    hard = np.asarray(L.soft_and_hard(z_s, z_t, labels=y, alpha=0.0))
    values = L.born_again_confidence(z_s, z_t, labels=y, mask=keep)
    close(L.masked_mean(values, keep), (w * hard).sum() / w.sum())
    same = L.born_again_confidence(z_s, np.zeros_like(z_t), labels=y)
    close(same, hard)


def test_only_the_others_are_shuffled():
    def sorts(x):
        return np.sort(np.asarray(x), -1)

    teacher = np.tile(np.float32([[1.0, 0.0, 3.0, -1.0]]), (600, 1))
    flat = np.zeros((600, 4), np.float32)
    f = quick(
        lambda s, key: jax.grad(lambda s: -L.born_again_permuted(s, teacher, key=key).sum())(s)
    )
    p = np.asarray(f(flat, jax.random.key(0))) + 0.25  # the gradient is q - p, and q = 1/4
    close(sorts(p), sorts(jax.nn.softmax(teacher)), atol=1e-5)
    close(p[:, 2], jax.nn.softmax(teacher)[:, 2], atol=1e-5)
    orders = {tuple(np.argsort(row)) for row in p}
    assert len(orders) == 6
    counts = np.bincount(np.argmin(p, -1), minlength=4)
    assert counts[2] == 0 and (counts[[0, 1, 3]] > 150).all()
    assert not np.array_equal(p, f(flat, jax.random.key(1)) + 0.25)


def test_permuted_targets_are_masked_and_stay_where_they_are():
    keep = np.arange(8) != 1
    rotten = np.where(keep[:, None], z_t, np.nan)

    def f(s, t, mask):
        return L.born_again_permuted(s, t, key=jax.random.key(0), mask=mask)

    values, slope = quick(
        lambda s: (f(s, rotten, keep), jax.grad(lambda s: f(s, rotten, keep).sum())(s))
    )(z_s)
    assert values[1] == 0 and np.isfinite(values).all() and np.isfinite(slope).all()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharded = quick(f)(*jax.device_put((z_s, z_t, keep), NamedSharding(mesh, P("data"))))
    close(sharded, values)
    assert sharded.sharding.spec == P("data")


def test_no_gradient_reaches_the_teacher():
    calls = [
        lambda t: L.deep_mutual(z_s, t[:3]),
        lambda t: L.born_again(z_s, t[0], labels=y),
        lambda t: L.born_again_confidence(z_s, t[0], labels=y),
        lambda t: L.born_again_permuted(z_s, t[0], key=jax.random.key(0)),
        lambda t: L.dino(views, t[:2], centre=centre),
        lambda t: L.dino_centre(centre, t),
    ]

    def total(t):
        return sum(f(t).sum() for f in calls)

    assert not np.any(quick(jax.grad(total))(views))


def test_dino_skips_the_pairs_of_one_view():
    alike = np.stack([z_s, z_t])
    p = np.asarray(jax.nn.softmax((alike - centre) / 0.04))
    log_q = np.asarray(jax.nn.log_softmax(alike / 0.1))
    wanted = -(np.sum(p[0] * log_q[1], -1) + np.sum(p[1] * log_q[0], -1)) / 2
    f = quick(lambda s, t: L.dino(s, t, centre=centre))
    close(f(alike, alike), wanted, 1e-4)
    close(
        f(views, views[:1]),
        np.mean([f(views[np.array([0, i])], views[:1]) for i in (1, 2, 3)], 0),
        1e-4,
    )


def test_the_centre_is_a_mean_over_views_examples_and_devices():
    keep = np.arange(8) != 3
    wanted = 0.9 * centre + 0.1 * global_views[:, keep].reshape(-1, 5).mean(0)
    rotten = np.where(keep[:, None], global_views, np.nan)
    close(L.dino_centre(centre, rotten, mask=keep), wanted)
    close(L.dino_centre(centre, rotten, mask=np.zeros(8, bool)), centre)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            t = jax.device_put(global_views, NamedSharding(mesh, P(None, "data")))
            close(jax.jit(lambda t: L.dino_centre(centre, t, mask=keep))(t), wanted)


REFUSED = [
    (lambda: L.deep_mutual(z_s, z_t), r"stack the peers' logits on a first axis, \('K', 8, 5\)"),
    (lambda: L.deep_mutual(z_s, peers[:0]), r"teacher \(0, 8, 5\)"),
    (lambda: L.deep_mutual(z_s, peers, temperature=0), "temperature=0"),
    (lambda: L.born_again(z_s, z_t[:, :3]), "classes differ"),
    (lambda: L.born_again(z_s, z_t, labels=y + 3), "labels: 7 is not one of the 5 classes"),
    (lambda: L.born_again_confidence(z_s, z_t, labels=y[:3]), r"labels: shape \(3,\)"),
    (lambda: L.dino(views[:1], views[:1], centre=centre), "two or more views"),
    (
        lambda: L.dino(global_views, views, centre=centre),
        r"student \(2, 8, 5\) and teacher \(4, 8, 5\)",
    ),
    (
        lambda: L.dino(views, global_views, centre=centre[:3]),
        r"centre: shape \(3,\); for logits \(4, 8, 5\) give \(5,\)",
    ),
    (
        lambda: L.dino(views, global_views, centre=centre, student_temperature=0),
        "student_temperature=0",
    ),
    (
        lambda: L.dino(views, global_views, centre=centre, teacher_temperature=-1),
        "teacher_temperature=-1",
    ),
    (lambda: L.dino_centre(centre, global_views, momentum=2), "momentum=2"),
    (lambda: L.dino_centre(centre, centre), r"teacher: shape \(5,\)"),
]


@pytest.mark.parametrize("call, message", REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
