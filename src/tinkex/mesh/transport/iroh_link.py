"""One iroh connection: a single QUIC stream both ways, and the link that comes out.

Owns the stream's reader and writer. Iroh has proven who is at the other end before this begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING

from tinkex._clock import Clock
from tinkex.errors import LinkClosedError, PeerProtocolError
from tinkex.mesh.identity import PeerId
from tinkex.mesh.tasks import Tasks
from tinkex.mesh.transport.frames import Deframer, enframe
from tinkex.mesh.transport.iroh_streams import Call, Streams, finished
from tinkex.mesh.transport.queue import FrameQueue

if TYPE_CHECKING:
    from iroh.iroh_ffi import BiStream, Connection

LINGER_S = 0.5
"""How long what was sent before closing may take to leave."""
_READ_BYTES = 1 << 16
_WRITE_BYTES = 1 << 16


class IrohLink:
    """A link over one stream of one connection.

    Args:
        connection: with a peer whose id iroh has checked.
        stream: open, and greeted on both sides.
        streams: reads and writes.
        failure: iroh's exception; its package is imported where it is needed only.
        tasks: run the reader and the writer.
        clock: measures `LINGER_S`.
        on_gone: told when the connection is closed and nothing runs for it.
    """

    def __init__(
        self,
        connection: Connection,
        stream: BiStream,
        *,
        streams: Streams,
        failure: type[Exception],
        tasks: Tasks,
        clock: Clock,
        on_gone: Callable[[IrohLink], None],
    ) -> None:
        self._connection = connection
        self._sending = stream.send()
        self._receiving = stream.recv()
        self._streams = streams
        self._failure = failure
        self._tasks = tasks
        self._clock = clock
        self._on_gone = on_gone
        self._remote = PeerId(connection.remote_id().to_bytes())
        self._inbound = FrameQueue()
        self._outbound = FrameQueue()
        self._queues = False
        """Whether frames may be in `outbound`, or taken from it and not written yet."""
        self._writing: asyncio.Task[None] | None = None
        """A write that was begun at once, and has not ended."""
        self._lingering: asyncio.Task[None] | None = None
        self._running = [
            tasks.spawn(self._write(), name="iroh-write"),
            tasks.spawn(self._read(), name="iroh-read"),
        ]

    @property
    def remote(self) -> PeerId:
        """Who is at the other end."""
        return self._remote

    @property
    def closed(self) -> bool:
        """Whether nothing goes through any more."""
        return self._outbound.closed

    async def send(self, frame: bytes) -> None:
        """Send one frame; see `Link.send`."""
        data = enframe(frame)
        if not self._written_at_once(data):
            self._queues = True
            await self._outbound.put(data)

    def send_now(self, frame: bytes) -> bool:
        """Send one frame if that needs no waiting; see `Link.send_now`."""
        data = enframe(frame)
        if self._written_at_once(data):
            return True
        if not self._outbound.offer(data):
            return False
        self._queues = True
        return True

    async def receive(self) -> bytes:
        """Wait for the next frame; see `Link.receive`."""
        return await self._inbound.get()

    def receive_now(self) -> bytes | None:
        """Take the next frame if it is here; see `Link.receive_now`."""
        return self._inbound.poll()

    def listen(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when something is here; see `Link.listen`."""
        context = copy_context()
        self._inbound.listen(lambda: context.run(callback))

    async def close(self) -> None:
        """End the link; what was sent before still leaves, if the peer takes it soon."""
        self._end("the link was closed", discard=True)

    async def gone(self) -> None:
        """Wait until the connection is closed."""
        await asyncio.wait(self._running)

    def abort(self, reason: str) -> None:
        """End the link and forget what has not left."""
        self._connection.close(0, b"")
        self._end(reason, discard=True)

    async def _read(self) -> None:
        deframer = Deframer()
        reason = "the peer closed the link"
        try:
            while data := await self._streams.read(self._receiving, _READ_BYTES):
                for frame in deframer.feed(data):
                    await self._inbound.put(frame)
        except LinkClosedError:
            return  # closed on this side, where nobody wants to read any more
        except PeerProtocolError as error:
            reason = f"the link was closed: {error}"
        except self._failure as error:
            reason = f"the connection was lost ({describe(error)})"
        self._end(reason)

    async def _write(self) -> None:
        try:
            await self._write_frames()
            if self._writing is not None:
                await asyncio.wait([self._writing])
            # The stream's end tells the peer; its acknowledgement, that all has arrived.
            await self._sending.finish()
            await self._sending.stopped()
        except self._failure as error:
            self._end(f"the connection was lost ({describe(error)})")
        finally:
            self._connection.close(0, b"")
            if self._lingering is not None:
                self._lingering.cancel()
            self._on_gone(self)

    async def _write_frames(self) -> None:
        """Write until the link is closed, and then what is left."""
        try:
            while True:
                frames = [await self._outbound.get(), *self._outbound.take_now(_WRITE_BYTES)]
                if self._writing is not None:
                    await asyncio.wait([self._writing])
                await self._streams.write(self._sending, b"".join(frames))
                self._queues = not self._outbound.idle
        except LinkClosedError:
            return

    def _written_at_once(self, data: bytes) -> bool:
        """Write where nothing is before it; whether that was so."""
        if self._queues or self._writing is not None or self._outbound.closed:
            return False
        call = self._streams.write_now(self._sending, data)
        if call is None:
            return False
        if call.done:
            self._check_written(call)
        else:
            self._writing = self._tasks.spawn(self._written(call), name="iroh-write-on")
            # One that is cancelled before its first step does not end it itself.
            self._writing.add_done_callback(lambda _: call.end())
        return True

    def _check_written(self, call: Call[None]) -> None:
        try:
            call.result()
        except self._failure as error:
            self._end(f"the connection was lost ({describe(error)})")
        finally:
            call.end()

    async def _written(self, call: Call[None]) -> None:
        try:
            await finished(call)
        except self._failure as error:
            self._end(f"the connection was lost ({describe(error)})")
        finally:
            self._writing = None

    def _end(self, reason: str, *, discard: bool = False) -> None:
        self._inbound.close(reason, discard=discard)
        self._outbound.close(reason)
        if self._lingering is None and not self._running[0].done():
            self._lingering = self._tasks.spawn(self._linger(), name="iroh-linger")

    async def _linger(self) -> None:
        await self._clock.sleep(LINGER_S)
        self._connection.close(0, b"")


def describe(error: BaseException) -> str:
    """The last line of one of iroh's errors, which is its cause: the rest is for its makers."""
    message = getattr(error, "message", None)
    lines = str(message() if callable(message) else error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
