"""One TLS connection on asyncio: the shell around `TlsChannel`.

Owns the socket's callbacks, back-pressure both ways, joining writes, and the link that comes out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import cast

from tinkex.errors import LinkClosedError, MeshError
from tinkex.mesh.identity import PeerId
from tinkex.mesh.transport.frames import enframe
from tinkex.mesh.transport.queue import WINDOW_BYTES, FrameQueue
from tinkex.mesh.transport.tls_channel import TlsChannel

_WRITE_BYTES = 1 << 16
"""What is encrypted at a time, so that a socket that is full is noticed."""


class TlsLink(asyncio.Protocol):
    """A connection, and a `Link` once `greeted` is done.

    Args:
        channel: not begun.
        on_made: called with the link when there is a socket.
        on_linger: called when it was closed while the peer takes nothing: abort it soon.
        on_lost: called when the socket is gone.
    """

    def __init__(
        self,
        channel: TlsChannel,
        *,
        on_made: Callable[[TlsLink], None],
        on_linger: Callable[[TlsLink], None],
        on_lost: Callable[[TlsLink], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._channel = channel
        self._on_made = on_made
        self._on_linger = on_linger
        self._on_lost = on_lost
        self._socket: asyncio.Transport | None = None
        self._inbound = FrameQueue(WINDOW_BYTES)
        self._outbound = FrameQueue(WINDOW_BYTES)
        self._full = False
        self._reading = True
        self._wrote_this_turn = False
        self.greeted: asyncio.Future[None] = loop.create_future()
        """Done when both sides know who the other is; an exception where that failed."""
        self.lost: asyncio.Future[None] = loop.create_future()
        """Done when the socket is gone."""

    @property
    def remote(self) -> PeerId:
        """Who is at the other end."""
        if self._channel.remote is None:
            raise LinkClosedError("it is not known yet who is at the other end")
        return self._channel.remote

    @property
    def dialler(self) -> bool:
        """Whether this side dialled."""
        return self._channel.dialler

    @property
    def closed(self) -> bool:
        """Whether nothing goes through any more."""
        return self._outbound.closed

    async def send(self, frame: bytes) -> None:
        """Send one frame; see `Link.send`."""
        await self._outbound.put(enframe(frame))
        if self._wrote_this_turn:
            return  # `_end_of_turn` sends it, with all that comes until then, in one piece
        self._wrote_this_turn = True
        self._loop.call_soon(self._end_of_turn)
        self._write_frames()

    def send_now(self, frame: bytes) -> bool:
        """Send one frame if that needs no waiting; see `Link.send_now`."""
        if not (self._outbound.waiting_bytes or self._outbound.closed or self._full):
            self._channel.write(enframe(frame))
            self._flush()
            return True
        if not self._outbound.offer(enframe(frame)):
            return False
        self._write_frames()
        return True

    async def receive(self) -> bytes:
        """Wait for the next frame; see `Link.receive`."""
        frame = await self._inbound.get()
        self._read_on()
        return frame

    def receive_now(self) -> bytes | None:
        """Take the next frame if it is here; see `Link.receive_now`."""
        if not (self._inbound.waiting_bytes or self._inbound.closed):
            return None
        frame = self._inbound.poll()
        if not self._reading:
            self._read_on()
        return frame

    def listen(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when something is here; see `Link.listen`."""
        self._inbound.listen(partial(copy_context().run, callback))

    async def close(self) -> None:
        """End the link; what was sent before still leaves, if the peer takes it."""
        self._close("the link was closed", discard=True)

    def abort(self, reason: str) -> None:
        """End the link and forget what has not left."""
        self._end(reason, discard=True)
        if self._socket is not None:
            self._socket.abort()

    # --- called by asyncio ---------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start, with a socket."""
        # Not asserted: uvloop's transports have all of it, and are no such class.
        socket = cast("asyncio.Transport", transport)
        self._socket = socket
        self._on_made(self)
        if self._channel.dialler and not socket.is_closing():
            self._channel.begin()
            self._flush()

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        if self._outbound.closed:
            return
        try:
            frames = self._channel.feed(data)
        except MeshError as error:
            self._flush()
            self._refuse(error)
            return
        if self._channel.outbound.pending:
            self._flush()
        if self._channel.open and not self.greeted.done():
            self.greeted.set_result(None)
        for frame in frames:
            if self._inbound.closed:
                return  # by who heard of the frame before
            self._inbound.put_now(frame)
        if self._channel.ended:
            self._close("the peer closed the link", discard=False)
        elif self._inbound.waiting_bytes and self._inbound.full and self._socket is not None:
            self._reading = False
            self._socket.pause_reading()

    def pause_writing(self) -> None:
        """Stop: the peer does not take what it was sent."""
        self._full = True

    def resume_writing(self) -> None:
        """Go on."""
        self._full = False
        self._write_frames()

    def connection_lost(self, exc: Exception | None) -> None:
        """Notice that there is no socket any more."""
        self._end(f"the connection was lost ({exc})" if exc else "the peer closed the link")
        self._on_lost(self)
        if not self.lost.done():
            self.lost.set_result(None)

    # -------------------------------------------------------------------------

    def _read_on(self) -> None:
        if not self._reading and not self._inbound.full and self._socket is not None:
            self._reading = True
            self._socket.resume_reading()

    def _end_of_turn(self) -> None:
        self._wrote_this_turn = False
        self._write_frames()

    def _write_frames(self) -> None:
        while not self._full and (frames := self._outbound.take_now(_WRITE_BYTES)):
            self._channel.write(b"".join(frames))
            self._flush()

    def _flush(self) -> None:
        data = self._channel.outbound.read()
        if data and self._socket is not None:
            self._socket.write(data)

    def _refuse(self, error: MeshError) -> None:
        self._fail_greeting(error)
        self._close(f"the link was closed: {error}", discard=False)

    def _close(self, reason: str, *, discard: bool) -> None:
        if self._socket is None or self._outbound.closed:
            self._end(reason, discard=discard)
            return
        self._write_frames()
        self._end(reason, discard=discard)
        self._channel.end()
        self._flush()
        if self._socket.get_write_buffer_size():
            self._on_linger(self)
        self._socket.close()

    def _end(self, reason: str, *, discard: bool = False) -> None:
        self._inbound.close(reason, discard=discard)
        self._outbound.close(reason, discard=True)
        self._fail_greeting(LinkClosedError(reason))

    def _fail_greeting(self, error: MeshError) -> None:
        if not self.greeted.done():
            self.greeted.set_exception(error)
            self.greeted.exception()  # looked at: maybe nobody waits for it any more
