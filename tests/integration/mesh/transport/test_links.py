"""What every transport does alike."""

import asyncio
import contextlib

import pytest

from tinkex.errors import ConfigurationError, InputError, LinkClosedError, PeerUnreachableError
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.transport import arrivals
from tinkex.mesh.transport.base import MAX_FRAME_BYTES, Contact


async def test_both_ends_know_who_is_at_the_other(backend):
    dialler, listener = await backend.started(), await backend.started()
    near = await dialler.dial(listener.contact)
    far = await listener.accept()
    assert near.remote == listener.contact.peer_id
    assert far.remote == dialler.contact.peer_id
    assert not near.closed
    assert not far.closed


async def test_frames_arrive_whole_and_in_order(backend):
    near, far = await backend.linked()
    sent = [b"%d" % i * (1 + i * i % 977) for i in range(1, 400)]

    async def send() -> None:
        for frame in sent:
            await near.send(frame)

    sending = asyncio.create_task(send())
    assert [await far.receive() for _ in sent] == sent
    await sending


async def test_what_many_send_at_once_arrives_in_the_order_of_their_calls(backend):
    near, far = await backend.linked()
    sent = [b"%d" % i * 3000 for i in range(300)]
    sending = [asyncio.create_task(near.send(frame)) for frame in sent]
    assert [await far.receive() for _ in sent] == sent
    await asyncio.gather(*sending)


async def test_large_frames_go_both_ways_at_once(backend):
    near, far = await backend.linked()
    there = [bytes([i]) * MAX_FRAME_BYTES for i in range(4)]
    back = [bytes([100 + i]) * (MAX_FRAME_BYTES - i) for i in range(4)]

    async def send(link, frames):
        for frame in frames:
            await link.send(frame)

    async def receive(link, count):
        return [await link.receive() for _ in range(count)]

    _, _, came_back, came = await asyncio.gather(
        send(near, there), send(far, back), receive(near, 4), receive(far, 4)
    )
    assert (came, came_back) == (there, back)


@pytest.mark.parametrize("frame", [b"", bytes(MAX_FRAME_BYTES + 1)], ids=["empty", "long"])
async def test_what_is_no_frame_is_refused_and_the_link_goes_on(backend, frame):
    near, far = await backend.linked()
    with pytest.raises(InputError):
        await near.send(frame)
    await near.send(b"next")
    assert await far.receive() == b"next"


async def test_a_reader_that_does_not_read_stops_the_sender(backend):
    near, far = await backend.linked()
    frame = bytes(1 << 16)
    sent = 0

    async def send_for_ever() -> None:
        nonlocal sent
        while True:
            await near.send(frame)
            sent += 1

    sending = asyncio.create_task(send_for_ever())
    before = -1
    while sent != before:  # until nothing more goes
        before = sent
        await asyncio.sleep(0.1)  # noqa: TID251 - sockets fill in real time
    assert not sending.done()
    assert sent * len(frame) < 32 << 20
    for _ in range(sent):
        assert await far.receive() == frame
    assert await far.receive() == frame
    sending.cancel()


@pytest.mark.parametrize("closer", ["dialler", "listener"])
async def test_closing_ends_what_waits_at_both_ends(backend, closer):
    near, far = await backend.linked()
    near_waits, far_waits = (asyncio.create_task(link.receive()) for link in (near, far))
    await near.send(b"there")
    await far.send(b"back")
    assert (await far_waits, await near_waits) == (b"there", b"back")
    near_waits, far_waits = (asyncio.create_task(link.receive()) for link in (near, far))
    await asyncio.sleep(0)  # noqa: TID251 - lets them wait
    await (near if closer == "dialler" else far).close()
    for waiter in (near_waits, far_waits):
        with pytest.raises(LinkClosedError):
            await waiter
    assert near.closed
    assert far.closed
    for link in (near, far):
        with pytest.raises(LinkClosedError):
            await link.send(b"late")
        with pytest.raises(LinkClosedError):
            await link.receive()
        await link.close()


