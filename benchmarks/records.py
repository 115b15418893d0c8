"""What writing usage, metrics and traces down costs a server, for each request.

    python benchmarks/records.py

Prints the CPU time that the event loop takes to begin and end a request and to write it down, the
time until the database has it (per request, of 500 at once), and its bytes there. No engine runs.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import tempfile
import time
from pathlib import Path

from tinkex._clock import SystemClock
from tinkex._timers import Timers
from tinkex.server.futures import FutureStore, Operation
from tinkex.server.records.ledger import Ledger
from tinkex.server.records.store import RecordStore
from tinkex.server.records.usage import Usage
from tinkex.server.records.work import Source
from tinkex.server.storage.store import Store
from tinkex.server.tasks import Tasks

BATCH = 500


async def measure(folder: Path, count: int, operation: Operation) -> None:
    """Write `count` requests of one kind, and print what each cost."""
    database = folder / f"{operation.value}.sqlite3"
    clock = SystemClock()
    store = Store(database)
    await store.open()
    timers, tasks = Timers(clock, on_error=print), Tasks(on_error=print)
    timers.start()
    records = RecordStore(store, max_metric_rows=20_000, max_request_rows=500_000)
    ledger = Ledger(records, clock=clock, timers=timers, tasks=tasks, on_fault=print)
    futures = FutureStore(
        timers,
        delivered_ttl_s=60,
        undelivered_ttl_s=60,
        max_open=count,
        max_request_bytes=2**30,
        max_result_bytes=2**30,
    )
    metrics = {"loss:sum": 1.5} if operation is Operation.FORWARD_BACKWARD else None

    def serve(batch: int, *, counted: bool) -> float:
        futures.on_finished = ledger.ended if counted else None
        start = time.thread_time()
        for number in range(batch):
            future = futures.open("o", operation)
            if counted:
                source = Source(owner="o", key_id="k", session_id="s", source_id=f"s:{number % 8}")
                work = ledger.begin(future, source, prompt_tokens=10)
                work.usage, work.metrics = Usage(sampled_tokens=5), metrics
            future.complete({})
        return time.thread_time() - start

    before = database.stat().st_size
    plain = counted = written = cpu = 0.0
    for _ in range(count // BATCH):
        plain += serve(BATCH, counted=False)
        counted += serve(BATCH, counted=True)
        start, cpu_start = time.perf_counter(), time.thread_time()
        await ledger.flush()
        written += time.perf_counter() - start
        cpu += time.thread_time() - cpu_start
    await tasks.stop()
    await timers.stop()
    await store.close()
    size = database.stat().st_size - before
    noted, wrote, done = (1e6 * seconds / count for seconds in (counted - plain, cpu, written))
    print(
        f"{operation.value:18} loop: noted {noted:5.1f} us, written {wrote:5.1f} us;"
        f" in the database after {done:5.1f} us; {size / count:.0f} bytes"
    )


async def main() -> None:
    """Measure both kinds of requests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    count = parser.parse_args().requests
    gc.disable()  # it would be charged to whoever comes by
    with tempfile.TemporaryDirectory() as folder:
        for operation in (Operation.SAMPLE, Operation.FORWARD_BACKWARD):
            await measure(Path(folder), count, operation)


if __name__ == "__main__":
    asyncio.run(main())
