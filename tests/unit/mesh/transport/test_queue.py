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


async def test_offer_adds_only_where_there_is_room_at_once():
    queue = FrameQueue(window_bytes=2)
    assert [queue.offer(b"%d" % i) for i in range(3)] == [True, True, False]
    assert queue.waiting_bytes == 2
    assert await queue.get() == b"0"
    assert queue.offer(b"3")
    assert [await queue.get(), await queue.get(), queue.poll()] == [b"1", b"3", None]


async def test_offer_does_not_overtake_who_waits_for_room():
    queue = FrameQueue(window_bytes=2)
    await queue.put(b"12")
    writer = asyncio.create_task(queue.put(b"34"))
    await settle()
    assert queue.poll() == b"12"
    assert not queue.offer(b"56")
    assert queue.poll() == b"34"
    await writer
    assert queue.offer(b"56")
    assert queue.poll() == b"56"


async def test_offer_gives_a_frame_to_who_waits_for_one():
    queue = FrameQueue()
    reader = asyncio.create_task(queue.get())
    await settle()
    assert queue.offer(b"frame")
    assert queue.waiting_bytes == 0
    assert await reader == b"frame"


async def test_offer_and_poll_say_that_it_is_closed():
    queue = FrameQueue(window_bytes=1)
    assert queue.offer(b"full")
    queue.close("over")
    with pytest.raises(LinkClosedError, match="over"):
        queue.offer(b"late")
    assert queue.poll() == b"full"
    for _ in range(2):
        with pytest.raises(LinkClosedError, match="over"):
            queue.poll()


async def test_poll_makes_room_for_who_waits():
    queue = FrameQueue(window_bytes=1)
    assert queue.poll() is None
    writers = [asyncio.create_task(queue.put(b"%d" % i)) for i in range(3)]
    await settle()
    assert [queue.poll() for _ in range(4)] == [b"0", b"1", b"2", None]
    await asyncio.gather(*writers)


async def test_it_is_idle_while_nothing_waits_in_it_or_for_it_and_it_is_open():
    queue = FrameQueue(window_bytes=1)
    assert queue.idle
    await queue.put(b"1")
    assert not queue.idle
    writer = asyncio.create_task(queue.put(b"2"))
    await settle()
    queue.take_now(1)
    assert not queue.idle  # the second has come in
    queue.take_now(1)
    assert queue.idle
    await writer
    queue.close("over")
    assert not queue.idle


async def test_listener_is_told_within_the_call_that_brings_a_frame():
    queue = FrameQueue()
    taken = []
    queue.listen(lambda: taken.append(queue.poll()))
    queue.put_now(b"1")
    assert taken == [b"1"]
    await queue.put(b"2")
    assert queue.offer(b"3")
    assert taken == [b"1", b"2", b"3"]
    assert queue.idle


async def test_listener_is_not_told_of_a_frame_that_somebody_waits_for():
    queue = FrameQueue()
    told = []
    queue.listen(lambda: told.append(queue.waiting_bytes))
    reader = asyncio.create_task(queue.get())
    await settle()
    queue.put_now(b"waited for")
    queue.put_now(b"2")
    assert told == [1]
    assert await reader == b"waited for"


@pytest.mark.parametrize("discard", [False, True])
async def test_listener_is_told_of_the_end_in_a_turn_of_its_own(discard):
    queue = FrameQueue()
    queue.put_now(b"frame")
    told = []
    queue.listen(lambda: told.append(queue.closed))
    queue.close("over", discard=discard)
    assert told == []  # who closes is not interrupted
    await settle()
    assert told == [True]
    if not discard:
        assert queue.poll() == b"frame"
    with pytest.raises(LinkClosedError, match="over"):
        queue.poll()
