"""Futures: woken at once, kept for a while, bounded, and private."""

import asyncio
import gc
import weakref

import pytest
from server_support import settle

from tinkex.errors import APIStatusError, EngineError, InputError
from tinkex.server.futures import FutureStore, Operation

ALICE, BOB = "key-alice", "key-bob"


@pytest.fixture
def make_store(timers):
    def make(**settings):
        defaults = {
            "delivered_ttl_s": 120,
            "undelivered_ttl_s": 3600,
            "max_open": 100,
            "max_request_bytes": 1000,
            "max_result_bytes": 1000,
        }
        return FutureStore(timers, **{**defaults, **settings})

    return make


@pytest.fixture
def store(make_store):
    return make_store()


def open_one(store, owner=ALICE, **kwargs):
    return store.open(owner, Operation.OPTIM_STEP, **kwargs)


async def wait(store, future, seconds=30):
    with store.waiter(future, seconds) as waiter:
        await waiter


async def test_waiter_is_woken_in_the_moment_the_result_comes(store, clock):
    future = open_one(store)
    waits = [asyncio.create_task(wait(store, future)) for _ in range(3)]
    await settle()
    assert not any(task.done() for task in waits)
    future.complete("result")
    await settle()
    assert all(task.done() for task in waits)
    assert clock.monotonic() == 0


async def test_waiter_goes_home_after_the_long_poll(store, advance):
    future = open_one(store)
    task = asyncio.create_task(wait(store, future))
    await advance(29)
    assert not task.done()
    await advance(1)
    assert task.done()
    assert not future.done


async def test_finished_future_does_not_make_anybody_wait(store):
    future = open_one(store)
    future.complete("result")
    await asyncio.wait_for(wait(store, future), 1)


async def test_cancelled_waiter_leaves_nothing_behind(store, timers):
    future = open_one(store)
    task = asyncio.create_task(wait(store, future))
    await settle()
    task.cancel()
    await settle()
    assert future._waiters == set()
    assert all(timer.cancelled for timer in timers._heap)


async def test_first_outcome_counts(store):
    future = open_one(store)
    future.fail(InputError("bad"))
    future.complete("late")
    future.fail(EngineError("later"))
    assert future.result is None
    assert str(future.error) == "bad"


async def test_delivered_result_stays_for_a_repeated_poll_and_then_goes(store, advance):
    future = open_one(store)
    future.complete("result")
    future.mark_delivered()
    await advance(119)
    assert store.get(ALICE, future.request_id) is future
    await advance(2)
    with pytest.raises(APIStatusError, match="dropped") as caught:
        store.get(ALICE, future.request_id)
    assert caught.value.status_code == 410


async def test_undelivered_result_outlives_a_delivered_one(store, advance):
    future = open_one(store)
    future.complete("result")
    await advance(3599)
    assert store.get(ALICE, future.request_id) is future
    await advance(2)
    assert store.known(future.request_id) is None


async def test_pending_future_does_not_expire(store, advance):
    future = open_one(store)
    await advance(100_000)
    assert store.get(ALICE, future.request_id) is future


async def test_anothers_future_looks_like_none(store, advance):
    future = open_one(store)
    messages = []
    for request_id in (future.request_id, "req-none"):
        with pytest.raises(APIStatusError) as caught:
            store.get(BOB, request_id)
        assert caught.value.status_code == 404
        messages.append(str(caught.value).replace(request_id, "ID"))
    future.complete("x")
    future.mark_delivered()
    await advance(1000)
    with pytest.raises(APIStatusError) as caught:
        store.get(BOB, future.request_id)
    assert caught.value.status_code == 404
    assert messages[0] == messages[1]


async def test_request_ids_cannot_be_guessed(store):
    ids = {open_one(store).request_id for _ in range(50)}
    assert len(ids) == 50
    assert all(len(request_id) >= 32 for request_id in ids)


async def test_too_many_pending_requests_are_refused_with_a_time_to_come_back(make_store):
    store = make_store(max_open=2)
    futures = [open_one(store) for _ in range(2)]
    with pytest.raises(APIStatusError) as caught:
        store.check_room(0)
    assert caught.value.status_code == 429
    assert caught.value.retry_after_ms > 0
    futures[0].complete("x")
    store.check_room(0)


async def test_too_much_pending_data_is_refused_but_one_request_always_fits(make_store):
    store = make_store(max_request_bytes=100)
    store.check_room(1000)
    future = open_one(store, request_bytes=90)
    with pytest.raises(APIStatusError):
        store.check_room(20)
    store.check_room(10)
    future.complete("x")
    store.check_room(1000)
    assert store.open_bytes == 0


