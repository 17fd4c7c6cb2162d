"""Losses on relations: invariances, the global batch, and the bank of contrastive distillation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.distill.losses.table import L, bank, close, draws, e_s, e_t, normal, quick
from tests.reference import distill_losses as reference

rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0].astype(np.float32)
FREE = {  # what the student may do without a cost
    "similarity_preserving": (L.similarity_preserving, ("rotate", "scale")),
    "rkd_distance": (L.rkd_distance, ("rotate", "scale", "shift")),
    "rkd_angle": (L.rkd_angle, ("rotate", "scale", "shift")),
    "pkt": (L.pkt, ("rotate", "scale", "scale each")),
    "correlation_congruence": (L.correlation_congruence, ("rotate", "scale", "scale each")),
}
MOVES = {
    "rotate": lambda x: x @ rotation,
    "scale": lambda x: 7 * x,
    "shift": lambda x: x + 3,
    "scale each": lambda x: x * np.linspace(1, 3, 8, dtype=np.float32)[:, None],
}


@pytest.mark.parametrize("name", FREE)
def test_what_is_free_and_what_is_not(name):
    f, free = FREE[name]
    f = quick(lambda s, t, f=f: (f(s, t), f(s, e_s)))
    still, _ = f(e_s, e_t)
    for move, act in MOVES.items():
        moved, against_itself = f(act(e_s), e_t)
        if move in free:
            close(moved, still, 1e-4, 1e-5)
            assert np.abs(against_itself).max() < 1e-5
        else:
            assert np.abs(against_itself).max() > 1e-4, move
    order = np.random.default_rng(1).permutation(8)
    close(f(e_s[order], e_t[order])[0], still[order], 1e-4)


@pytest.mark.parametrize("name", FREE)
def test_a_mean_over_shards_is_another_loss(name):
    f = FREE[name][0]
    shards = quick(jax.vmap(f))(e_s.reshape(4, 2, 6), e_t.reshape(4, 2, 8))
    whole = np.mean(quick(f)(e_s, e_t))
    assert abs(np.mean(shards) - whole) > 0.05 * whole


def test_the_masked_means_are_the_published_totals():
    keep = np.arange(8) != 4
    s = e_s[keep].astype(float)
    t = e_t[keep].astype(float).reshape(7, -1)

    def gram(x):
        return x @ x.T / np.linalg.norm(x @ x.T, axis=1, keepdims=True)

    total = ((gram(s) - gram(t)) ** 2).sum() / 49
    close(L.masked_mean(L.similarity_preserving(e_s, e_t, mask=keep), keep), total)
    total = ((s @ s.T - t @ t.T) ** 2).sum() / 49
    close(
        L.masked_mean(L.correlation_congruence(e_s, e_t, kernel="bilinear", mask=keep), keep), total
    )


def test_a_line_against_a_corner():
    line = np.float32([[0], [1], [2]])
    corner = np.float32([[0, 0], [1, 0], [1, 1]])
    a = np.array([0, 1, 2, 1, 1]) / (4 / 3)
    b = np.array([0, 1, 2**0.5, 1, 1]) / ((2 + 2**0.5) * 2 / 6)
    d = (a - b) ** 2 / 2
    close(
        quick(L.rkd_distance)(line, corner),
        [(d[1] + d[2]) / 3, (d[3] + d[4]) / 3, (d[1] + d[2]) / 3],
        1e-4,
    )
    sharp = 2 * (1 - 2**-0.5) ** 2 / 2 / 9
    close(quick(L.rkd_angle)(line, corner), [sharp, 2 * 0.5 / 9, sharp], 1e-4)


def test_repeated_examples_have_distance_zero():
    twice = np.repeat(e_s[:4], 2, 0) + np.float32(100)
    d = L.rkd_distance(twice, e_t)
    close(d, L.rkd_distance(twice - np.float32(100), e_t), 1e-3)
    slope = quick(jax.grad(lambda s: L.rkd_angle(s, e_t).sum()))(twice)
    assert np.abs(slope).max() < 10


def test_the_series_is_nearly_the_gaussian():
    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    s = unit(e_s.astype(float))
    t = unit(e_t.astype(float).reshape(8, -1))

    def kernel(x):
        return np.exp(-0.4 * ((x[:, None] - x[None]) ** 2).sum(-1))

    exact = ((kernel(s) - kernel(t)) ** 2).mean(1)
    close(L.correlation_congruence(e_s, e_t, order=12), exact, 1e-4)
    assert np.abs(L.correlation_congruence(e_s, e_t, order=2) - exact).max() < 0.02


# contrastive


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_the_bank_remembers():
    update = quick(
        lambda s, t: L.crd_update(bank, s, t, momentum=0.3, mask=np.arange(8) != 2, **draws)
    )
    new = update(e_s, e_s[::-1])
    student = np.array(bank.student)
    teacher = np.array(bank.teacher)
    for i, row in enumerate(draws["indices"]):
        if i != 2:
            student[row] = unit(0.3 * student[row] + 0.7 * unit(e_s[i]))
            teacher[row] = unit(0.3 * teacher[row] + 0.7 * unit(e_s[7 - i]))
    close(new.student, student), close(new.teacher, teacher)
    close(new.log_z_student, bank.log_z_student)


def test_the_constants_are_those_of_the_first_batch():
    fresh = bank._replace(ready=jnp.array(False))
    keep = np.arange(8) != 2
    pairs = np.concatenate([draws["indices"][:, None], draws["negatives"]], 1)[keep]

    def z(anchor, memory):
        return 16 * np.mean(
            np.exp(np.einsum("bd,bkd->bk", unit(anchor[keep]), memory[pairs]) / 0.07)
        )

    z_s = z(e_s.astype(float), np.array(bank.teacher))
    z_t = z(e_s[::-1].astype(float), np.array(bank.student))
    update = quick(lambda bank, s, t, mask: L.crd_update(bank, s, t, mask=mask, **draws))
    after = update(fresh, e_s, e_s[::-1], keep)
    close(jnp.stack([after.log_z_student, after.log_z_teacher]), np.log([z_s, z_t]), 1e-4)
    assert bool(after.ready)
    again = update(after, -e_s, e_s, keep)
    close(again.log_z_student, after.log_z_student)
    values = quick(lambda s, t: L.crd(s, t, bank=fresh, mask=keep, **draws))(e_s, e_s[::-1])
    banks = np.asarray(bank.student, float), np.asarray(bank.teacher, float)
    close(
        values,
        keep
        * reference.crd(
            e_s.astype(float),
            e_s[::-1],
            **draws,
            bank_student=banks[0],
            bank_teacher=banks[1],
            z_student=z_s,
            z_teacher=z_t,
        ),
        1e-4,
    )
    nothing = update(fresh, e_s, e_s, np.zeros(8, bool))
    assert not bool(nothing.ready)
    jax.tree.map(np.testing.assert_array_equal, nothing, fresh)


def test_no_gradient_reaches_the_bank_and_both_views_learn():
    def total(s, t, student, teacher):
        b = bank._replace(student=student, teacher=teacher)
        b = L.crd_update(b, s, t, **draws)
        return L.crd(s, t, bank=b, **draws).sum()

    slopes = quick(jax.grad(total, (0, 1, 2, 3)))(e_s, e_s[::-1] + 0, bank.student, bank.teacher)
    assert [bool(np.any(g)) for g in slopes] == [True, True, False, False]


def test_no_gradient_comes_out_of_the_bank():
    def f(s, rows):
        return L.crd_update(bank._replace(student=rows), s, e_s, **draws).student.sum()

    assert not any(np.any(g) for g in quick(jax.grad(f, (0, 1)))(e_s, bank.student))


def test_negatives_are_never_the_example():
    negatives = np.asarray(
        L.crd_negatives(jax.random.key(1), draws["indices"], count=400, examples=16)
    )
    assert negatives.shape == (8, 400) and not (negatives == draws["indices"][:, None]).any()
    assert all(
        set(row) == set(range(16)) - {own}
        for row, own in zip(negatives.tolist(), draws["indices"].tolist())
    )


@pytest.mark.parametrize(
    "kind, spec",
    [(AxisType.Auto, P("data")), (AxisType.Explicit, P("data")), (AxisType.Explicit, P())],
    ids=str,
)
def test_the_bank_may_lie_anywhere(kind, spec):
    def step(bank, s, t, rows):
        return L.crd(s, t, bank=bank, **rows), L.crd_update(bank, s, t, **rows)

    fresh = bank._replace(ready=jnp.array(False))
    wanted = quick(step)(fresh, e_s, e_s[::-1], draws)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))

    def put(x, spec):
        return jax.device_put(x, NamedSharding(mesh, spec))

    with jax.set_mesh(mesh):
        there = fresh._replace(student=put(bank.student, spec), teacher=put(bank.teacher, spec))
        args = put((e_s, np.ascontiguousarray(e_s[::-1]), draws), P("data"))
        got = quick(step)(there, *args)
    jax.tree.map(lambda a, b: close(a, b, 1e-4), got, wanted)


REFUSED = [
    (lambda: L.rkd_distance(e_s, e_t[:7]), r"student \(8, 6\) and teacher \(7, 2, 4\)"),
    (lambda: L.similarity_preserving(e_s[:, 0], e_t), r"student \(8,\)"),
    (lambda: L.pkt(e_s, e_t, mask=np.ones((8, 6), bool)), r"mask: shape \(8, 6\)"),
    (lambda: L.correlation_congruence(e_s, e_t, kernel="rbf"), "kernel='rbf'"),
    (lambda: L.correlation_congruence(e_s, e_t, gamma=0.0), "gamma=0.0"),
    (lambda: L.correlation_congruence(e_s, e_t, order=0), "order=0"),
    (
        lambda: L.crd(e_s[:, :5], e_s[:, :5], bank=bank, **draws),
        r"bank \(16, 6\) .* crd_init\(key, examples, 5\)",
    ),
    (
        lambda: L.crd(
            e_s, e_s, bank=bank, indices=draws["indices"][:4], negatives=draws["negatives"]
        ),
        r"indices \(4,\)",
    ),
    (
        lambda: L.crd(e_s, e_s, bank=bank, **draws | {"indices": draws["indices"] + 9}),
        "indices: 24 is not a row",
    ),
    (
        lambda: L.crd(e_s, e_s, bank=bank, **draws | {"negatives": -draws["negatives"]}),
        "negatives: -.* is not a row",
    ),
    (
        lambda: L.crd(e_s, e_s, bank=bank, **draws | {"negatives": normal(0, 8, 7)}),
        "negatives: .* dtype float32",
    ),
    (lambda: L.crd(e_s, e_s, bank=bank, temperature=0, **draws), "temperature=0"),
    (lambda: L.crd_update(bank, e_s, e_s, momentum=1.5, **draws), "momentum=1.5"),
    (
        lambda: L.crd_negatives(jax.random.key(0), draws["indices"], count=3, examples=1),
        "two examples or more",
    ),
]


@pytest.mark.parametrize("call, message", REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
