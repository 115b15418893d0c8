"""Attempts at processors: however they end, the client is told and no place is kept.

Processors are scripted, and links to them are made when a test says so.
"""

import asyncio
import random
from collections import deque

import pytest
from mesh_rpc import caught, settled, until

from tinkex._timers import Timers
from tinkex.errors import APIStatusError, EngineBusyError, LinkClosedError, PeerUnreachableError
from tinkex.mesh.api.completion import CompletionMessage, PieceMessage, TextMessage
from tinkex.mesh.api.gateway import Accepted
from tinkex.mesh.api.processor import Begun, Ended
from tinkex.mesh.balancer import Balancer, BalancerConfig, Offer, Wanted
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.tasks import Tasks
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.workers.serving.bounds import cost_of
from tinkex.mesh.workers.serving.dispatch import Dispatch, DispatchConfig, Job
from tinkex.mesh.workers.serving.relay import Relay
from tinkex.testing import VirtualClock

MODEL, CONTEXT, HEDGE_S = "m", 64, 1.0
MESSAGE = CompletionMessage(model=MODEL, prompt=TextMessage("abc"), max_tokens=8, seed=1)
BEGUN = Begun(prompt_tokens=3, fingerprint="f", deterministic=True)
LAST = PieceMessage(0, "end", finish_reason="stop")
ALL = (BEGUN, LAST, Ended(completion_tokens=0))


class Processor:
    """One attempt's replies: says what it was told to.

    Attributes:
        link: done when there is one; None where there is from the beginning.
    """

    def __init__(self):
        self.peer = KeyPair.generate().peer_id
        self.events = deque()
        self.link = None
        self.raises = None
        self.told = None
        self.asked = self.closed = 0

    @property
    def sent(self):
        return self.link is None or (self.link.done() and self.link.exception() is None)

    @property
    def ended(self):
        return False

    async def open(self):
        await asyncio.shield(self.link)

    def listen(self, callback):
        self.told = callback
        if self.events:
            callback()

    def say(self, *events):
        self.events.extend(events)
        if self.told is not None:
            self.told()

    def take(self):
        if not self.events:
            return None
        event = self.events.popleft()
        if isinstance(event, Exception):
            raise event
        return event

    async def next(self):
        while (event := self.take()) is None:
            came = asyncio.Event()
            self.told = came.set
            await came.wait()
        return event

    def close(self):
        self.closed += 1


class Few:
    """A gateway's dispatch among so many processors; it is also whom they are asked through."""

    def __init__(self, count):
        self.clock = VirtualClock()
        self.errors = []
        self.tasks = Tasks(on_error=self.errors.append)
        self.timers = Timers(self.clock, on_error=self.errors.append)
        self.timers.start()
        self.balancer = Balancer(BalancerConfig(), random.Random(1))
        self.processors = {}
        for _ in range(count):
            one = Processor()
            self.processors[one.peer] = one
            self.balancer.heard(
                Offer(
                    peer=one.peer,
                    models={MODEL: "r1"},
                    fingerprint="f",
                    slots=4,
                    free_slots=4,
                    waiting=0,
                    expires_at=1e9,
                )
            )
        self.asked = []
        self.dispatch = Dispatch(
            self,
            self.balancer,
            Contact,
            self.tasks,
            self.timers,
            clock=self.clock,
            config=DispatchConfig(hedge_after_s=HEDGE_S),
        )

    def ask(self, contact, _method, _request, **_):
        one = self.processors[contact.peer_id]
        self.asked.append(one)
        one.asked += 1
        if one.raises is not None:
            raise one.raises
        return one

    def unlinked(self):
        for one in self.processors.values():
            one.link = asyncio.get_running_loop().create_future()

    def events(self):
        tried = set()
        job = Job(
            request_id="r-1",
            wanted=Wanted(model=MODEL, excluded=tried),
            tried=tried,
            relay=Relay(MESSAGE, cost_of(MESSAGE, CONTEXT), CONTEXT),
            sequences=1,
            work=lambda _: None,
            asked=lambda: None,
            deadline=self.clock.monotonic() + 60,
        )
        return self.dispatch.events(job)

    def begin(self):
        """Read in a task; its result is all that a client would get."""

        async def read():
            return [event async for event in self.events()]

        return asyncio.ensure_future(read())

    async def nothing_is_left(self):
        await settled()
        assert len(self.tasks) == 0
        assert [self.balancer.in_flight(peer) for peer in self.processors] == [0] * len(
            self.processors
        )
        assert all(one.closed >= bool(one.asked and not one.raises) for one in self.asked)