async def test_results_above_the_limit_drop_the_oldest_delivered_first(make_store):
    store = make_store(max_result_bytes=100)
    futures = [open_one(store) for _ in range(4)]
    for future in futures[:3]:
        future.complete("x", size=30)
    futures[1].mark_delivered()
    futures[3].complete("x", size=40)
    kept = [store.known(future.request_id) is not None for future in futures]
    assert kept == [True, False, True, True]
    assert store.result_bytes == 100


async def test_results_above_the_limit_drop_those_of_who_has_most(make_store):
    store = make_store(max_result_bytes=100)
    mine = open_one(store, BOB)
    mine.complete("x", size=20)
    others = [open_one(store) for _ in range(4)]
    for future in others:
        future.complete("x", size=30)
    kept = [store.known(future.request_id) is not None for future in (mine, *others)]
    assert kept == [True, False, False, True, True]


@pytest.mark.parametrize("size", [0, 60])
async def test_what_was_just_made_is_not_what_makes_room_for_it(make_store, monkeypatch, size):
    monkeypatch.setattr("tinkex.server.futures.MAX_KEPT", 2)
    store = make_store(max_result_bytes=100)
    futures = [open_one(store, owner) for owner in (ALICE, BOB, "key-carol")]
    for future in futures:
        future.complete("x", size=size)
    kept = [store.known(future.request_id) is not None for future in futures]
    assert kept[2]
    assert sum(kept) == (2 if size == 0 else 1)


async def test_newest_result_is_kept_even_when_it_is_above_the_limit_alone(make_store):
    store = make_store(max_result_bytes=100)
    future = open_one(store)
    future.complete("x", size=500)
    assert store.get(ALICE, future.request_id) is future


async def test_cancelling_stops_the_work_once(store):
    future = open_one(store)
    stopped = []
    future.on_cancel = lambda: stopped.append(1)
    future.cancel(InputError("cancelled"))
    future.cancel(InputError("cancelled"))
    assert stopped == [1]
    assert future.error is not None


async def test_finished_work_is_not_cancelled(store):
    future = open_one(store)
    stopped = []
    future.on_cancel = lambda: stopped.append(1)
    future.complete("x")
    future.cancel(InputError("cancelled"))
    assert stopped == []
    assert future.result == "x"


async def test_stopping_server_wakes_and_fails(store):
    future = open_one(store)
    task = asyncio.create_task(wait(store, future))
    await settle()
    store.wake_all()
    await settle()
    assert task.done()
    store.fail_all(EngineError("stopping"))
    assert future.error.category == "server"


async def test_memory_of_expired_ids_is_bounded(make_store, monkeypatch):
    monkeypatch.setattr("tinkex.server.futures.TOMBSTONES", 3)
    store = make_store(max_result_bytes=1)
    for _ in range(10):
        open_one(store).complete("x", size=1)
    assert len(store._expired) == 3
    assert len(store) == 1


async def test_number_of_kept_outcomes_is_bounded(make_store, monkeypatch):
    monkeypatch.setattr("tinkex.server.futures.MAX_KEPT", 3)
    store = make_store()
    futures = [store.failed(ALICE, Operation.SAMPLE, InputError("no")) for _ in range(5)]
    assert len(store) == 3
    with pytest.raises(APIStatusError) as caught:
        store.get(ALICE, futures[0].request_id)
    assert caught.value.status_code == 410
    assert store.get(ALICE, futures[-1].request_id) is futures[-1]


async def test_failed_future_holds_nothing_of_what_it_was_raised_in(store):
    class Data:
        pass

    def fail(data):
        try:
            int(str(data))
        except ValueError as error:
            raise InputError("bad") from error

    data = Data()
    gone = weakref.ref(data)
    future = open_one(store)
    try:
        fail(data)
    except InputError as error:
        future.fail(error)
    del data
    gc.collect()
    assert gone() is None
    assert str(future.error) == "bad"


async def test_long_error_counts_as_a_result(make_store):
    store = make_store(max_result_bytes=1000)
    first = store.failed(ALICE, Operation.SAMPLE, InputError("x" * 900))
    store.failed(ALICE, Operation.SAMPLE, InputError("y" * 900))
    with pytest.raises(APIStatusError):
        store.get(ALICE, first.request_id)
