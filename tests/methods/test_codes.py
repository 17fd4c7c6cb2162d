"""What clustering, sharing, quantising and factorising promise beyond the laws, against NumPy like
the papers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.helpers import model, normal


def host(x):
    return np.asarray(x, np.float64)


def test_clusters_are_nearest_and_centroids_are_means():
    w = normal((40, 30))
    tree = jp.cluster(k=8).init(w)
    book = host(tree.codebook)
    index = np.asarray(tree.indices)
    np.testing.assert_array_equal(index, np.argmin(abs(host(w)[..., None] - book), -1))
    for j in range(8):
        assert book[j] == pytest.approx(host(w)[index == j].mean(), abs=2e-4)


def test_pruned_weights_do_not_move_the_codebook():
    w = jnp.where(normal((20, 20)) > 0, 1.0, -1.0) * (1 + jnp.abs(normal((20, 20), 1)))
    hidden = jnp.zeros((20, 20), bool).at[:10].set(True)
    wild = jp.Masked(jnp.where(hidden, w, 1e6), hidden)
    tame = jp.Masked(jnp.where(hidden, w, jnp.nan), hidden)
    a, b = (
        jp.cluster(k=4, where={"w": True}).init({"w": x})["w"].values.codebook for x in (wild, tame)
    )
    np.testing.assert_array_equal(a, b)
    assert float(jnp.max(jnp.abs(a))) < 10


def test_one_codebook_for_the_tree_and_its_summed_gradient():
    params = model()
    tree = jp.cluster(k=4, scope="tree").init(params)
    assert isinstance(tree, jp.Common) and tree.codebook.shape == (4,)
    weights = 3 * 3 * 8 * 16 + 16 * 24
    rest = jp.nbits(params) - 32 * weights
    assert jp.nbits(tree) == 2 * weights + 4 * 32 + rest

    def loss(p):
        return jnp.sum(p["dense"]["kernel"]) + jnp.sum(p["conv"]["kernel"])

    _, grads = jp.value_and_grad(loss)(tree)
    counts = sum(
        np.bincount(np.asarray(tree.tree[k]["kernel"].indices).ravel(), minlength=4)
        for k in ("conv", "dense")
    )
    np.testing.assert_allclose(grads.codebook, counts)
    eight = jp.at(jp.where.field("codebook"), jp.quantize(bits=8)).init(tree)
    assert isinstance(eight.codebook, jp.Quantized)


@pytest.mark.slow
def test_a_tile_has_a_codebook_of_its_own():
    w = jnp.concatenate([normal((4, 6)), 100 + normal((4, 6), 1)])
    tree = jp.cluster(k=2, scope=(4,)).init(w)
    assert (
        tree.codebook.shape == (2, 2)
        and np.all(host(tree.codebook)[0] < 50)
        and np.all(host(tree.codebook)[1] > 50)
    )
    flat = jp.cluster(k=2, scope=(4, 3)).init(w)
    assert flat.codebook.shape == (2, 2, 2)
    alone = jp.cluster(k=2).init(w[4:, 3:])
    np.testing.assert_allclose(jp.materialize(flat)[4:, 3:], jp.materialize(alone), rtol=1e-5)


def test_fisher_weights_pull_centroids():
    w = jnp.array([[1.0, 2.0, 11.0, 12.0]])
    tree = jp.cluster(k=2, curvature=lambda p: jnp.array([[3.0, 1.0, 1.0, 1.0]])).init(w)
    np.testing.assert_allclose(tree.codebook, [1.25, 11.5], rtol=1e-6)


def test_random_start_needs_a_key():
    with pytest.raises(ValueError, match="key"):
        jp.cluster(k=4, init="random").init(normal((8, 8)))
    tree = jp.cluster(k=4, init="random").init(normal((8, 8)), key=jax.random.key(0))
    assert tree.codebook.shape == (4,)


@pytest.mark.parametrize("similarity", [0.5, 0.8, 0.95])
def test_the_error_of_a_shared_unit_is_bounded_by_the_threshold(similarity):
    basis = host(normal((32, 3)))
    w = jnp.asarray(basis @ host(normal((3, 40), 1)), jnp.float32)
    tree = jp.share(similarity=similarity).init(w)
    assert isinstance(tree, jp.Shared)
    error = np.linalg.norm(host(w) - host(jp.materialize(tree)), axis=0)
    bound = np.sqrt(1 - similarity**2) * np.linalg.norm(host(w), axis=0)
    assert np.all(error <= bound * (1 + 1e-5) + 1e-6)
    chosen = host(tree.prototypes)[:, np.asarray(tree.assignment)]
    cosine = (
        np.sum(chosen * host(w), 0)
        / np.linalg.norm(chosen, axis=0)
        / np.linalg.norm(host(w), axis=0)
    )
    assert np.all(cosine >= similarity - 1e-5)


def test_shared_filters_of_a_convolution_and_of_inputs():
    w = jnp.tile(normal((3, 3, 4, 1)), (1, 1, 1, 8)) * jnp.arange(1.0, 9.0)
    for axis, units in ((-1, 8), (-2, 4)):
        tree = jp.share(k=1 if axis == -1 else 4, axis=axis).init(w)
        assert tree.assignment.shape == (units,) if isinstance(tree, jp.Shared) else axis == -2
    np.testing.assert_allclose(jp.materialize(jp.share(k=1).init(w)), w, rtol=1e-5, atol=1e-6)


def test_a_code_larger_than_the_array_stays_dense_and_says_so():
    w = normal((8, 8))
    for c in (jp.share(k=8), jp.factorize(rank=7)):
        tree = c.init(w)
        assert isinstance(tree, jp.Dense) and "larger" in tree.why
        np.testing.assert_array_equal(jp.materialize(tree), w)
    assert "larger" in str(jp.summary({"w": jp.factorize(rank=7).init(w)}))


@pytest.mark.parametrize("Q", [10, 100.0, 2.0**15])
def test_a_given_scale_rounds_to_its_grid(Q):
    w = normal((20, 10))
    tree = jp.quantize(scale=Q).init(w)
    q = np.asarray(jp.materialize(tree.q))
    np.testing.assert_array_equal(q, np.round(np.float32(Q) * np.asarray(w)))
    assert np.max(np.abs(host(jp.materialize(tree)) - host(w))) <= 0.5 / Q * (1 + 1e-5)
    assert 2 ** (tree.bits - 2) <= np.abs(q).max() <= 2 ** (tree.bits - 1) - 1


def test_too_few_bits_for_a_scale_names_the_bits_needed():
    w = jnp.array([[20.0, -1.0]])
    with pytest.raises(ValueError, match=r"w: float32\[1, 2\].*needs 9 bits, not 8"):
        jp.quantize(8, scale=10).init({"w": w})
    np.testing.assert_allclose(
        jp.materialize(jp.quantize(8, scale=10, clip=True).init(w)), [[12.7, -1.0]], rtol=1e-6
    )


def test_stochastic_rounding_is_unbiased_and_keyed():
    w = jnp.full((100, 100), 0.3).at[0].set(1.0)
    c = jp.quantize(bits=2, axis=None, rounding="stochastic")
    out = jp.materialize(c.init(w, key=jax.random.key(0)))
    assert float(jnp.mean(out[1:])) == pytest.approx(0.3, abs=0.02) and set(np.unique(out)) <= {
        0.0,
        1.0,
    }
    np.testing.assert_array_equal(out, jp.materialize(c.init(w, key=jax.random.key(0))))
    with pytest.raises(ValueError, match="needs a key"):
        c.init(w)


def test_xnor_net_and_ternary_weights():
    w = host(normal((30, 5)))
    tree = jp.quantize(bits=1).init(jnp.asarray(w, jnp.float32))
    np.testing.assert_allclose(
        jp.materialize(tree), np.where(w >= 0, 1, -1) * abs(w).mean(0), rtol=1e-6
    )
    assert jp.nbits(tree) == 30 * 5 + 5 * 32
    delta = 0.7 * abs(w).mean(0)
    alpha = np.array([abs(w[:, j])[abs(w[:, j]) > delta[j]].mean() for j in range(5)])
    out = jp.materialize(jp.quantize(kind="ternary").init(jnp.asarray(w, jnp.float32)))
    np.testing.assert_allclose(out, np.sign(w) * (abs(w) > delta) * alpha, rtol=1e-6)


def test_codes_below_a_byte_are_packed_in_memory():
    tree = jp.quantize(bits=3).init(normal((64, 80)))
    assert tree.q.words.nbytes == 64 * 80 * 3 // 8


def test_low_rank_is_the_truncated_svd_and_tucker_rebuilds():
    w = host(normal((20, 30)))
    u, s, vt = np.linalg.svd(w)
    tree = jp.factorize(rank=4).init(jnp.asarray(w, jnp.float32))
    np.testing.assert_allclose(jp.materialize(tree), (u[:, :4] * s[:4]) @ vt[:4], atol=1e-4)
    tree = jp.factorize(energy=0.6).init(jnp.asarray(w, jnp.float32))
    rank = int(np.argmax(np.cumsum(s**2) >= 0.6 * np.sum(s**2))) + 1
    assert tree.u.shape == (20, rank)
    conv = jp.Tucker(normal((3, 3, 2, 3)), normal((8, 2), 1), normal((3, 12), 2))
    again = jp.factorize(rank=(2, 3)).init(jp.materialize(conv))
    np.testing.assert_allclose(jp.materialize(again), jp.materialize(conv), atol=1e-4)


def test_factors_are_weights_again():
    both = jp.chain(jp.factorize(rank=2), jp.prune(0.5)).init({"kernel": normal((16, 16))})
    assert isinstance(both["kernel"].u, jp.Masked) and isinstance(both["kernel"].v, jp.Masked)


BAD = {
    "k of none": (lambda: jp.cluster(0), "at least 1"),
    "k above": (
        lambda: jp.cluster(9).init({"w": normal((2, 4))}),
        r"w: float32\[2, 4\] has only 8 weights; choose k <= 8",
    ),
    "tile": (
        lambda: jp.cluster(2, scope=(3,)).init({"w": normal((4, 4))}),
        r"tile does not divide.*w: float32\[4, 4\]",
    ),
    "similarity": (lambda: jp.share(similarity=1.5), r"\(0, 1\]"),
    "similarity under jit": (
        lambda: jax.jit(jp.share(similarity=0.9).init)(normal((4, 4))),
        "under trace give k=",
    ),
    "energy under jit": (
        lambda: jax.jit(jp.factorize(energy=0.9).init)(normal((4, 4))),
        "under trace give rank=",
    ),
    "axis from the front": (lambda: jp.share(k=2, axis=0), "count axes from the end"),
    "prototypes above": (lambda: jp.share(k=9).init({"w": normal((4, 8))}), "has only 8 units"),
    "bits": (lambda: jp.quantize(bits=17), "2 to 16 bits"),
    "no bits": (lambda: jp.quantize(bits=0), "2 to 16 bits"),
    "kind": (lambda: jp.quantize(kind="int3"), "choose one of .*'symmetric'"),
    "bits of nf4": (lambda: jp.quantize(bits=8, kind="nf4"), "nf4 has 4 bits"),
    "scale": (lambda: jp.quantize(scale=-1.0), "one positive, finite number"),
    "group": (
        lambda: jp.quantize(group=3).init({"w": normal((4, 4))}),
        r"w: float32\[4, 4\].*group=3",
    ),
    "axis": (lambda: jp.quantize(axis=0), "count axes from the end"),
    "NaN": (
        lambda: jp.quantize().init({"w": jnp.full((2, 2), jnp.nan)}),
        r"w: float32\[2, 2\] has 4 NaN",
    ),
    "rank": (lambda: jp.factorize(rank=0), "at least 1"),
    "energy": (lambda: jp.factorize(energy=0), r"\(0, 1\]"),
    "neither": (lambda: jp.factorize(), "one of rank="),
    "already a code": (
        lambda: jp.chain(jp.cluster(2), jp.quantize(bits=8)).init({"w": normal((4, 4))}),
        "codes already .w is Clustered",
    ),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_input_is_refused(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("kind", ["symmetric", "affine", "nf4", "binary", "ternary"])
def test_a_scalar_stays_as_it_is(kind):
    compression = jp.at(jp.where.every_leaf, jp.quantize(kind=kind))
    tree = compression.init({"temperature": jnp.float32(3.0), "kernel": jnp.ones((4, 4))})
    assert (
        isinstance(tree["temperature"], jp.Dense)
        and float(jp.materialize(tree)["temperature"]) == 3.0
    )
    assert not isinstance(tree["kernel"], jp.Dense)
