"""What holds for every test.

Collecting makes two million objects that live to the end. The garbage collector looks at none of
them, or each of its rounds in a test would take a second.

Hypothesis measures no time: on a shared machine a slow moment is nobody's fault. Whole programs go
first, in random order among themselves, as everything else after them. And what made a test fail
that passed when it was run once more is shown: it is a bug all the same.

Ctrl-C works in the programs that tests start: a shell that runs something in the background has it
ignore SIGINT, and all that it starts.
"""

import gc
import signal
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared machine")

gc.disable()

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def official_cli():
    """The official command line, for calls of `run`."""
    from official_cli import OfficialCli

    with OfficialCli() as cli:
        yield cli


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory):
    """A server's database with every table and no row; made once, for it takes its time."""
    from tinkex.server.migrations import migrate

    database = tmp_path_factory.mktemp("database") / "db.sqlite3"
    migrate(database)
    return database


TESTS = Path(__file__).parent
GROUPS = [
    (TESTS / "e2e",),
    (TESTS / "e2e" / "mesh",),
    (TESTS / "interop", TESTS / "e2e" / "durability"),
]
"""Folders whose tests share servers: what is in several is of the last that has it."""


@pytest.hookimpl(trylast=True)  # when the tests that this run leaves out are gone
def pytest_collection_modifyitems(config, items):
    """Put first what waits most for other processes, and let long proofs take their time.

    pytest-xdist gives each test process a part of the list, as long as the others', and shares out
    what is left of one that is late. So each part begins with programs: those that share servers
    are in one, and no test of a minute begins when all the rest is done.
    """
    for item in items:
        if item.get_closest_marker("soak") is not None:
            item.add_marker(pytest.mark.timeout(0))
    processes = getattr(config, "workerinput", {"workercount": 1})["workercount"]
    firsts = [[] for _ in range(processes)]
    rest = []
    for item in items:
        group = group_of(item)
        (rest if group is None else firsts[group % processes]).append(item)
    items[:] = parts_in_order(firsts, rest)


def group_of(item):
    """The number of the group whose servers a test uses; None for one that starts no program."""
    group = group_of_folder(item.path.parent)
    if group is None and item.get_closest_marker("slow") is not None:
        return 1  # the shortest of the groups
    return group


@cache
def group_of_folder(folder):
    """The last group that has a folder or one above it."""
    found = [n for n, folders in enumerate(GROUPS) if {*folders} & {folder, *folder.parents}]
    return max(found, default=None)


def parts_in_order(firsts, rest):
    """Join the parts of the processes, each with as many tests as pytest-xdist will give it."""
    left = sum(map(len, firsts), start=len(rest))
    for number, first in enumerate(firsts):
        size = left // (len(firsts) - number)
        fill = max(0, size - len(first))
        yield from first
        yield from rest[:fill]
        rest = rest[fill:]
        left -= size
    yield from rest


def pytest_collection_finish():
    """Let the garbage collector begin with what tests make."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter):
    """Show how a test failed that was run once more: the second run may have passed."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.write_sep("_", f"first run of {report.nodeid}", red=True, bold=True)
        terminalreporter.write_line(report.longreprtext)
        for title, text in report.sections:
            terminalreporter.write_sep("-", title)
            terminalreporter.write_line(text)