async def test_closing_ends_a_sender_that_waits(backend):
    near, _far = await backend.linked()

    async def send_for_ever() -> None:
        while True:
            await near.send(bytes(1 << 16))

    sending = asyncio.create_task(send_for_ever())
    await asyncio.sleep(0.2)  # noqa: TID251 - sockets fill in real time
    await near.close()
    with pytest.raises(LinkClosedError):
        await sending


async def test_a_peer_that_stops_ends_its_links(backend):
    dialler, listener = await backend.started(), await backend.started()
    near = await listener.dial(dialler.contact)
    far = await dialler.accept()
    await near.send(b"hello")
    assert await far.receive() == b"hello"
    waiter = asyncio.create_task(far.receive())
    await listener.stop()
    with pytest.raises(LinkClosedError):
        await waiter
    assert near.closed
    backend.clock.hurries = True
    with pytest.raises(PeerUnreachableError):
        await dialler.dial(listener.contact)


async def test_nobody_answers(backend):
    dialler, listener = await backend.started(), await backend.started()
    await listener.stop()
    backend.clock.hurries = True
    with pytest.raises(PeerUnreachableError):
        await dialler.dial(listener.contact)
    with pytest.raises(PeerUnreachableError):
        await dialler.dial(Contact(listener.contact.peer_id))


async def test_somebody_else_answers(backend):
    dialler, listener = await backend.started(), await backend.started()
    wanted = KeyPair(b"w" * 32).peer_id
    backend.clock.hurries = True
    with pytest.raises(PeerUnreachableError):
        await dialler.dial(Contact(wanted, listener.contact.addresses))
    backend.clock.hurries = False
    other = await backend.started()
    assert (await other.dial(listener.contact)).remote == listener.contact.peer_id
    assert (await listener.accept()).remote == other.contact.peer_id


async def test_a_peer_that_starts_again_is_reached(backend):
    pair = KeyPair(b"r" * 32)
    dialler, first = await backend.started(), await backend.started(pair)
    old = await dialler.dial(first.contact)
    await first.accept()
    await first.stop()
    second = await backend.started(pair)
    await old.close()
    new = await dialler.dial(second.contact)
    far = await second.accept()
    await new.send(b"again")
    assert await far.receive() == b"again"


async def test_many_links_at_once(backend):
    listener = await backend.started()
    diallers = [await backend.started() for _ in range(8)]
    links = await asyncio.gather(*(d.dial(listener.contact) for d in diallers * 2))
    ends = [await listener.accept() for _ in links]
    await asyncio.gather(*(link.send(link.remote.raw) for link in links))
    assert [await end.receive() for end in ends] == [listener.contact.peer_id.raw] * 16
    by_peer = [end.remote for end in ends]
    assert all(by_peer.count(d.contact.peer_id) == 2 for d in diallers)


async def test_links_that_nobody_accepts_are_turned_away_when_there_are_too_many(
    backend, monkeypatch
):
    monkeypatch.setattr(arrivals, "BACKLOG", 1)
    dialler, listener = await backend.started(), await backend.started()
    first = await dialler.dial(listener.contact)
    with pytest.raises((LinkClosedError, PeerUnreachableError)):
        await (await dialler.dial(listener.contact)).receive()
    far = await listener.accept()
    await far.send(b"still here")
    assert await first.receive() == b"still here"


async def test_two_that_dial_each_other_get_two_links(backend):
    one, two = await backend.started(), await backend.started()
    first, second = await asyncio.gather(one.dial(two.contact), two.dial(one.contact))
    first_end, second_end = await asyncio.gather(two.accept(), one.accept())
    for near, far in ((first, first_end), (second, second_end)):
        await near.send(b"ping")
        assert await far.receive() == b"ping"


