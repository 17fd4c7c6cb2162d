"""Every test runs on 8 virtual CPU devices, with strict dtype promotion, and a warning is an error.

Programs are compiled without most of XLA's optimizations, for they are many and run once: a third of the time. CI runs
the tests on the newest Python with them (JAX_DISABLE_MOST_OPTIMIZATIONS=0).
"""

import gc
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
gc.set_threshold(200_000, 20, 100)  # a sixth of the tests' time went into looking at JAX's many small objects again


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def cheap():
    """For programs that are compiled and run once, where others are optimized: the compiler need not try hard."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


ROWS = ("cluster linear", "cluster density", "cluster tile", "unsharded[deep compression")
FILES = ("test_affine", "test_kmeans", "test_lowrank", "test_contexts", "_experiment.py", "test_hostile", "test_reader")


def pytest_collection_modifyitems(items):
    """On the newest JAX, what others run too is left out: rows with the code of `cluster`, the arithmetic that the laws
    use, files that were tampered with, experiments."""
    for item in items:
        if any(row in item.name for row in ROWS) or any(file in str(item.path) for file in FILES):
            item.add_marker(pytest.mark.slow)
