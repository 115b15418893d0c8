"""What a browser may have of this server: its own pages, and no other site's.

Owns two checks in front of everything, and the headers that every reply carries. A page of another
site that finds this server, by a guessed address or by a name that its owner points at it (DNS
rebinding), is refused before any route sees its request. Programs send no Origin, and are not
concerned.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from tinkex.server.config import is_loopback
from tinkex.server.refusal import forbidden, misdirected

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tinkex.server.config import ServerConfig

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
_ONLY_TLS = (b"strict-transport-security", b"max-age=31536000")


class SecurityHeaders:
    """Adds to every reply what keeps browsers careful; a route's own header goes before it."""

    def __init__(self, app: ASGIApp, *, config: ServerConfig) -> None:
        self._app = app
        self._headers = (*_HEADERS, _ONLY_TLS) if config.tls_cert is not None else _HEADERS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"] = list(message.get("headers", ()))
                given = {name.lower() for name, _ in headers}
                headers += [pair for pair in self._headers if pair[0] not in given]
            await send(message)

        await self._app(scope, receive, send_with_headers)


class BrowserGuard:
    """Refuses requests that a page of another site made.

    Args:
        app: what comes after.
        config: `allowed_hosts` are the names, besides addresses and localhost, under which the
            server is reached.
    """

    def __init__(self, app: ASGIApp, *, config: ServerConfig) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in config.allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            self._check_host(headers, scope.get("client"))
            self._check_origin(headers, scope["method"])
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers, client: tuple[str, int] | None) -> None:
        """Refuse a name that is not ours: what a rebound name leads to is found by its Host.

        Where no names are set, requests from elsewhere may use any: they reach nothing without a
        key. A request from this machine may be a browser's, and to those more is shown.
        """
        if not self._names and not (client is not None and is_loopback(client[0])):
            return
        for host in headers.getlist("host"):
            if not self._is_ours(host):
                raise misdirected(
                    f"This server does not answer as {host[:100]!r}: if that is its name, start "
                    f"it with --allowed-host {_name(host)[:100]}"
                )

    def _check_origin(self, headers: Headers, method: str) -> None:
        for origin in headers.getlist("origin"):
            place = origin.partition("://")[2].lower()
            same = place == headers.get("host", "").lower() or _name(place) in self._names
            if not place or not same:
                raise forbidden("Pages of other sites cannot use this server.")
        site = headers.get("sec-fetch-site", "none")
        followed_a_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if site not in {"none", "same-origin"} and not followed_a_link:
            raise forbidden("Pages of other sites cannot use this server.")

    def _is_ours(self, host: str) -> bool:
        name = _name(host)
        return name == "localhost" or name in self._names or _is_address(name)


def _name(host: str) -> str:
    """Return a Host without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".")


def _is_address(name: str) -> bool:
    """Whether it is an IP address: rebinding needs a name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
