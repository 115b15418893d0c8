"""A request that is answered with an HTTP error status.

Owns which status means what here. The exceptions are those of `tinkex.errors`, as the client raises
them. Errors of accepted work never come here: they go through the work's future, because clients
retry or hang on a status where a future is expected.

409 is absent on purpose: every client retries it for minutes. So is an empty 400, which the
official SDK takes for a proxy's noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinkex.errors import APIStatusError, status_error

if TYPE_CHECKING:
    from collections.abc import Mapping

Refusal = APIStatusError


def bad_request(detail: str) -> Refusal:
    """Refuse what cannot be understood, or asks for what this server cannot do."""
    return status_error(400, detail)


def unauthorized(detail: str) -> Refusal:
    """Refuse a missing or wrong key."""
    return status_error(401, detail)


def not_found(detail: str) -> Refusal:
    """Refuse what does not exist, or exists for another owner: the two look alike."""
    return status_error(404, detail)


def gone(detail: str) -> Refusal:
    """Refuse what existed and has ended. A sampling client submits again on it."""
    return status_error(410, detail)


def too_large(detail: str) -> Refusal:
    """Refuse a body above the limit, and hang up: the rest of it is not read."""
    return status_error(413, detail)


def unknown_encoding(detail: str) -> Refusal:
    """Refuse a Content-Encoding."""
    return status_error(415, detail)


def invalid_fields(detail: str) -> Refusal:
    """Refuse well-formed JSON with unknown, missing or wrong fields."""
    return status_error(422, detail)


def try_later(detail: str, *, retry_after_s: float) -> Refusal:
    """Refuse for lack of room; the client waits and sends the same request again."""
    return status_error(429, detail, retry_after_ms=retry_after_s * 1000)


def reply_headers(refusal: Refusal) -> Mapping[str, str]:
    """Return the headers that belong to a refusal's status."""
    headers: dict[str, str] = {}
    if refusal.retry_after_ms is not None:
        milliseconds = max(1, round(refusal.retry_after_ms))
        headers["Retry-After"] = str(-(-milliseconds // 1000))
        headers["retry-after-ms"] = str(milliseconds)
    if refusal.status_code == 401:
        headers["WWW-Authenticate"] = 'ApiKey realm="tinkex"'
    if refusal.status_code == 413:
        headers["Connection"] = "close"
    if refusal.status_code == 415:
        headers["Accept-Encoding"] = "zstd, gzip"
    return headers
