"""One-dimensional k-means: exact where it can be, near the optimum elsewhere, the same on host,
device and mesh.
"""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxprune.numerics import placement
from jaxprune.numerics.clusters import kmeans

from ..reference import kmeans as slow

FEW = settings(max_examples=25, deadline=None)
KEY = jax.random.key(0)


@partial(jax.jit, static_argnames=("k", "init", "chunked"))
def compiled(x, k, weights=None, init="optimal", chunked=True):
    draws = jax.random.uniform(KEY, (k,)) if init == "random" else None
    return kmeans._fit_compiled([x], [weights], draws, k, init, 100, not chunked)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def few_values(values, size=3000, seed=0):
    x = np.random.default_rng(seed).choice(values, size)
    x[: values.size] = values
    return x


# --- codebook
# ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2, 16, 256])
@pytest.mark.parametrize("close", [False, True])
def test_few_distinct_values_are_the_codebook_to_the_bit(k, close):
    values = np.sort(normal(k))
    if close:  # neighbouring floats
        values = (np.float32(0.5).view(np.int32) + np.arange(k, dtype=np.int32)).view(np.float32)
    x = few_values(values)
    for book in (kmeans.codebook(jnp.asarray(x), k), compiled(x, k, chunked=k != 16)):
        assert book.dtype == jnp.float32
        np.testing.assert_array_equal(book, values)


@pytest.mark.slow
def test_spare_levels_repeat_and_nothing_gives_zeros():
    x = few_values(np.float32([-3, 1, 7]))
    for fit in (kmeans.codebook, compiled):
        assert fit(jnp.asarray(x), 6).tolist() == [-3, 1, 7, 7, 7, 7]
        assert fit(jnp.asarray(x), 4, weights=jnp.zeros(x.shape)).tolist() == [0, 0, 0, 0]
        assert fit(jnp.full(10, jnp.nan), 2).tolist() == [0, 0]
        assert fit(jnp.zeros(10), 2).tolist() == [0, 0]


@FEW
@given(
    st.lists(st.floats(-1e6, 1e6, width=32, allow_subnormal=False), min_size=1, max_size=40),
    st.integers(1, 8),
)
@example([1.0, -4243.0, -8216.0, -325702.0], 3)  # the mean of 1 alone was an ulp above it
def test_any_list_gives_a_finite_ascending_codebook_of_means(values, k):
    x = np.asarray(values, np.float32)
    book = np.asarray(kmeans.codebook(jnp.asarray(x), k))
    assert np.isfinite(book).all() and (np.diff(book) >= 0).all()
    assert x.min() <= book[0] and book[-1] <= x.max()
    if k >= np.unique(x).size:
        assert slow.distortion(x, book) == 0


def test_more_levels_never_cost_more_and_enough_cost_nothing():
    x = normal(64)
    D = [
        slow.distortion(x, np.asarray(kmeans.codebook(jnp.asarray(x), k)))
        for k in (1, 2, 4, 8, 16, 32, 64)
    ]
    assert all(a >= b for a, b in pairwise(D)) and D[-1] == 0


SAMPLES = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "laplace": lambda rng, n: rng.laplace(size=n),
    "outlier": lambda rng, n: np.append(0.01 * rng.standard_normal(n - 1), 1e4),
    "cauchy": lambda rng, n: rng.standard_cauchy(n),
    "lumps": lambda rng, n: rng.choice(rng.standard_normal(100), n),
    "two scales": lambda rng, n: np.where(rng.random(n) < 0.5, 1, 1e-3) * rng.standard_normal(n),
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("n, k", [(64, 8), (500, 4), (500, 32)])
def test_small_samples_come_near_the_optimum(name, n, k):
    x = SAMPLES[name](np.random.default_rng(0), n).astype(np.float32)
    book = np.asarray(kmeans.codebook(jnp.asarray(x), k))
    assert slow.distortion(x, book) <= 1.25 * slow.distortion(x, slow.optimal(x, k))


