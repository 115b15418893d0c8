"""The callee's end of a link's calls: one task for each, from the request to its last word.

Owns those tasks, their deadlines, and their waiting for credit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from tinkex.errors import LinkClosedError, PeerTimeoutError, TinkerError
from tinkex.mesh.rpc.credentials import RemotePeer
from tinkex.mesh.rpc.dispatch import Offered, handler_error
from tinkex.mesh.rpc.errors import wire_error
from tinkex.mesh.rpc.messages import Request
from tinkex.mesh.rpc.observer import CallReport
from tinkex.mesh.rpc.service import Call, Hurried, Last, Unhurried, is_trace
from tinkex.mesh.rpc.session import Session
from tinkex.mesh.rpc.surroundings import Surroundings
from tinkex.mesh.tasks import Tasks


@dataclass(slots=True)
class _Running:
    """A call that is being answered."""

    request: Request
    offered: Offered
    began: float
    deadline: float
    task: asyncio.Task[None] | None = None
    started: bool = False
    unwanted: bool = False
    room: asyncio.Event | None = None
    """Set when an item may be sent; there once one had to wait."""
    expired: bool = False
    items: int = 0
    reply_bytes: int = 0
    ended: bool = False
    """Whether its last word was said, though the handler may go on."""


class Sending(Protocol):
    """What handlers ask of their link."""

    def send_soon(self) -> None:
        """Have what is ready sent, with what else becomes so in this turn."""

    def send_at_once(self) -> None:
        """Have it sent now."""

    def send_when_due(self, call_id: int) -> None:
        """Have a stream's items sent when they have waited long enough for others."""


class Handlers:
    """Answers the calls of one link's peer.

    Args:
        session: the link's.
        peer: who calls.
        tasks: own the tasks.
        link: sends what the session has.
    """

    def __init__(self, session: Session, peer: RemotePeer, tasks: Tasks, link: Sending) -> None:
        self._session = session
        self._peer = peer
        self._tasks = tasks
        self._link = link
        self._running: dict[int, _Running] = {}
        self._waiting: set[int] = set()

    def begin(self, request: Request, offered: Offered, around: Surroundings) -> None:
        """Answer a request that was admitted."""
        now = around.clock.monotonic()
        running = _Running(request, offered, now, now + request.timeout_ms / 1000)
        self._running[request.id] = running
        running.task = self._tasks.spawn(
            self._run(running, around), name=f"answer {request.method}"
        )

    def cancel(self, call_id: int) -> None:
        """Nobody waits for a call's answer any more."""
        running = self._running.get(call_id)
        if running is not None:
            self._cancel(running)

    @staticmethod
    def _cancel(running: _Running) -> None:
        # A task that is cancelled before its first step would not run at all, nor answer.
        running.unwanted = True
        if running.started and running.task is not None:
            running.task.cancel()

    def cancel_all(self) -> None:
        """Nobody waits for any."""
        for call_id in self._running:
            self.cancel(call_id)

    def room(self) -> None:
        """Wake those that wait to send and may."""
        for call_id in self._waiting:
            room = self._running[call_id].room
            if room is not None and self._session.may_send(call_id):
                room.set()

    async def _run(self, running: _Running, around: Surroundings) -> None:
        request = running.request
        timer = around.timers.call_later(
            running.deadline - running.began, lambda: self._expire(running)
        )
        failure: TinkerError | None = None
        running.started = True
        try:
            if not running.unwanted:
                await self._answer(running, around)
            else:
                failure = _why_cancelled(running)
        except asyncio.CancelledError:
            failure = _why_cancelled(running)
            raise
        except Exception as error:  # noqa: BLE001 - whatever a handler raises becomes an answer
            failure = handler_error(request.method, error)
        finally:
            timer.cancel()
            del self._running[request.id]
            if failure is not None and not running.ended:
                self._session.fail(request.id, wire_error(failure))
            self._link.send_at_once()
            self._report(running, failure, around)

    async def _answer(self, running: _Running, around: Surroundings) -> None:
        request, offered, dispatcher = running.request, running.offered, around.dispatcher
        message = dispatcher.decode(offered, request.body)
        trace = request.trace if is_trace(request.trace) else ""
        call = Call(self._peer.peer_id, self._peer.certificate, running.deadline, trace)
        if offered.method.streamed:
            await self._stream(running, offered.handler(message, call), around)
            if not running.ended:
                self._session.end(request.id)
            return
        body = dispatcher.encode(offered, await offered.handler(message, call))
        running.items, running.reply_bytes = 1, len(body)
        self._session.respond(request.id, body)

    async def _stream(
        self, running: _Running, replies: AsyncIterator[object], around: Surroundings
    ) -> None:
        call_id = running.request.id
        try:
            async for reply in replies:
                if running.ended:
                    raise TypeError(f"`{running.request.method}` gives an item after its last")
                body = around.dispatcher.encode(running.offered, reply)
                if not self._session.may_send(call_id):
                    await self._room(running)
                running.items += 1
                running.reply_bytes += len(body)
                self._give(call_id, running, reply, body, around)
        finally:
            close = getattr(replies, "aclose", None)
            if close is not None:
                await close()

    def _give(
        self, call_id: int, running: _Running, reply: object, body: bytes, around: Surroundings
    ) -> None:
        if isinstance(reply, Unhurried):
            self._session.item(call_id, body, unhurried_at=around.clock.monotonic())
            self._link.send_when_due(call_id)
            return
        self._session.item(call_id, body)
        if isinstance(reply, Last):
            running.ended = True
            self._session.end(call_id)
        if isinstance(reply, Hurried):
            self._link.send_at_once()
        else:
            self._link.send_soon()

    async def _room(self, running: _Running) -> None:
        """Wait until an item may be sent: this is where a slow reader slows its stream."""
        call_id = running.request.id
        room = running.room = running.room or asyncio.Event()
        while not self._session.may_send(call_id):
            room.clear()
            self._waiting.add(call_id)
            try:
                await room.wait()
            finally:
                self._waiting.discard(call_id)

    @staticmethod
    def _expire(running: _Running) -> None:
        running.expired = True
        Handlers._cancel(running)

    def _report(self, running: _Running, failure: TinkerError | None, around: Surroundings) -> None:
        around.report(
            CallReport(
                self._peer.peer_id,
                running.request.method,
                True,
                None if failure is None else type(failure).__name__,
                around.clock.monotonic() - running.began,
                running.items,
                len(running.request.body),
                running.reply_bytes,
            )
        )


def _why_cancelled(running: _Running) -> TinkerError:
    path = running.request.method
    if running.expired:
        return PeerTimeoutError(f"`{path}` was not done within the caller's time")
    return LinkClosedError(f"`{path}` was cancelled")
