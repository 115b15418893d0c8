"""What holds for every test.

Collecting makes two million objects that live to the end. The garbage collector looks at none of
them, or each of its rounds in a test would take a second.

Hypothesis measures no time: on a shared machine a slow moment is nobody's fault. Whole programs go
first, in random order among themselves, as everything else after them.
"""

import gc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared machine")

gc.disable()


@pytest.fixture(scope="session")
def official_cli():
    """The official command line, for calls of `run`."""
    from official_cli import OfficialCli

    with OfficialCli() as cli:
        yield cli


PROGRAMS = [Path(__file__).parent / name for name in ("e2e", "interop")]


def pytest_collection_modifyitems(items):
    """Put first what waits most for other processes, and let long proofs take their time.

    One test process then starts the servers that these tests share, while the others compute; and
    no test of a minute begins when all the rest is done.
    """
    for item in items:
        if item.get_closest_marker("soak") is not None:
            item.add_marker(pytest.mark.timeout(0))
    items.sort(key=lambda item: not any(folder in item.path.parents for folder in PROGRAMS))


def pytest_collection_finish():
    """Let the garbage collector begin with what tests make."""
    gc.collect()
    gc.freeze()
    gc.enable()
