"""What leaves when: with what else of its turn, at once, or with the end; and whose turn it is."""

import asyncio
import itertools
from collections.abc import AsyncIterator

import msgspec
import pytest
from mesh_rpc import Ask, Echo, World, caught, raw_link, raw_server, settled, until

from tinkex.errors import LinkClosedError
from tinkex.mesh.roles import CERTIFIED, Role
from tinkex.mesh.rpc.messages import (
    Cancel,
    Credit,
    End,
    Items,
    Request,
    Response,
    decode_frame,
    encode_frame,
)
from tinkex.mesh.rpc.service import Call, Hurried, Last, Service, Unhurried, callable_by
from tinkex.mesh.rpc.session import Session
from tinkex.mesh.transport.memory import MemoryLink


class Lead(Unhurried, frozen=True, array_like=True, tag="lead"):
    """Can wait."""


class Piece(msgspec.Struct, frozen=True, array_like=True, tag="piece"):
    """Neither waits nor hurries."""


class Quick(Hurried, frozen=True, array_like=True, tag="quick"):
    """Cannot wait."""


class Final(Last, frozen=True, array_like=True, tag="final"):
    """Nothing follows."""


LEAD, PIECE, QUICK, FINAL = (msgspec.msgpack.encode(kind()) for kind in (Lead, Piece, Quick, Final))


class Plan(msgspec.Struct, frozen=True):
    """What a stream is to give."""

    items: list[str] = []


class Planned(Service):
    """Gives what it is asked for; `look` is called after each item, when the handler goes on."""

    service = "planned"

    def __init__(self):
        self.gate = asyncio.Event()
        self.error = None
        self.looked = []
        self.look = lambda: None
        self.done = 0

    @callable_by(CERTIFIED)
    async def rpc_stream(
        self, request: Plan, call: Call
    ) -> AsyncIterator[Lead | Piece | Quick | Final]:
        kinds = {"lead": Lead, "piece": Piece, "quick": Quick, "final": Final}
        for name in request.items:
            yield kinds[name]()
            self.looked.append(self.look())
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.done += 1


class Watch:
    """Remembers the calls that ended."""

    def __init__(self):
        self.calls = []

    def call_ended(self, report):
        self.calls.append((report.error, report.items))

    def link_opened(self, peer):
        pass

    def link_ended(self, peer, reason, lost):
        self.calls.append("link ended")


def asked(*items, number=1):
    body = msgspec.msgpack.encode(Plan(list(items)))
    return encode_frame([Request(number, "planned.stream", 60_000, 4096, "", body)])


def came(link):
    """All that came until now, each frame as its messages."""
    frames = []
    while (frame := link.receive_now()) is not None:
        frames.append(decode_frame(frame))
    return frames


async def test_end_goes_with_the_last_item_before_the_handler_goes_on():
    planned = Planned()
    async with World() as world, raw_link(world, planned) as (server, link):
        planned.look = lambda: came(link)
        await link.send(asked("final"))
        await until(lambda: planned.looked)
        assert planned.looked == [[[Items(1, (FINAL,)), End(1)]]]
        assert server.links()[0].incoming == 0
        assert planned.done == 0
        planned.gate.set()
        await settled()
        assert planned.done == 1
        assert came(link) == []  # nothing is said again


async def test_what_waits_goes_with_the_last_item():
    planned = Planned()
    async with World() as world, raw_link(world, planned) as (_, link):
        planned.look = lambda: came(link)
        await link.send(asked("lead", "piece", "final"))
        await until(lambda: len(planned.looked) == 3)
        assert planned.looked == [[], [], [[Items(1, (LEAD, PIECE, FINAL)), End(1)]]]


async def test_caller_has_the_end_while_the_handler_still_works():
    async with World() as world:
        planned = Planned()
        server, client = await world.peer(Role.AUTH, planned), await world.peer()
        replies = client.stream(
            server.contact, Planned.rpc_stream, Plan(["piece", "final"]), timeout_s=60
        )
        assert [reply async for reply in replies] == [Piece(), Final()]
        assert client.links()[0].outgoing == 0
        assert planned.done == 0
        planned.gate.set()
        await until(lambda: planned.done == 1)


async def test_error_after_the_last_item_is_told_to_no_caller_and_the_link_goes_on():
    async with World() as world:
        planned, watch = Planned(), Watch()
        planned.error = RuntimeError("after all was said")
        server = await world.peer(Role.AUTH, planned, observer=watch)
        client = await world.peer()
        for n in range(2):
            planned.gate.clear()
            replies = client.stream(
                server.contact, Planned.rpc_stream, Plan(["final"]), timeout_s=60
            )
            assert [reply async for reply in replies] == [Final()]
            planned.gate.set()
            await until(lambda n=n: len(watch.calls) == n + 1)
        # Who serves sees it.
        assert watch.calls == [("EngineError", 1)] * 2
        assert len(client.links()) == 1


async def test_item_after_the_last_is_an_error_that_leaves_the_link_alive():
    async with World() as world:
        planned, watch = Planned(), Watch()
        server = await world.peer(Role.AUTH, planned, observer=watch)
        client = await world.peer()
        planned.gate.set()
        for items, replies, ended in (
            (["final", "piece"], [Final()], ("EngineError", 1)),
            (["piece"], [Piece()], (None, 1)),
        ):
            stream = client.stream(server.contact, Planned.rpc_stream, Plan(items), timeout_s=60)
            assert [reply async for reply in stream] == replies
            await until(lambda: watch.calls)
            assert watch.calls == [ended]
            watch.calls.clear()
        assert planned.done == 1  # the first was not let on
        assert len(client.links()) == 1