@pytest.mark.parametrize("k", [16, 256])
@pytest.mark.parametrize("name", ["normal", "laplace"])
def test_large_samples_are_within_a_hundredth_of_the_optimum(name, k):
    x = np.sort(SAMPLES[name](np.random.default_rng(1), 400_000).astype(np.float32))
    grid = x.reshape(-1, 400).mean(1)  # the optimum on 1,000 equal shares, polished on all
    best = slow.lloyd(x, slow.optimal(grid, k), 300)

    def D(c):
        return float(
            np.sum((x - c[np.searchsorted((c[1:] + c[:-1]) / 2, x)]) ** 2, dtype=np.float64)
        )

    assert D(np.asarray(kmeans.codebook(jnp.asarray(x), k))) <= 1.01 * D(best)


@pytest.mark.parametrize("init", ["optimal", "linear", "density", "random"])
def test_host_and_device_agree(init):
    x = normal(40, 50)
    w = normal(40, 50, seed=1) ** 2
    host = kmeans.codebook(jnp.asarray(x), 16, weights=jnp.asarray(w), init=init, key=KEY)
    np.testing.assert_allclose(
        compiled(x, 16, w, init, init != "density"), host, rtol=1e-5, atol=1e-6
    )


def test_linear_is_lloyd_from_the_range():
    x = np.sort(normal(2000))
    book = kmeans.codebook(jnp.asarray(x), 8, init="linear", iterations=200)
    np.testing.assert_allclose(book, slow.lloyd(x, np.linspace(x[0], x[-1], 8), 200), atol=1e-3)


def test_levels_are_the_exact_means_of_what_is_assigned_to_them():
    x = normal(3000) + 3
    w = normal(3000, seed=1) ** 2
    for fit in (kmeans.codebook, compiled):
        book = np.asarray(fit(jnp.asarray(x), 12, weights=jnp.asarray(w)))
        a = slow.nearest(x, book)
        mean = [np.average(x[a == j].astype(np.float64), weights=w[a == j]) for j in range(12)]
        np.testing.assert_allclose(book, mean, rtol=2e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30, 0.0])
def test_what_has_no_weight_has_no_influence(bad):
    x = normal(30, 40)
    keep = np.random.default_rng(0).random((30, 40)) < 0.3
    x = np.where(keep, x + 2, np.float32(bad))
    want = kmeans.codebook(jnp.asarray(x[keep]), 8)
    same = kmeans.codebook(
        jnp.asarray(np.where(keep, x, np.float32(5))), 8, weights=jnp.asarray(keep)
    )
    for h in (keep, keep.astype(np.float32)):
        got = kmeans.codebook(jnp.asarray(x), 8, weights=jnp.asarray(h))
        np.testing.assert_array_equal(got, same)
    np.testing.assert_allclose(compiled(x, 8, keep), same, rtol=1e-5)
    gap = [slow.distortion(x[keep], np.asarray(c)) for c in (same, want)]
    assert gap[0] == pytest.approx(gap[1], rel=1e-5)


def test_weights_are_multiplicities():
    x = normal(500)
    times = np.random.default_rng(0).integers(0, 4, 500)
    w = kmeans.codebook(jnp.asarray(x), 6, weights=jnp.asarray(times, jnp.float32))
    r = kmeans.codebook(jnp.asarray(np.repeat(x, times)), 6)
    D = [slow.distortion(x, np.asarray(c), times) for c in (w, r)]
    assert D[0] == pytest.approx(D[1], rel=1e-5)


