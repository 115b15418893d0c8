"""Request bodies: read within a limit, decompressed within the same limit.

Owns limits and content encodings. A body is at most `max_body_bytes` after decompression, whatever
its compressed size, and is decompressed piece by piece: a bomb is cut off at the limit.
"""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import zstandard

from tinkex.server.refusal import bad_request, too_large, unknown_encoding

if TYPE_CHECKING:
    from starlette.types import Receive

# A window above this asks for memory that no encoder of small messages needs (RFC 9659: 8 MiB).
MAX_ZSTD_WINDOW = 8 * 2**20
# A zstd block of 4 bytes can stand for 128 KiB: a step of 1 KiB makes at most 32 MiB.
ZSTD_STEP_BYTES = 1024
OFF_LOOP_BYTES = 64 * 2**10
GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
PREFIX_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body, decompressed."""

    data: bytes
    """The bytes; only the first `PREFIX_BYTES` of them when `oversize`."""

    oversize: bool = False
    """Whether the body was above the limit and all but its beginning was thrown away."""


class ClientDisconnected(Exception):  # noqa: N818 - the event's name, as Starlette has it
    """The client hung up before its request was whole: there is nobody to answer."""


async def read_body(receive: Receive, *, encoding: str, limit: int, drain_limit: int) -> Body:
    """Read a whole body.

    Args:
        receive: the ASGI channel.
        encoding: value of Content-Encoding; empty for none.
        limit: most bytes after decompression.
        drain_limit: most bytes that are read of a body that is above `limit`. Zero refuses at once.

    Raises:
        Refusal: 400 for a damaged body, 413 for one above the limits, 415 for an unknown encoding.
        ClientDisconnected: when the client hung up.
    """
    check_encoding(encoding)
    compressed, cut_off = await _read_raw(receive, limit=limit, drain_limit=drain_limit)
    if encoding in {"", "identity"}:
        data, oversize = compressed[:limit], cut_off
    elif len(compressed) > OFF_LOOP_BYTES:
        data, oversize = await asyncio.to_thread(
            decompress, compressed, encoding, limit, partial=cut_off
        )
    else:
        data, oversize = decompress(compressed, encoding, limit, partial=cut_off)
    if oversize and not drain_limit:
        raise too_large(f"The request body is above {limit} bytes. Send less at a time.")
    return Body(data[:PREFIX_BYTES], oversize=True) if oversize else Body(data)


def check_encoding(encoding: str) -> None:
    """Refuse a Content-Encoding that is not supported.

    Raises:
        Refusal: 415, naming those that are.
    """
    if encoding not in {"", "identity", "gzip", "zstd"}:
        raise unknown_encoding(
            f"Content-Encoding {encoding[:40]!r} is not supported: use zstd, gzip or none."
        )


def decompress(data: bytes, encoding: str, limit: int, *, partial: bool) -> tuple[bytes, bool]:
    """Decompress to at most `limit` bytes: (bytes, whether there was more).

    Args:
        data: the compressed bytes.
        encoding: `gzip` or `zstd`.
        limit: most bytes to return.
        partial: whether `data` was cut off, so that its end is no fault of the client's.

    Raises:
        Refusal: 400 for damaged data.
    """
    try:
        out, whole = _inflate(data, limit + 1) if encoding == "gzip" else _unzstd(data, limit + 1)
    except (zlib.error, zstandard.ZstdError) as error:
        raise bad_request(f"The {encoding} request body is damaged: {error}") from error
    if len(out) > limit or partial:
        return out[:limit], True
    if not whole:
        raise bad_request(f"The {encoding} request body is cut off or has bytes after its end.")
    return out, False


async def _read_raw(receive: Receive, *, limit: int, drain_limit: int) -> tuple[bytes, bool]:
    """Read the bytes as they come: (at most `limit` + 1 of them, whether there were more)."""
    chunks: list[bytes] = []
    kept = seen = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        chunk: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        seen += len(chunk)
        if seen > max(limit, drain_limit):
            raise too_large(f"The request body is above {limit} bytes. Send less at a time.")
        if kept <= limit:
            chunks.append(chunk[: limit + 1 - kept])
            kept += len(chunks[-1])
    return b"".join(chunks), seen > limit


def _inflate(data: bytes, max_length: int) -> tuple[bytes, bool]:
    stream = zlib.decompressobj(GZIP_OR_ZLIB)
    out = stream.decompress(data, max_length)
    return out, stream.eof and not stream.unused_data


def _unzstd(data: bytes, max_length: int) -> tuple[bytes, bool]:
    """Decompress one frame, in steps small enough that none of them makes much."""
    stream = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW).decompressobj()
    out = bytearray()
    for start in range(0, len(data), ZSTD_STEP_BYTES):
        if stream.eof:
            return bytes(out), False
        out += stream.decompress(data[start : start + ZSTD_STEP_BYTES])
        if len(out) >= max_length:
            return bytes(out[:max_length]), True
    return bytes(out), stream.eof and not stream.unused_data
