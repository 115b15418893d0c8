"""Slots: so many at once, a bounded queue, accounts in turn, nothing lost when somebody leaves."""

from __future__ import annotations

import asyncio
import random

import pytest
from mesh_rpc import settled

from tinkex.errors import RateLimitError
from tinkex.mesh.processing.slots import Slots
from tinkex.testing import VirtualClock

LONGEST_S = 45.0


def slots_of(total, most_waiting, clock=None):
    clock = clock or VirtualClock()
    return Slots(total, most_waiting, longest_wait_s=LONGEST_S, clock=clock)


class Users:
    """Takes slots and notes who has them."""

    def __init__(self, slots):
        self.slots = slots
        self.running = {}
        self.order = []

    def come(self, name, account="ada", size=1):
        async def use():
            async with self.slots.take(account, size):
                self.order.append(name)
                self.running[name] = size
                try:
                    await asyncio.Event().wait()
                finally:
                    del self.running[name]

        return asyncio.ensure_future(use())


async def gone(*tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await settled()


async def test_waiting_requests_are_let_in_as_others_leave():
    users = Users(slots_of(2, 9))
    tasks = [users.come(name) for name in "abcd"]
    await settled()
    assert set(users.running) == {"a", "b"}
    assert (users.slots.free, users.slots.waiting) == (0, 2)
    await gone(tasks[1], tasks[2])  # one that runs, and one that waits
    assert set(users.running) == {"a", "d"}
    await gone(*tasks)
    assert (users.slots.free, users.slots.waiting) == (2, 0)
    await asyncio.wait_for(users.slots.wait_idle(), 5)


async def test_accounts_take_turns():
    users = Users(slots_of(1, 20))
    tasks = [users.come(f"ada{n}") for n in range(4)]
    tasks += [users.come("eve0", "eve"), users.come("bob0", "bob"), users.come("eve1", "eve")]
    for _ in tasks:
        await settled()
        await gone(next(t for n, t in zip(NAMES, tasks, strict=True) if n in users.running))
    assert users.order == ["ada0", "ada1", "eve0", "bob0", "ada2", "eve1", "ada3"]


NAMES = ["ada0", "ada1", "ada2", "ada3", "eve0", "bob0", "eve1"]


async def test_full_queue_says_when_to_come_back():
    users = Users(slots_of(1, 1))
    tasks = [users.come("a"), users.come("b")]
    await settled()
    with pytest.raises(RateLimitError, match="full") as error:
        await users.come("c")
    assert error.value.retry_after_ms > 0
    await gone(*tasks)


async def test_request_larger_than_all_runs_alone():
    users = Users(slots_of(2, 9))
    tasks = [users.come("small"), users.come("large", size=5), users.come("after", "eve")]
    await settled()
    assert set(users.running) == {"small"}
    await gone(tasks[0])
    assert set(users.running) == {"large"}
    await gone(tasks[1])
    assert set(users.running) == {"after"}
    await gone(tasks[2])


async def test_slots_are_never_overdrawn_nor_lost():
    rng = random.Random(4)
    users = Users(slots_of(5, 50))
    tasks = []
    for turn in range(300):
        if rng.random() < 0.6:
            tasks.append(users.come(turn, rng.choice("abc"), rng.randint(0, 6)))
        elif tasks:
            tasks.pop(rng.randrange(len(tasks))).cancel()
        if rng.random() < 0.5:
            await settled(2)
        used = list(users.running.values())
        assert sum(used) <= 5 or len([size for size in used if size]) == 1
    await gone(*tasks)
    assert (users.slots.free, users.slots.waiting, users.running) == (5, 0, {})


async def test_who_waits_too_long_is_told_to_come_back_and_lets_others_by():
    """Before its gateway takes the processor for lost, of which it hears nothing meanwhile."""
    clock = VirtualClock()
    users = Users(slots_of(2, 9, clock))
    first, big = users.come("a"), users.come("big", size=2)
    await settled()
    clock.advance(LONGEST_S / 2)
    late = users.come("late", account="bob")
    await settled()
    clock.advance(LONGEST_S / 2)
    with pytest.raises(RateLimitError, match="45 s") as caught:
        await big
    assert caught.value.retry_after_ms == 1000
    await settled()
    assert set(users.running) == {"a", "late"}
    assert users.slots.waiting == 0
    await gone(first, late)
    assert users.slots.free == 2
