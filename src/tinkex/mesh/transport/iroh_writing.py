"""Handing bytes to iroh without a Python loop over each of them.

Owns one thing: a `write_all` that copies at once. The bindings' own copies byte by byte (measured
with iroh 1.2: 64 KiB take 10 ms, in which nothing else runs; this way 0.03 ms). This one calls the
same function of the library through the bindings' private parts, so it is used only where all of
those are there; otherwise bytes go through the bindings in pieces small enough that nobody waits
long.
"""

from __future__ import annotations

import ctypes
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iroh.iroh_ffi import SendStream

Write = Callable[["SendStream", bytes], Awaitable[None]]

_PIECE_BYTES = 1 << 12
_NEEDED = (
    "_UniffiForeignBytes",
    "_UniffiLib",
    "_UniffiFfiConverterTypeIrohError__as_error",
    "_uniffi_rust_call",
    "_uniffi_rust_call_async",
)
_NEEDED_OF_LIBRARY = (
    "ffi_iroh_ffi_rustbuffer_from_bytes",
    "uniffi_iroh_ffi_fn_method_sendstream_write_all",
    "ffi_iroh_ffi_rust_future_poll_void",
    "ffi_iroh_ffi_rust_future_complete_void",
    "ffi_iroh_ffi_rust_future_free_void",
)


def writer_for(bindings: ModuleType) -> Write:
    """The fastest way to write all of some bytes to a stream, with the installed bindings."""
    if copies_at_once(bindings):
        return _at_once(bindings)
    return _in_pieces


def copies_at_once(bindings: ModuleType) -> bool:
    """Whether the bindings have the parts that are needed for it."""
    return all(hasattr(bindings, name) for name in _NEEDED) and all(
        hasattr(bindings._UniffiLib, name)  # noqa: SLF001 - see above
        for name in _NEEDED_OF_LIBRARY
    )


async def _in_pieces(stream: SendStream, data: bytes) -> None:
    for start in range(0, len(data), _PIECE_BYTES):
        await stream.write_all(data[start : start + _PIECE_BYTES])


def _at_once(bindings: ModuleType) -> Write:
    library = bindings._UniffiLib  # noqa: SLF001 - see above
    failure = bindings._UniffiFfiConverterTypeIrohError__as_error  # noqa: SLF001 - as above

    async def write_all(stream: Any, data: bytes) -> None:
        lowered = len(data).to_bytes(4, "big") + data
        start = ctypes.cast(ctypes.c_char_p(lowered), ctypes.POINTER(ctypes.c_char))
        borrowed = bindings._UniffiForeignBytes(len(lowered), start)  # noqa: SLF001 - as above
        buffer = bindings._uniffi_rust_call(  # noqa: SLF001 - as above
            library.ffi_iroh_ffi_rustbuffer_from_bytes, borrowed
        )
        handle = stream._uniffi_clone_handle()  # noqa: SLF001 - as above
        await bindings._uniffi_rust_call_async(  # noqa: SLF001 - as above
            library.uniffi_iroh_ffi_fn_method_sendstream_write_all(handle, buffer),
            library.ffi_iroh_ffi_rust_future_poll_void,
            library.ffi_iroh_ffi_rust_future_complete_void,
            library.ffi_iroh_ffi_rust_future_free_void,
            lambda _: None,
            failure,
        )

    return write_all
