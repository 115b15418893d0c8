"""What a client reports about itself: one stream of events that handlers can follow.

Owns delivery, and the timing of what begins and ends. An event names the client it came from, so a
handler can be scoped to one client; what a handler raises never reaches the code that caused the
event. With no handler and no OpenTelemetry in the process an event costs next to nothing.

| event | when | attributes besides those of every event |
|---|---|---|
| `http.request.start` `.stop` `.exception` | one exchange | `method`, `path`, `status` |
| `http.retry` | a request goes out again | `path`, `status`, `attempt`, `delay`, `error` |
| `request.submitted` | the server took a request in | `operation`, `seconds` |
| `future.poll` | a poll brought trouble | `request_id`, `error`, `attempt`, `delay` |
| `future.queue_state` | why a request waits has changed | `queue_state`, `reason` |
| `future.timeout` | a reader has waited in vain | `seconds` |
| `future.failed` `.expired` | a result will not come | `request_id`, `error` |
| `limiter.backoff` | a 429 holds back every client of the key | `seconds` |
| `train.*` | a call of a training client began or ended | `operation` |
| `sample.start` `.stop` `.exception` | a sample | `num_samples` |
| `custom_loss.*` | a loss of the caller's own is computed | `data`, `loss` |
| `regularizer.*` | one term of such a loss is | `term`, `weight`, `value`, `grad_norm` |
| `recovery.*` | a lost run is taken up again | `attempt`, `path` of the checkpoint |
| `circuit.state` | the circuit breaker opened or closed | `state`, `failures` |
| `session.heartbeat_failed` | a sign of life did not get through | `seconds`, `error` |
| `background.crash` | background work crashed | `task`, `error`, `restarts` |

`.stop` and `.exception` carry `duration` in seconds; `.exception` the `error` and its `error_type`.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from tinkex._clock import Clock
from tinkex._redact import redact
from tinkex.client import tracing

_LOG = logging.getLogger("tinkex.client")


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class EventSource:
    """The client an event came from; two are the same only if they are one object."""

    kind: str
    """Class of the client, such as `TrainingClient`."""
    name: str
    """What it works on, such as its model id; empty for a service client."""
    parent: EventSource | None = None
    """The client that made it: a handler scoped to that one hears of this one too."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a client."""

    name: str
    source: object
    """The client's `EventSource`."""
    attributes: Mapping[str, Any]
    """Durations are in seconds; no attribute holds a secret."""


class EventHub:
    """The handlers of the clients that share it. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a source may be forgotten in the middle of anything
        self._handlers: tuple[Callable[[Event], None], ...] = ()

    @property
    def active(self) -> bool:
        """Whether anybody listens."""
        return bool(self._handlers)

    def attach(
        self, handler: Callable[[Event], None], *, source: object | None = None
    ) -> Callable[[], None]:
        """Call `handler` for every event, or for those of one source; return what undoes it.

        A handler goes with its source: nothing can come from a client that is no more.
        """

        def detach(_: object = None) -> None:
            with self._lock:
                self._handlers = tuple(one for one in self._handlers if one is not scoped)

        is_scoped, scope = source is not None, _weakly(source, detach)

        def scoped(event: Event) -> None:
            if not is_scoped or _within(event.source, scope()):
                handler(event)

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


_ACTING: ContextVar[EventSource | None] = ContextVar("tinkex_event_source", default=None)
"""The client on whose behalf the present task works."""


@contextmanager
def acting_for(source: EventSource | None) -> Iterator[None]:
    """Let the events of what is started in this block come from `source`."""
    token = _ACTING.set(source)
    try:
        yield
    finally:
        _ACTING.reset(token)


class Emitter:
    """Sends the events of one connection.

    Args:
        hub: where the handlers are.
        clock: measures durations.
        source: where events come from that no other client caused.
    """

    def __init__(self, hub: EventHub, clock: Clock, source: EventSource) -> None:
        self.source = source
        self._hub = hub
        self._clock = clock

    def emit(self, name: str, **attributes: Any) -> None:
        """Send an event from the client on whose behalf the present task works."""
        self._hub.emit(name, _ACTING.get() or self.source, **attributes)

    @contextmanager
    def operation(self, name: str, **attributes: Any) -> Iterator[dict[str, Any]]:
        """Send `name.start`, and when the block ends `name.stop` or `name.exception`.

        With OpenTelemetry in the process, the block is a span too.

        Yields:
            A dict; what the block puts into it becomes attributes of the last event.
        """
        found: dict[str, Any] = {}
        if not self._hub.active and not tracing.enabled():
            yield found
            return
        self.emit(f"{name}.start", **attributes)
        began = self._clock.monotonic()
        try:
            with tracing.span(name, attributes, found):
                yield found
        except BaseException as error:
            self.emit(
                f"{name}.exception",
                **{**attributes, **found},
                duration=self._clock.monotonic() - began,
                error=redact(str(error)),
                error_type=type(error).__name__,
            )
            raise
        self.emit(
            f"{name}.stop",
            **{**attributes, **found},
            duration=self._clock.monotonic() - began,
        )


def _weakly(source: object, forgotten: Callable[[object], None]) -> Callable[[], object]:
    """Return what gives `source` while it is there; one that cannot be held weakly is kept."""
    try:
        return weakref.ref(source, forgotten)
    except TypeError:
        return lambda: source


def _within(source: object | None, scope: object) -> bool:
    """Whether `source` is `scope`, or was made by it."""
    while source is not None:
        if source is scope:
            return True
        source = getattr(source, "parent", None)
    return False
