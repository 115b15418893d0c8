"""One completion at processors: begun at one, hedged by a second, gone on with at another.

Owns the attempts: whom to ask, when to ask a second one, what a failure says of a processor, and
when there is no going on. What may be passed on is `relay`'s business, who is chosen `balancer`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from http import HTTPStatus

from tinkex._clock import Clock
from tinkex._timers import Timers
from tinkex.errors import (
    APIStatusError,
    ConfigurationError,
    EngineBusyError,
    InputError,
    LinkClosedError,
    PeerProtocolError,
    PeerUnreachableError,
    RateLimitError,
    TinkerError,
    UnsupportedError,
    status_error,
)
from tinkex.mesh.api.completion import PieceMessage
from tinkex.mesh.api.gateway import Accepted, Resumed
from tinkex.mesh.api.processor import Begun, Ended, ProcessorApi, Work, WorkEvent
from tinkex.mesh.balancer import Balancer, Offer, Place, Shortage, Wanted
from tinkex.mesh.identity import PeerId
from tinkex.mesh.positive import not_positive
from tinkex.mesh.rpc.deadline import Deadline
from tinkex.mesh.rpc.peers import Peers
from tinkex.mesh.tasks import Tasks
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.workers.request_log import trace_of
from tinkex.mesh.workers.serving.relay import Relay
from tinkex.openai_api.refusal import model_not_found

ENDING_S = 1.0
"""How long the end of a stream is waited for, when its client has all pieces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchConfig:
    """How patient a gateway is with processors. Times are in seconds.

    Raises:
        ConfigurationError: naming every value that cannot be.
    """

    attempts: int = 4
    """Processors that one request is sent to, hedges included."""
    hedge_after_s: float = 1.0
    """A second processor is asked when the first has not begun by then."""
    idle_timeout_s: float = 60.0
    """A stream of which nothing comes for so long is lost."""
    retry_after_s: float = 2.0
    """What callers are told, when no processor takes more."""

    def __post_init__(self) -> None:
        if problems := not_positive(self):
            raise ConfigurationError(problems)


@dataclass(slots=True, kw_only=True)
class Job:
    """A request that was let in."""

    request_id: str
    wanted: Wanted
    relay: Relay
    sequences: int
    work: Callable[[Offer], Work]
    """Makes the message for a processor, with a permit of its own."""
    deadline: float
    """Monotonic seconds."""
    accepted: bool = False
    reproducible: bool = True
    attempts: int = 0
    last_error: TinkerError | None = None
    tried: set[PeerId] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class _Stream:
    """A processor that has begun."""

    offer: Offer
    begun: Begun
    events: AsyncGenerator[WorkEvent, None]
    place: Place

    async def close(self) -> None:
        """End it at the other end too; waits for nothing."""
        self.place.release()
        await self.events.aclose()


