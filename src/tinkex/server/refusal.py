"""A request that is answered with an HTTP error status.

Owns which status means what here. The exceptions are those of `tinkex.errors`, as the client raises
them. Errors of accepted work never come here: they go through the work's future, because clients
retry or hang on a status where a future is expected.

409 is absent on purpose: every client retries it for minutes. So is an empty 400, which the
official SDK takes for a proxy's noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinkex.errors import APIStatusError, AuthenticationError, status_error

if TYPE_CHECKING:
    from collections.abc import Mapping

Refusal = APIStatusError

_NO_KEY = 'ApiKey realm="tinkex"'
# RFC 6750, section 3.1
_INVALID_TOKEN = 'Bearer realm="tinkex", error="invalid_token"'  # noqa: S105 - a header

MAX_WORDS = 1500
"""Characters of an error's text: what was sent, however long, is not sent back."""
_TAIL = 300


def shortened(text: str) -> str:
    """Leave out the middle of a text that is too long."""
    if len(text) <= MAX_WORDS:
        return text
    left_out = len(text) - MAX_WORDS
    return f"{text[: MAX_WORDS - _TAIL]}... ({left_out} characters) ...{text[-_TAIL:]}"


def bad_request(detail: str) -> Refusal:
    """Refuse what cannot be understood, or asks for what this server cannot do."""
    return status_error(400, detail)


def unauthorized(detail: str) -> Refusal:
    """Refuse a missing or wrong key."""
    return status_error(401, detail)


class TokenRefusedError(AuthenticationError):
    """401 for a token: clients that hold the key get another token and send the request again."""


def invalid_token(detail: str) -> Refusal:
    """Refuse a token that has ended or is not ours."""
    return TokenRefusedError(detail)


def too_expensive(detail: str) -> Refusal:
    """Refuse work for a key that has used all it may."""
    return status_error(402, detail)


def forbidden(detail: str) -> Refusal:
    """Refuse what the caller may not do, whatever it is done to."""
    return status_error(403, detail)


def not_found(detail: str) -> Refusal:
    """Refuse what does not exist, or exists for another owner: the two look alike."""
    return status_error(404, detail)


def too_slow(detail: str) -> Refusal:
    """Refuse a request that does not come in time, and hang up: its rest is not waited for."""
    return status_error(408, detail)


def gone(detail: str) -> Refusal:
    """Refuse what existed and has ended. A sampling client submits again on it."""
    return status_error(410, detail)


def too_large(detail: str) -> Refusal:
    """Refuse a body above the limit, and hang up: the rest of it is not read."""
    return status_error(413, detail)


def misdirected(detail: str) -> Refusal:
    """Refuse a request that was sent to a name that is not this server's."""
    return status_error(421, detail)


def unknown_encoding(detail: str) -> Refusal:
    """Refuse a Content-Encoding."""
    return status_error(415, detail)


def invalid_fields(detail: str) -> Refusal:
    """Refuse well-formed JSON with unknown, missing or wrong fields."""
    return status_error(422, detail)


def try_later(detail: str, *, retry_after_s: float) -> Refusal:
    """Refuse for lack of room; the client waits and sends the same request again."""
    return status_error(429, detail, retry_after_ms=retry_after_s * 1000)


def unavailable(detail: str, *, retry_after_s: float) -> Refusal:
    """Refuse because this machine cannot just now, and nobody did anything wrong."""
    return status_error(503, detail, retry_after_ms=retry_after_s * 1000)


def reply_headers(refusal: Refusal) -> Mapping[str, str]:
    """Return the headers that belong to a refusal's status."""
    headers: dict[str, str] = {}
    if refusal.retry_after_ms is not None:
        milliseconds = max(1, round(refusal.retry_after_ms))
        headers["Retry-After"] = str(-(-milliseconds // 1000))
        headers["retry-after-ms"] = str(milliseconds)
    if refusal.status_code == 401:
        token = isinstance(refusal, TokenRefusedError)
        headers["WWW-Authenticate"] = _INVALID_TOKEN if token else _NO_KEY
    if refusal.status_code in {408, 413}:
        headers["Connection"] = "close"
    if refusal.status_code == 415:
        headers["Accept-Encoding"] = "zstd, gzip"
    return headers
