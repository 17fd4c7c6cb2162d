"""What several tests share."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp


def normal(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32).astype(
        dtype
    )


def model(dtype=jnp.float32, seed=0):
    """A small tree with what a network has: a kernel, a convolution, biases, an embedding, a
    counter.
    """
    return {
        "conv": {"kernel": normal((3, 3, 8, 16), seed, dtype), "bias": normal(16, seed + 1, dtype)},
        "dense": {"kernel": normal((16, 24), seed + 2, dtype), "bias": normal(24, seed + 3, dtype)},
        "embed": {"embedding": normal((10, 4), seed + 4, dtype)},
        "steps": jnp.array(7),
    }


compilations = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: (
        compilations.append(event) if event.endswith("backend_compile_duration") else None
    )
)


@contextlib.contextmanager
def nothing_compiled():
    """What is inside may use only what was compiled before."""
    before = len(compilations)
    yield
    assert len(compilations) == before, f"{len(compilations) - before} programs were compiled"


def compiled_once(run):
    """run, of which only the first call may compile."""
    guard = contextlib.nullcontext

    def call(*args):
        nonlocal guard
        with guard():
            out = run(*args)
        guard = nothing_compiled
        return out

    return call


def is_code(x):
    return isinstance(x, jp.CompressedArray)


def same(a, b, exact=True):
    """Trees with the same structure, dtypes and values."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert x.shape == y.shape and x.dtype == y.dtype, (x.shape, y.shape, x.dtype, y.dtype)
        if exact:
            np.testing.assert_array_equal(bits(x), bits(y))
        else:
            np.testing.assert_allclose(
                np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=2e-6, atol=2e-6
            )


def bits(x):
    """The bytes of an array: −0.0 differs from +0.0, and NaN equals NaN."""
    return np.ascontiguousarray(np.asarray(x)).view(np.uint8)


def distortion(params, tree):
    dense = jp.materialize(tree)
    gaps = jax.tree.map(
        lambda a, b: np.sum((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2),
        params,
        dense,
    )
    return sum(jax.tree.leaves(gaps))


def avals(tree):
    """Structure, shapes, dtypes and weak types."""

    def one(x):
        return (x.shape, x.dtype, getattr(x, "weak_type", False))

    return jax.tree.structure(tree), [one(x) for x in jax.tree.leaves(tree)]


def digit_images(n, seed):
    """As MNIST's, of noise: (28, 28, 1) in [0, 1], and labels."""
    rng = np.random.default_rng(seed)
    return rng.random((n, 28, 28, 1)).astype(np.float32), rng.integers(0, 10, n).astype(np.int32)
