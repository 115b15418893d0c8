import asyncio

import pytest

from tinkex.errors import LinkClosedError
from tinkex.mesh.transport.queue import FrameQueue


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)  # noqa: TID251 - lets tasks run, waits for nothing


async def test_frames_come_in_order():
    queue = FrameQueue()
    for i in range(5):
        await queue.put(b"%d" % i)
    assert [await queue.get() for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_full_queue_holds_its_writers_back_in_order():
    queue = FrameQueue(window_bytes=2)
    writers = [asyncio.create_task(queue.put(b"%d" % i)) for i in range(6)]
    await settle()
    assert [writer.done() for writer in writers] == [True, True, False, False, False, False]
    assert queue.waiting_bytes == 2
    assert [await queue.get() for _ in range(6)] == [b"%d" % i for i in range(6)]
    await asyncio.gather(*writers)


async def test_a_frame_longer_than_the_window_passes():
    queue = FrameQueue(window_bytes=2)
    await queue.put(b"long enough")
    assert queue.full
    assert await queue.get() == b"long enough"
    assert queue.waiting_bytes == 0


async def test_a_writer_that_is_cancelled_leaves_nothing_behind():
    queue = FrameQueue(window_bytes=1)
    await queue.put(b"first")
    cancelled = asyncio.create_task(queue.put(b"cancelled"))
    last = asyncio.create_task(queue.put(b"last"))
    await settle()
    cancelled.cancel()
    await settle()
    assert [await queue.get(), await queue.get()] == [b"first", b"last"]
    await last


async def test_a_reader_that_is_cancelled_with_a_frame_gives_it_back():
    queue = FrameQueue()
    reader = asyncio.create_task(queue.get())
    await settle()
    await queue.put(b"frame")
    reader.cancel()
    await settle()
    assert reader.cancelled()
    assert queue.waiting_bytes == 5
    assert await queue.get() == b"frame"


async def test_closing_wakes_who_waits_at_both_ends_and_leaves_what_arrived():
    reading, writing = FrameQueue(), FrameQueue(window_bytes=1)
    reader = asyncio.create_task(reading.get())
    await writing.put(b"arrived")
    writer = asyncio.create_task(writing.put(b"did not"))
    await settle()
    reading.close("over")
    writing.close("over")
    for waiter in (reader, writer):
        with pytest.raises(LinkClosedError, match="over"):
            await waiter
    assert await writing.get() == b"arrived"
    with pytest.raises(LinkClosedError, match="over"):
        await writing.get()
    with pytest.raises(LinkClosedError, match="over"):
        await writing.put(b"late")


async def test_discarding_leaves_nothing_to_read():
    queue = FrameQueue()
    await queue.put(b"frame")
    queue.close("first reason", discard=True)
    queue.close("second reason")
    with pytest.raises(LinkClosedError, match="first reason"):
        await queue.get()
