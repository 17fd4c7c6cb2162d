"""Many small programs are compiled and run once: the compiler need not try hard."""

import jax
import pytest


@pytest.fixture(autouse=True)
def cheap():
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.numpy_dtype_promotion("standard"):  # the models are users' code
        yield
    jax.config.update("jax_disable_most_optimizations", False)
