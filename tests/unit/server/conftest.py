"""A clock that tests move, and deadlines on it."""

import shutil

import pytest
from server_support import settle

from tinkex._timers import Timers
from tinkex.testing.clock import VirtualClock


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture
def faults():
    return []


@pytest.fixture
async def timers(clock, faults):
    timers = Timers(clock, on_error=faults.append)
    timers.start()
    yield timers
    await timers.stop()
    assert faults == []


@pytest.fixture
def advance(clock):
    async def move(seconds):
        await settle()
        clock.advance(seconds)
        await settle()

    return move


@pytest.fixture
def empty_database(migrated_database, tmp_path):
    """A database of the test's own."""
    return shutil.copy(migrated_database, tmp_path / "db.sqlite3")
