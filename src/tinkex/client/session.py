"""A session: what a server ties models and samplers to, kept alive by heartbeats.

Owns creating it (on first use, once), its counters, its heartbeat and its end.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import weakref
from functools import partial
from typing import TYPE_CHECKING, Literal

from tinkex.client.connection import refresh_dynamic_config
from tinkex.client.sender import SDK_VERSION
from tinkex.client.shared_attempt import SharedAttempt
from tinkex.client.supervision import supervised
from tinkex.errors import APIStatusError, BackgroundTaskError, ClientClosedError, TinkerError
from tinkex.types import CreateSessionRequest, SessionHeartbeatRequest
from tinkex.wire import endpoints

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from tinkex.client.connection import Connection
    from tinkex.client.future import APIFuture
    from tinkex.client.loss_handle import LossHandle
    from tinkex.client.sender import Sender
    from tinkex.types import CreateSessionResponse

_LOG = logging.getLogger("tinkex.client")

_HEARTBEAT_TIMEOUT = 10.0
_ALARM_SECONDS = 120.0
_FINISH_TIMEOUT = 5.0
_CREATION_SECONDS = 2.0

FinishStatus = Literal["success", "errored", "interrupted"]


class Session:
    """One session of one connection.

    Args:
        connection: how to reach the server.
        user_metadata: labels of the session.
        display_name: its name for people.
        known_id: of a session that another client made and keeps alive.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        user_metadata: Mapping[str, str] | None = None,
        display_name: str | None = None,
        known_id: str | None = None,
    ) -> None:
        self.connection = connection
        self._user_metadata = dict(user_metadata or {})
        self._display_name = display_name
        self._creating = SharedAttempt()
        self._id = known_id
        self._ending = False
        self._finished = False
        self._broken: BackgroundTaskError | None = None
        self._models = itertools.count()
        self._samplers = itertools.count()
        self._losses = itertools.count()
        self.loss_handles: dict[str, APIFuture[LossHandle]] = {}
        """The custom losses of this session, by their keys: each is made once."""

    @property
    def known_id(self) -> str | None:
        """The session's id, once the server has given one."""
        return self._id

    @property
    def begun(self) -> bool:
        """Whether the server has made the session, or is being asked to."""
        return self._id is not None or self._creating.under_way

    def next_model(self) -> int:
        """Number the next model of this session, from 0, in the order of the calls."""
        return next(self._models)

    def next_sampler(self) -> int:
        """Number the next sampling session, from 0."""
        return next(self._samplers)

    def next_loss(self) -> int:
        """Number the next custom loss, from 0."""
        return next(self._losses)

    def end(self, error: BackgroundTaskError) -> None:
        """Refuse further calls: nothing keeps the session alive any more."""
        self._broken = error

    async def id(self) -> str:
        """Return the session's id; creates it when there is none, and tries again if that failed.

        Raises:
            ClientClosedError: the session is finished.
            BackgroundTaskError: nothing keeps it alive any more.
        """
        async with self._creating.turn():
            if self._ending:
                raise ClientClosedError(
                    "The session of this client is finished. Make a new ServiceClient."
                )
            if self._broken is not None:
                raise self._broken
            if self._id is None:
                self._id = await self._create()
                if self._ending:
                    raise ClientClosedError("The client was closed before the call ended.")
            return self._id

    async def finish(self, status: FinishStatus, detail: str | None) -> None:
        """Tell the server that the session is over, if there is one; the heartbeat ends.

        One that is being made is waited for, but not for long: the server may be gone.
        """
        self._ending = True
        try:
            async with asyncio.timeout(_CREATION_SECONDS):
                await self._creating.over()
        except TimeoutError:
            return
        session_id, was_finished, self._finished = self._id, self._finished, True
        if session_id is None or was_finished:
            return
        await self.connection.sender.call(
            endpoints.FINISH_SESSION,
            {"reason": {"type": status}, "detail": detail},
            path={"session_id": session_id},
            sdk_method="ServiceClient.close",
            timeout=_FINISH_TIMEOUT,
            policy=self.connection.config.retry.never(),
        )

    async def _create(self) -> str:
        connection = self.connection
        await connection.server()
        await connection.ask_dynamic_config()
        response = await connection.sender.call(
            endpoints.CREATE_SESSION,
            CreateSessionRequest(
                tags=list(connection.config.tags),
                user_metadata=self._user_metadata,
                sdk_version=SDK_VERSION,
                project_id=connection.config.project_id,
                display_name=self._display_name,
            ),
        )
        _show_messages(response)
        sender, session_id = connection.sender, response.session_id
        reference, this = weakref.ref(connection), weakref.ref(self)
        self._supervise("heartbeat", partial(_keep_alive, sender, session_id), this)
        self._supervise("refresh of settings", partial(refresh_dynamic_config, reference, sender))
        if connection.telemetry is not None:
            connection.telemetry.session_started(session_id)
            self._supervise("telemetry", connection.telemetry.run)
        return session_id

    def _supervise(
        self,
        name: str,
        work: Callable[[], Awaitable[None]],
        needed_by: weakref.ref[Session] | None = None,
    ) -> None:
        """Run background work; the end of what a session needs is the end of the session."""
        sender = self.connection.sender

        async def run() -> None:
            try:
                await supervised(name, work, sender.clock, sender.emit)
            except BackgroundTaskError as error:
                session = needed_by() if needed_by is not None else None
                if session is not None:
                    session.end(error)

        self.connection.spawn(run)


def _show_messages(response: CreateSessionResponse) -> None:
    """Log what the server wants its users to read."""
    if response.info_message:
        _LOG.info("%s", response.info_message)
    if response.warning_message:
        _LOG.warning("%s", response.warning_message)
    if response.error_message:
        _LOG.error("%s", response.error_message)


async def _keep_alive(sender: Sender, session_id: str) -> None:
    """Send heartbeats until the server says the session is over (410) or the loop ends.

    It holds the sender alone: a session nobody uses any more must not keep itself alive.
    """
    clock = sender.clock
    last_success = clock.monotonic()
    alarmed = False
    while True:
        await clock.sleep(sender.config.heartbeat_seconds)
        try:
            await sender.call(
                endpoints.SESSION_HEARTBEAT,
                SessionHeartbeatRequest(session_id=session_id),
                timeout=_HEARTBEAT_TIMEOUT,
                policy=sender.config.retry.never(),
            )
        except TinkerError as error:
            if isinstance(error, APIStatusError) and error.status_code == 410:
                return
            silent = clock.monotonic() - last_success
            sender.emit("session.heartbeat_failed", error=str(error), seconds=silent)
            if silent >= _ALARM_SECONDS and not alarmed:
                alarmed = True
                _LOG.warning(
                    "No heartbeat of session %s got through for %.0f s; the server may end it: %s",
                    session_id,
                    silent,
                    error,
                )
        else:
            last_success, alarmed = clock.monotonic(), False
