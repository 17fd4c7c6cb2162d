"""The losses are small: compiling them without most optimisations saves minutes."""

import pytest


@pytest.fixture(autouse=True)
def compiled_once(cheap):
    return cheap
