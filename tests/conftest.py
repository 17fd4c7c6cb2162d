"""Every test runs on 8 virtual CPU devices, with strict dtype promotion, and a warning is an error.

Programs are compiled without most of XLA's optimizations, for they are many and run once: a third
of the time. CI runs the tests on the newest Python with them (JAX_DISABLE_MOST_OPTIMIZATIONS=0).
"""

import gc
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

if os.environ.get("JAXPRUNE_CHECK_TYPES"):
    # Every call of the library is held against the shapes and dtypes of its signature.
    from jaxtyping import install_import_hook

    import tests.type_checker  # noqa: F401, found by its name

    install_import_hook("jaxprune", "tests.type_checker.check")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
gc.set_threshold(
    200_000, 20, 100
)  # a sixth of the tests' time went into looking at JAX's many small objects again


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def cheap():
    """For programs that are compiled and run once, where others are optimized: the compiler need
    not try hard.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


# What one Python shows for all: rows with the code of `cluster`, a second way to shard, arithmetic
# that has a reference, arguments that are refused, files that were tampered with.
ONCE_ROWS = (
    "cluster linear",
    "cluster density",
    "cluster tile",
    "unsharded[deep compression",
    "P(None, 'x')",
)
ONCE_FILES = (
    "test_affine",
    "test_kmeans",
    "test_lowrank",
    "test_contexts",
    "test_hostile",
    "test_reader",
    "test_score_laws",
    "test_allocation_laws",
    "test_transform_laws",
    "test_range",
    "test_curvature",
    "test_numbers",
)


def pytest_collection_modifyitems(items):
    for item in items:
        name = item.name
        file = str(item.path)
        if any(row in name for row in ONCE_ROWS) or any(part in file for part in ONCE_FILES):
            item.add_marker(pytest.mark.once)
        if file.endswith("_experiment.py"):
            item.add_marker(pytest.mark.slow)
