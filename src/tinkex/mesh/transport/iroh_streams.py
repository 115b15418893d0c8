"""Reading and writing iroh's streams at the library's own pace.

Owns the way around two costs of the bindings (measured with iroh 1.2): they copy byte by byte what
is written (64 KiB take 10 ms, in which nothing else runs; this way 0.03 ms); and each of their
calls goes twice through the event loop, woken through a socket, though the library mostly answers
within the function that asks it. This way a write is done when the function returns, and what was
read is there in the turn in which it came.

It calls the same functions of the library through the bindings' private parts, so it is used only
where all of those are there. Otherwise the bindings are, in pieces small enough that nobody waits
long for the copying.
"""

# ruff: noqa: SLF001 - see above

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import threading
from collections.abc import Callable, Coroutine
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from iroh.iroh_ffi import RecvStream, SendStream

T = TypeVar("T")

_PIECE_BYTES = 1 << 12
_READY = 0
"""What the library says of a call that has ended; else it is to be asked again."""
_NEEDED = (
    "_UNIFFI_RUST_FUTURE_CONTINUATION_CALLBACK",
    "_UNIFFI_RUST_FUTURE_POLL_READY",
    "_UniffiFfiConverterBytes",
    "_UniffiForeignBytes",
    "_UniffiLib",
    "_UniffiFfiConverterTypeIrohError__as_error",
    "_uniffi_rust_call",
    "_uniffi_rust_call_with_error",
)
_NEEDED_OF_LIBRARY = (
    "ffi_iroh_ffi_rustbuffer_from_bytes",
    "uniffi_iroh_ffi_fn_method_recvstream_read",
    "uniffi_iroh_ffi_fn_method_sendstream_write_all",
    *(
        f"ffi_iroh_ffi_rust_future_{part}_{kind}"
        for part in ("poll", "complete", "free")
        for kind in ("void", "rust_buffer")
    ),
)


class Streams(Protocol):
    """How streams are read and written."""

    def write_now(self, stream: SendStream, data: bytes) -> Call[None] | None:
        """Begin to write all of some bytes.

        Returns:
            A call to be waited for before anything else is written, if it has not ended; None:
            nothing was written, `write` is to be used.
        """

    async def write(self, stream: SendStream, data: bytes) -> None:
        """Write all of some bytes."""

    def read(self, stream: RecvStream, most: int) -> Reading:
        """Begin to read some bytes; none come at the stream's end."""


class Reading(Protocol):
    """A read that was begun. `end` it, whatever becomes of it."""

    @property
    def done(self) -> bool:
        """Whether there is a result."""

    def listen(self, callback: Callable[[], object]) -> None:
        """Have `callback` called once there is a result."""

    def result(self) -> bytes:
        """Return the result, once.

        Raises:
            IrohError: the read failed.
        """

    def end(self) -> None:
        """Have no more of it done. Harmless twice."""


def streams_of(bindings: ModuleType) -> Streams:
    """The fastest way there is with the installed bindings."""
    return _Direct(bindings) if is_direct(bindings) else _Bound()


def is_direct(bindings: ModuleType) -> bool:
    """Whether the bindings have the parts that the faster way needs, as they are known."""
    return (
        all(hasattr(bindings, name) for name in _NEEDED)
        and all(hasattr(bindings._UniffiLib, name) for name in _NEEDED_OF_LIBRARY)
        and bindings._UNIFFI_RUST_FUTURE_POLL_READY == _READY
    )


class _Bound:
    """Through the bindings."""

    def write_now(self, stream: SendStream, data: bytes) -> None:
        """Do nothing: each of their calls waits."""

    async def write(self, stream: SendStream, data: bytes) -> None:
        """Write all of some bytes."""
        for start in range(0, len(data), _PIECE_BYTES):
            await stream.write_all(data[start : start + _PIECE_BYTES])

    def read(self, stream: RecvStream, most: int) -> _BoundRead:
        """Begin to read some bytes."""
        return _BoundRead(stream.read(most))


class _BoundRead:
    """One of the bindings' own reads, which a task waits for."""

    def __init__(self, reading: Coroutine[Any, Any, bytes]) -> None:
        self._task = asyncio.get_running_loop().create_task(reading, name="iroh-read")

    @property
    def done(self) -> bool:
        """Whether there is a result."""
        return self._task.done()

    def listen(self, callback: Callable[[], object]) -> None:
        """Have `callback` called once there is a result."""
        self._task.add_done_callback(lambda _: callback())

    def result(self) -> bytes:
        """Return the result."""
        return self._task.result()

    def end(self) -> None:
        """Wait for it no longer."""
        self._task.cancel()


class _Kind:
    """The library's functions for calls with one type of result."""

    def __init__(self, library: Any, kind: str) -> None:
        self.poll, self.complete, self.free = (
            getattr(library, f"ffi_iroh_ffi_rust_future_{part}_{kind}")
            for part in ("poll", "complete", "free")
        )


