"""A completion that is read slowly, by nobody, or while nothing comes; gateways are scripted."""

import asyncio

import pytest
from mesh_rpc import caught, settled, until

from tinkex._timers import Timers
from tinkex.errors import APIStatusError, LinkClosedError
from tinkex.mesh.api.completion import CompletionMessage, PieceMessage, TextMessage
from tinkex.mesh.api.gateway import Accepted, Complete, Finished
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
CONTACT = Contact(KeyPair(b"g" * 32).peer_id)


class Script:
    """Gateways that say what they were told to, and count what was taken of it."""

    def __init__(self):
        self.clock = VirtualClock()
        self.errors = []
        self.tasks = Tasks(on_error=self.errors.append)
        self.timers = Timers(self.clock, on_error=self.errors.append)
        self.timers.start()
        self.events = asyncio.Queue()
        self.taken = 0
        self.left = False

    async def stream(self, _method, _request):
        try:
            while (event := await self.events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield CONTACT, event
                self.taken += 1
        finally:
            self.left = True

    def say(self, *events):
        for event in events:
            self.events.put_nowait(event)

    def begin(self):
        request = CompletionMessage(model="m", prompt=TextMessage("x"))
        return MeshCompletion(
            Complete(credential="c", request=request),
            self,
            lambda *_: None,
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
    completion = script.begin()
    script.say(ACCEPTED, *texts(1000), LAST, FINISHED, None)
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
    completion = script.begin()
    script.say(ACCEPTED, *texts(3), LinkClosedError("the link was lost"))
    await completion.begun()
    pieces = completion.pieces()
    assert [(await anext(pieces)).text for _ in range(3)] == ["0", "1", "2"]
    assert isinstance(await caught(anext(pieces)), APIStatusError)


async def test_stream_that_stops_before_its_end_is_an_error(script):
    completion = script.begin()
    script.say(ACCEPTED, *texts(1), None)
    pieces = completion.pieces()
    assert (await anext(pieces)).text == "0"
    error = await caught(anext(pieces))
    assert isinstance(error, APIStatusError)
    assert error.status_code == 502


async def test_waiting_reader_is_told_of_silence_and_not_while_something_waits(script):
    completion = script.begin()
    script.say(ACCEPTED)
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
    completion = script.begin()
    script.say(ACCEPTED, *texts(1000))
    pieces = completion.pieces()
    await anext(pieces)
    await settled(500)
    await pieces.aclose()
    await until(lambda: script.left)
    assert script.taken <= WAITING_PIECES + 2
