"""What a client reports about itself: one stream of events that handlers can follow.

Owns delivery. An event names the object it came from, so a handler can be scoped to one client;
what a handler raises never reaches the code that caused the event.

Names so far: `http.retry`, `future.poll`, `future.queue_state`, `future.failed`,
`limiter.backoff`, `session.heartbeat_failed`.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_LOG = logging.getLogger("tinkex.client")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a client."""

    name: str
    source: object
    """The client's connection."""
    attributes: Mapping[str, Any]
    """Durations are in seconds; no attribute holds a secret."""


class EventHub:
    """The handlers of the clients that share it. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handlers: tuple[Callable[[Event], None], ...] = ()

    def attach(
        self, handler: Callable[[Event], None], *, source: object | None = None
    ) -> Callable[[], None]:
        """Call `handler` for every event, or for those of one source; return what undoes it."""

        def scoped(event: Event) -> None:
            if source is None or event.source is source:
                handler(event)

        def detach() -> None:
            with self._lock:
                self._handlers = tuple(one for one in self._handlers if one is not scoped)

        with self._lock:
            self._handlers = (*self._handlers, scoped)
        return detach

    def emit(self, name: str, source: object, **attributes: Any) -> None:
        """Tell every handler; cheap when there is none."""
        if not self._handlers:
            return
        event = Event(name, source, attributes)
        for handler in self._handlers:
            try:
                handler(event)
            except Exception:  # noqa: BLE001 - an observer must not break what it observes
                _LOG.exception("A handler of the event %s failed", name)
