"""Connections that cannot hold the server: bounded in number, and in the time they may take.

Owns what is done below HTTP: a client that trickles the head of a request, or does not read its
reply, is hung up on, and so is every client above the number that the server takes. Bodies that
trickle are `load/bodies.py`'s. Everything is watched by the server's one heap of deadlines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

    from tinkex._timers import Timer, Timers
    from tinkex.server.config import ServerConfig
    from tinkex.server.observe.metrics import ServerMetrics


def bounded_protocol(
    config: ServerConfig, timers: Timers, metrics: ServerMetrics
) -> type[H11Protocol]:
    """Make the class of a server's connections, for uvicorn.

    Args:
        config: how long they may take, and how many there may be.
        timers: watches them.
        metrics: counts those that were hung up on.
    """

    class Connection(H11Protocol):
        """One client's connection."""

        _head: Timer | None = None
        """Ends the wait for the rest of a request's head."""
        _reader: Timer | None = None
        """Ends the wait for a client that does not read."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            """Take a client, or hang up: polls of clients that get a 503 come again at once."""
            super().connection_made(transport)
            if len(self.connections) > config.limits.max_connections:
                self._hang_up("connections")
                return
            self._watch_head()

        def data_received(self, data: bytes) -> None:
            """Take what came; while it is no whole head, the time for that runs."""
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._watch_head()
            else:
                self._unwatch_head()

        def on_response_complete(self) -> None:
            """Be ready for the next request, which may be here in part."""
            super().on_response_complete()
            self._unwatch_head()

        def pause_writing(self) -> None:
            """Wait for a client that reads more slowly than it is told, but not for ever."""
            super().pause_writing()
            self._reader = timers.call_later(
                config.write_timeout_s, lambda: self._hang_up("slow_reader")
            )

        def resume_writing(self) -> None:
            """Go on: the client has read."""
            super().resume_writing()
            self._unwatch_reader()

        def connection_lost(self, exc: Exception | None) -> None:
            """Forget the client."""
            self._unwatch_head()
            self._unwatch_reader()
            super().connection_lost(exc)

        def _watch_head(self) -> None:
            if self._head is None:
                self._head = timers.call_later(
                    config.head_timeout_s, lambda: self._hang_up("slow_head")
                )

        def _unwatch_head(self) -> None:
            if self._head is not None:
                self._head.cancel()
                self._head = None

        def _unwatch_reader(self) -> None:
            if self._reader is not None:
                self._reader.cancel()
                self._reader = None

        def _hang_up(self, limit: str) -> None:
            metrics.refused(limit)
            self._head = self._reader = None
            self.transport.abort()

    return Connection


def uvicorn_settings(
    config: ServerConfig, timers: Timers, metrics: ServerMetrics
) -> dict[str, Any]:
    """Give the settings of uvicorn that bound connections."""
    return {
        "http": bounded_protocol(config, timers, metrics),
        "ws": "none",
        "backlog": min(2048, config.limits.max_connections),
    }
