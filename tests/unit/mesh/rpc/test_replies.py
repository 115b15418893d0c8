"""A stream's replies as its one reader takes them: by callbacks, by waiting, and with patience."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from mesh_rpc import Answer, Ask, Echo, World, caught, not_found, raw_server, settled, until

from tinkex.errors import (
    LinkClosedError,
    NotFoundError,
    PeerProtocolError,
    PeerTimeoutError,
    PeerUnreachableError,
)
from tinkex.mesh.roles import CERTIFIED, Role
from tinkex.mesh.rpc.calls import OutgoingCall
from tinkex.mesh.rpc.messages import End, Items, Request, Response, decode_frame, encode_frame
from tinkex.mesh.rpc.service import Call, callable_by

IDLE_S, WHOLE_S = 2.0, 20.0
NO_ANSWER = b"\xc0"


class Spoken(Echo):
    """Says each reply when it is told to."""

    def __init__(self):
        super().__init__()
        self.words = asyncio.Queue()

    @callable_by(CERTIFIED)
    async def rpc_count(self, request: Ask, call: Call) -> AsyncIterator[Answer]:
        with self.counted():
            while (word := await self.words.get()) is not None:
                yield Answer("", word)


class Asked:
    """A client that has a link to a server, and asks it."""

    def __init__(self, world):
        self.world = world

    async def start(self):
        self.echo = Spoken()
        self.server = await self.world.peer(Role.AUTH, self.echo)
        self.client = await self.world.peer()
        await self.client.ping(self.server.contact)
        return self

    def ask(self, method=Echo.rpc_count, **options):
        options = {"timeout_s": WHOLE_S, "idle_timeout_s": IDLE_S} | options
        return self.client.ask(self.server.contact, method, Ask(), **options)

    async def say(self, *words):
        for word in words:
            self.echo.words.put_nowait(word)
        await self.world.pass_time(0.1)  # what is said in a row waits a little to go together


@pytest.fixture
async def asked():
    async with World() as world:
        yield await Asked(world).start()


def told(replies):
    """Listen; what is returned has an element for each time it was told."""
    times = []
    replies.listen(lambda: times.append(None))
    return times


def taken(replies):
    found = []
    while (reply := replies.take()) is not None:
        found.append(reply.number)
    return found


async def test_request_leaves_at_once_where_a_link_is_there(asked):
    replies = asked.ask()
    assert replies.sent
    await until(lambda: asked.echo.started == 1)
    replies.close()
    await until(lambda: asked.echo.cancelled == 1)


async def test_listener_is_told_of_what_comes_and_of_the_end(asked):
    replies = asked.ask()
    times = told(replies)
    await settled()
    assert (len(times), replies.take(), replies.ended) == (0, None, False)
    await asked.say(1, 2)
    assert times
    assert taken(replies) == [1, 2]
    before = len(times)
    await asked.say(None)
    assert len(times) > before
    assert replies.ended
    assert replies.take() is None
    replies.close()


async def test_listener_is_told_of_what_came_before_it_listened(asked):
    replies = asked.ask()
    await asked.say(1, None)
    assert not replies.ended
    times = told(replies)
    assert times == []  # not within: who listens is not done with that
    await settled()
    assert times == [None]
    assert taken(replies) == [1]
    assert replies.ended


async def test_what_came_before_an_error_is_taken_before_it(asked):
    asked.echo.error = not_found()
    asked.echo.gate.set()
    replies = asked.client.ask(
        asked.server.contact, Echo.rpc_count_then_wait, Ask(count=2), timeout_s=WHOLE_S
    )
    told(replies)
    await asked.world.pass_time(0.1)
    assert [replies.take().number, replies.take().number] == [0, 1]
    for _ in range(2):  # and it stays
        with pytest.raises(NotFoundError):
            replies.take()
    assert isinstance(await caught(replies.next()), NotFoundError)
    replies.close()


async def test_patience_ends_where_nothing_comes_and_the_reader_asked(asked):
    replies = asked.ask()
    times = told(replies)
    await asked.world.pass_time(IDLE_S - 0.2)
    assert replies.take() is None  # asked anew
    await asked.world.pass_time(IDLE_S - 0.2)
    assert replies.take() is None
    assert times == []
    await asked.world.pass_time(IDLE_S + 0.2)
    assert times == [None]
    with pytest.raises(PeerTimeoutError):
        replies.take()
    replies.close()
    await until(lambda: asked.echo.cancelled == 1)


async def test_patience_with_the_whole_ends_though_replies_come(asked):
    replies = asked.ask(timeout_s=IDLE_S * 1.5)
    told(replies)
    await asked.world.pass_time(IDLE_S * 0.8)
    await asked.say(1)
    assert taken(replies) == [1]
    await asked.world.pass_time(IDLE_S * 0.8)
    with pytest.raises(PeerTimeoutError):
        replies.take()
    replies.close()


@pytest.mark.parametrize("waits_for_it", [False, True])
async def test_patience_is_not_used_up_while_the_reader_has_not_asked(asked, waits_for_it):
    replies = asked.ask()
    told(replies)
    assert replies.take() is None
    await asked.say(1)
    if waits_for_it:
        assert (await replies.next()).number == 1
    else:
        assert replies.take().number == 1
    await asked.world.pass_time(3 * IDLE_S)  # the reader is busy
    reading = asyncio.ensure_future(replies.next())
    await settled()
    await asked.say(2)
    assert (await reading).number == 2
    replies.close()


async def test_what_waits_for_a_slow_reader_is_not_late(asked):
    replies = asked.ask()
    told(replies)
    await asked.say(1)
    await asked.world.pass_time(3 * IDLE_S)
    assert taken(replies) == [1]
    await asked.say(2)
    assert taken(replies) == [2]
    replies.close()


def test_what_comes_as_patience_ends_is_not_lost_nor_is_what_follows():
    call = OutgoingCall(1, "echo.count", 0, 0.0, Reader())
    told_of = []
    call.listen(lambda: told_of.append(call.waiting))
    call.give_up(lambda: PeerTimeoutError("late"))
    with pytest.raises(PeerTimeoutError):
        call.check()
    call.came((b"1",))  # within the same turn: nobody has looked
    assert call.take() == b"1"
    call.check()
    call.came((b"2",))
    assert call.take() == b"2"
    assert told_of == [0, 1, 1]


def test_giving_up_changes_nothing_where_something_waits_or_it_has_ended():
    call = OutgoingCall(1, "echo.count", 0, 0.0, Reader())
    call.came((b"1",))
    call.give_up(lambda: PeerTimeoutError("late"))
    assert call.take() == b"1"
    call.check()
    call.end(NotFoundError)
    call.give_up(lambda: PeerTimeoutError("late"))
    with pytest.raises(NotFoundError):
        call.check()


class Reader:
    """A link that is told what was read."""

    def consumed(self, call_id, body):
        pass

    def dropped(self, call):
        pass


async def test_closing_before_it_was_sent_sends_nothing(asked):
    asked.world.peers.remove(asked.client)
    await asked.client.stop()
    asked.client = await asked.world.peer()  # has no link
    replies = asked.ask()
    assert not replies.sent
    opening = asyncio.ensure_future(replies.open())
    await asyncio.sleep(0)  # noqa: TID251 - it waits for the link
    replies.close()
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    await until(asked.client.links)
    await settled()
    assert (asked.echo.started, asked.client.links()[0].outgoing) == (0, 0)


async def test_what_is_sent_once_there_is_a_link_is_listened_to_like_the_rest(asked):
    asked.world.peers.remove(asked.client)
    await asked.client.stop()
    asked.client = await asked.world.peer()
    replies = asked.ask()
    await replies.open()
    times = told(replies)
    await asked.say(1, None)
    assert times
    assert taken(replies) == [1]
    assert replies.ended


async def test_nobody_there_is_told_where_it_is_opened():
    async with World() as world:
        asked = await Asked(world).start()
        asked.client = await world.peer()
        await asked.server.stop()
        error = await caught(asked.ask().open())
        assert isinstance(error, PeerUnreachableError)


async def test_reader_that_closes_in_mid_frame_harms_no_other_call_of_its_link():
    async with World() as world, raw_server(world) as (contact, links):
        client = await world.peer()
        other = asyncio.ensure_future(client.call(contact, Echo.rpc_say, Ask(), timeout_s=WHOLE_S))
        await until(lambda: links)
        (link,) = links
        assert request_of(await link.receive()).id == 1
        replies = client.ask(contact, Echo.rpc_count, Ask(), timeout_s=WHOLE_S)
        assert request_of(await link.receive()).id == 2
        errors = []

        def take():
            try:
                replies.take()
            except PeerProtocolError as error:
                errors.append(error)
                replies.close()

        replies.listen(take)
        body = b"\x82\xa4text\xa2ok\xa6number\x01"
        await link.send(
            encode_frame(
                [Items(2, (NO_ANSWER,)), Items(2, (NO_ANSWER,)), End(2), Response(1, body)]
            )
        )
        assert await other == Answer("ok", 1)
        assert len(errors) == 1
        assert [state.outgoing for state in client.links()] == [0]


def request_of(frame):
    (request,) = (one for one in decode_frame(frame) if isinstance(one, Request))
    return request


async def test_reader_may_ask_again_and_close_others_when_the_link_ends(asked):
    lost = [asked.ask() for _ in range(3)]
    again, ends = [], []

    def take(mine):
        try:
            mine.take()
        except LinkClosedError:
            ends.append(mine)
            again.append(asked.ask())
            for replies in lost:
                replies.close()

    for replies in lost:
        replies.listen(lambda mine=replies: take(mine))
    await until(lambda: asked.echo.started == 3)
    (channel,) = asked.client._links.all
    channel.end(LinkClosedError("cut"), lost=True)
    assert ends == lost[:1]  # the others were closed, and are told nothing
    (new,) = again
    await new.open()
    told(new)
    await until(lambda: (asked.echo.started, asked.echo.cancelled) == (4, 3))
    await asked.say(1, None)
    assert taken(new) == [1]
    assert new.ended
