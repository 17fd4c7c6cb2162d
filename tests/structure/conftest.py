"""Many small programs are compiled and run once; the models are users' code, without strict
promotion.
"""

import jax
import pytest


@pytest.fixture(autouse=True)
def compiled_once(cheap):
    with jax.numpy_dtype_promotion("standard"):
        yield
