"""A peer's calls to others, and others' to it: the one thing that workers use of `rpc`.

Owns the typed face (a method of a `Service` class names the call) and start and stop. Links, frames
and handlers are next door.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from tinkex._clock import Clock
from tinkex._timers import Timers
from tinkex.errors import (
    InputError,
    LinkClosedError,
    PeerProtocolError,
    PeerTimeoutError,
)
from tinkex.mesh.identity import PeerId
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.calls import OutgoingCall
from tinkex.mesh.rpc.config import RpcConfig
from tinkex.mesh.rpc.credentials import Credentials, RemotePeer
from tinkex.mesh.rpc.deadline import Deadline
from tinkex.mesh.rpc.dispatch import Dispatcher
from tinkex.mesh.rpc.links import Links
from tinkex.mesh.rpc.messages import MAX_BODY_BYTES, MAX_TIMEOUT_MS
from tinkex.mesh.rpc.observer import Observer
from tinkex.mesh.rpc.replies import Replies
from tinkex.mesh.rpc.service import Call, Method, Service, is_trace, method_of
from tinkex.mesh.rpc.surroundings import Surroundings
from tinkex.mesh.tasks import Tasks
from tinkex.mesh.transport.base import Contact, Transport

__all__ = ["Credentials", "LinkState", "Peers", "RequestTooLongError"]

_LOG = logging.getLogger("tinkex.mesh.rpc")
_INSTANCE_BYTES = 8
_MAX_TIMEOUT_S = MAX_TIMEOUT_MS / 1000

Q = TypeVar("Q", bound=msgspec.Struct)
R = TypeVar("R")


class RequestTooLongError(InputError):
    """A request has more bytes than one message may."""


@dataclass(frozen=True, slots=True)
class LinkState:
    """A link, as `mesh status` shows it."""

    peer_id: PeerId
    role: Role | None
    """None: a guest."""
    rtt_s: float | None
    outgoing: int
    """Open calls of this side."""
    incoming: int
    """Open calls of the peer."""


@dataclass(frozen=True, slots=True)
class _Called:
    """What is needed to call a method."""

    method: Method
    path: str
    decoder: msgspec.msgpack.Decoder[Any]


class Peers:
    """Calls other peers and answers their calls, over links that are made when needed.

    Lives on the event loop that it is started on.

    Args:
        transport: makes links; started and stopped with this.
        credentials: who this peer is, and whom it believes.
        clock: tells and waits for time.
        config: limits and times.
        observer: told of every call and link that ended.
        random: so many random bytes.
    """

    def __init__(
        self,
        transport: Transport,
        credentials: Credentials,
        *,
        clock: Clock,
        config: RpcConfig | None = None,
        observer: Observer | None = None,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._transport = transport
        self._around = Surroundings(
            credentials=credentials,
            config=config or RpcConfig(),
            clock=clock,
            timers=Timers(clock, on_error=_report),
            tasks=Tasks(on_error=_report),
            dispatcher=Dispatcher(),
            observer=observer,
            on_error=_report,
        )
        self._links = Links(transport, random(_INSTANCE_BYTES), self._around, self._lost)
        self._encoder = msgspec.msgpack.Encoder()
        self._called: dict[Callable[..., Any], _Called] = {}
        self._on_lost: list[Callable[[PeerId], None]] = []
        self._running = False

    @property
    def peer_id(self) -> PeerId:
        """This peer's id."""
        return self._around.credentials.key_pair.peer_id

    @property
    def contact(self) -> Contact:
        """How others reach this peer, once it has started."""
        return self._transport.contact

    @property
    def credentials(self) -> Credentials:
        """Who this peer is, and whom it believes."""
        return self._around.credentials

    # --- life -----------------------------------------------------------------

    def serve(self, service: Service) -> None:
        """Offer a service's methods, before or after `start`.

        Raises:
            ValueError: one of that name is offered already.
            TypeError: an `rpc_*` method is not marked, or not annotated as `Service` says.
        """
        self._around.dispatcher.serve(service)

    async def start(self) -> None:
        """Start the transport, and answer.

        Raises:
            ConfigurationError: the transport's address cannot be bound. Nothing runs then.
            RuntimeError: it runs already.
        """
        if self._running:
            raise RuntimeError("these peers are started already")
        self._running = True
        try:
            await self._transport.start()
        except BaseException:
            self._running = False
            raise
        self._around.stopping = False
        self._around.timers.start()
        self._around.tasks.keep(self._links.accept, name="accept links", clock=self._around.clock)

    async def stop(self, grace_s: float = 0.0) -> None:
        """Refuse new calls, finish those that run, close all links, stop the transport.

        Calls of this side may begin until those that it answers have ended: a handler may need
        others to come to its end. Harmless twice, and before `start`.

        Args:
            grace_s: after so many seconds what still runs is cut off.
        """
        if not self._running:
            return
        self._around.stopping = True
        try:
            if grace_s > 0:
                with contextlib.suppress(PeerTimeoutError):
                    async with Deadline(self._around.timers, grace_s, PeerTimeoutError):
                        await self._drain()
        finally:
            await self._cut()

    async def wait_answered(self) -> None:
        """Wait until every link had a moment at which no call of its peer was being answered."""
        for channel in self._links.all:
            await channel.answered.wait()

    async def _drain(self) -> None:
        for channel in self._links.all:
            channel.announce_stop()
        for channel in self._links.all:
            await channel.answered.wait()
        for channel in self._links.all:
            channel.retire()
        for channel in self._links.all:
            await channel.ended.wait()

    async def _cut(self) -> None:
        self._running = False
        for channel in self._links.all:
            channel.end(LinkClosedError("this peer has stopped"), lost=False)
        for channel in self._links.all:
            await channel.ended.wait()
        await self._around.tasks.stop()
        self._links.stop()
        await self._around.timers.stop()
        await self._transport.stop()

    def renew(self, credentials: Credentials) -> None:
        """Be somebody else from now on: a guest that has joined, a member with a new certificate.

        Links with the old credentials take no new calls, and close when those that run have ended.
        """
        self._around.credentials = credentials
        for channel in self._links.all:
            channel.retire()

    # --- calls ----------------------------------------------------------------

    async def call(
        self,
        contact: Contact,
        method: Callable[[Any, Q, Call], Awaitable[R]],
        request: Q,
        *,
        timeout_s: float,
        trace: str = "",
    ) -> R:
        """Call a method and wait for its reply. Cancelled here, it is cancelled there.

        Args:
            contact: whom to call.
            method: a method of a `Service` class, as `AuthApi.rpc_login`.
            request: what it takes.
            timeout_s: seconds for everything, the link's making included.
            trace: a W3C `traceparent` for the handler, or nothing.

        Raises:
            PeerUnreachableError: nobody answers there. Nothing was done.
            LinkClosedError: the link was lost; the call may have been done, or not.
            PeerTimeoutError: no reply in time.
            PeerProtocolError: the two do not understand one another, or the callee's role does not
                offer the method: then nothing was sent.
            TrustError: one is no member in the other's eyes.
            PermissionDeniedError: this peer's role may not call the method.
            RequestTooLongError: it is.
            InputError: the request has what no message can hold.
            TinkerError: whatever the handler raised.
        """
        called = self._lookup(method, streamed=False)
        body = self._prepare(called, request, trace)
        timeout_s = min(timeout_s, _MAX_TIMEOUT_S)
        deadline = self._around.clock.monotonic() + timeout_s

        def late() -> PeerTimeoutError:
            return _late(called, contact, timeout_s)

        async with Deadline(self._around.timers, timeout_s, late):
            call = await self._open(contact, called, body, deadline, trace)
            try:
                reply = await call.next()
            finally:
                call.drop()
        assert reply is not None, "a session takes no end for a reply"
        try:
            return called.decoder.decode(reply)  # type: ignore[no-any-return]
        except (ValueError, RecursionError) as error:
            raise _no_answer(called, contact, error) from None

    async def stream(
        self,
        contact: Contact,
        method: Callable[[Any, Q, Call], AsyncIterator[R]],
        request: Q,
        *,
        timeout_s: float,
        idle_timeout_s: float | None = None,
        trace: str = "",
    ) -> AsyncGenerator[R, None]:
        """Call a method and give its replies as they come. `aclose` cancels it there.

        Args:
            contact: whom to call.
            method: a method of a `Service` class, as `ProcessorApi.rpc_complete`.
            request: what it takes.
            timeout_s: seconds for the whole stream.
            idle_timeout_s: seconds for each reply; None: as long as the whole may take.
            trace: a W3C `traceparent` for the handler, or nothing.

        Raises:
            TinkerError: as `call`; replies that came before the error are given first.
        """
        replies = self.ask(
            contact,
            method,
            request,
            timeout_s=timeout_s,
            idle_timeout_s=idle_timeout_s,
            trace=trace,
        )
        try:
            while (reply := await replies.next()) is not None:
                yield reply
        finally:
            replies.close()

    def ask(
        self,
        contact: Contact,
        method: Callable[[Any, Q, Call], AsyncIterator[R]],
        request: Q,
        *,
        timeout_s: float,
        idle_timeout_s: float | None = None,
        trace: str = "",
    ) -> Replies[R]:
        """Ask for a stream as `stream` does, but wait for nothing.

        Where a link is there that takes it, the request has left when this returns. `close` what
        it returns.

        Raises:
            TinkerError: nothing can be sent; see `call`.
        """
        called = self._lookup(method, streamed=True)
        body = self._prepare(called, request, trace)
        timeout_s = min(timeout_s, _MAX_TIMEOUT_S)
        clock = self._around.clock
        deadline = clock.monotonic() + timeout_s
        each_s = timeout_s if idle_timeout_s is None else min(idle_timeout_s, timeout_s)

        def decode(reply: bytes) -> Any:
            try:
                return called.decoder.decode(reply)
            except (ValueError, RecursionError) as error:
                raise _no_answer(called, contact, error) from None

        def late() -> PeerTimeoutError:
            whole = clock.monotonic() >= deadline
            return _late(called, contact, timeout_s if whole else each_s)

        return Replies(
            self._open_now(contact, called, body, deadline, trace),
            lambda: self._open(contact, called, body, deadline, trace),
            decode,
            deadline=deadline,
            each_s=each_s,
            late=late,
            timers=self._around.timers,
            clock=clock,
        )

    async def ping(self, contact: Contact, *, timeout_s: float = 5.0) -> float:
        """Measure a round trip in seconds; dials where there is no link.

        Raises:
            MeshError: as `call`.
        """

        def late() -> PeerTimeoutError:
            return PeerTimeoutError(f"{contact.peer_id.short} did not answer within {timeout_s} s")

        self._check_running()
        async with Deadline(self._around.timers, timeout_s, late):
            return await (await self._links.to(contact)).ping()

    def rtt(self, peer_id: PeerId) -> float | None:
        """Return the smoothed round trip to a peer in seconds; None without a link, or at first."""
        channel = self._links.get(peer_id)
        return None if channel is None else channel.rtt

    def has_link(self, peer_id: PeerId) -> bool:
        """Whether a link to a peer is open, and takes calls."""
        return self._links.get(peer_id) is not None

    def links(self) -> tuple[LinkState, ...]:
        """Describe every link that is open."""
        return tuple(
            LinkState(
                channel.peer.peer_id,
                None if channel.peer.certificate is None else channel.peer.certificate.role,
                channel.rtt,
                channel.outgoing,
                channel.incoming,
            )
            for channel in self._links.all
            if not channel.ending
        )

    def on_lost(self, callback: Callable[[PeerId], None]) -> Callable[[], None]:
        """Have `callback` told of every peer whose link was lost; returns what ends that."""
        self._on_lost.append(callback)
        return lambda: self._on_lost.remove(callback)

    def _lost(self, peer_id: PeerId) -> None:
        for callback in list(self._on_lost):
            try:
                callback(peer_id)
            except Exception as error:  # noqa: BLE001 - one listener must not silence the others
                _report(error)

    # --- parts of a call ------------------------------------------------------

    def _lookup(self, function: Callable[..., Any], *, streamed: bool) -> _Called:
        called = self._called.get(function)
        if called is None:
            method = method_of(function)
            called = _Called(method, method.path, msgspec.msgpack.Decoder(method.response))
            self._called[function] = called
        if called.method.streamed is not streamed:
            raise TypeError(
                f"`{called.path}` is called by `{'stream' if not streamed else 'call'}`"
            )
        return called

    def _check_running(self) -> None:
        if not self._running:
            raise LinkClosedError("these peers are not started, or have stopped")

    def _prepare(self, called: _Called, request: msgspec.Struct, trace: str) -> bytes:
        self._check_running()
        if trace and not is_trace(trace):
            raise InputError("trace must be a W3C traceparent, or empty")
        try:
            body = self._encoder.encode(request)
        except (OverflowError, UnicodeEncodeError) as error:
            raise InputError(
                f"a request of `{called.path}` has a whole number of more than 64 bits, or text "
                "that is no Unicode"
            ) from error
        if len(body) > MAX_BODY_BYTES:
            raise RequestTooLongError(
                f"a request of `{called.path}` has {len(body)} bytes, of which "
                f"{MAX_BODY_BYTES} are allowed"
            )
        return body

    def _open_now(
        self, contact: Contact, called: _Called, body: bytes, deadline: float, trace: str
    ) -> OutgoingCall | None:
        """Begin a call where a link is there that takes it at once; None: see `_open`."""
        channel = self._links.get(contact.peer_id)
        if channel is None:
            return None
        self._check_offers(called.method, channel.peer)
        return channel.open_now(
            called.path,
            body,
            streamed=called.method.streamed,
            deadline=deadline,
            trace=trace,
        )

    async def _open(
        self, contact: Contact, called: _Called, body: bytes, deadline: float, trace: str
    ) -> OutgoingCall:
        while True:
            channel = await self._links.to(contact)
            self._check_offers(called.method, channel.peer)
            call = await channel.open(
                called.path,
                body,
                streamed=called.method.streamed,
                deadline=deadline,
                trace=trace,
            )
            if call is not None:
                return call
            # The link was given up while this waited for its turn.

    def _check_offers(self, method: Method, peer: RemotePeer) -> None:
        """Say nothing to a peer whose certificate does not make it one that offers this.

        A password that is sent to nobody but a certified gateway cannot be collected by anybody
        else, whatever led this peer there.
        """
        role = None if peer.certificate is None else peer.certificate.role
        if role not in method.offered_by:
            raise PeerProtocolError(
                f"{peer.peer_id.short} is {role or 'no member'} and may not be asked "
                f"`{method.path}`: nothing was sent to it"
            )


def _no_answer(called: _Called, contact: Contact, error: Exception) -> PeerProtocolError:
    return PeerProtocolError(
        f"{contact.peer_id.short} answered `{called.path}` with what is no answer to it "
        f"({error!s:.200}): update the older peer"
    )


def _late(called: _Called, contact: Contact, seconds: float) -> PeerTimeoutError:
    return PeerTimeoutError(
        f"{contact.peer_id.short} did not answer `{called.path}` within {seconds:.3g} s"
    )


def _report(error: BaseException) -> None:
    # The text of an exception may quote what a peer sent.
    _LOG.error("background work of the mesh's calls failed: %s", type(error).__name__)
