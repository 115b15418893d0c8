"""Sending a content, or the part of it that a client lacks (RFC 9110, 13 and 14).

Owns Range, If-Range, If-None-Match and the headers that let a download go on where it broke. One
range is served; a request for several gets the whole, as the RFC allows.
"""

from __future__ import annotations

import asyncio
import base64
import re
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from tinkex.wire.headers import REPR_DIGEST

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from tinkex.server.files.content import Content

CHUNK_BYTES = 256 * 1024
_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.IGNORECASE)


class ContentReply:
    """An ASGI reply that sends a content; closes it, whatever happens.

    Args:
        content: what is sent.
        sha256: of all of it, in hex; also its entity tag.
        media_type: of all of it.
        name: under which a browser saves it.
    """

    def __init__(self, content: Content, *, sha256: str, media_type: str, name: str) -> None:
        self._content = content
        self._tag = f'"{sha256}"'
        digest = base64.b64encode(bytes.fromhex(sha256)).decode()
        self._headers = {
            "accept-ranges": "bytes",
            "etag": self._tag,
            REPR_DIGEST: f"sha-256=:{digest}:",
            "content-type": media_type,
            "content-disposition": f'attachment; filename="{name}"',
            "x-content-type-options": "nosniff",
            "cache-control": "private",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, or what is asked for of it."""
        try:
            await self._send(scope, receive, send)
        finally:
            self._content.close()

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = self._content.size
        status, start, end = self._asked_for(scope["method"], Headers(scope=scope))
        headers = dict(self._headers)
        if status == 416:
            headers["content-range"] = f"bytes */{size}"
        elif status == 206:
            headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
        if status != 304:
            headers["content-length"] = str(end - start)
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        if scope["method"] == "HEAD" or start == end:
            await send({"type": "http.response.body", "body": b""})
            return
        await self._send_part(start, end, receive, send)

    def _asked_for(self, method: str, headers: Headers) -> tuple[int, int, int]:
        """Return what is to be sent: (status, first byte, byte after the last)."""
        size = self._content.size
        if self._tag in (tag.strip() for tag in headers.get("if-none-match", "").split(",")):
            return 304, 0, 0
        asked, tag = headers.get("range"), headers.get("if-range")
        if method != "GET" or asked is None or (tag is not None and tag.strip() != self._tag):
            return 200, 0, size
        found = _RANGE.fullmatch(asked)
        if found is None or not (found[1] or found[2]):
            return 200, 0, size
        if not found[1]:  # the last so many bytes
            start, end = max(0, size - int(found[2])), size
        else:
            start = int(found[1])
            end = min(size, int(found[2]) + 1) if found[2] else size
            if found[2] and int(found[2]) < start:
                return 200, 0, size
        if start >= end:
            return 416, 0, 0
        return 206, start, end

    async def _send_part(self, start: int, end: int, receive: Receive, send: Send) -> None:
        """Send bytes as fast as the client takes them, until it has them or is gone."""
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            while start < end and not gone.done():
                length = min(CHUNK_BYTES, end - start)
                data = await asyncio.to_thread(self._content.read, start, length)
                if len(data) != length:
                    raise OSError("a file became shorter while it was sent")
                start += length
                more = start < end
                await send({"type": "http.response.body", "body": data, "more_body": more})
        finally:
            gone.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
