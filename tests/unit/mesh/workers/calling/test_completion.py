"""A completion that is read slowly, by nobody, or while nothing comes; gateways are scripted."""

import asyncio
from collections import deque

import pytest
from mesh_rpc import caught, settled, until

from tinkex._timers import Timers
from tinkex.errors import APIStatusError, LinkClosedError, MeshError, PeerUnreachableError
from tinkex.mesh.api.completion import CompletionMessage, PieceMessage, TextMessage
from tinkex.mesh.api.gateway import Accepted, Complete, Finished, Receipt
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.tasks import Tasks
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.workers.calling.completion import (
    STILL_HERE_S,
    WAITING_PIECES,
    MeshCompletion,
)
from tinkex.testing import VirtualClock

ACCEPTED = Accepted(request_id="r-1", prompt_tokens=3, reproducible=True)
FINISHED = Finished(prompt_tokens=3, cached_tokens=0)
RECEIPT = Receipt(body=b"what came", signature=b"signed")
CONTACT, OTHER = (Contact(KeyPair(key * 32).peer_id) for key in (b"g", b"h"))


class Script:
    """Gateways that say what they were told to, and count what was taken of it."""

    def __init__(self):
        self.clock = VirtualClock()
        self.errors = []
        self.tasks = Tasks(on_error=self.errors.append)
        self.timers = Timers(self.clock, on_error=self.errors.append)
        self.timers.start()
        self.events = deque()
        self.taken = 0
        self.asked = []
        self.contacts = [CONTACT]
        self.sent = True
        self.ended = False
        self.left = False
        self.told = None
        self.judged = None

    # as gateways

    async def tried(self):
        return self.contacts

    def stream(self, contact, _method, _request):
        self.asked.append(contact)
        self.ended = False
        return self

    def elsewhere(self, _contact, error):
        return isinstance(error, MeshError)

    # as their replies

    async def open(self):
        self.sent = True
        event = self.events.popleft()
        if isinstance(event, Exception):
            raise event

    def listen(self, callback):
        self.told = callback
        asyncio.get_running_loop().call_soon(callback)

    def take(self):
        if not self.events:
            return None
        event = self.events.popleft()
        if isinstance(event, Exception):
            raise event
        self.taken += 1
        self.ended = event is None
        return event

    def close(self):
        self.left = True

    def say(self, *events):
        self.events.extend(events)
        if self.told is not None:
            self.told()

    async def begin(self):
        completion = self.completion()
        await completion.begin()
        return completion

    def completion(self):
        request = CompletionMessage(model="m", prompt=TextMessage("x"))
        return MeshCompletion(
            Complete(credential="c", request=request),
            self,
            lambda *_: self.judged,
            self.tasks,
            self.timers,
            clock=self.clock,
        )


@pytest.fixture
async def script():
    made = Script()
    yield made
    await made.tasks.stop()
    await made.timers.stop()
    assert made.errors == []


def texts(count):
    return [PieceMessage(0, str(n)) for n in range(count)]


LAST = PieceMessage(0, "end", finish_reason="stop")


async def test_slow_reader_makes_the_gateway_wait_and_misses_nothing(script):
    script.say(ACCEPTED, *texts(1000), LAST, FINISHED, None)
    completion = await script.begin()
    await settled(2000)
    assert WAITING_PIECES - 1 <= script.taken <= WAITING_PIECES + 1
    pieces = completion.pieces()
    read = [(await anext(pieces)).text]
    await settled(100)
    assert script.taken <= WAITING_PIECES + 2  # one was read, one more may come
    read += [piece.text async for piece in pieces]
    assert read == [*(str(n) for n in range(1000)), "end"]
    assert completion.prompt_tokens == 3


async def test_reader_gets_what_came_before_the_error(script):
    script.say(ACCEPTED, *texts(3), LinkClosedError("the link was lost"))
    completion = await script.begin()
    pieces = completion.pieces()
    assert [(await anext(pieces)).text for _ in range(3)] == ["0", "1", "2"]
    assert isinstance(await caught(anext(pieces)), APIStatusError)


async def test_stream_that_stops_before_its_end_is_an_error(script):
    script.say(ACCEPTED, *texts(1), None)
    completion = await script.begin()
    pieces = completion.pieces()
    assert (await anext(pieces)).text == "0"
    error = await caught(anext(pieces))
    assert isinstance(error, APIStatusError)
    assert error.status_code == 502


async def test_waiting_reader_is_told_of_silence_and_not_while_something_waits(script):
    script.say(ACCEPTED)
    completion = await script.begin()
    pieces = completion.pieces()
    for _ in range(2):
        reading = asyncio.ensure_future(anext(pieces))
        await settled()
        script.clock.advance(STILL_HERE_S)
        await until(reading.done)
        assert reading.result() is None
    script.say(*texts(1), LAST)
    await settled()
    script.clock.advance(STILL_HERE_S)
    await settled()
    assert [(await anext(pieces)).text for _ in range(2)] == ["0", "end"]
    await pieces.aclose()


