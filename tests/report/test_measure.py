"""Sizes, distortion and density: hand-computed, against slow references, and the laws they keep."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxprune as jp
from jaxprune.core.arrays import Clustered, Common, Dense, Masked, Stacked
from jaxprune.core.pieces import leaves, pieces
from jaxprune.report import measure
from jaxprune.report.deep_compression import DeepCompression, deep_compression_bits
from jaxprune.report.measure import Sizes, density, distortion, sizes, sqnr
from jaxprune.storage.prediction import predicted_bytes
from tests.helpers import model, normal
from tests.reference import deep_compression as reference
from tests.storage.test_banks import model as banked

codebook8 = jp.at(jp.where.field("codebook"), jp.quantize(bits=8))
CASES = {
    "identity": jp.identity,
    "pruned": jp.prune(0.9),
    "clustered": jp.cluster(k=16),
    "one codebook": jp.cluster(k=16, scope="tree"),
    "deep compression": jp.chain(jp.prune(0.8), jp.cluster(k=7), codebook8),
    "int8": jp.quantize(bits=8),
    "int12": jp.quantize(bits=12),
    "groups of int4": jp.quantize(bits=4, group=4),
    "affine": jp.quantize(bits=6, kind="affine"),
    "float8": jp.quantize(kind="float8_e4m3"),
    "nf4": jp.quantize(kind="nf4"),
    "binary": jp.quantize(kind="binary"),
    "ternary": jp.quantize(kind="ternary"),
    "pruned int4": jp.chain(jp.prune(0.5), jp.quantize(bits=4)),
    "shared": jp.share(k=8),
    "stacked": jp.over(1, jp.prune(0.5)),
    "low rank": jp.factorize(rank=3),
}


def naive_entropy(x):
    """−Σ log2 p over the symbols, one at a time."""
    x = list(np.asarray(x).ravel().tolist())
    return -sum(math.log2(x.count(s) / len(x)) for s in x)


# --- sizes ---


def test_sizes_by_hand():
    mask = np.zeros((4, 16), bool)
    mask[0, :8] = True
    indices = np.tile(np.arange(4, dtype=np.uint8), 16).reshape(4, 16)
    w = Masked(Clustered(jnp.arange(4.0), jnp.asarray(indices)), jnp.asarray(mask))
    tree = {"w": w, "b": jnp.array([0.0, 2.0])}
    mask_entropy = 8 * math.log2(64 / 8) + 56 * math.log2(64 / 56)
    # mask: 64 bits + 2 bytes; codebook: 4 floats; indices: 8 of 2 bits + 2 bytes, less than 8 raw;
    # b: 2 floats
    stored = (8 + 2) + 16 + (2 + 2) + 8
    assert sizes(tree) == Sizes(
        64 * 4 + 8, 8 * 4 + 4, stored, math.ceil((mask_entropy + 128 + 8 * 2) / 8) + 8
    )


def test_the_mask_decides_what_is_kept():
    kept_zero = Masked(jnp.zeros((4, 4)), jnp.eye(4, dtype=bool))
    assert sizes(kept_zero).nonzero == 16 and density(kept_zero) == 0.25
    both = Masked(
        Masked(jnp.ones((4, 4)), jnp.eye(4, dtype=bool)), jnp.zeros((4, 4), bool).at[0].set(True)
    )
    assert sizes(both).nonzero == 4 and density(both) == 1 / 16
    assert sizes(jnp.array([0.0, jnp.nan, 1.0])).nonzero == 8


def test_masks_over_masks_and_stacks():
    def sizes_of(code):
        return {p.fields: p.symbols.tolist() for p in pieces(leaves(code)[0])}

    outer = np.array([1, 1, 1, 0], bool)
    inner = np.array([1, 0, 1, 1], bool)
    both = Masked(Masked(jnp.arange(4.0), jnp.asarray(inner)), jnp.asarray(outer))
    assert sizes_of(both) == {
        ("mask",): [True, True, True, False],
        ("values", "mask"): [True, False, True],
        ("values", "values"): [0.0, 2.0],
    }
    indices = jnp.arange(6, dtype=jnp.uint8).reshape(2, 3)  # stands for its transpose
    stacked = Masked(
        Stacked(Clustered(jnp.arange(6.0), indices), -1, 2), jnp.zeros((3, 2), bool).at[2].set(True)
    )
    assert sizes_of(stacked)[("values", "each", "indices")] == [2, 5]


def test_dtypes_and_python_leaves():
    four = jnp.arange(1, 5).astype(jnp.int4)
    tree = {"h": jnp.ones(6, jnp.bfloat16), "n": jnp.array(7), "i4": four, "m": jnp.ones(5, bool)}
    assert sizes(tree)[:2] == (12 + 4 + 2 + 1, 12 + 4 + 2 + 1)
    assert (
        sizes({"x": 3.0, "k": jax.random.key(0), "none": None, "empty": jnp.zeros((0, 4))}).dense
        > 0
    )
    assert sizes({}) == Sizes(0, 0, 0, 0)


@pytest.mark.parametrize("case", CASES)
def test_laws(case):
    tree = CASES[case].init(model())
    parts = [piece for leaf in leaves(tree) for piece in pieces(leaf)]
    assert sum(p.symbols.size * p.bits for p in parts) == jp.nbits(tree)
    size = sizes(tree)
    coded = [
        p for p in parts if p.coded
    ]  # floats, which entropy has as they are, take less in planes
    entropy = sum(measure.entropy_bits(p) for p in coded) / 8
    assert entropy <= size.stored + len(
        parts
    )  # one is rounded up once a leaf, the other once an array
    assert size.nonzero <= size.dense == sizes(model()).dense
    for piece in (p for p in parts if p.coded and p.symbols.size < 2000):
        assert measure.entropy_bits(piece) == pytest.approx(naive_entropy(piece.symbols), abs=1e-6)
    assert size.stored == pytest.approx(predicted_bytes(tree), rel=0.01)


def test_stored_is_what_the_writer_predicts_at_any_length():
    for n, top in itertools.product((1, 2, 3, 10, 100, 5000), (1, 2, 3, 200, 4095, 4096, 70000)):
        x = np.random.default_rng(n).integers(-top, top + 1, n) // 2
        tree = {
            "x": jnp.asarray(x, jnp.int32),
            "big": np.array([0, 2**40] * n),
            "m": jnp.asarray(x > 0),
        }
        tree |= {f"from {low}": np.arange(low, low + n) for low in (-65, -64, 63, 64)}
        assert sizes(tree).stored == predicted_bytes(tree), (n, top)


@pytest.mark.parametrize("keep", [1.0, 0.3, 0.05])
def test_leaves_that_share_a_bank(keep, tmp_path):
    """Kernels of one group each of masks, indices and integers: as the writer predicts, and as
    `inspect` shows."""
    tree = {
        "net": banked(keep=keep),
        "bias": normal((7,)),
        "step": 3,
        "heads": [banked(1, keep), normal((2, 2))],
    }
    jp.save(tmp_path / "x", tree)
    found = jp.inspect(tmp_path / "x")
    table = jp.summary(tree)
    assert "context" in {codec for row in found.rows for codec in row.codecs}
    assert (
        sizes(tree).stored == predicted_bytes(tree) == found.bytes.predicted == table.totals.stored
    )
    assert [row.path for row in table.rows] == [row.path for row in found.rows]
    for a, b in zip(table.rows, found.rows):
        assert abs(a.stored - b.stored_bytes) <= max(8, 0.01 * b.stored_bytes), (a, b)
    one = jp.summary(tree, where=jp.where.path("net/q1"))
    assert one.totals.stored == next(row.stored for row in table.rows if row.path == "net/q1")


def test_what_is_in_no_file_has_no_bytes():
    static = {"f": len, "name": "relu", "none": None, "n": 3, "x": 0.5}
    # two words of 0 are a base and a width, as are two ones, whose base has five bytes
    assert sizes({**static, "key": jax.random.key(0), "w": jnp.ones(2)}).stored == 2 + 6
    with pytest.raises(ValueError, match="dtype"):
        sizes({"w": np.array([None])})


def test_a_common_codebook_is_charged_once():
    w = {"a": normal((16, 8)), "c": normal((16, 8), 1)}
    one = jp.cluster(k=16, scope="tree").init(w)
    each = jp.cluster(k=16).init(w)
    assert isinstance(one, Common)
    assert sizes(one).entropy < sizes(each).entropy and sizes(one).dense == sizes(each).dense
    assert sum(leaf.side for leaf in leaves(one)) == 1


def test_tracers_are_refused():
    code = jp.prune(0.5).init(normal((4, 4)))
    for f in (sizes, density, deep_compression_bits, jp_summary):
        with pytest.raises(ValueError, match="concrete"):
            jax.jit(lambda c, f=f: f(c) and 0)(code)
        with pytest.raises(ValueError, match="concrete"):
            f(jax.eval_shape(lambda c: c, code))


def jp_summary(tree):
    from jaxprune.report.tables import summary

    return summary(tree)


# --- density and distortion ---


def test_density_of_a_selection():
    tree = {"w": jp.prune(0.75).init(normal((4, 4))), "bias": jnp.zeros(4), "steps": jnp.array(0)}
    assert density(tree) == 4 / 20
    assert density(tree, where=jp.where.weights) == 0.25
    assert density(tree, where=jp.where.path("bias")) == 0
    with pytest.raises(ValueError, match="matches nothing"):
        density(tree, where=jp.where.path("kernel"))


def test_nothing_is_wholly_kept_and_one_weight_less_is_not():
    assert density({}) == density({"w": jnp.zeros((0, 3)), "n": jnp.arange(3)}) == 1
    assert jp.summary({"w": jnp.zeros((0, 3))}).totals.density == 1
    almost = str(jp.summary({"w": jp.prune(0.0005).init(normal((50, 40)))}))
    assert "Masked >99.9%" in almost and "100%" not in almost.replace(">", "")


def test_what_is_not_finite_is_noted_for_every_dtype():
    for dtype in ("complex64", "float8_e4m3fn", "bfloat16"):
        assert "1 NaN" in str(jp.summary({"w": jnp.array([1.0, jnp.nan]).astype(dtype)}))


def test_distortion_by_hand():
    w = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([3.0]), "n": jnp.array(1)}
    code = {"a": jnp.array([[1.5, 0.0]]), "b": jnp.array([3.0]), "n": jnp.array(5)}
    assert distortion(w, code) == 0.25 + 4
    assert distortion(w, code, {"a": jnp.array([4.0, 1.0])}) == 1 + 4
    assert sqnr(w, code) == pytest.approx(10 * math.log10((1 + 4 + 9) / 4.25))
    assert sqnr(w, w) == math.inf and sqnr({"z": jnp.zeros(2)}, {"z": jnp.ones(2)}) == -math.inf


def test_distortion_accumulates_in_float64():
    w = jnp.full((1 << 12,), 1.0).at[0].set(1e5)
    assert distortion(w, jnp.zeros(1 << 12)) == 1e10 + (1 << 12) - 1


def test_distortion_may_be_traced():
    w = normal((8, 8))
    levels = jnp.array([0.25, 0.5, 0.75])
    curve = jax.jit(jax.vmap(lambda s: distortion(w, jp.prune(s).init(w))))(levels)
    np.testing.assert_allclose(
        curve, [distortion(w, jp.prune(float(s)).init(w)) for s in levels], rtol=1e-5
    )
    half = jp.prune(0.5).init(w)
    assert jax.jit(lambda c: sqnr(w, c))(half) == pytest.approx(sqnr(w, half), rel=1e-5)


@pytest.mark.parametrize(
    "code, weights, match",
    [
        (
            {"a": jnp.ones(2), "kernal": jnp.ones(2)},
            None,
            "compressed tree has a leaf 'kernal'.*'kernel'",
        ),
        ({"a": jnp.ones(2)}, None, "lacks the leaf 'kernel'"),
        (
            {"a": jnp.ones(3), "kernel": jnp.ones(2)},
            None,
            r"a has the shape \(2,\) in params and \(3,\)",
        ),
        ({"a": jnp.ones(2), "kernel": jnp.ones(2)}, {"c": jnp.ones(2)}, "curvature has a leaf 'c'"),
    ],
)
def test_trees_that_differ(code, weights, match):
    with pytest.raises(ValueError, match=match):
        distortion({"a": jnp.ones(2), "kernel": jnp.ones(2)}, code, weights)


# --- Deep Compression ---


@given(
    st.integers(0, 999),
    st.integers(1, 300),
    st.sampled_from([0.01, 0.1, 1.0]),
    st.integers(1, 20),
    st.integers(1, 8),
)
@settings(max_examples=60, deadline=None)
def test_deep_compression_against_a_loop(seed, n, keep, k, width):
    rng = np.random.default_rng(seed)
    mask = rng.random(n) < keep
    indices = rng.integers(0, k, n).astype(np.uint8)
    code = Masked(Clustered(np.arange(k, dtype=np.float32), indices), mask)
    value_bits = max(1, math.ceil(math.log2(k + 1)))
    expected = reference.sizes(mask.tolist(), indices, k, value_bits, width)
    assert deep_compression_bits({"w": code}, gap_width=width) == expected
    assert deep_compression_bits({"w": code}).fixed == min(
        reference.sizes(mask.tolist(), indices, k, value_bits, g)[0] for g in range(1, 10)
    )


def test_deep_compression_of_a_whole_tree():
    mask = np.zeros(16, bool)
    mask[[1, 4, 15]] = True  # figure 2 of the paper: gaps 1 2 7* 2 with 3 bits
    indices = np.zeros(16, np.uint8)
    indices[[4, 15]] = [1, 2]
    clustered = Masked(Clustered(jnp.arange(3.0), jnp.asarray(indices)), jnp.asarray(mask))
    # values 0 1 3* 2: all different, 2 bits each; gaps 1 2 7 2: 1 bit for the 2, 2 bits for the
    # others
    w = 4 * (2 + 3) + 3 * 32, 4 * 2 + 6 + 3 * 32
    floats = Masked(jnp.full(16, 3.4, jnp.bfloat16), jnp.asarray(mask))
    v = 4 * (16 + 3), 4 * 16 + 6
    whole = Clustered(jnp.arange(4.0), jnp.array([0, 0, 0, 3], jnp.uint8))
    c = 4 * 2 + 4 * 32, 4 * 1 + 4 * 32
    tree = {
        "w": clustered,
        "v": floats,
        "c": whole,
        "bias": jnp.zeros(5),
        "kept": Dense(jnp.zeros((2, 2)), "small"),
    }
    expected = (w[0] + v[0] + c[0] + 9 * 32, w[1] + v[1] + c[1] + 9 * 32)
    assert deep_compression_bits(tree, gap_width=3) == expected == DeepCompression(*expected)


def test_value_bits_and_codebooks_at_their_stored_width():
    code = jp.chain(jp.prune(0.5), jp.cluster(k=7)).init(normal((32, 32)))
    small = codebook8.init(code)
    plain = deep_compression_bits(code, gap_width=5)
    eight = deep_compression_bits(small, gap_width=5)
    scale = 32 * small.values.codebook.scale.size
    assert plain.fixed - eight.fixed == plain.huffman - eight.huffman == 7 * (32 - 8) - scale
    wide = deep_compression_bits(code, value_bits=6, gap_width=5)
    entries = (wide.fixed - 7 * 32) // (6 + 5)
    assert wide.fixed - plain.fixed == 3 * entries and wide.huffman == plain.huffman
    with pytest.raises(ValueError, match="value_bits=2"):
        deep_compression_bits(code, value_bits=2)


def test_stacks_and_common_codebooks():
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 4, (4, 6, 8)).astype(np.uint8)
    layers = Masked(Clustered(jnp.ones((4, 4)), jnp.asarray(indices)), jnp.ones((4, 6, 8), bool))
    # all kept: every gap is 1; 3 bits hold 4 centroids and a filler
    assert deep_compression_bits(layers, gap_width=1).fixed == 4 * 4 * 32 + 192 * (3 + 1)
    moved = Stacked(layers, -2, 3)
    assert moved.shape == (6, 4, 8)
    assert deep_compression_bits(moved) == deep_compression_bits(layers)
    tree = {"a": normal((8, 8)), "c": normal((8, 8), 1)}
    one = jp.cluster(k=4, scope="tree").init(tree)
    each = jp.cluster(k=4).init(tree)
    assert deep_compression_bits(each).fixed - deep_compression_bits(one).fixed == 4 * 32


def test_other_codes_are_refused():
    with pytest.raises(ValueError, match=r"kernel is Binary.*measure\.sizes"):
        deep_compression_bits({"kernel": jp.quantize(bits=1).init(normal((4, 4)))})
    q = jp.Quantized(jnp.ones((4, 4), jnp.int8), jnp.ones((1, 1)), None, 8, jnp.dtype("float32"))
    for other in (
        {"zero_point": jnp.ones((1, 1), jnp.int8)},
        {"grid": (0.0, 1.0)},
        {"q": q.q.astype("float8_e4m3fn")},
    ):
        with pytest.raises(ValueError, match=r"kernel is Quantized.*measure\.sizes"):
            deep_compression_bits({"kernel": Masked(q.replace(**other), jnp.eye(4, dtype=bool))})


def test_levels_on_a_grid_are_values_of_their_own():
    """Figure 2's mask; the levels are −2, 3 and 0 (which is pruned), then 3: from −2 to 3 are 6, 3
    bits each."""
    q = np.zeros(16, np.int16)
    q[[1, 4, 15]] = [-2, 3, 3]
    there = q != 0
    there[7] = True  # kept, but 0
    scale = jnp.full(1, 0.5)
    f32 = jnp.dtype("float32")
    levels = jp.Quantized(jnp.asarray(q), scale, None, 16, f32)
    # gaps 1 2 7* 2 of 3 bits; values −2 3 0* 3: lengths 2 1 2 1
    expected = 4 * (3 + 3) + 32, 6 + 6 + 32
    assert deep_compression_bits(Masked(levels, jnp.asarray(there)), gap_width=3) == expected
    assert (
        deep_compression_bits(levels, gap_width=3) == expected
    )  # the mask says no more than the levels
    assert deep_compression_bits(Dense(levels, ""), gap_width=3) == expected
    hidden = there & (np.arange(16) != 1)  # −2 is hidden: 0 to 3 are 4 levels
    assert (
        deep_compression_bits(Masked(levels, jnp.asarray(hidden)), gap_width=3).fixed
        == 3 * (2 + 3) + 32
    )
    assert deep_compression_bits(Masked(levels, jnp.zeros(16, bool))) == (32, 32)
    with pytest.raises(ValueError, match="value_bits=2 cannot hold 6 codes"):
        deep_compression_bits(levels, value_bits=2)
    wide = jp.Quantized(
        jnp.asarray(q), jnp.ones(16), None, 16, f32
    )  # a scale each: no levels of entropy_quantize
    assert deep_compression_bits(wide) == (16 * 48, 16 * 48)


def test_levels_of_the_verbs():
    w = normal((32, 48))
    q = jnp.asarray(np.random.default_rng(0).integers(-3, 3, (3, 6, 8), np.int8))
    layers = Masked(jp.Quantized(q, jnp.ones((3, 1, 8)), None, 8, jnp.dtype("float32")), q > -2)
    for tree in (
        jp.entropy_quantize(step=0.3).init(w),
        jp.chain(jp.prune(0.6), jp.quantize(bits=5)).init(w),
        Stacked(layers, -2, 3),
    ):
        levels = np.asarray(jp.materialize(tree))
        q = measured_levels(tree)
        assert q.shape == levels.shape and np.array_equal(q == 0, levels == 0)
        low = min(0, q.min())
        high = max(0, q.max())
        names = np.where(q > 0, q - low - 1, q - low).astype(int)  # the filler's code is the last
        bits = int(high - low).bit_length()
        plain = reference.sizes((q != 0).ravel().tolist(), names.ravel(), int(high - low), bits, 4)
        scales = sum(p.symbols.size * 32 for p in pieces(leaves(tree)[0]) if "scale" in p.fields)
        side = scales - 32 * int(high - low)
        assert deep_compression_bits(tree, gap_width=4) == (plain[0] + side, plain[1] + side)


def measured_levels(tree):
    """Each weight's level, by its place in the dense array."""

    def ones(code):
        if isinstance(code, jp.Quantized):
            return code.replace(scale=jnp.ones_like(code.scale))
        name = "each" if isinstance(code, Stacked) else "values"
        return code.replace(**{name: ones(getattr(code, name))})

    return np.asarray(jp.materialize(ones(tree)))


def test_quantised_biases_cost_their_integers_and_scale():
    bias = jp.at(jp.where.ndim(1), jp.quantize(bits=8)).init({"bias": normal((10,))})
    assert deep_compression_bits(bias) == (10 * 8 + 32, 10 * 8 + 32)
