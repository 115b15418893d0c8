"""Frames that are on their way, or arrived and unread: bounded, and closed from either side.

Owns waiting at both ends of such a queue. Knows no transport.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from tinkex.errors import LinkClosedError

WINDOW_BYTES = 1 << 18
"""How much one direction of a link holds before its sender waits."""


class FrameQueue:
    """One direction of a link. It takes a frame while less than the window waits in it.

    Frames go straight to whoever waits for them, so the order of calls is the order of frames at
    both ends, and a task that is cancelled takes none along.

    Args:
        window_bytes: what may wait before `put` does.
    """

    def __init__(self, window_bytes: int = WINDOW_BYTES) -> None:
        self._window = window_bytes
        self._frames: deque[bytes] = deque()
        self.waiting_bytes = 0
        """The frames that nobody has read yet, in bytes."""
        self._readers: deque[asyncio.Future[bytes]] = deque()
        self._writers: deque[tuple[bytes, asyncio.Future[None]]] = deque()
        self._closed: str | None = None
        self.closed = False
        """Whether nothing goes in any more."""
        self._listener: Callable[[], None] | None = None

    @property
    def full(self) -> bool:
        """Whether the next `put` waits."""
        return self.waiting_bytes >= self._window

    @property
    def idle(self) -> bool:
        """Whether it is open, and nothing waits in it or for it."""
        return not (self._frames or self._writers) and self._closed is None

    def listen(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when a frame is there that no `get` waits for, and at the end.

        For a frame at once, within `put` or `put_now`; for the end in the loop's next turn.
        """
        self._listener = callback

    def close(self, reason: str, *, discard: bool = False) -> None:
        """Let nothing in any more; readers get what is there, then the error. Harmless twice.

        Args:
            reason: the message of everybody's LinkClosedError.
            discard: readers do not get what is there either.
        """
        if self._closed is None:
            self._closed = reason
            self.closed = True
        if discard:
            self._frames.clear()
            self.waiting_bytes = 0
        for reader in self._readers:
            if not reader.done():
                reader.set_exception(LinkClosedError(self._closed))
        for _, writer in self._writers:
            if not writer.done():
                writer.set_exception(LinkClosedError(self._closed))
        self._readers.clear()
        self._writers.clear()
        if self._listener is not None:
            asyncio.get_running_loop().call_soon(self._listener)

    async def put(self, frame: bytes) -> None:
        """Add a frame; wait for room, in the order of the calls.

        Raises:
            LinkClosedError: the queue was closed before there was room.
        """
        if self.offer(frame):
            return
        writer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (frame, writer)
        self._writers.append(entry)
        try:
            await writer
        except asyncio.CancelledError:
            if entry in self._writers:
                self._writers.remove(entry)
            raise

    def put_now(self, frame: bytes) -> None:
        """Add a frame even though the queue may be full.

        Raises:
            LinkClosedError: the queue was closed.
        """
        if self._closed is not None:
            raise LinkClosedError(self._closed)
        while self._readers:
            reader = self._readers.popleft()
            if not reader.done():
                reader.set_result(frame)
                return
        self._frames.append(frame)
        self.waiting_bytes += len(frame)
        if self._listener is not None:
            self._listener()

    def offer(self, frame: bytes) -> bool:
        """Add a frame if there is room at once; whether it was added.

        Raises:
            LinkClosedError: the queue was closed.
        """
        if self._closed is None and (self._writers or self.full):
            return False
        self.put_now(frame)
        return True

    async def get(self) -> bytes:
        """Take the first frame, or wait for one.

        Raises:
            LinkClosedError: the queue was closed, and holds nothing.
        """
        frame = self.poll()
        if frame is not None:
            return frame
        reader: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._readers.append(reader)
        try:
            return await reader
        except asyncio.CancelledError:
            if reader.done() and not reader.cancelled() and reader.exception() is None:
                self._give_back(reader.result())
            raise

    def poll(self) -> bytes | None:
        """Take the first frame, if one is there.

        Raises:
            LinkClosedError: the queue was closed, and holds nothing.
        """
        if self._frames:
            if self._writers:
                return self._take()
            frame = self._frames.popleft()
            self.waiting_bytes -= len(frame)
            return frame
        if self._closed is not None:
            raise LinkClosedError(self._closed)
        return None

    def take_now(self, max_bytes: int) -> list[bytes]:
        """Take what is there, at least one frame if any, until `max_bytes` are reached."""
        frames = []
        taken = 0
        while self._frames and taken < max_bytes:
            frame = self._take()
            frames.append(frame)
            taken += len(frame)
        return frames

    def _take(self) -> bytes:
        frame = self._frames.popleft()
        self.waiting_bytes -= len(frame)
        while self._writers and not self.full:
            waiting, writer = self._writers.popleft()
            if not writer.done():
                self._frames.append(waiting)
                self.waiting_bytes += len(waiting)
                writer.set_result(None)
        return frame

    def _give_back(self, frame: bytes) -> None:
        """Put a frame first that its reader was cancelled with."""
        self._frames.appendleft(frame)
        self.waiting_bytes += len(frame)
