"""Low rank fits against NumPy, their fixed points, transforms and sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprune.numerics import lowrank as L


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


svd = jax.jit(L.svd, static_argnums=1)
tucker2 = jax.jit(L.tucker2, static_argnums=1)


def error(a, b):
    return float(
        np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b, np.float64)) / np.linalg.norm(b)
    )


@pytest.mark.parametrize("shape", [(20, 12), (12, 20)])
@pytest.mark.parametrize("rank", [1, 5, 12])
def test_svd_is_the_best_fit(shape, rank):
    w = normal(*shape)
    u, v = svd(w, rank)
    assert u.shape == (shape[0], rank) and v.shape == (rank, shape[1])
    s = np.linalg.svd(w.astype(np.float64), compute_uv=False)
    assert error(u @ v, w) == pytest.approx(np.sqrt((s[rank:] ** 2).sum() / (s**2).sum()), abs=1e-5)
    np.testing.assert_allclose(
        np.linalg.norm(u, axis=0), np.linalg.norm(v, axis=1), rtol=1e-5
    )  # the split is even
    again = svd(u @ v, rank)
    assert error(again[0] @ again[1], u @ v) < 1e-5


def test_svd_weighted_by_row():
    w = normal(20, 12)
    fisher = np.exp(normal(20, 12, seed=1) + 2 * normal(20, 1, seed=2))
    u, v = svd(w, 4, fisher)
    d = np.sqrt(fisher.sum(1, keepdims=True).astype(np.float64))
    a, s, b = np.linalg.svd(w * d, full_matrices=False)  # FWSVD as the paper writes it
    assert error(u @ v, (a[:, :4] * s[:4] @ b[:4]) / d) < 1e-4

    def loss(u, v):
        return np.sum((d * (w - np.asarray(u @ v))) ** 2)

    assert loss(u, v) < loss(*svd(w, 4))
    fisher[3] = 0
    u, v = svd(w, 12, fisher)
    assert error(u @ v, w) < 1e-4  # full rank, even with a row that does not matter
    same = svd(w, 4, np.zeros_like(w))
    plain = svd(w, 4)
    assert error(same[0] @ same[1], plain[0] @ plain[1]) < 1e-5


def test_svd_batches():
    w = normal(3, 10, 6)
    fisher = np.exp(normal(3, 10, 6, seed=1))
    for got in (svd(w, 2, fisher), jax.vmap(lambda w, f: L.svd(w, 2, f))(w, fisher)):
        for i in range(3):
            u, v = svd(w[i], 2, fisher[i])
            assert error(got[0][i] @ got[1][i], u @ v) < 1e-5


def test_svd_gradient_and_dtype():
    g = jax.grad(lambda w: jnp.sum(jnp.square(jnp.matmul(*L.svd(w, 3)))))(jnp.asarray(normal(8, 5)))
    w = normal(8, 5)  # d‖W_r‖² = 2 W_r
    u, v = svd(w, 3)
    np.testing.assert_allclose(g, 2 * u @ v, atol=1e-3)
    assert [
        x.dtype for x in jax.eval_shape(lambda w: L.svd(w, 2), jnp.zeros((4, 4), jnp.bfloat16))
    ] == [jnp.float32] * 2


def test_rank_for_energy():
    s = [4.0, 2.0, 1.0, 0.0]
    assert [L.rank_for_energy(s, e) for e in (0.0, 16 / 21, 0.77, 20 / 21, 0.96, 1.0)] == [
        1,
        1,
        2,
        2,
        3,
        3,
    ]
    assert L.rank_for_energy([0.0, 0.0], 0.5) == L.rank_for_energy([], 1.0) == 1
    with pytest.raises(ValueError, match="give rank="):
        jax.jit(lambda s: L.rank_for_energy(s, 0.9))(jnp.ones(3))
    with pytest.raises(ValueError, match="give a fraction"):
        L.rank_for_energy(s, 1.5)


@pytest.mark.parametrize(
    ("shape", "ranks"),
    [((3, 3, 8, 6), (8, 6)), ((1, 1, 8, 4), (8, 4)), ((5, 7, 3), (7, 3)), ((4, 9), (4, 9))],
)
def test_tucker_of_full_rank_is_exact(shape, ranks):
    w = normal(*shape)
    core, u, v = tucker2(w, ranks)
    assert (
        core.shape == (*shape[:-2], *ranks)
        and u.shape == (shape[-2], ranks[0])
        and v.shape == (ranks[1], shape[-1])
    )
    assert error(L.tucker_dense(core, u, v), w) < 1e-5
    assert L.tucker_size(shape, ranks) == core.size + u.size + v.size


@pytest.mark.parametrize("weighted", [False, True])
def test_tucker_projects(weighted):
    w = normal(3, 3, 16, 12)
    fisher = np.exp(normal(3, 3, 16, 12, seed=1)) if weighted else None
    once = L.tucker_dense(*tucker2(w, (5, 4), fisher))
    again = L.tucker_dense(*tucker2(once, (5, 4), fisher))
    assert error(again, once) < 1e-5
    assert 0.5 < error(once, w) < 1
    exact = np.einsum(
        "hwab,ia,bo->hwio", normal(3, 3, 5, 4), normal(16, 5, seed=3), normal(4, 12, seed=4)
    )
    assert error(L.tucker_dense(*tucker2(exact, (5, 4), fisher)), exact) < 1e-5


def test_tucker_sweeps_improve_on_the_start_and_have_converged(monkeypatch):
    w = normal(3, 3, 16, 12)
    errors = []
    for sweeps in (0, 3, 30):
        monkeypatch.setattr(L, "SWEEPS", sweeps)
        errors.append(error(L.tucker_dense(*L.tucker2(w, (5, 4))), w))
    assert errors[2] <= errors[1] < errors[0] and errors[1] - errors[2] < 0.01


def test_tucker_batches():
    w = normal(2, 3, 3, 6, 5)
    core, u, v = jax.vmap(lambda w: L.tucker2(w, (3, 2)))(w)
    dense = L.tucker_dense(core, u, v)
    for i in range(2):
        assert error(dense[i], L.tucker_dense(*tucker2(w[i], (3, 2)))) < 1e-5


def test_sizes_and_errors():
    assert L.svd_size(20, 12, 5) == 160
    for rank in (0, 13):
        with pytest.raises(ValueError, match=f"rank={rank}.*give 1 to 12"):
            L.svd(jnp.zeros((20, 12)), rank)
    with pytest.raises(ValueError, match=r"r_out=7.*give 1 to 6"):
        L.tucker2(jnp.zeros((3, 3, 8, 6)), (2, 7))
    with pytest.raises(ValueError, match="must have the shape"):
        L.svd(jnp.zeros((20, 12)), 2, jnp.zeros((20, 1)))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded(kind):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    w = normal(16, 8)
    c = normal(3, 3, 8, 4)
    fisher = np.exp(normal(16, 8, seed=1))
    expected = jnp.matmul(*svd(w, 3, fisher)), L.tucker_dense(*tucker2(c, (3, 2)))
    with jax.set_mesh(mesh):

        def put(x, *spec):
            return jax.device_put(x, NamedSharding(mesh, P(*spec)))

        got = (
            jnp.matmul(*svd(put(w, "x", "y"), 3, put(fisher, "x", "y"))),
            L.tucker_dense(*tucker2(put(c, None, None, "x", "y"), (3, 2))),
        )
    for x, y in zip(got, expected):
        assert error(x, y) < 1e-5
