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
from tinkex.mesh.transport.iroh_streams import Call, Reading, Streams, finished
from tinkex.mesh.transport.queue import FrameQueue

if TYPE_CHECKING:
    from iroh.iroh_ffi import BiStream, Connection

LINGER_S = 0.5
"""How long what was sent before closing may take to leave."""
_READ_BYTES = 1 << 16
_READS_A_TURN = 8
"""So many in a row before other work has a turn."""
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
        self._deframer = Deframer()
        self._reading: Reading | None = None
        """A read that was begun, and has no result yet."""
        self._paused = False
        """Whether nothing is read, as those who take frames are behind."""
        self._running = [tasks.spawn(self._write(), name="iroh-write")]
        self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._read)

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
        frame = await self._inbound.get()
        self._read_on()
        return frame

    def receive_now(self) -> bytes | None:
        """Take the next frame if it is here; see `Link.receive_now`."""
        frame = self._inbound.poll()
        self._read_on()
        return frame

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

    def _read(self) -> None:
        """Read until there is no more for now; what comes later is read where it comes."""
        for _ in range(_READS_A_TURN):
            if self._inbound.closed:
                return
            if self._inbound.full:
                self._paused = True
                return
            reading = self._streams.read(self._receiving, _READ_BYTES)
            if not reading.done:
                self._reading = reading
                reading.listen(self._read_came)
                return
            if not self._took(reading):
                return
        self._loop.call_soon(self._read)

    def _read_came(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None and self._took(reading):
            self._read()

    def _read_on(self) -> None:
        if self._paused and not self._inbound.full:
            self._paused = False
            self._loop.call_soon(self._read)  # not here: who took a frame has not acted on it

    def _took(self, reading: Reading) -> bool:
        """Take in what was read; whether more may come."""
        reason = "the peer closed the link"
        try:
            data = reading.result()
            for frame in self._deframer.feed(data):
                self._inbound.put_now(frame)
            if data:
                return True
        except LinkClosedError:
            return False  # closed on this side, where nobody wants to read any more
        except PeerProtocolError as error:
            reason = f"the link was closed: {error}"
        except self._failure as error:
            reason = f"the connection was lost ({describe(error)})"
        finally:
            reading.end()
        self._end(reason)
        return False

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
            reading, self._reading = self._reading, None
            if reading is not None:
                reading.end()
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
