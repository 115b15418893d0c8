"""Moves one request to the server and its answer back.

Owns the HTTP pools, one per kind of operation, so that long polls never hold up a training
request. Retries nothing and judges no status: an answer of any status is a `Reply`, no answer is
`APIConnectionError` or `APITimeoutError`. Lives on one event loop.

Redirects are not followed: the key of one server must not reach another.
"""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import orjson

from tinkex._backoff import retry_after_seconds
from tinkex._redact import redact
from tinkex.errors import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    CertificateError,
    status_error,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from tinkex.client.config import ClientConfig

_SHOWN_BYTES = 2000
"""Of an error's body, in a message."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request, ready to be sent."""

    method: str
    path: str
    """From `/api/v1` on, quoted."""
    kind: str
    """Operation class: requests of one kind share a pool."""
    body: bytes | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 60.0
    """Seconds without a byte until it is given up."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer, whatever its status."""

    response: httpx.Response = field(repr=False)
    received_at: float = 0.0
    """When it came, in seconds since the epoch."""

    @property
    def status(self) -> int:
        """HTTP status."""
        return self.response.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        """Response headers; names match in any case."""
        return self.response.headers

    @property
    def content_type(self) -> str:
        """Media type without parameters, in lower case."""
        return str(self.response.headers.get("content-type", "")).partition(";")[0].strip().lower()

    @property
    def body(self) -> bytes:
        """The decompressed body."""
        return self.response.content


class Transport:
    """The connections of one client to one server."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._pools: dict[str, httpx.AsyncClient] = {}
        self._tls: ssl.SSLContext | None = None

    async def send(self, request: HttpRequest) -> Reply:
        """Send `request` once and read the whole answer.

        Raises:
            APITimeoutError: no byte came in time.
            CertificateError: the server's certificate does not prove who it is.
            APIConnectionError: the connection failed in another way.
            APIResponseValidationError: the answer is not what its headers say.
        """
        pool = self._pool(request.kind)
        outgoing = self._outgoing(pool, request)
        with _typed_errors(outgoing, request.timeout):
            return Reply(await pool.send(outgoing))

    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[Reply]:
        """Send a request and give the answer as soon as its headers are there.

        Read its body by `Reply.response.aiter_lines()`, within the block.

        Raises:
            As `send`; also while the body is read.
        """
        pool = self._pool(request.kind)
        outgoing = self._outgoing(pool, request)
        with _typed_errors(outgoing, request.timeout):
            response = await pool.send(outgoing, stream=True)
            try:
                yield Reply(response)
            finally:
                await response.aclose()

    async def close(self) -> None:
        """Close every connection."""
        while self._pools:
            _, pool = self._pools.popitem()
            await pool.aclose()

    def _pool(self, kind: str) -> httpx.AsyncClient:
        pool = self._pools.get(kind)
        if pool is None:
            pool = self._pools[kind] = self._new_pool()
        return pool

    def _new_pool(self) -> httpx.AsyncClient:
        config = self._config
        secure = config.base_url.startswith("https:")
        if secure and self._tls is None:
            self._tls = ssl.create_default_context()
        return httpx.AsyncClient(
            http2=secure,
            verify=self._tls if self._tls is not None else False,
            proxy=config.proxy,
            # everything the environment says was read once, into the config
            trust_env=False,
            limits=httpx.Limits(
                max_connections=config.max_connections,
                max_keepalive_connections=config.max_connections,
                keepalive_expiry=30.0,
            ),
        )

    def _outgoing(self, pool: httpx.AsyncClient, request: HttpRequest) -> httpx.Request:
        return pool.build_request(
            request.method,
            self._config.base_url + request.path,
            params=dict(request.query) or None,
            content=request.body,
            headers=dict(request.headers),
            timeout=self._timeout(request.timeout),
        )

    def _timeout(self, seconds: float) -> httpx.Timeout:
        # no limit on the wait for a free connection: it is ours to give, not the server's
        return httpx.Timeout(seconds, connect=self._config.connect_timeout, pool=None)


@contextmanager
def _typed_errors(outgoing: httpx.Request, timeout: float) -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException as error:
        raise _timeout_error(outgoing, timeout) from error
    except httpx.TransportError as error:
        raise _connection_error(outgoing, error) from error
    except httpx.DecodingError as error:
        raise APIResponseValidationError(
            f"The server's answer cannot be decompressed: {error}"
        ) from error


def error_from_reply(reply: Reply) -> APIStatusError:
    """Make the typed error of an answer with an error status.

    The message is the server's own words, cut to a readable length, after the status.
    """
    body = _decoded(reply)
    words = _redirected(reply) or _words(body) or reply.response.reason_phrase or "no reason given"
    told = retry_after_seconds(reply.headers, reply.received_at)
    category = body.get("category") if isinstance(body, dict) else None
    return status_error(
        reply.status,
        redact(f"{reply.status} from {reply.response.url.path}: {words}"),
        body=body,
        response=reply.response,
        category=category.lower() if isinstance(category, str) else None,
        retry_after_ms=None if told is None else told * 1000,
        request_id=reply.headers.get("x-request-id"),
    )


def _decoded(reply: Reply) -> object:
    """Return the body as JSON where it is JSON, else the beginning of its text."""
    try:
        return orjson.loads(reply.body)
    except ValueError:
        return reply.body[:_SHOWN_BYTES].decode(errors="replace") or None


def _redirected(reply: Reply) -> str | None:
    """Say where a redirect leads; it is not followed, because the key must not."""
    if not 300 <= reply.status < 400:
        return None
    location = reply.headers.get("location", "nowhere")
    return f"the server redirects to {location}; use that server's URL as base_url"


def _words(body: object) -> str:
    if isinstance(body, dict):
        found = body.get("detail") or body.get("message") or body.get("error") or body
        return str(found)[:_SHOWN_BYTES]
    text = str(body or "").strip()
    if text.startswith("<"):
        return "the server answered with a web page; is the base URL that of a Tinker server?"
    return text[:_SHOWN_BYTES]


def _timeout_error(request: httpx.Request, seconds: float) -> APITimeoutError:
    return APITimeoutError(
        f"No answer from {_address(request)} to {request.url.path} in {seconds:g} s."
    )


def _connection_error(request: httpx.Request, error: httpx.TransportError) -> APIConnectionError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return CertificateError(
                f"The certificate of {_address(request)} was not accepted "
                f"({cause.verify_message}). Set SSL_CERT_FILE to the authority that signed it."
            )
        cause = cause.__cause__ or cause.__context__
    return APIConnectionError(
        f"No connection to {_address(request)} ({str(error) or type(error).__name__}). "
        "Is the server running, and is the base URL right?"
    )


def _address(request: httpx.Request) -> str:
    return f"{request.url.scheme}://{request.url.netloc.decode()}"
