"""Tables are as wide as the window: here 100 columns, wherever the tests run."""

import os

import pytest


@pytest.fixture(scope="package", autouse=True)
def window():
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    yield
    if before is None:
        del os.environ["COLUMNS"]
    else:
        os.environ["COLUMNS"] = before
