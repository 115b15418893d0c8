"""A ledger over a database of its own."""

import itertools
from types import SimpleNamespace

import pytest

from tinkex._timers import Timers
from tinkex.server.futures import FutureStore, Operation
from tinkex.server.records.ledger import Ledger
from tinkex.server.records.store import RecordStore
from tinkex.server.records.usage import Usage
from tinkex.server.records.work import Entry, Source
from tinkex.server.storage.store import Store
from tinkex.server.tasks import Tasks

RUN = Source(owner="o", key_id="k", session_id="s", source_id="s:train:0", base_model="b")


@pytest.fixture
def run():
    return RUN


@pytest.fixture
async def timers(clock, faults):
    timers = Timers(clock, on_error=faults.append)
    timers.start()
    yield timers
    await timers.stop()


@pytest.fixture
async def tasks(faults):
    tasks = Tasks(on_error=faults.append)
    yield tasks
    await tasks.stop()


@pytest.fixture
async def database(empty_database):
    store = Store(empty_database)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def store(database):
    return RecordStore(database, max_metric_rows=100, max_request_rows=1000)


@pytest.fixture
def futures(timers):
    return FutureStore(
        timers,
        delivered_ttl_s=60,
        undelivered_ttl_s=60,
        max_open=100,
        max_request_bytes=1000,
        max_result_bytes=1000,
    )


@pytest.fixture
def ledger(store, clock, timers, tasks, futures, faults):
    ledger = Ledger(store, clock=clock, timers=timers, tasks=tasks, on_fault=faults.append)
    futures.on_finished = ledger.ended
    return ledger


@pytest.fixture
def begin(ledger, futures):
    """Accept a request: its future, which is done by `complete` or `fail`."""

    def start(operation=Operation.OPTIM_STEP, source=RUN, **usage):
        future = futures.open(source.owner, operation)
        ledger.begin(future, source).usage = Usage(**usage)
        return future

    return start


@pytest.fixture
def make_entry():
    numbers = itertools.count()

    def make(request_id=None, source=RUN, **fields):
        usage = Usage(**fields.pop("usage", {"requests": 1}))
        defaults = {
            "request_id": request_id or f"req-{next(numbers)}",
            "source": source,
            "operation": "optim_step",
            "accepted_at": 7200.0,
            "began_at": 7201.0,
            "finished_at": 7202.0,
            "engine_s": 1.0,
            "error": None,
            "usage": usage,
            "metrics": None,
        }
        return Entry(**{**defaults, **fields})

    return make


@pytest.fixture
def rows(database):
    """Read a table whole."""

    async def read(table):
        async with database.begin() as connection:
            found = (await connection.execute(table.select())).mappings().all()
        return [SimpleNamespace(**row) for row in found]

    return read