def test_several_arrays_share_a_codebook():
    xs = [normal(20, 30), normal(17, seed=1), normal(3, 4, 5, seed=2)]
    flat = jnp.concatenate([x.reshape(-1) for x in xs])
    np.testing.assert_array_equal(
        kmeans.codebook([jnp.asarray(x) for x in xs], 8), kmeans.codebook(flat, 8)
    )
    jitted = jax.jit(lambda xs: kmeans.codebook(xs, 8))([jnp.asarray(x) for x in xs])
    np.testing.assert_allclose(jitted, kmeans.codebook(flat, 8), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_read_as_float32(dtype):
    x = jnp.asarray(normal(400)).astype(dtype)
    np.testing.assert_array_equal(kmeans.codebook(x, 8), kmeans.codebook(x.astype(jnp.float32), 8))


@pytest.mark.slow
def test_batched_abstract_and_chunked(monkeypatch):
    X = normal(3, 200)
    books = jax.jit(jax.vmap(lambda x: kmeans.codebook(x, 8)))(X)
    for x, book in zip(X, books):
        np.testing.assert_allclose(book, kmeans.codebook(jnp.asarray(x), 8), rtol=1e-5, atol=1e-6)
    assert jax.eval_shape(lambda x: kmeans.codebook(x, 8), X).shape == (8,)
    monkeypatch.setattr(placement, "CHUNK", 64)
    parts = jax.jit(
        lambda x: kmeans._fit_compiled.__wrapped__([x], [None], None, 8, "optimal", 100, False)
    )(X[0])
    np.testing.assert_allclose(parts, books[0], rtol=1e-5, atol=1e-6)


def test_errors_say_what_to_pass():
    with pytest.raises(ValueError, match="key="):
        kmeans.codebook(jnp.ones(3), 2, init="random")
    with pytest.raises(ValueError, match="optimal, linear, density, random"):
        kmeans.codebook(jnp.ones(3), 2, init="best")  # type: ignore[arg-type]


# --- assign
# ---------------------------------------------------------------------------------------

BOOKS = {
    2: np.float32([-1, 1.5]),
    4: np.float32([1, 2, 2, 3]),
    5: np.float32([0, 0, 0, 0, 0]),
    16: np.sort(normal(16)),
    50: np.sort(normal(50)) * 1e-3 + 1,
    256: np.sort(np.concatenate([normal(255), [1e4]])).astype(np.float32),
    300: np.repeat(np.sort(normal(100)), 3),
}


@pytest.mark.parametrize("k", BOOKS)
def test_assign_is_the_nearest_entry_and_the_lower_of_two(k):
    book = BOOKS[k]
    ends = (book[1:] + book[:-1]) / 2
    near = [np.nextafter(ends, np.float32(s * np.inf), dtype=np.float32) for s in (-1, 1)]
    x = np.concatenate([book, ends, *near, 3 * normal(500), [1e6, -1e6, 0.0, 2.2, 2.8]]).astype(
        np.float32
    )
    want = slow.nearest(x, book)
    for sharded in (False, True):
        got = kmeans._assign_compiled(x, jnp.asarray(book), np.dtype(np.int32), sharded)
        np.testing.assert_array_equal(got, want)
    got = kmeans.assign(jnp.asarray(x), jnp.asarray(book))
    np.testing.assert_array_equal(got, want)
    assert got.dtype == (jnp.uint8 if k <= 256 else jnp.uint16)
    odd = jnp.asarray([np.nan, -np.inf, np.inf], jnp.float32)
    assert kmeans.assign(odd, jnp.asarray(book)).tolist() == [0, 0, want[np.argmax(x)]]
    assert jax.jit(kmeans.assign)(odd, jnp.asarray(book)).tolist() == [0, 0, want[np.argmax(x)]]


def test_assign_keeps_shapes_and_batches():
    X = normal(3, 5, 7)
    books = np.sort(normal(3, 40), -1)
    got = jax.vmap(kmeans.assign)(X, books)
    np.testing.assert_array_equal(got, np.stack([slow.nearest(x, c) for x, c in zip(X, books)]))
    assert kmeans.assign(jnp.ones((2, 0)), jnp.ones(3)).shape == (2, 0)
    assert (
        kmeans.assign(jnp.ones((2, 3), jnp.bfloat16), jnp.ones(1, jnp.bfloat16)).tolist()
        == [[0] * 3] * 2
    )


# --- mesh
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_weights_stay_where_they_are(kind):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind,) * 2)
    where = NamedSharding(mesh, PartitionSpec("a", "b"))
    keep = np.random.default_rng(0).random((64, 32)) < 0.5
    x = np.where(keep, normal(64, 32), np.float32(np.nan))
    want = kmeans.codebook(jnp.asarray(x), 40, weights=jnp.asarray(keep))
    with jax.set_mesh(mesh):
        y, h = (jax.device_put(v, where) for v in (x, keep))
        fit = jax.jit(lambda x, h: kmeans.codebook(x, 40, weights=h)).lower(y, h).compile()
        assert "all-gather" not in fit.as_text()
        book = fit(y, h)
        np.testing.assert_allclose(book, want, rtol=1e-5, atol=1e-6)
        for k in (8, 40):
            find = jax.jit(kmeans.assign).lower(y, book[:k]).compile()
            assert "all-gather" not in find.as_text()
            assert find(y, book[:k]).sharding.is_equivalent_to(where, 2)
            np.testing.assert_array_equal(
                find(y, book[:k]), kmeans.assign(jnp.asarray(x), jnp.asarray(np.asarray(book)[:k]))
            )