@pytest.fixture
async def few():
    made = []

    def make(count):
        made.append(Few(count))
        return made[-1]

    yield make
    for one in made:
        await one.tasks.stop()
        await one.timers.stop()
        assert one.errors == []


def kinds(events):
    return [type(event) for event in events]


async def test_one_that_begins_is_passed_on_and_its_place_given_back(few):
    mesh = few(1)
    reading = mesh.begin()
    await until(lambda: mesh.asked)
    mesh.asked[0].say(*ALL)
    assert kinds(await reading) == [Accepted, PieceMessage]
    await mesh.nothing_is_left()


async def test_second_is_asked_when_the_first_takes_long_and_who_is_later_is_closed(few):
    mesh = few(2)
    mesh.unlinked()
    reading = mesh.begin()
    await settled()
    mesh.clock.advance(HEDGE_S + 0.1)
    await until(lambda: len(mesh.asked) == 2)
    first, second = mesh.asked
    second.say(*ALL)
    second.link.set_result(None)
    assert kinds(await reading) == [Accepted, PieceMessage]
    assert first.closed
    await mesh.nothing_is_left()


async def test_one_that_hangs_makes_one_request_wait_and_not_every_one_after_it(few):
    mesh = few(2)
    reading = mesh.begin()
    await until(lambda: mesh.asked)
    mesh.clock.advance(HEDGE_S + 0.1)
    await until(lambda: len(mesh.asked) == 2)
    quick = mesh.asked[1]
    mesh.clock.advance(0.05)  # as others take, too
    quick.say(*ALL)
    await reading
    for count in (3, 4, 5):
        reading = mesh.begin()
        await until(lambda wanted=count: len(mesh.asked) == wanted)
        assert mesh.asked[-1] is quick, "not who hangs"
        mesh.clock.advance(0.05)
        quick.say(*ALL)
        await reading
    await mesh.nothing_is_left()


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("turns", [1, 2, 20])
@pytest.mark.parametrize("hedged", [True, False])
async def test_leaving_client_leaves_no_place_behind(few, linked, turns, hedged):
    mesh = few(2)
    if not linked:
        mesh.unlinked()
    reading = mesh.begin()
    await settled(turns)
    if hedged:
        mesh.clock.advance(HEDGE_S + 0.1)
        await settled(turns)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert reading.cancelled()
    await mesh.nothing_is_left()


async def test_leaving_as_a_processor_begins_leaves_no_place_behind(few):
    mesh = few(1)
    reading = mesh.begin()
    await until(lambda: mesh.asked)
    mesh.asked[0].say(BEGUN)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await mesh.nothing_is_left()


@pytest.mark.parametrize("turns", [1, 20])
async def test_stopping_while_links_are_made_ends_the_request(few, turns):
    mesh = few(2)
    mesh.unlinked()
    reading = mesh.begin()
    await settled(turns)
    for _ in range(2):  # the second is asked when the first is not to be had
        await mesh.tasks.stop()
        await settled(turns)
    await until(reading.done)
    error = reading.exception()
    assert isinstance(error, APIStatusError)
    assert error.status_code == 503
    await mesh.nothing_is_left()


async def test_mistake_in_making_a_link_is_told_at_once(few):
    mesh = few(2)
    mesh.unlinked()
    reading = mesh.begin()
    await until(lambda: mesh.asked)
    await settled()
    mesh.asked[0].link.set_exception(ValueError("a mistake"))
    assert isinstance(await caught(reading), ValueError)
    await mesh.nothing_is_left()


async def test_one_that_cannot_be_asked_or_is_busy_or_lost_is_followed_by_another(few):
    mesh = few(4)
    first, second, third, last = mesh.processors.values()
    first.raises = PeerUnreachableError("it has left")
    second.say(EngineBusyError("busy"))
    third.link = asyncio.get_running_loop().create_future()
    third.link.set_exception(LinkClosedError("lost"))
    last.say(*ALL)
    for peer, one in mesh.processors.items():  # asked in this order
        offer = mesh.balancer._processors[peer].offer
        if one is not first:
            mesh.balancer.withdrew(peer)
            one.offer = offer
    waiting = [second, third, last]
    ask = mesh.ask

    def ask_and_offer_the_next(contact, *args, **options):
        if waiting:
            mesh.balancer.heard(waiting.pop(0).offer)
        return ask(contact, *args, **options)

    mesh.ask = ask_and_offer_the_next
    assert kinds(await mesh.begin()) == [Accepted, PieceMessage]
    assert mesh.asked == [first, second, third, last]
    await mesh.nothing_is_left()
