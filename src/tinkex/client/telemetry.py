"""Tell the server how a client fares: its session's start and end, and the calls that failed.

Owns a bounded queue of events and the task that sends them in batches. It never blocks or breaks
the caller's code: a full queue drops what comes, a server that does not take a batch loses it, and
both are counted. Nobody wakes up while there is nothing to say. Keys and tokens are taken out of
every text. `TINKEX_TELEMETRY=0` (or `TINKER_TELEMETRY=0`) switches it off.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import platform
import threading
import traceback
import uuid
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from tinkex._redact import redact
from tinkex.errors import (
    APIStatusError,
    ClientClosedError,
    SkippedCallError,
    TinkerError,
)
from tinkex.types import (
    GenericEvent,
    SessionEndEvent,
    SessionStartEvent,
    TelemetrySendRequest,
    UnhandledExceptionEvent,
)
from tinkex.wire import endpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tinkex.client.sender import Sender
    from tinkex.types import Severity, TelemetryEvent

_LOG = logging.getLogger("tinkex.client")

_INTERVAL = 10.0
_REQUEST_TIMEOUT = 5.0
_BATCH = 100
_QUEUE = 10_000
_TEXT = 4_000
"""Characters of a message or a traceback that are sent."""


@dataclass(frozen=True, slots=True)
class TelemetryCounts:
    """What became of the events so far."""

    queued: int
    """Wait to be sent."""
    sent: int
    """The server took them."""
    failed: int
    """The server would not take them."""
    dropped: int
    """The queue was full."""


class Telemetry:
    """The reports of one connection.

    Args:
        sender: sends the batches.
        sdk_version: dialect the client speaks.
        process_uuid: names the process, the same for all its clients.
    """

    def __init__(self, sender: Sender, *, sdk_version: str, process_uuid: str) -> None:
        self._sender = sender
        self._clock = sender.clock
        self._sdk_version = sdk_version
        self._process_uuid = process_uuid
        self._session_id = f"sessionless-{uuid.uuid4()}"
        self._started_at: float | None = None
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._queue: deque[TelemetryEvent] = deque()
        self._sent = self._failed = self._dropped = 0
        self._sending = asyncio.Lock()
        self._alarm: _Alarm | None = None

    # --- what is reported -----------------------------------------------------------------------

    def session_started(self, session_id: str) -> None:
        """Report under this session from now on, and that it began."""
        self._session_id = session_id
        self._started_at = self._clock.now()
        self._add(SessionStartEvent, "INFO")

    def log(
        self,
        event_name: str,
        event_data: Mapping[str, Any] | None = None,
        severity: Severity = "INFO",
    ) -> bool:
        """Report something of the caller's own.

        Args:
            event_name: one of few names.
            event_data: JSON values.
            severity: how bad it is.

        Returns:
            False when the queue was full and the event is dropped.
        """
        return self._add(
            GenericEvent, severity, event_name=event_name, event_data=dict(event_data or {})
        )

    def log_exception(self, exception: BaseException, severity: Severity = "ERROR") -> bool:
        """Report an exception soon; returns at once.

        Returns:
            False when the queue was full and the event is dropped.
        """
        if _is_callers(exception):
            data: dict[str, Any] = {
                "error_type": type(exception).__name__,
                "message": _shown(str(exception)),
            }
            if isinstance(exception, APIStatusError):
                data["status_code"] = exception.status_code
            taken = self.log("user_error", data, "WARNING")
        else:
            lines = traceback.format_exception(exception)
            taken = self._add(
                UnhandledExceptionEvent,
                severity,
                error_type=type(exception).__name__,
                error_message=_shown(str(exception)),
                traceback=_shown("".join(lines)) if exception.__traceback__ else None,
            )
        self._ring(urgent=True)
        return taken

    @contextlib.contextmanager
    def capture_exceptions(self, severity: Severity = "ERROR") -> Iterator[None]:
        """Report what the block raises, and let it go on."""
        try:
            yield
        except Exception as error:
            self.log_exception(error, severity)
            raise

    def observe(self, future: Future[Any]) -> None:
        """Report the failure of a call of the client; a done callback."""
        if future.cancelled():
            return
        error = Future.exception(future)  # not the override's: an observer has not read it
        if error is not None and not isinstance(error, ClientClosedError | SkippedCallError):
            self.log_exception(error)

    @property
    def counts(self) -> TelemetryCounts:
        """What became of the events so far."""
        with self._lock:
            return TelemetryCounts(len(self._queue), self._sent, self._failed, self._dropped)

    # --- how it is sent -------------------------------------------------------------------------

    async def run(self) -> None:
        """Send what is reported until cancelled: soon after a failure, else every ten seconds."""
        self._alarm = _Alarm(asyncio.get_running_loop())
        if self.counts.queued:
            self._alarm.ring(urgent=False)
        while True:
            await self._alarm.wait_for_any()
            await self._alarm.wait_for_urgent(self._clock.sleep(_INTERVAL))
            self._alarm.clear()
            await self.flush()

    async def flush(self) -> None:
        """Send what is queued; what came meanwhile is left for the next time."""
        async with self._sending:
            remaining = self.counts.queued
            while remaining > 0:
                with self._lock:
                    size = min(_BATCH, len(self._queue), remaining)
                    batch = [self._queue.popleft() for _ in range(size)]
                remaining -= len(batch)
                taken = await self._send(batch)
                with self._lock:
                    self._sent += len(batch) if taken else 0
                    self._failed += 0 if taken else len(batch)
                if not taken:
                    return

    async def close(self) -> None:
        """Report the session's end, if one began, and send what is queued; raises nothing."""
        if self._started_at is not None:
            lasted = timedelta(seconds=self._clock.now() - self._started_at)
            self._started_at = None
            self._add(SessionEndEvent, "INFO", duration=str(lasted))
        await self.flush()

    async def _send(self, batch: list[TelemetryEvent]) -> bool:
        try:
            await self._sender.call(
                endpoints.TELEMETRY,
                TelemetrySendRequest(
                    events=batch,
                    platform=platform.system(),
                    sdk_version=self._sdk_version,
                    session_id=self._session_id,
                    process_uuid=self._process_uuid,
                ),
                timeout=_REQUEST_TIMEOUT,
                policy=self._sender.config.retry.never(),
            )
        except TinkerError as error:
            _LOG.debug("The server did not take %d telemetry events: %s", len(batch), error)
            return False
        return True

    def _add(self, kind: Callable[..., TelemetryEvent], severity: Severity, **fields: Any) -> bool:
        with self._lock:
            if len(self._queue) >= _QUEUE:
                self._dropped += 1
                return False
            event = kind(
                event_id=str(uuid.uuid4()),
                event_session_index=next(self._numbers),
                severity=severity,
                timestamp=datetime.fromtimestamp(self._clock.now(), UTC),
                **fields,
            )
            self._queue.append(event)
        self._ring(urgent=False)
        return True

    def _ring(self, *, urgent: bool) -> None:
        if self._alarm is not None:
            self._alarm.ring(urgent=urgent)


class _Alarm:
    """Wakes the sending task from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._any = asyncio.Event()
        self._urgent = asyncio.Event()

    def ring(self, *, urgent: bool) -> None:
        with contextlib.suppress(RuntimeError):  # the client's loop has ended
            self._loop.call_soon_threadsafe(self._set, urgent)

    def _set(self, urgent: bool) -> None:
        self._any.set()
        if urgent:
            self._urgent.set()

    def clear(self) -> None:
        self._any.clear()
        self._urgent.clear()

    async def wait_for_any(self) -> None:
        await self._any.wait()

    async def wait_for_urgent(self, limit: Any) -> None:
        """Return when something urgent was reported, or when `limit` is over."""
        waits = [asyncio.ensure_future(limit), asyncio.ensure_future(self._urgent.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


def _is_callers(exception: BaseException) -> bool:
    """Whether the caller has to act, not the server or this client."""
    return isinstance(exception, TinkerError) and exception.category == "user"


def _shown(text: str) -> str:
    return redact(text)[:_TEXT]
