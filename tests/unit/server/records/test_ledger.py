"""What ended is written down once: when, and what a stop, a repetition or a full disk changes."""

from server_support import settle

from tinkex.errors import EngineError, InputError
from tinkex.server.futures import Operation
from tinkex.server.records import ledger as ledger_module
from tinkex.server.records.tables import REQUESTS, USAGE_HOURS
from tinkex.server.records.usage import Usage
from tinkex.server.records.work import Source


async def written(rows, ledger, tasks):
    await tasks.finished()
    return [row.request_id for row in await rows(REQUESTS)]


async def test_ended_requests_are_written_together_a_second_after_the_first(
    begin, clock, rows, ledger, tasks
):
    first, second, third = begin(), begin(), begin()
    first.complete({})
    await settle()
    clock.advance(0.9)
    second.complete({})
    await settle()
    assert await written(rows, ledger, tasks) == []
    clock.advance(0.2)
    await settle()
    assert await written(rows, ledger, tasks) == [first.request_id, second.request_id]
    third.complete({})
    await settle()
    clock.advance(1.1)
    await settle()
    assert len(await written(rows, ledger, tasks)) == 3


async def test_many_entries_are_written_before_the_second_is_over(
    begin, rows, ledger, tasks, monkeypatch
):
    monkeypatch.setattr(ledger_module, "FLUSH_ENTRIES", 5)
    for _ in range(5):
        begin().complete({})
    await settle()
    assert len(await written(rows, ledger, tasks)) == 5


async def test_an_idle_ledger_waits_for_nothing(begin, clock, ledger, tasks):
    begin().complete({})
    await settle()
    clock.advance(1.1)
    await settle()
    await tasks.finished()
    assert ledger._timer is None


async def test_times_of_an_entry_follow_the_clock(begin, clock, ledger, rows):
    began_at = clock.now()
    future = begin()
    clock.advance(2)
    future.work.spend(0.5, clock.monotonic())
    clock.advance(3)
    future.complete({})
    await ledger.flush()
    (row,) = await rows(REQUESTS)
    assert (row.accepted_at, row.began_at, row.finished_at) == (
        began_at,
        began_at + 2,
        began_at + 5,
    )
    assert row.engine_s == 0.5


async def test_a_key_has_used_what_is_written_and_what_is_not_yet(begin, ledger):
    begin(forward_backward_tokens=10).complete({})
    assert (await ledger.used("k")).forward_backward_tokens == 10
    await ledger.flush()
    begin(forward_backward_tokens=5).complete({})
    used = await ledger.used("k")
    assert (used.forward_backward_tokens, used.requests) == (15, 2)
    await ledger.flush()
    assert await ledger.used("k") == used
    assert await ledger.used("another") == Usage()


async def test_seconds_of_samples_and_of_training_are_apart(begin, ledger):
    for operation in (Operation.SAMPLE, Operation.OPTIM_STEP):
        future = begin(operation)
        future.work.spend(2.0 if operation is Operation.SAMPLE else 3.0, began=0.0)
        future.complete({})
    used = await ledger.used("k")
    assert (used.sampling_s, used.training_s) == (2.0, 3.0)


async def test_a_failed_request_uses_seconds_and_no_tokens(begin, ledger, rows):
    future = begin(forward_backward_tokens=10)
    future.work.spend(2.0, began=0.0)
    future.fail(InputError("bad datum"))
    assert await ledger.used("k") == Usage(failed_requests=1, training_s=2.0)
    await ledger.flush()
    (row,) = await rows(REQUESTS)
    assert row.error == "bad datum"


async def test_a_stream_that_broke_off_uses_what_it_handed_out(futures, ledger):
    future = futures.open("o", Operation.SAMPLE)
    work = ledger.begin(future, Source(owner="o", key_id="k"), prompt_tokens=7)
    work.streamed_tokens = 3
    future.fail(InputError("gone"))
    assert await ledger.used("k") == Usage(prefilled_tokens=7, sampled_tokens=3, failed_requests=1)


async def test_a_request_carried_out_again_after_a_crash_counts_once(
    begin, ledger, store, clock, timers, tasks, faults, futures, rows
):
    future = begin(forward_backward_tokens=10)
    future.complete({})
    await ledger.flush()
    again = futures.open("o", Operation.OPTIM_STEP)
    again.request_id = future.request_id
    reborn = ledger_module.Ledger(
        store, clock=clock, timers=timers, tasks=tasks, on_fault=faults.append
    )
    futures.on_finished = reborn.ended
    reborn.begin(again, future.work.source).usage = future.work.usage
    again.complete({})
    await reborn.flush()
    assert (await reborn.used("k")).forward_backward_tokens == 10
    assert len(await rows(REQUESTS)) == 1


async def test_what_the_stop_of_the_server_ended_is_no_entry(begin, ledger, rows):
    done, stopped = begin(), begin()
    ledger.begin_stop()
    done.complete({})
    stopped.fail(EngineError("stopping"))
    await ledger.close()
    assert [row.request_id for row in await rows(REQUESTS)] == [done.request_id]


async def test_a_database_that_refuses_is_tried_again_and_nothing_is_lost(
    begin, clock, ledger, rows, tasks, faults, store, monkeypatch
):
    add = store.add

    async def refuse(_entries):
        raise OSError("disk full")

    monkeypatch.setattr(store, "add", refuse)
    begin(sampled_tokens=4).complete({})
    await settle()
    clock.advance(1.1)
    await settle()
    assert [str(fault) for fault in faults] == ["disk full"]
    assert (await ledger.used("k")).sampled_tokens == 4
    monkeypatch.setattr(store, "add", add)
    clock.advance(31)
    await settle()
    assert len(await written(rows, ledger, tasks)) == 1
    assert [row.sampled_tokens for row in await rows(USAGE_HOURS)] == [4]


async def test_entries_that_nobody_takes_are_bounded_and_their_loss_is_told(
    begin, ledger, faults, monkeypatch
):
    monkeypatch.setattr(ledger_module, "MAX_PENDING", 20)
    futures = [begin(sampled_tokens=1) for _ in range(21)]
    for future in futures:
        future.complete({})
    assert (await ledger.used("k")).sampled_tokens == 19
    (fault,) = faults
    assert str(fault).startswith("2 requests")


async def test_a_stop_with_a_broken_database_comes_to_its_end(begin, ledger, faults, store):
    async def refuse(_entries):
        raise OSError("disk full")

    store.add = refuse
    begin().complete({})
    await ledger.close()
    (fault,) = faults
    assert str(fault).startswith("1 requests")
    assert str(fault.__cause__) == "disk full"