# --- the bound, and repeated values
# ---------------------------------------------------------------------------------------

DRAWS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "cauchy": lambda rng, n: rng.standard_cauchy(n),
    "two narrow modes": lambda rng, n: rng.choice([-1, 1], n) + 1e-6 * rng.standard_normal(n),
    "lattice": lambda rng, n: np.round(10 * rng.standard_normal(n)),
    "one outlier": lambda rng, n: np.append(0.01 * rng.standard_normal(n - 1), 1e4),
    "lognormal": lambda rng, n: np.exp(3 * rng.standard_normal(n)),
    "uniform": lambda rng, n: rng.random(n),
}


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(DRAWS)),
    st.integers(0, 10**6),
    st.integers(20, 900),
    st.integers(2, 40),
    st.booleans(),
)
@example("normal", 1, 300, 8, False)
@example("cauchy", 2, 300, 8, False)
@example("one outlier", 0, 800, 40, True)
def test_the_optimal_start_keeps_within_a_hundredth_of_the_exact_programme(
    name, seed, n, k, weighted
):
    rng = np.random.default_rng(seed)
    x = DRAWS[name](rng, n).astype(np.float32)
    h = (
        (rng.random(n) ** 2).astype(np.float32) + np.float32(1e-3)
        if weighted
        else np.ones(n, np.float32)
    )
    book = kmeans.codebook(jnp.asarray(x), k, weights=jnp.asarray(h) if weighted else None)
    best = slow.optimal(x - x.mean(dtype=np.float64), k, h) + x.mean(dtype=np.float64)
    bound = 1.01 * slow.distortion(x, best, h) + 1e-6 * np.sum(h * np.spacing(np.abs(x)) ** 2) * n
    assert (
        slow.distortion(x, np.asarray(book), h)
        <= bound + n * float(np.spacing(np.abs(x).max())) ** 2
    )


def test_traced_samples_come_near_the_optimum():
    for name in ("normal", "cauchy", "two narrow modes"):
        x = DRAWS[name](np.random.default_rng(3), 1200).astype(np.float32)
        book = np.asarray(compiled(x, 16))
        best = slow.distortion(x, slow.optimal(x, 16))
        assert (
            slow.distortion(x, book) <= 1.01 * best + 1200 * float(np.spacing(np.abs(x).max())) ** 2
        ), name


def sparse(n=1200, density=0.1, seed=0):
    """Weights that were pruned and then trained: most are 0, some of the others very small."""
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(n) < density, 0.05 * rng.standard_normal(n), 0)
    return np.where(rng.random(n) < 0.3, 1e-4 * x, x).astype(np.float32)


@pytest.mark.parametrize("init", ["optimal", "linear"])
def test_zeros_that_are_many_have_a_level_of_exactly_0(init):
    x = sparse()
    for k in (4, 16):
        for book in (kmeans.codebook(jnp.asarray(x), k, init=init), compiled(x, k, init=init)):
            decoded = np.asarray(book)[slow.nearest(x, np.asarray(book))]
            assert np.all(decoded[x == 0] == 0), k
    X = np.stack([sparse(seed=seed) for seed in range(3)])
    books = np.asarray(jax.vmap(lambda x: kmeans.codebook(x, 4, init=init))(X))
    assert np.all((books == 0).any(1))
    below = sparse(density=0.5)
    above = np.abs(sparse(density=0.5))
    for x in (below - above, above):  # of one sign
        assert 0 in np.asarray(kmeans.codebook(jnp.asarray(x), 4, init=init))


def test_few_zeros_cost_no_level_and_large_arrays_keep_theirs():
    x = np.append(normal(999) + 9, np.float32(0)).astype(np.float32)
    assert 0 not in np.asarray(kmeans.codebook(jnp.asarray(x), 4))
    x = sparse(40_000)
    for book in (kmeans.codebook(jnp.asarray(x), 16), compiled(x, 16)):
        assert 0 in np.asarray(book)


def test_another_value_that_is_repeated_has_its_own_level():
    x = np.where(np.random.default_rng(0).random(2000) < 0.7, np.float32(0.3), normal(2000))
    assert np.float32(0.3) in np.asarray(kmeans.codebook(jnp.asarray(x), 16))