async def test_stopping_ends_all_that_waits_and_may_be_done_twice(backend):
    dialler, listener = await backend.started(), await backend.started()
    near = await dialler.dial(listener.contact)
    await listener.accept()
    accepting = asyncio.create_task(dialler.accept())
    receiving = asyncio.create_task(near.receive())
    await asyncio.sleep(0)  # noqa: TID251 - lets them wait
    await dialler.stop()
    await dialler.stop()
    for waiter in (accepting, receiving):
        with pytest.raises(LinkClosedError):
            await waiter
    with pytest.raises(LinkClosedError):
        await dialler.accept()
    with pytest.raises(LinkClosedError):
        await dialler.dial(listener.contact)


async def test_a_transport_starts_once(backend):
    transport = await backend.started()
    with pytest.raises(ConfigurationError, match="once"):
        await transport.start()
    stopped = backend.transport()
    await stopped.stop()
    with pytest.raises(ConfigurationError, match="once"):
        await stopped.start()


async def test_stopping_a_start_leaves_nothing_behind(backend):
    transport = backend.transport()
    starting = asyncio.create_task(transport.start())
    await asyncio.sleep(0)  # noqa: TID251 - lets it begin
    await transport.stop()
    outcome = (await asyncio.gather(starting, return_exceptions=True))[0]
    assert outcome is None or isinstance(outcome, LinkClosedError)  # None: it had started
    with pytest.raises(LinkClosedError):
        await transport.dial(Contact(KeyPair(b"w" * 32).peer_id, ("memory:x",)))
    with pytest.raises(LinkClosedError):
        await transport.accept()


async def test_cancelled_waits_lose_no_frame(backend):
    near, far = await backend.linked()
    received = []
    for i in range(20):
        waiter = asyncio.create_task(far.receive())
        await near.send(b"%d" % i)
        waiter.cancel()
        received += [f for f in await asyncio.gather(waiter, return_exceptions=True) if f]
    received = [frame for frame in received if isinstance(frame, bytes)]
    received += [await far.receive() for _ in range(20 - len(received))]
    assert received == [b"%d" % i for i in range(20)]


class Heard:
    """What came over a link, taken where the link tells of it."""

    def __init__(self, link) -> None:
        self.frames: list[bytes] = []
        self.ended = asyncio.Event()
        self._link = link
        self._came = asyncio.Event()
        link.listen(self._take)
        self._take()  # what came before

    def _take(self) -> None:
        try:
            while (frame := self._link.receive_now()) is not None:
                self.frames.append(frame)
        except LinkClosedError:
            self.ended.set()
        self._came.set()

    async def has(self, count: int) -> None:
        while len(self.frames) < count:
            self._came.clear()
            await self._came.wait()


async def sent_at_once(link, frame: bytes) -> None:
    """Send a frame once that needs no waiting."""
    while True:
        if link.send_now(frame):
            return
        await asyncio.sleep(0.01)  # noqa: TID251 - sockets empty in real time


async def test_frames_sent_at_once_and_waited_for_are_told_of_whole_and_in_order(backend):
    near, far = await backend.linked()
    sent = [b"%d" % i * (1 + i * i % 977) for i in range(1, 600)]
    heard = Heard(far)
    at_once = 0
    for i, frame in enumerate(sent):
        if i % 3 and near.send_now(frame):
            at_once += 1
        else:
            await near.send(frame)
    await heard.has(len(sent))
    assert heard.frames == sent
    assert at_once > 100  # while the other end keeps up, nothing has to wait


async def test_frames_that_are_told_of_go_both_ways(backend):
    near, far = await backend.linked()
    there, back = Heard(far), Heard(near)
    for i in range(50):
        assert near.send_now(b"there %d" % i)
        await there.has(i + 1)
        assert far.send_now(b"back %d" % i)
        await back.has(i + 1)
    assert there.frames == [b"there %d" % i for i in range(50)]
    assert back.frames == [b"back %d" % i for i in range(50)]


async def test_nothing_is_there_before_it_comes(backend):
    near, far = await backend.linked()
    assert far.receive_now() is None
    heard = Heard(far)
    assert near.send_now(b"it")
    await heard.has(1)
    assert far.receive_now() is None


