"""What every client object of one configuration stands on: a loop, a sender, the server's wishes.

Owns the background loop and the first question to a server (`client/config`). It has no session:
`session.py` adds one.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

from tinkex.client.budget import Budget
from tinkex.client.config import ClientConfig
from tinkex.client.loop import BackgroundLoop
from tinkex.client.poller import Poller, PollPolicy
from tinkex.client.runtime import DEFAULT_RUNTIME
from tinkex.client.sender import SDK_VERSION, Sender
from tinkex.client.shared_attempt import SharedAttempt
from tinkex.client.telemetry import Telemetry
from tinkex.errors import APIError, InputError, NotFoundError
from tinkex.types import (
    CancelFutureRequest,
    ClientConfigRequest,
    ClientConfigResponse,
    ClientDynamicConfigRequest,
    ClientDynamicConfigResponse,
)
from tinkex.wire import endpoints

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Coroutine

    from tinkex.client.future import APIFuture
    from tinkex.client.runtime import Runtime

T = TypeVar("T")
F = TypeVar("F", bound="APIFuture[Any]")


class Connection:
    """One configuration's way to its server.

    Args:
        config: the settings.
        runtime: what is shared with other clients of the process.
    """

    def __init__(self, config: ClientConfig, runtime: Runtime) -> None:
        self.config = config
        self.runtime = runtime
        self.clock = runtime.clock
        self.sender = Sender(config, runtime)
        self.limiter = runtime.limiters.get(config.base_url, config.credentials.account)
        self.telemetry = self._telemetry()
        self._loop = BackgroundLoop()
        self._loop.on_close(self.sender.transport.close)
        self._starting = SharedAttempt()
        self._server: ServerWishes | None = None
        self.dynamic = ClientDynamicConfigResponse()
        """What the server may change while clients run, as it said last."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse to be pickled, and so whatever client is to be.

        Raises:
            TypeError: always, as pickle has it.
        """
        raise TypeError(
            "A client cannot be pickled: its connections belong to this process. Make a "
            "ServiceClient in the other one, or pass a SamplingClient, which can be pickled."
        )

    def url_of(self, path: str) -> str:
        """Return the address of something the server keeps; reading it needs the key."""
        return f"{self.config.base_url}{endpoints.PREFIX}/{path}"

    def submit(
        self, operation: Callable[..., Coroutine[Any, Any, T]], *arguments: Any
    ) -> APIFuture[T]:
        """Run an operation on the client's loop."""
        return self._reported(self._loop.submit(operation, *arguments))

    def submit_into(
        self, future: F, operation: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any
    ) -> F:
        """Run an operation on the client's loop, resolving the given future."""
        return self._reported(self._loop.submit_into(future, operation, *arguments))

    def assume(self, config: ClientConfigResponse, dynamic: ClientDynamicConfigResponse) -> None:
        """Take what another client was told by this server, instead of asking again."""
        self._take(config)
        self.dynamic = dynamic

    def _take(self, config: ClientConfigResponse) -> ServerWishes:
        if config.pjwt_auth_enabled:
            self.sender.use_tokens()
        self._server = ServerWishes(self.sender, config)
        return self._server

    @property
    def known_config(self) -> ClientConfigResponse | None:
        """What the server said of itself, if it was asked."""
        return None if self._server is None else self._server.config

    def cancel_on_server(self, request_id: str) -> None:
        """Tell the server that nobody waits for this result any more, where it wants to know."""
        if self.dynamic.sample_cancel_enabled and self._server is not None and not self.closed:
            self.spawn(_cancel_future, self.sender, self._server.cancels, request_id)

    def spawn(self, operation: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        """Run background work on the client's loop."""
        self._loop.spawn(operation, *arguments)

    def _telemetry(self) -> Telemetry | None:
        if not self.config.telemetry:
            return None
        return Telemetry(
            self.sender, sdk_version=SDK_VERSION, process_uuid=self.runtime.process_uuid
        )

    def _timed_out(self, seconds: float | None) -> None:
        self.sender.emit("future.timeout", seconds=seconds)

    def _reported(self, future: F) -> F:
        """Let telemetry and events hear how a call ends."""
        future.on_timeout = self._timed_out
        if self.telemetry is not None:
            future.add_done_callback(self.telemetry.observe)
        return future

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._loop.closed

    def close(self) -> None:
        """End the loop and every connection; idempotent."""
        self._loop.close()

    async def server(self) -> ServerWishes:
        """Ask the server, once, how it wants to be talked to; a failure is asked again."""
        known = self._server
        if known is not None:
            return known
        async with self._starting.turn():
            if self._server is None:
                return self._take(await self._fetch_config())
            return self._server

    async def _fetch_config(self) -> ClientConfigResponse:
        try:
            return await self.sender.call(
                endpoints.CLIENT_CONFIG, ClientConfigRequest(sdk_version=SDK_VERSION)
            )
        except NotFoundError as error:
            raise NotFoundError(
                f"There is no Tinker API at {self.config.base_url}: {error}",
                status_code=404,
                response=error.response,
                body=error.body,
            ) from error

    async def ask_dynamic_config(self) -> None:
        """Ask for the settings a server may change while clients run.

        A server that does not answer well changed none: no call of a client depends on them.
        """
        with contextlib.suppress(APIError):
            self.dynamic = await _dynamic_config(self.sender)


async def refresh_dynamic_config(reference: weakref.ref[Connection], sender: Sender) -> None:
    """Ask for those settings again and again, as often as the server wants, while anybody cares."""
    while (connection := reference()) is not None:
        seconds = max(connection.dynamic.refresh_interval_sec, MIN_REFRESH_SECONDS)
        del connection  # a client nobody uses any more must not keep itself alive
        await sender.clock.sleep(seconds)
        with contextlib.suppress(APIError):
            found = await _dynamic_config(sender)
            if (connection := reference()) is not None:
                connection.dynamic = found


async def _dynamic_config(sender: Sender) -> ClientDynamicConfigResponse:
    return await sender.call(
        endpoints.CLIENT_DYNAMIC_CONFIG,
        ClientDynamicConfigRequest(sdk_version=SDK_VERSION),
        timeout=10.0,
        policy=sender.config.retry.never(),
    )


async def _cancel_future(sender: Sender, cancels: Budget, request_id: str) -> None:
    with contextlib.suppress(APIError):  # it spares the server work, nothing depends on it
        await sender.call(
            endpoints.CANCEL_FUTURE,
            CancelFutureRequest(request_id=request_id),
            timeout=30.0,
            permit=cancels.hold,
        )


def connect(
    held: Connection | None,
    base_url: str | None,
    api_key: str | None,
    runtime: Runtime | None,
    max_retries: int | None = None,
) -> Connection:
    """Return the connection a client was handed, or make one from its arguments.

    Raises:
        InputError: both were given; a connection has its server and key already.
        ConfigurationError: settings are wrong.
        CredentialError: there is no key, or one of the wrong form.
    """
    if held is None:
        chosen = runtime or DEFAULT_RUNTIME
        config = ClientConfig.resolve(
            base_url=base_url, api_key=api_key, max_retries=max_retries, clock=chosen.clock
        )
        return Connection(config, chosen)
    if base_url is not None or api_key is not None:
        raise InputError("Give either a connection or base_url and api_key, not both.")
    return held


class ServerWishes:
    """The server's client config, and the budgets and the poller made from it."""

    def __init__(self, sender: Sender, config: ClientConfigResponse) -> None:
        self.config = config
        self.training_bytes = Budget(config.fwdbwd_dispatch_bytes_semaphore_size)
        self.sample_bytes = Budget(config.sample_dispatch_bytes_semaphore_size)
        self.samples = Budget(config.sample_max_concurrent_requests)
        self.sample_posts = Budget(_SAMPLE_POSTS)
        self.throttled_posts = Budget(_THROTTLED_POSTS)
        self.cancels = Budget(_CANCELS)
        self.poller = Poller(
            send=sender.send,
            clock=sender.clock,
            rng=sender.rng,
            emit=sender.emit,
            payloads=Budget(config.inflight_response_bytes_semaphore_size),
            policy=PollPolicy(billing_limit=config.billing_exception_max_pause_duration_sec),
        )


MIN_REFRESH_SECONDS = 10.0
_SAMPLE_POSTS = 400
"""Sample requests that may be on their way to the server at once."""
_THROTTLED_POSTS = 10
"""The same while the server said 429 in the last seconds."""
_CANCELS = 64
"""Words that nobody waits for a sample any more on their way at once: a thousand samples that are
given up together must not take all connections, nor all files that a process may open."""
