"""The rate limit of a key on its HTTP requests, and the headers that tell it.

Owns which requests count. Those that a client makes only to live (polls, heartbeats, settings) do
not: they would eat up the limit by waiting, and a session must not end for it. Those of a run's
sequence are counted where it is known whether others wait for them (`load/gate.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tinkex.server.load.gate import KeyGate

_API = "/api/v1/"
FREE_PATHS = frozenset(
    _API + name
    for name in (
        "healthz",
        "client/config",
        "client/dynamic_config",
        "auth/token",
        "session_heartbeat",
        "telemetry",
        "retrieve_future",
        "retrieve_futures",
        "cancel_future",
    )
)
FREE_ENDINGS = ("/finish",)
SEQUENCED_PATHS = frozenset(
    _API + name
    for name in (
        "forward_backward",
        "forward",
        "optim_step",
        "save_weights",
        "load_weights",
        "save_weights_for_sampler",
        "save_weights_external",
    )
)


class RateHeaders:
    """Tells in every reply what its key may still use; goes outside of what writes refusals."""

    def __init__(self, app: ASGIApp, *, gate: KeyGate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not self._gate.has_rates:
            await self._app(scope, receive, send)
            return

        async def send_with_limits(message: Message) -> None:
            caller = scope["state"].get("caller")
            if message["type"] == "http.response.start" and caller is not None:
                MutableHeaders(scope=message).update(self._gate.headers(caller.key_id))
            await send(message)

        await self._app(scope, receive, send_with_limits)


class RateLimited:
    """Counts requests by key and refuses those above the limit; goes inside authentication."""

    def __init__(self, app: ASGIApp, *, gate: KeyGate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        caller = scope["state"].get("caller") if scope["type"] == "http" else None
        if caller is not None and self._gate.has_rates and counts(scope["path"]):
            self._gate.take_request(caller.key_id)
            scope["state"]["counted"] = True
        await self._app(scope, receive, send)


def counts(path: str) -> bool:
    """Whether a request to a path counts when it arrives."""
    return (
        path not in FREE_PATHS and path not in SEQUENCED_PATHS and not path.endswith(FREE_ENDINGS)
    )