async def test_cancel_that_crosses_the_end_does_not_stop_what_follows_the_last_item():
    planned = Planned()
    async with World() as world, raw_link(world, planned) as (_, link):
        await link.send(asked("final"))
        await settled()
        await link.send(encode_frame([Cancel(1), Credit(1, 10)]))
        await settled()
        planned.gate.set()
        await until(lambda: planned.done == 1)
        assert not link.closed


async def test_hurried_item_leaves_at_once_with_what_waited():
    planned = Planned()
    async with World() as world, raw_link(world, planned) as (_, link):
        planned.look = lambda: came(link)
        await link.send(asked("lead", "quick"))
        await until(lambda: len(planned.looked) == 2)
        assert planned.looked == [[], [[Items(1, (LEAD, QUICK))]]]


async def test_other_items_of_a_turn_leave_together_at_its_end():
    planned = Planned()
    async with World() as world, raw_link(world, planned) as (_, link):
        planned.look = lambda: came(link)
        await link.send(asked("piece", "piece", "piece"))
        await until(lambda: len(planned.looked) == 3)
        assert planned.looked == [[], [], []]
        await settled()
        assert came(link) == [[Items(1, (PIECE, PIECE, PIECE))]]


async def test_requests_of_one_turn_go_in_few_frames():
    async with World() as world, raw_server(world) as (contact, links):
        client = await world.peer()
        calling = [
            asyncio.create_task(client.call(contact, Echo.rpc_say, Ask(str(n)), timeout_s=60))
            for n in range(41)
        ]
        # One makes the link, and the others wait for it.
        await until(lambda: links and client.links() and client.links()[0].outgoing == 41)
        await settled()
        frames = came(links[0])
        requests = [message for frame in frames for message in frame]
        assert sorted(request.id for request in requests) == list(range(1, 42))
        assert len(frames) <= 3
        answer = msgspec.msgpack.encode({"text": "x"})
        links[0].send_now(encode_frame([Response(request.id, answer) for request in requests]))
        assert {(await call).text for call in calling} == {"x"}


async def test_replies_of_one_turn_go_in_few_frames():
    async with World() as world, raw_link(world, Echo()) as (_, link):
        requests = [Request(n, "echo.say", 60_000, 0, "", b"\x80") for n in range(1, 41)]
        await link.send(encode_frame(requests))
        await settled()
        frames = came(link)
        assert sorted(reply.id for frame in frames for reply in frame) == list(range(1, 41))
        assert len(frames) <= 3


@pytest.mark.parametrize("tells", ["later", "within"])
async def test_flood_of_small_frames_lets_others_run(tells, monkeypatch):
    if tells == "within":  # as where many frames come in one piece: each is told of as it is found
        monkeypatch.setattr(
            MemoryLink, "listen", lambda self, callback: self._inbound.listen(callback)
        )
    echo = Echo()
    async with World() as world, raw_link(world, echo) as (server, link):
        await settled()
        count = 640

        def taken_in():
            return server.links()[0].incoming

        for n in range(1, count + 1):
            assert link.send_now(encode_frame([Request(n, "echo.wait", 60_000, 0, "", b"\x80")]))
        seen = [0, taken_in()]  # within this turn
        while seen[-1] < count:
            await asyncio.sleep(0)  # noqa: TID251 - others' turn
            seen.append(taken_in())
            assert len(seen) < 10 * count
        steps = [after - before for before, after in itertools.pairwise(seen)]
        assert max(steps) <= 64
        echo.gate.set()


async def test_failure_of_this_side_ends_the_link_and_is_reported(monkeypatch, caplog):
    echo = Echo()
    async with World() as world, raw_server(world) as (contact, links):
        client = await world.peer()
        calling = asyncio.create_task(
            caught(client.call(contact, Echo.rpc_say, Ask(), timeout_s=60))
        )
        await until(lambda: links)
        await settled()
        with monkeypatch.context() as patched:

            def fail(self, frame):
                raise ZeroDivisionError("not thought of")

            patched.setattr(Session, "receive", fail)
            await links[0].send(encode_frame([Response(1, b"\x81\xa4text\xa1x")]))
            error = await calling
        assert type(error) is LinkClosedError
        assert "failed here" in str(error)
        assert "ZeroDivisionError" in caplog.text
        assert client.links() == ()
        await until(lambda: links[0].closed)
        # Another link is as good as the first was.
        server = await world.peer(Role.AUTH, echo)
        assert (
            await client.call(server.contact, Echo.rpc_say, Ask("on"), timeout_s=5)
        ).text == "on"


@pytest.mark.parametrize("items", [["piece", "final"], ["piece"]])
async def test_reader_that_leaves_where_it_hears_of_an_item_harms_no_other_call(items):
    """The item's frame has the stream's end too, or an error."""
    async with World() as world:
        planned = Planned()
        planned.gate.set()
        planned.error = LinkClosedError("the handler failed") if len(items) == 1 else None
        watch = Watch()
        server, client = (
            await world.peer(Role.AUTH, planned, Echo()),
            await world.peer(observer=watch),
        )
        await client.call(server.contact, Echo.rpc_say, Ask("x"), timeout_s=5)  # there is a link
        replies = client.ask(server.contact, Planned.rpc_stream, Plan(items), timeout_s=5)
        assert replies.sent
        heard = []

        def leave():
            heard.append(replies.take())
            replies.close()

        replies.listen(leave)
        await until(lambda: heard)
        await settled()
        assert [type(one) for one in heard] == [Piece]
        said = await client.call(server.contact, Echo.rpc_say, Ask("y"), timeout_s=5)
        assert said.text == "y"
        assert "link ended" not in watch.calls
        assert [link.outgoing for link in client.links()] == [0]
