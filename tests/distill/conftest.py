"""What the tests of the cached teacher share."""

import pytest

from tests.distill.cache_toy import write


@pytest.fixture
def folder(tmp_path):
    """A cache as `write` makes it."""
    write(tmp_path / "cache")
    return tmp_path / "cache"
