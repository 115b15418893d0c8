"""How frames lie in a stream of bytes: a length of four bytes, big-endian, then the frame.

Owns that form, for TLS and iroh alike. Knows no socket: bytes in, frames out.
"""

from __future__ import annotations

from tinkex.errors import InputError, PeerProtocolError
from tinkex.mesh.transport.base import MAX_FRAME_BYTES

HEADER_BYTES = 4


def enframe(frame: bytes) -> bytes:
    """Put the length before a frame.

    Raises:
        InputError: it is empty, or longer than `MAX_FRAME_BYTES`.
    """
    size = len(frame)
    if not 0 < size <= MAX_FRAME_BYTES:
        check_length(frame)
    return size.to_bytes(HEADER_BYTES, "big") + frame


def check_length(frame: bytes) -> None:
    """Refuse what no peer would take.

    Raises:
        InputError: the frame is empty, or longer than `MAX_FRAME_BYTES`.
    """
    if not 0 < len(frame) <= MAX_FRAME_BYTES:
        raise InputError(f"a frame has 1 to {MAX_FRAME_BYTES} bytes, not {len(frame)}: split it")


class Deframer:
    """Cuts a stream into frames.

    Never holds more than one frame and what came with it: a length that no frame may have is
    refused when it is read, before anything is kept for it.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._refused: str | None = None

    @property
    def waiting_bytes(self) -> int:
        """How much of an unfinished frame is held."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """Take what came; return the frames that are whole now, in order.

        Raises:
            PeerProtocolError: the peer announced an empty frame or one that is too long. So does
                every call after.
        """
        if self._refused is not None:
            raise PeerProtocolError(self._refused)
        if not self._rest:
            size = int.from_bytes(data[:HEADER_BYTES], "big")
            if size == len(data) - HEADER_BYTES and 0 < size <= MAX_FRAME_BYTES:
                return [data[HEADER_BYTES:]]  # one frame, as is usual
            frames, used = self._cut(data)
            self._rest += memoryview(data)[used:]
            return frames
        self._rest += data
        frames, used = self._cut(self._rest)
        del self._rest[:used]
        return frames

    def _cut(self, data: bytes | bytearray) -> tuple[list[bytes], int]:
        """The whole frames at the start of `data`, and how many bytes they take."""
        frames = []
        start = 0
        with memoryview(data) as view:
            while (body := start + HEADER_BYTES) <= len(view):
                length = int.from_bytes(view[start:body], "big")
                if not 0 < length <= MAX_FRAME_BYTES:
                    self._refuse(length)
                if body + length > len(view):
                    break
                start = body + length
                frames.append(bytes(view[body:start]))
        return frames, start

    def _refuse(self, length: int) -> None:
        self._refused = (
            f"the peer announced a frame of {length} bytes; from 1 to {MAX_FRAME_BYTES} are allowed"
        )
        raise PeerProtocolError(self._refused)
