"""Every test runs on 8 virtual CPU devices, with strict dtype promotion, and a warning is an error."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def key():
    return jax.random.key(0)


def pytest_collection_modifyitems(items):
    """Rows whose code the row `cluster` runs too, and which compile for minutes, are slow."""
    for item in items:
        rows = ("cluster linear", "cluster density", "cluster tile")
        if any(row in item.name for row in rows) or "unsharded[deep compression" in item.name:
            item.add_marker(pytest.mark.slow)