class Call(Generic[T]):
    """A call of the library's that was begun. `end` it, whatever becomes of it.

    Args:
        direct: asks the library.
        handle: the library's, of this call.
        kind: its functions.
        lift: makes the result of what the library gives.
    """

    __slots__ = (
        "_code",
        "_direct",
        "_ended",
        "_handle",
        "_kind",
        "_lift",
        "_listener",
        "_loop",
        "_polling",
        "done",
    )

    def __init__(self, direct: _Direct, handle: int, kind: _Kind, lift: Callable[[Any], T]) -> None:
        self._direct = direct
        self._handle = handle
        self._kind = kind
        self._lift = lift
        self._loop = asyncio.get_running_loop()
        self._polling = 0
        self._code: int | None = None
        self._listener: Callable[[], object] | None = None
        self._ended = False
        self.done = self._poll()
        """Whether there is a result."""

    async def wait(self) -> None:
        """Wait until there is a result."""
        if not self.done:
            waiter: asyncio.Future[None] = self._loop.create_future()

            def wake() -> None:
                if not waiter.done():
                    waiter.set_result(None)

            self.listen(wake)
            await waiter

    def listen(self, callback: Callable[[], object]) -> None:
        """Have `callback` called once there is a result, in the turn in which it comes."""
        self._listener = callback

    def result(self) -> T:
        """Return the result, once.

        Raises:
            IrohError: the call failed.
        """
        return self._lift(self._direct.complete(self._kind.complete, self._handle))

    def end(self) -> None:
        """Free what the library holds of it, and have no more of it done. Harmless twice."""
        if not self._ended:
            self._ended = True
            self._kind.free(self._handle)

    def answered(self, code: int) -> None:
        """Take the library's answer: within the question, or later, from one of its threads."""
        if self._polling == threading.get_ident():
            self._code = code
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._woken, code)

    def _poll(self) -> bool:
        """Ask the library to go on; whether the call has ended."""
        while True:
            self._code, self._polling = None, threading.get_ident()
            self._direct.ask(self._kind.poll, self._handle, self)
            self._polling = 0
            code = self._take_code()
            if code is None or code == _READY:
                return code is not None

    def _take_code(self) -> int | None:
        return self._code

    def _woken(self, code: int) -> None:
        if self._ended:
            return
        self.done = code == _READY or self._poll()
        if self.done and self._listener is not None:
            self._listener()


class _Direct:
    """Through the library's functions."""

    def __init__(self, bindings: Any) -> None:
        self._bindings = bindings
        self._library = bindings._UniffiLib
        self._failure = bindings._UniffiFfiConverterTypeIrohError__as_error
        self._nothing, self._bytes = (
            _Kind(self._library, kind) for kind in ("void", "rust_buffer")
        )
        self._lift_bytes = bindings._UniffiFfiConverterBytes.lift
        self._asked: dict[int, Call[Any]] = {}
        self._numbers = itertools.count(1)
        # Held here: the library calls it as long as anything is asked.
        self._callback = bindings._UNIFFI_RUST_FUTURE_CONTINUATION_CALLBACK(self._answered)

    def write_now(self, stream: Any, data: bytes) -> Call[None]:
        """Begin to write all of some bytes."""
        lowered = len(data).to_bytes(4, "big") + data
        start = ctypes.cast(ctypes.c_char_p(lowered), ctypes.POINTER(ctypes.c_char))
        borrowed = self._bindings._UniffiForeignBytes(len(lowered), start)
        buffer = self._bindings._uniffi_rust_call(
            self._library.ffi_iroh_ffi_rustbuffer_from_bytes, borrowed
        )
        handle = self._library.uniffi_iroh_ffi_fn_method_sendstream_write_all(
            stream._uniffi_clone_handle(), buffer
        )
        return Call(self, handle, self._nothing, lambda _: None)

    async def write(self, stream: Any, data: bytes) -> None:
        """Write all of some bytes."""
        await finished(self.write_now(stream, data))

    def read(self, stream: Any, most: int) -> Call[bytes]:
        """Begin to read some bytes."""
        handle = self._library.uniffi_iroh_ffi_fn_method_recvstream_read(
            stream._uniffi_clone_handle(), most
        )
        return Call(self, handle, self._bytes, self._lift_bytes)

    def ask(self, poll: Any, handle: int, call: Call[Any]) -> None:
        """Ask the library to go on with a call, which is given the answer."""
        number = next(self._numbers)
        self._asked[number] = call
        poll(handle, self._callback, number)

    def complete(self, complete: Any, handle: int) -> Any:
        """Take a call's result from the library."""
        return self._bindings._uniffi_rust_call_with_error(self._failure, complete, handle)

    def _answered(self, number: int, code: int) -> None:
        self._asked.pop(number).answered(code)


async def finished(call: Call[T]) -> T:
    """Wait for a call's result, and end it."""
    try:
        await call.wait()
        return call.result()
    finally:
        call.end()
