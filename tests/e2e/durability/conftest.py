"""These tests share one process that forks their servers."""

import pytest
from crash_control import Forge


@pytest.fixture(scope="session")
def forge():
    with Forge() as running:
        yield running
