"""Answers on a server's address while the server itself is not there yet.

Owns the time from the bound socket to the first request that is really served: models are loaded
and journals replayed. `/healthz` says that the process lives, `/readyz` why it is not ready, and
any other request waits here for as long as a client does, so that a restart is a pause and no
storm: clients repeat a poll that was refused at once. It is then told to come again.

Speaks as much HTTP/1.1 as that takes: one request a connection, whose body is thrown away.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import orjson

from tinkex.server.observe.health import WHY, Phase

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable

    from tinkex._clock import Clock

HOLD_S = 25.0
"""Clients hang up on a poll after 45 s."""
HEAD_S = 10.0
MAX_HEAD_BYTES = 32 * 2**10
MAX_GUESTS = 1024
PIECE_BYTES = 64 * 2**10
HEALTH = frozenset({"/healthz", "/api/v1/healthz"})
READY = "/readyz"


class WaitingRoom:
    """The stand-in for one server.

    Args:
        clock: bounds how long anybody is held.
    """

    def __init__(self, *, clock: Clock) -> None:
        self.state: Callable[[], tuple[Phase, str]] = lambda: (Phase.LOADING, WHY[Phase.LOADING])
        """Gives the phase that the server is in, and why it is not ready."""
        self._clock = clock
        self._over = asyncio.Event()
        self._guests: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Begin to answer on a bound socket, which stays the caller's."""
        self._server = await asyncio.start_server(
            self._take, sock=listener.dup(), ssl=tls, limit=MAX_HEAD_BYTES
        )

    async def close(self) -> None:
        """Tell everybody who waits to come again, and end; whoever comes now meets the server."""
        self._over.set()
        if self._server is not None:
            self._server.close()
        if self._guests:
            await asyncio.wait(self._guests)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._guests) >= MAX_GUESTS:
            writer.transport.abort()
            return
        self._guests.add(task)
        try:
            with contextlib.suppress(
                OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
            ):
                await self._serve(reader, writer)
        finally:
            self._guests.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await self._within(HEAD_S, reader.readuntil(b"\r\n\r\n"))
        if head is None:
            return
        lines = head.decode("latin-1").split("\r\n")
        path = [*lines[0].split(" "), ""][1].partition("?")[0]
        if path in HEALTH:
            reply = _reply(200, {"status": "ok"})
        else:
            if path != READY:
                await self._hold(reader, _content_length(lines))
            phase, why = self.state()
            if self._over.is_set():
                why = "The server has just become ready: send the request again."
            reply = _reply(503, {"status": phase.value, "detail": why})
        writer.write(reply)
        await self._within(HEAD_S, writer.drain())

    async def _hold(self, reader: asyncio.StreamReader, length: int) -> None:
        """Wait until the server is there, the client's patience ends, or the client goes."""
        over = asyncio.ensure_future(self._over.wait())
        gone = asyncio.ensure_future(_read_away(reader, length))
        gone.add_done_callback(lambda _: over.cancel())
        try:
            await self._within(HOLD_S, over)
        finally:
            gone.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await gone

    async def _within(self, seconds: float, work: Awaitable[bytes | bool | None]) -> bytes | None:
        """Wait for something, but no longer than so many seconds; None if that was not enough."""
        task = asyncio.ensure_future(work)
        timer = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
            if task.cancelled() or not task.done():
                return None
            found = task.result()
            return found if isinstance(found, bytes) else None
        finally:
            for one in (task, timer):
                one.cancel()
            await asyncio.gather(task, timer, return_exceptions=True)


async def _read_away(reader: asyncio.StreamReader, length: int) -> None:
    """Throw a body away, then wait for the end of the connection."""
    while length > 0 and (piece := await reader.read(min(length, PIECE_BYTES))):
        length -= len(piece)
    await reader.read(1)


def _content_length(lines: list[str]) -> int:
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if name.lower() == "content-length" and value.strip().isdecimal():
            return int(value)
    return 0


def _reply(status: int, content: dict[str, str]) -> bytes:
    body = orjson.dumps(content)
    reason = "OK" if status == 200 else "Service Unavailable"
    head = (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nRetry-After: 1\r\nretry-after-ms: 200\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