async def test_reader_that_leaves_ends_the_stream_though_the_gateway_waits_for_it(script):
    script.say(ACCEPTED, *texts(1000))
    completion = await script.begin()
    pieces = completion.pieces()
    await anext(pieces)
    await settled(500)
    await pieces.aclose()
    await until(lambda: script.left)
    assert script.taken <= WAITING_PIECES + 2


async def test_another_gateway_is_asked_as_long_as_nothing_was_read(script):
    script.contacts = [CONTACT, OTHER]
    script.say(ACCEPTED, LinkClosedError("the link was lost"), ACCEPTED, *texts(1), LAST, FINISHED)
    completion = await script.begin()
    assert [piece.text async for piece in completion.pieces()] == ["0", "end"]
    assert script.asked == [CONTACT, OTHER]


@pytest.mark.parametrize("lost_after", [1, 2])
async def test_no_gateway_is_asked_after_the_last_nor_after_a_piece(script, lost_after):
    script.contacts = [CONTACT, OTHER]
    lost = LinkClosedError("the link was lost")
    script.say(*(([ACCEPTED, lost] * 2) if lost_after == 1 else [ACCEPTED, *texts(1), lost]))
    completion = await script.begin()
    error = await caught(read(completion))
    assert isinstance(error, APIStatusError)
    assert error.status_code == (503 if lost_after == 1 else 502)
    assert len(script.asked) == (2 if lost_after == 1 else 1)


async def test_gateway_without_a_link_is_asked_when_there_is_one_and_else_another(script):
    script.contacts = [CONTACT, OTHER]
    script.sent = False
    script.say(PeerUnreachableError("nobody answers"), ACCEPTED, *texts(1), LAST, FINISHED)
    completion = await script.begin()
    assert [piece.text async for piece in completion.pieces()] == ["0", "end"]
    assert script.asked == [CONTACT, OTHER]


@pytest.mark.parametrize("wrong", [PieceMessage(7, "x"), FINISHED])
async def test_what_makes_no_sense_ends_it_and_is_asked_of_nobody_else(script, wrong):
    script.contacts = [CONTACT, OTHER]
    script.say(ACCEPTED, wrong)
    completion = await script.begin()
    error = await caught(read(completion))
    assert error.status_code == 502
    await completion.settled()
    assert script.left
    assert script.asked == [CONTACT]


async def test_mistake_in_taking_is_told_to_the_reader_and_not_to_the_link(script):
    script.say(ACCEPTED, object())
    completion = await script.begin()
    assert isinstance(await caught(read(completion)), AttributeError)
    await completion.settled()


async def test_stopping_while_a_link_is_made_ends_it(script):
    script.sent = False
    script.open = asyncio.get_running_loop().create_future
    completion = script.completion()
    begin = asyncio.ensure_future(completion.begin())
    await settled()
    await script.tasks.stop()
    assert isinstance(await caught(begin), APIStatusError)
    await completion.settled()


@pytest.mark.parametrize("turns", [1, 20])
async def test_stopping_before_a_link_is_begun_to_be_made_ends_it_too(script, turns):
    script.sent = False
    script.open = asyncio.get_running_loop().create_future
    completion = script.completion()
    begin = asyncio.ensure_future(completion.begin())
    await settled(turns)
    await script.tasks.stop()
    await until(begin.done)
    assert isinstance(begin.exception(), APIStatusError)
    assert await completion.settled() is None


async def test_mistake_in_making_a_link_is_told_to_who_asked(script):
    script.sent = False
    script.say(ValueError("a mistake"))
    completion = script.completion()
    assert isinstance(await caught(completion.begin()), ValueError)
    assert await completion.settled() is None
    assert [type(error) for error in script.errors] == [ValueError]  # and noted
    script.errors.clear()


@pytest.mark.parametrize("pieces", [WAITING_PIECES - 2, WAITING_PIECES - 1, WAITING_PIECES])
@pytest.mark.parametrize("leaves", [True, False])
async def test_receipt_is_taken_though_as_much_waits_as_may(script, pieces, leaves):
    script.judged = "the receipt"
    script.say(ACCEPTED, *texts(pieces - 1), LAST, FINISHED, RECEIPT, None)
    completion = await script.begin()
    await settled()
    if leaves:
        completion.cancel()
    else:
        assert len(await read(completion)) == pieces
    await until(lambda: script.left)
    finished = pieces < WAITING_PIECES or not leaves
    assert await completion.settled() == ("the receipt" if finished else None)


async def test_gateway_that_ends_twice_makes_no_sense_and_fills_nothing(script):
    script.say(ACCEPTED, LAST, *[FINISHED] * 1000)
    completion = await script.begin()
    await settled()
    assert script.taken == 4
    assert script.left
    assert [piece.text for piece in await read(completion)] == ["end"]
    assert await completion.settled() is None


async def read(completion):
    return [piece async for piece in completion.pieces()]
