"""The losses are small: compiling them without most optimisations saves minutes."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def cheap():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
