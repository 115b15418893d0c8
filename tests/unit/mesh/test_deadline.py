import asyncio

import pytest

from tinkex.mesh.deadline import within
from tinkex.testing import VirtualClock


async def test_what_is_done_in_time_is_returned():
    clock = VirtualClock()

    async def work() -> int:
        return 7

    assert await within(clock, 1.0, work()) == 7


async def test_what_is_not_done_in_time_is_cancelled_and_has_ended():
    clock = VirtualClock()
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(clock.monotonic())

    waiting = asyncio.create_task(within(clock, 1.0, work()))
    for _ in range(3):
        await asyncio.sleep(0)  # noqa: TID251 - lets both begin
    clock.advance(1.0)
    with pytest.raises(TimeoutError, match="1 seconds"):
        await waiting
    assert ended == [1.0]


async def test_errors_of_the_work_come_through():
    async def work() -> None:
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        await within(VirtualClock(), 1.0, work())


async def test_cancelling_the_wait_cancels_the_work():
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    waiting = asyncio.create_task(within(VirtualClock(), 1.0, work()))
    await asyncio.sleep(0)  # noqa: TID251 - lets it begin
    await asyncio.sleep(0)  # noqa: TID251 - as above
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()