@pytest.mark.parametrize("frame", [b"", bytes(MAX_FRAME_BYTES + 1)], ids=["empty", "long"])
async def test_what_is_no_frame_is_not_sent_at_once_either(backend, frame):
    near, far = await backend.linked()
    with pytest.raises(InputError):
        near.send_now(frame)
    assert near.send_now(b"next")
    assert await far.receive() == b"next"


@pytest.mark.parametrize("listens", ["before", "after"])
async def test_the_end_is_told_after_all_that_came_before_it(backend, listens):
    near, far = await backend.linked()
    heard = Heard(far) if listens == "before" else None
    sent = [b"%d" % i for i in range(20)]
    for frame in sent:
        assert near.send_now(frame)
    await near.close()
    if heard is None:
        told = asyncio.Event()
        far.listen(told.set)
        while not far.closed:
            told.clear()
            await told.wait()
        heard = Heard(far)
    await heard.ended.wait()
    assert heard.frames == sent
    for _ in range(2):
        with pytest.raises(LinkClosedError):
            far.receive_now()


async def test_a_link_that_is_closed_here_tells_so_and_sends_nothing_at_once(backend):
    near, far = await backend.linked()
    near_heard, far_heard = Heard(near), Heard(far)
    await near.close()
    await asyncio.gather(near_heard.ended.wait(), far_heard.ended.wait())
    for link in (near, far):
        with pytest.raises(LinkClosedError):
            link.send_now(b"late")
    assert (near_heard.frames, far_heard.frames) == ([], [])


async def test_nothing_of_a_frame_is_sent_at_once_that_has_no_room(backend):
    near, far = await backend.linked()
    sent = []
    while near.send_now(frame := b"%04d" % len(sent) * (1 << 14)):
        sent.append(frame)
        assert len(sent) * len(frame) < 32 << 20
    refused = b"never sent" * 1000
    assert not near.send_now(refused)
    assert [await far.receive() for _ in sent] == sent
    await sent_at_once(near, b"there is room again")
    assert await far.receive() == b"there is room again"


async def test_what_waits_for_room_is_not_overtaken(backend):
    near, far = await backend.linked()
    count = 0
    while near.send_now(bytes(1 << 16)):
        count += 1
    waiting = asyncio.create_task(near.send(b"first"))
    await asyncio.sleep(0)  # noqa: TID251 - lets it wait
    received = []
    while len(received) < count:
        received.append(await far.receive())
    await sent_at_once(near, b"second")
    assert [await far.receive(), await far.receive()] == [b"first", b"second"]
    await waiting


async def test_what_is_tried_in_every_turn_overtakes_nothing_that_waits(backend):
    near, far = await backend.linked()
    sent = [b"%04d" % i * (1 << 13) for i in range(250)]
    waiting = []

    async def send() -> None:
        for frame in sent:
            if not near.send_now(frame):
                waiting.append(asyncio.create_task(near.send(frame)))
            await asyncio.sleep(0)  # noqa: TID251 - it takes its place, and others their turn

    sending = asyncio.create_task(send())
    received = [await far.receive() for _ in sent]
    assert [frame[:4] for frame in received] == [frame[:4] for frame in sent]
    await asyncio.gather(sending, *waiting)


async def test_who_closes_the_link_when_told_of_a_frame_harms_nobody(backend):
    problems = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    near, far = await backend.linked()
    closed = asyncio.Event()
    taken = []

    def take_and_close() -> None:
        with contextlib.suppress(LinkClosedError):
            if (frame := far.receive_now()) is None:
                return
            taken.append(frame)
            with contextlib.suppress(StopIteration):
                far.close().send(None)  # here and now: it has nothing to wait for
        closed.set()

    far.listen(take_and_close)
    heard = Heard(near)
    for i in range(50):
        if near.closed:
            break
        await near.send(b"%d" % i)
    await asyncio.gather(closed.wait(), heard.ended.wait())
    assert taken == [b"0"]
    with pytest.raises(LinkClosedError):
        far.receive_now()
    assert far.closed
    assert problems == []
