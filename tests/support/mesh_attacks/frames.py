"""Attacks by bytes: frames that are too long, and frames and requests that are none."""

from __future__ import annotations

import random
from dataclasses import dataclass

import msgspec
from mesh_attacks.registry import Defence, Suite, nothing, refused
from mesh_rpc import Echo

from tinkex.errors import PeerProtocolError
from tinkex.mesh.rpc.dispatch import Dispatcher
from tinkex.mesh.rpc.messages import Message, Part, Request, encode_frame
from tinkex.mesh.rpc.session import Limits, Session
from tinkex.mesh.transport.base import MAX_FRAME_BYTES
from tinkex.mesh.transport.frames import HEADER_BYTES, Deframer

MANY = 300


@dataclass(frozen=True)
class Classes:
    """What an attack meets."""

    deframer: type = Deframer
    session: type = Session
    dispatcher: type = Dispatcher


def session(classes):
    limits = Limits(4, 1 << 21)
    return classes.session(limits, limits, window=1000, coalesce_s=0.005, coalesce_bytes=500)


def frame_without_end(classes):
    """It says that a frame has a gigabyte, and sends and sends."""
    deframer, sent = classes.deframer(), 0
    header = (1 << 30).to_bytes(HEADER_BYTES, "big")

    def flood():
        nonlocal sent
        deframer.feed(header)
        while sent < 4 * MAX_FRAME_BYTES:
            sent += 1 << 16
            deframer.feed(bytes(1 << 16))

    return refused(PeerProtocolError, flood) and sent == 0 and deframer.waiting_bytes == 0


def frame_of_nothing(classes):
    return refused(PeerProtocolError, classes.deframer().feed, bytes(HEADER_BYTES))


def body_without_end(classes):
    """It cuts a body into parts, each a frame of its own, and never sends the last."""
    one = session(classes)
    part = encode_frame([Part(1, True, bytes(1 << 16))])

    def flood():
        for _ in range(64):
            one.receive(part)

    return refused(PeerProtocolError, flood)


def mutated(rng):
    frame = bytearray(encode_frame([Request(1, "echo.say", 1000, 0, "", b"\x80" * 9)]))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(frame))
        frame[at : at + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 3))
    return bytes(frame) or b"\x00"


def frames_that_are_none(classes):
    """Whatever is sent, the link ends with a typed error, and not with the worker's."""
    nonsense = [mutated(random.Random(seed)) for seed in range(MANY)]
    for frame in (*nonsense, b"\x91" * 3000, b"\x91\x93\x01\xa2\xff\xff\xc0"):
        try:
            session(classes).receive(frame)
        except PeerProtocolError:
            continue
        except Exception:  # noqa: BLE001 - that is what must not happen
            return False
    return True


def requests_that_are_none(classes):
    """The same for what a method takes."""
    dispatcher = classes.dispatcher()
    dispatcher.serve(Echo())
    offered = dispatcher._offered["echo.say"]
    for body in (b"", b"\xc1", b"\x81\xa4text\xa2\xff\xff", b"\x91" * 3000, b"\x81\xa1x\x01"):
        try:
            dispatcher.decode(offered, body)
        except PeerProtocolError:
            continue
        except Exception:  # noqa: BLE001 - as above
            return False
        return False
    return True


def read_unguarded(_self, frame):
    return msgspec.msgpack.decode(frame, type=list[Message])


SUITE = Suite(
    "frames",
    Classes(),
    (
        Defence("deframer", "_refuse", nothing, (frame_without_end, frame_of_nothing)),
        Defence("session", "_check_length", nothing, (body_without_end,)),
        Defence("session", "_read", read_unguarded, (frames_that_are_none,)),
        Defence(
            "dispatcher",
            "decode",
            staticmethod(lambda offered, body: offered.decoder.decode(body)),
            (requests_that_are_none,),
        ),
    ),
)
