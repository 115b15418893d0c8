"""Random and mutated frames never crash, hang or leak: the link ends, or the call fails.

The seed is in the name of each case; `FUZZ_CASES` of them in the long form.
"""

import asyncio
import random

import pytest
from mesh_rpc import Answer, Ask, Echo, World, hello_of, settled, until

from tinkex.errors import LinkClosedError, PeerProtocolError
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.messages import (
    MAX_WINDOW,
    Bye,
    Cancel,
    Credit,
    End,
    Failed,
    Items,
    Leave,
    Part,
    Ping,
    Pong,
    Request,
    Response,
    WireError,
    decode_greeting,
    encode_frame,
    encode_greeting,
)
from tinkex.mesh.rpc.session import Limits, Session

LONG = 10_000
METHODS = ["echo.say", "echo.count", "echo.wait", "echo.count_then_wait", "echo.nothing", ""]
BODIES = [b"\x80", b"\x81\xa5count\x05", b"\x81\xa4text\xa1x", b"", b"\xc1", b"\x91" * 2000]


def some_message(rng):
    """A message that is well formed, and may or may not make sense."""
    number = rng.choice([1, 1, 2, 3, rng.randint(1, 9), 2**53])
    error = WireError(rng.choice(["NotFoundError", "SystemExit"]), ("x",), "user", 1.0, "r", 404)
    return rng.choice(
        [
            Request(
                number,
                rng.choice(METHODS),
                rng.choice([0, 1, 60_000]),
                rng.choice([0, 1, 500, MAX_WINDOW]),
                rng.choice(["", "x" * 64]),
                rng.choice(BODIES),
            ),
            Response(number, rng.choice(BODIES)),
            Items(number, tuple(rng.choice(BODIES) for _ in range(rng.randint(1, 4)))),
            End(number),
            Part(number, rng.random() < 0.5, rng.choice(BODIES)),
            Failed(number, error),
            Cancel(number),
            Credit(number, rng.choice([1, 500, MAX_WINDOW])),
            Ping(number),
            Pong(number),
            Leave(rng.random() < 0.5),
            Bye(),
        ]
    )


class Attacker:
    """Writes frames that mostly make sense, so that the ones that do not come late, too."""

    def __init__(self, rng):
        self.rng = rng
        self.calls = 0
        self.streams = []

    def frame(self):
        rng = self.rng
        if rng.random() < 0.02:
            return rng.randbytes(rng.choice([1, 3, 40, 400]))
        messages = [self.sensible() for _ in range(rng.randint(1, 4))]
        if rng.random() < 0.05:
            messages.insert(rng.randint(0, len(messages)), some_message(rng))
        frame = bytearray(encode_frame(messages))
        if rng.random() < 0.05:
            for _ in range(rng.randint(1, 4)):
                mutate(rng, frame)
        return bytes(frame) or b"\x00"

    def sensible(self):
        rng = self.rng
        kind = rng.random()
        if kind < 0.05:
            return Part(self.calls + 1, True, rng.choice([b"", b"\x80", bytes(3000)]))
        if kind < 0.4 or not self.calls:
            self.calls += 1
            window = rng.choice([0, 1, 500])
            if window:
                self.streams.append(self.calls)
            return Request(self.calls, rng.choice(METHODS), 60_000, window, "", rng.choice(BODIES))
        if kind < 0.7:
            return Cancel(rng.randint(1, self.calls))
        if kind < 0.9 and self.streams:
            return Credit(rng.choice(self.streams), rng.choice([1, 100]))
        return rng.choice([Ping(rng.randint(1, 9)), Leave(True)])


def mutate(rng, frame):
    place = rng.randrange(len(frame) + 1)
    match rng.randrange(4):
        case 0:
            frame[place:place] = rng.randbytes(rng.randint(1, 8))
        case 1:
            del frame[place : place + rng.randint(1, 8)]
        case 2:
            frame[place : place + 1] = bytes([rng.randrange(256)])
        case _:
            frame += frame[place : place + 20]


def fuzz_session(seed):
    """Feed one session; nothing but PeerProtocolError may come out of it."""
    rng = random.Random(seed)
    session = Session(
        Limits(5, 5000), Limits(5, 5000), window=500, coalesce_s=0.005, coalesce_bytes=100
    )
    for streamed in (True, False):
        session.request("echo.count", b"", timeout_ms=1, streamed=streamed)
    attacker = Attacker(rng)
    for turn in range(50):
        try:
            for message in session.receive(attacker.frame()):
                if isinstance(message, Request):
                    answer(rng, session, message)
        except PeerProtocolError:
            return turn
        while session.take(float(turn)) is not None:
            pass
        assert session.incoming <= 5
    return 50


def answer(rng, session, request):
    if request.window:
        while session.may_send(request.id) and rng.random() < 0.8:
            session.item(request.id, bytes(rng.choice([0, 10, 300])))
    if rng.random() < 0.9:
        session.end(request.id) if request.window else session.respond(request.id, b"x")


@pytest.mark.parametrize("block", range(5))
def test_random_frames_break_no_session(block):
    turns = [fuzz_session(seed) for seed in range(block * 60, block * 60 + 60)]
    assert sum(turns) > 5 * len(turns), "the dialogues must not end at their first word"


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_are_no_greeting(seed):
    rng = random.Random(seed)
    for _ in range(20):
        frame = bytearray(rng.randbytes(rng.choice([0, 1, 50])) or b"\x97\xactinkex-hello\x01")
        mutate(rng, frame)
        with pytest.raises(PeerProtocolError):
            decode_greeting(bytes(frame))


async def fuzz_peers(cases, first=0):
    """Attack a living peer; afterwards it serves others, and nothing of the attacks is left."""
    async with World() as world:
        echo = Echo()
        server, client = await world.peer(Role.AUTH, echo), await world.peer()
        attacker = world.credentials(Role.GATEWAY)
        raw = world.memory.transport(attacker.key_pair)
        await raw.start()
        await client.call(server.contact, Echo.rpc_say, Ask(), timeout_s=5)
        await settled()
        before = len(asyncio.all_tasks())
        for seed in range(first, first + cases):
            await attack(world, server, raw, attacker, random.Random(seed))
            reply = await client.call(server.contact, Echo.rpc_say, Ask(str(seed)), timeout_s=5)
            assert reply == Answer(str(seed)), seed
        await until(lambda: len(server.links()) == 1)
        await world.pass_time(4)
        assert len(asyncio.all_tasks()) <= before
        assert echo.started == echo.cancelled + echo.finished
        await raw.stop()


async def attack(world, server, raw, attacker, rng):
    link = await raw.dial(server.contact)
    greeting = bytearray(encode_greeting(hello_of(world, attacker)))
    if rng.random() < 0.1:
        mutate(rng, greeting)
    try:
        await link.send(bytes(greeting) or b"\x00")
        writer = Attacker(rng)
        for _ in range(rng.randint(1, 20)):
            await link.send(writer.frame())
            await settled(rng.randint(0, 5))
    except LinkClosedError:
        pass
    await link.close()


async def test_random_frames_break_no_peer(caplog):
    await fuzz_peers(100)
    assert caplog.text == ""


@pytest.mark.soak
def test_ten_thousand_random_dialogues_break_no_session():
    for seed in range(LONG):
        fuzz_session(seed)


@pytest.mark.soak
async def test_ten_thousand_random_dialogues_break_no_peer(caplog):
    for first in range(0, LONG, 1000):
        await fuzz_peers(1000, first)
    assert caplog.text == ""
