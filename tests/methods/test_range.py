"""Any finite float may be a weight: the ends of the range of float32, float16 and bfloat16 cost no
digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

QUANTIZERS = {
    "symmetric": jp.quantize(),
    "symmetric 2 bits": jp.quantize(bits=2),
    "symmetric group": jp.quantize(bits=4, group=4),
    "affine": jp.quantize(kind="affine"),
    "affine 16 bits": jp.quantize(bits=16, kind="affine"),
    "affine mse": jp.quantize(bits=3, kind="affine", range="mse"),
    "mse": jp.quantize(bits=3, range="mse"),
    "nf4": jp.quantize(kind="nf4"),
    "float8_e4m3": jp.quantize(kind="float8_e4m3"),
    "float8_e5m2": jp.quantize(kind="float8_e5m2"),
    "binary": jp.quantize(bits=1),
    "ternary": jp.quantize(kind="ternary"),
}
EXACT = QUANTIZERS | {
    "prune": jp.prune(0.5),
    "prune lamp": jp.prune(0.5, score=jp.scores.lamp),
    "cluster": jp.cluster(4),
    "cluster linear": jp.cluster(4, init="linear"),
}
CLOSE = {
    "entropy sqnr": jp.entropy_quantize(sqnr=20),
    "entropy bits": jp.entropy_quantize(bits_per_weight=3),
    "share": jp.share(k=4),
    "share similarity": jp.share(similarity=0.6),
    "factorize": jp.factorize(rank=2),
    "factorize energy": jp.factorize(energy=0.7),
}


def weights(shape=(16, 12)):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def decoded(compression, w):
    return np.asarray(jp.materialize(compression.init(jnp.asarray(w))))


@pytest.mark.parametrize("exponent", [120, -95])
def test_scaling_by_a_power_of_two_scales_the_code(exponent):
    w = weights()
    factor = np.float32(2.0**exponent)
    for name, compression in EXACT.items():
        np.testing.assert_array_equal(
            decoded(compression, w * factor) / factor, decoded(compression, w), name
        )
    for name, compression in CLOSE.items():
        want = decoded(compression, w)
        np.testing.assert_allclose(
            decoded(compression, w * factor) / factor, want, rtol=1e-4, atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_the_largest_floats_stay_finite_and_near(dtype):
    largest = float(jnp.finfo(dtype).max)
    for shift in (
        0.0,
        0.5,
    ):  # 0.5: from −largest/3 to largest, so that an affine grid's end lies outside
        w = np.linspace(-1, 1, 48).reshape(8, 6)
        w = np.where(w < 0, w * (1 - shift * 4 / 3), w)
        for name, compression in QUANTIZERS.items():
            dense = (
                decoded(compression, jnp.asarray(w * largest, dtype)).astype(np.float64) / largest
            )
            of_one = decoded(compression, jnp.asarray(w, jnp.float32))
            assert np.isfinite(dense).all(), name
            error = np.linalg.norm(dense - w)
            usual = np.linalg.norm(of_one - w)
            assert error <= 1.1 * usual + 0.02, name


@pytest.mark.parametrize("size", [1e-36, 1e-37, 2e-38])
def test_the_smallest_floats_lose_no_more_than_a_normal_float(size):
    w = (np.linspace(-1, 1, 48).reshape(8, 6) * size).astype(np.float32)
    tiny = float(np.finfo(np.float32).tiny)
    for name in ("symmetric", "symmetric group", "affine", "float8_e5m2", "affine 16 bits"):
        usual = np.abs(decoded(QUANTIZERS[name], w / np.float32(size)) - w / size).max() * size
        relative = (
            0.13 * size if name.startswith("float8") else 0.0
        )  # half the spacing of a float8 of 2 bits
        assert np.abs(decoded(QUANTIZERS[name], w) - w).max() <= max(
            1.1 * tiny, 1.01 * usual, relative
        ), name


def test_float64_has_the_range_of_float64():
    with jax.enable_x64(True):
        w = weights().astype(np.float64)
        for factor in (2.0**1000, 2.0**-900):
            for name in ("symmetric", "affine", "nf4", "binary", "ternary", "mse", "prune"):
                want = decoded(EXACT[name], w)
                assert want.dtype == np.float64
                np.testing.assert_array_equal(decoded(EXACT[name], w * factor) / factor, want, name)


def test_an_affine_grid_has_the_range_of_the_weights():
    rng = np.random.default_rng(0)
    for low, high in [(1000, 1001), (-7, -6.5), (0.1, 0.3), (-1, 3), (1e6, 1e6 + 100), (3, 3)]:
        w = rng.uniform(low, high, (64, 4)).astype(np.float32)
        spread = w.max(0).astype(np.float64) - w.min(0)
        half_step = np.maximum(spread / 255, np.abs(w).max() * 2.0**-22) / 2
        error = np.abs(decoded(jp.quantize(kind="affine"), w).astype(np.float64) - w).max(0)
        assert np.all(error <= half_step * 1.01 + 2 * np.spacing(np.abs(w).max())), (low, high)
    equal = np.full((8, 4), 0.3, np.float32)
    np.testing.assert_array_equal(decoded(jp.quantize(kind="affine"), equal), equal)
    np.testing.assert_array_equal(decoded(jp.quantize(bits=2, kind="affine"), -equal), -equal)


def test_an_affine_zero_is_exactly_zero():
    w = np.abs(weights()) * (weights((16, 12)) > 0)
    for bits in (2, 4, 8, 13):
        for name in ("max", "mse"):
            dense = decoded(jp.quantize(bits=bits, kind="affine", range=name), w)
            assert np.all(dense[w == 0] == 0)


def test_a_fixed_scale_outside_the_floats_is_refused():
    w = weights()
    with pytest.raises(ValueError, match="bits, and at most 32 are held"):
        jp.quantize(scale=10).init(jnp.asarray(w * np.float32(1e37)))
    for scale in (1e-45, 1e39):
        with pytest.raises(ValueError, match="must be normal floats"):
            jp.quantize(scale=scale, bits=8).init(jnp.asarray(w))
        with pytest.raises(ValueError, match="normal float"):
            jp.entropy_quantize(step=scale).init(jnp.asarray(w))
    half = jnp.full((4, 4), 65504, jnp.float16)
    assert np.isfinite(decoded(jp.quantize(scale=0.003), half)).all()


def test_distortions_of_large_weights_are_measured_under_trace():
    w = jnp.asarray(weights())
    coarse = jp.quantize(bits=4)

    def ratio(w):
        return jp.measure.sqnr(w, coarse.init(w))

    usual = float(jax.jit(ratio)(w))
    for factor in (2.0**100, 2.0**-90):
        assert ratio(w * factor) == pytest.approx(usual, rel=1e-5)
        assert float(jax.jit(ratio)(w * factor)) == pytest.approx(usual, rel=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("share", [0.6, 0.9, 0.98, 1.0])
def test_weights_of_both_signs_near_the_largest_float_stay_finite(dtype, share):
    """Where a step more would leave the floats the grid is coarser, which costs up to a third."""
    largest = float(jnp.finfo(dtype).max)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (8, 8))
    for lower in (1.0, 0.8):
        w = np.where(signs < 0, lower * signs, signs) * share
        for bits in (2, 3, 8):
            for ends in ("max", "mse"):
                compression = jp.quantize(bits, kind="affine", range=ends)
                back = (
                    decoded(compression, jnp.asarray(w * largest, dtype)).astype(np.float64)
                    / largest
                )
                usual = np.linalg.norm(decoded(compression, w.astype(np.float32)) - w)
                assert np.linalg.norm(back - w) <= 1.45 * usual + 0.05, (bits, ends, lower)


def test_a_product_of_factors_beyond_the_largest_float_is_refused():
    w = np.random.default_rng(0).choice([-1.0, 1.0], (16, 16)).astype(np.float32) * np.float32(
        3.3e38
    )
    for compression in (jp.factorize(rank=2), jp.share(k=4)):
        with pytest.raises(
            ValueError, match=r"kernel.* decode to infinity: divide the weights by a power of two"
        ):
            compression.init({"kernel": jnp.asarray(w)})
        assert np.isfinite(decoded(compression, w / 8)).all()


def test_prototypes_of_units_with_large_norms_stay_finite():
    w = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    want = decoded(jp.share(k=4), w)
    np.testing.assert_array_equal(
        decoded(jp.share(k=4), w * np.float32(2.0**127)) / np.float32(2.0**127), want
    )
