"""The back-off that the clients of a key share (A4.5, client.md 1)."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
from client_support import settle

from tinkex.client.limiter import LimiterRegistry, RateLimiter
from tinkex.testing import VirtualClock


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture
def limiter(clock):
    return RateLimiter(clock)


def test_hundred_threads_asking_at_once_get_one_limiter(clock):
    """Bug row: two limiters for one key under a race."""
    registry = LimiterRegistry(clock)
    barrier = threading.Barrier(100)
    found: list[RateLimiter] = []

    def ask() -> None:
        barrier.wait()
        found.append(registry.get("http://host", "tml-key"))

    threads = [threading.Thread(target=ask) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 100
    assert len(set(map(id, found))) == 1


def test_other_keys_and_other_servers_have_limiters_of_their_own(clock):
    registry = LimiterRegistry(clock)
    kept = [
        registry.get("http://host", "tml-a"),
        registry.get("http://host", "tml-b"),
        registry.get("http://other", "tml-a"),
    ]
    assert len(set(map(id, kept))) == 3
    kept[0].back_off(5)
    assert [limiter.remaining() for limiter in kept] == [5, 0, 0]


def test_limiters_of_clients_that_are_gone_are_forgotten(clock):
    """Bug row: debounce and cache entries leak."""
    registry = LimiterRegistry(clock)
    for number in range(1000):
        registry.get("http://host", f"tml-{number}")
    gc.collect()
    assert len(registry._limiters) == 0


def test_registry_does_not_hold_the_key(clock):
    registry = LimiterRegistry(clock)
    kept = registry.get("http://host", "tml-very-secret")
    assert kept is not None
    assert "very-secret" not in repr(list(registry._limiters.items()))


def test_later_deadline_stays_when_an_earlier_one_follows(clock, limiter):
    limiter.back_off(10)
    limiter.back_off(3)
    assert limiter.remaining() == 10
    clock.advance(5)
    limiter.back_off(30)
    assert limiter.remaining() == 30


def test_success_clears_the_deadline_only_if_it_was_sent_after_it_was_set(clock, limiter):
    clock.advance(1)
    limiter.back_off(10)
    limiter.succeeded(sent_at=0.5)
    assert limiter.remaining() == 10
    clock.advance(2)
    limiter.succeeded(sent_at=2.5)
    assert limiter.remaining() == 0


async def test_waiter_leaves_when_the_deadline_has_passed_and_not_before(clock, limiter):
    limiter.back_off(10)
    waiter = asyncio.create_task(limiter.wait())
    await settle()
    clock.advance(9.5)
    await settle()
    assert not waiter.done()
    clock.advance(0.5)
    await settle()
    assert waiter.done()


async def test_waiter_goes_on_waiting_when_the_deadline_moves_meanwhile(clock, limiter):
    limiter.back_off(10)
    waiter = asyncio.create_task(limiter.wait())
    await settle()
    limiter.back_off(20)
    clock.advance(10)
    await settle()
    assert not waiter.done()
    clock.advance(10)
    await settle()
    assert waiter.done()


async def test_waiters_wake_early_when_the_deadline_is_cleared(clock, limiter):
    limiter.back_off(10)
    waiters = [asyncio.create_task(limiter.wait()) for _ in range(5)]
    await settle()
    clock.advance(1)
    limiter.succeeded(sent_at=0.5)
    await settle()
    assert all(waiter.done() for waiter in waiters)
    assert not limiter._waiters


async def test_cancelled_waiter_leaves_nothing_behind(clock, limiter):
    limiter.back_off(10)
    waiter = asyncio.create_task(limiter.wait())
    await settle()
    waiter.cancel()
    await settle()
    assert waiter.cancelled()
    assert not limiter._waiters
    assert clock.waiting == 0


def test_waiters_of_several_event_loops_wake_together(clock, limiter):
    limiter.back_off(10)
    ready = threading.Barrier(4)

    def run() -> None:
        async def wait() -> None:
            task = asyncio.create_task(limiter.wait())
            await settle()
            await asyncio.to_thread(ready.wait)
            await task

        asyncio.run(wait())

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    ready.wait()
    clock.advance(10)
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)


def test_a_429_counts_as_recent_for_ten_seconds(clock, limiter):
    assert not limiter.throttled_recently()
    limiter.back_off(1)
    clock.advance(9)
    assert limiter.throttled_recently()
    clock.advance(2)
    assert not limiter.throttled_recently()
