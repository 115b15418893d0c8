from __future__ import annotations

import asyncio
import contextlib
import random

from client_support import settle

from tinkex.client.budget import Budget


async def test_waiters_are_served_in_order_of_arrival():
    """Bug row: semaphore polls every 2 ms; FIFO wake-ups."""
    budget = Budget(1)
    order: list[int] = []

    async def work(number: int) -> None:
        async with budget.hold():
            order.append(number)

    async with budget.hold():
        tasks = [asyncio.create_task(work(number)) for number in range(20)]
        await settle(1)
    await asyncio.gather(*tasks)

    assert order == list(range(20))


async def test_a_large_request_is_not_passed_by_small_ones_for_ever():
    budget = Budget(10)
    order: list[str] = []

    async def work(name: str, amount: int) -> None:
        async with budget.hold(amount):
            order.append(name)
            await settle(1)

    async with budget.hold(6):
        tasks = [asyncio.create_task(work("large", 8)), asyncio.create_task(work("small", 1))]
        await settle(1)
        assert order == []
    await asyncio.gather(*tasks)

    assert order == ["large", "small"]


async def test_request_above_the_size_takes_everything():
    budget = Budget(5)
    async with budget.hold(50):
        assert budget.free == 0
    assert budget.free == 5


async def test_cancelled_waiters_and_holders_return_their_share():
    """Bug row: dead waiters keep their byte budget."""
    rng = random.Random(3)
    budget = Budget(100)

    async def work(amount: int, steps: int) -> None:
        async with budget.hold(amount):
            for _ in range(steps):
                await settle(1)

    tasks = [asyncio.create_task(work(rng.randint(1, 60), rng.randint(0, 5))) for _ in range(300)]
    while not all(task.done() for task in tasks):
        rng.choice(tasks).cancel()
        await settle(1)
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task

    assert budget.free == 100
    assert not budget._waiters