class Dispatch:
    """Sends requests to processors.

    Args:
        peers: calls them.
        balancer: chooses them.
        contact_of: says where a processor is; None once it is forgotten.
        tasks: owns hedges that nobody waits for any more.
        timers: of the event loop.
        clock: tells the time.
        config: how patient to be.
    """

    def __init__(
        self,
        peers: Peers,
        balancer: Balancer,
        contact_of: Callable[[PeerId], Contact | None],
        tasks: Tasks,
        timers: Timers,
        *,
        clock: Clock,
        config: DispatchConfig,
    ) -> None:
        self._peers = peers
        self._balancer = balancer
        self._contact_of = contact_of
        self._tasks = tasks
        self._timers = timers
        self._clock = clock
        self._config = config

    async def events(self, job: Job) -> AsyncGenerator[Accepted | PieceMessage | Resumed, None]:
        """Give what the client of a request gets of it, until it is complete.

        Raises:
            TinkerError: it cannot be done, or not be gone on with.
        """
        while True:
            stream = await self._begin(job)
            job.relay.begin(stream.begun)
            try:
                yield self._opening(job, stream)
                async with aclosing(self._pieces(job.relay, stream)) as pieces:
                    async for piece in pieces:
                        yield piece
            except TinkerError as error:
                another = self._note(job, stream.offer, error)
                if not job.relay.complete:
                    if not another:
                        raise
                    self._check_resumable(job, stream, error)
                    continue
            finally:
                await stream.close()
            return

    def _opening(self, job: Job, stream: _Stream) -> Accepted | Resumed:
        """Say who goes on, and bind those after it to the same weights."""
        begun, first = stream.begun, not job.accepted
        same = job.wanted.fingerprint in {None, begun.fingerprint}
        job.reproducible = job.reproducible and begun.deterministic and same
        if not first:
            return Resumed(reproducible=job.reproducible)
        job.accepted = True
        job.wanted = replace(
            job.wanted,
            revision=stream.offer.models[job.wanted.model],
            fingerprint=begun.fingerprint,
            waits=True,
        )
        return Accepted(
            request_id=job.request_id,
            prompt_tokens=begun.prompt_tokens,
            reproducible=job.reproducible,
        )

    async def _pieces(self, relay: Relay, stream: _Stream) -> AsyncGenerator[PieceMessage, None]:
        while not relay.complete:
            try:
                event = await anext(stream.events)
            except StopAsyncIteration:
                raise PeerProtocolError("a processor's stream stopped without its end") from None
            if isinstance(event, PieceMessage):
                given = relay.take(event)
            elif isinstance(event, Ended):
                given = relay.end(event)
                for piece in given:
                    yield piece
                return
            else:
                raise PeerProtocolError("a processor began twice")
            for piece in given:
                yield piece
        await self._ending(relay, stream)

    async def _ending(self, relay: Relay, stream: _Stream) -> None:
        """Hear what the processor claims, though the client has everything."""
        late = LinkClosedError("a processor did not end its stream")
        with Deadline(self._timers, ENDING_S, lambda: late):
            event = await anext(stream.events, None)
        if not isinstance(event, Ended):
            raise PeerProtocolError("a processor sent something after the end")
        relay.end(event)

    def _check_resumable(self, job: Job, stream: _Stream, error: TinkerError) -> None:
        """Refuse to go on where tokens would not follow from those that the client has."""
        if job.relay.sent and not stream.begun.deterministic:
            raise status_error(
                502,
                "The processor was lost in the middle of this completion, and its back end cannot "
                "go on where another stopped: send the request again.",
            ) from error

    async def _begin(self, job: Job) -> _Stream:
        """Find a processor that begins; a second one is asked when the first takes long."""
        changed, late = asyncio.Event(), asyncio.Event()

        def hedge() -> None:
            late.set()
            changed.set()

        def ask(offer: Offer) -> None:
            running.append(self._ask(job, offer, changed.set))

        running: list[asyncio.Task[_Stream | None]] = []
        timer = self._timers.call_later(self._config.hedge_after_s, hedge)
        try:
            ask(self._choose(job))
            while True:
                await changed.wait()
                changed.clear()
                for done in [one for one in running if one.done()]:
                    running.remove(done)
                    if (stream := done.result()) is not None:
                        return stream
                if not running:
                    ask(self._choose(job))
                elif late.is_set() and (second := self._choose_second(job)) is not None:
                    late.clear()
                    ask(second)
        finally:
            timer.cancel()
            for one in running:
                self._tasks.spawn(_abandon(one), name="abandon a hedge")

    def _choose(self, job: Job) -> Offer:
        if job.attempts < self._config.attempts:
            choice = self._balancer.choose(
                replace(job.wanted, excluded=job.tried), self._clock.monotonic()
            )
            if isinstance(choice, Offer):
                return choice
        else:
            choice = Shortage.AWAY
        raise self._shortage(job, choice) from job.last_error

    def _choose_second(self, job: Job) -> Offer | None:
        try:
            return self._choose(job)
        except TinkerError:
            return None

    def _shortage(self, job: Job, shortage: Shortage) -> TinkerError:
        after = self._config.retry_after_s * 1000
        if shortage is Shortage.UNKNOWN and not job.accepted:
            return model_not_found(
                f"No processor of this mesh runs {job.wanted.model!r} now; the list of models has "
                "those that do."
            )
        if shortage is Shortage.FULL or _is_busy(job.last_error):
            return status_error(
                429, "Every processor is busy: try again later.", retry_after_ms=after
            )
        return status_error(
            503,
            "No processor is left that could take or go on with this request: try again later.",
            retry_after_ms=after,
        )

    def _ask(
        self, job: Job, offer: Offer, on_end: Callable[[], None]
    ) -> asyncio.Task[_Stream | None]:
        job.attempts += 1
        job.tried.add(offer.peer)
        place = self._balancer.take(offer, job.sequences)
        asking = asyncio.create_task(
            self._asked(job, place, on_end), name=f"ask {offer.peer.short}"
        )
        # One that is cancelled before its first step does not release it itself.
        asking.add_done_callback(lambda ended: place.release() if ended.cancelled() else None)
        return asking

    async def _asked(self, job: Job, place: Place, on_end: Callable[[], None]) -> _Stream | None:
        """Begin at one processor; None when another is to be tried.

        `on_end` is called within the last step, so that who waits goes on in the next turn.

        Raises:
            TinkerError: the request is at fault, or its time is over.
        """
        offer, stream = place.offer, None
        try:
            stream = await self._stream(job, place)
        except TinkerError as error:
            if not self._note(job, offer, error):
                raise
        finally:
            if stream is None:
                place.release()
            on_end()
        return stream

    async def _stream(self, job: Job, place: Place) -> _Stream:
        events = self._open(job, place.offer)
        try:
            return _Stream(place.offer, await self._begun(job, place.offer, events), events, place)
        except BaseException:
            await events.aclose()
            raise

    def _open(self, job: Job, offer: Offer) -> AsyncGenerator[WorkEvent, None]:
        contact = self._contact_of(offer.peer)
        if contact is None:
            raise PeerUnreachableError(f"processor {offer.peer.short} has left")
        return self._peers.stream(
            contact,
            ProcessorApi.rpc_complete,
            job.work(offer),
            timeout_s=max(0.001, job.deadline - self._clock.monotonic()),
            idle_timeout_s=self._config.idle_timeout_s,
            trace=trace_of(job.request_id),
        )

    async def _begun(
        self, job: Job, offer: Offer, events: AsyncGenerator[WorkEvent, None]
    ) -> Begun:
        asked_at = self._clock.monotonic()
        begun = await anext(events, None)
        if not isinstance(begun, Begun):
            raise PeerProtocolError("a processor's stream does not begin with its beginning")
        job.relay.check_begun(begun)
        self._balancer.answered(offer.peer, self._clock.monotonic() - asked_at)
        return begun

    def _note(self, job: Job, offer: Offer, error: TinkerError) -> bool:
        """Take note of what a failure says of a processor.

        Returns:
            Whether another processor may do what this one did not.

        Raises:
            APIStatusError: 504, the time is over.
        """
        job.last_error = error
        now = self._clock.monotonic()
        if isinstance(error, PeerProtocolError):
            self._balancer.misbehaved(offer.peer, now)
        elif _is_busy(error):
            pass
        elif _is_of_the_request(error):
            return False
        else:
            self._balancer.failed(offer.peer, now)
        if job.deadline <= now and not job.relay.complete:
            raise status_error(504, "The time for this request is over.") from error
        return True


def _is_busy(error: TinkerError | None) -> bool:
    return isinstance(error, EngineBusyError | RateLimitError)


def _is_of_the_request(error: TinkerError) -> bool:
    """Whether every processor would say the same. A model or adapter may be gone from one."""
    if isinstance(error, APIStatusError):
        return error.status_code < 500 and error.status_code != HTTPStatus.NOT_FOUND
    return isinstance(error, InputError | UnsupportedError)


async def _abandon(ask: asyncio.Task[_Stream | None]) -> None:
    """End what nobody waits for any more, whether it has begun or not."""
    ask.cancel()
    try:
        stream = await ask
    except (asyncio.CancelledError, TinkerError):
        return
    if stream is not None:
        await stream.close()
