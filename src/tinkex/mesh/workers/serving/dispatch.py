"""One completion at processors: begun at one, hedged by a second, gone on with at another.

Owns the attempts: whom to ask, when to ask a second one, what a failure says of a processor, and
when there is no going on. What may be passed on is `relay`'s business, who is chosen `balancer`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import NamedTuple

import msgspec

from tinkex._clock import Clock
from tinkex._timers import Timers
from tinkex.errors import (
    APIStatusError,
    ConfigurationError,
    EngineBusyError,
    EngineError,
    InputError,
    LinkClosedError,
    PeerProtocolError,
    PeerUnreachableError,
    RateLimitError,
    TinkerError,
    TrustError,
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
from tinkex.mesh.rpc.replies import Replies
from tinkex.mesh.tasks import Tasks
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.workers.request_log import trace_of
from tinkex.mesh.workers.serving.relay import Relay
from tinkex.mesh.workers.too_long import told_as_too_long
from tinkex.openai_api.refusal import is_context_length_exceeded, model_not_found

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


class Job(msgspec.Struct, kw_only=True, eq=False):
    """A request that was let in."""

    request_id: str
    wanted: Wanted
    relay: Relay
    sequences: int
    work: Callable[[Offer], Work]
    """Makes the message for a processor, with a permit of its own."""
    asked: Callable[[], None]
    """Told when the request has left for a processor."""
    deadline: float
    """Monotonic seconds."""
    tried: set[PeerId]
    """Processors that were asked; what `wanted` excludes."""
    accepted: bool = False
    lost: bool = False
    """Whether a processor that had begun failed: it had room for the request, as far as it said."""
    reproducible: bool = True
    attempts: int = 0
    last_error: TinkerError | None = None
    too_long: TinkerError | None = None
    """What a processor said whose context it does not fit; `wanted` asks for a longer one."""


class _Attempt(msgspec.Struct, eq=False):
    """A processor that was asked."""

    offer: Offer
    place: Place
    asked_at: float
    replies: Replies[WorkEvent] | None = None
    """None where it could not be asked."""
    opening: asyncio.Task[None] | None = None
    """While there is no link."""
    error: Exception | None = None
    """Why it could not be asked, or did not begin."""
    ended: bool = False
    """Whether its last word has come."""

    def take(self) -> WorkEvent | None:
        """Take what it says, if that is here.

        Raises:
            TinkerError: it failed.
            PeerProtocolError: its stream stopped.
        """
        if self.error is not None:
            raise self.error
        if self.replies is None or not self.replies.sent:
            return None
        event = self.replies.take()
        if event is None and self.replies.ended:
            raise PeerProtocolError("a processor's stream stopped without its end")
        return event

    async def next(self) -> WorkEvent:
        """Wait for what it says.

        Raises:
            TinkerError: it failed.
            PeerProtocolError: its stream stopped.
        """
        event = self.take()
        if event is None:
            assert self.replies is not None, "it has begun"
            event = await self.replies.next()
        if event is None:
            raise PeerProtocolError("a processor's stream stopped without its end")
        return event

    def close(self) -> None:
        """End it at the other end too. Harmless twice."""
        self.place.release()
        if self.opening is not None:
            self.opening.cancel()
        if self.replies is not None:
            self.replies.close()


class _Stream(NamedTuple):
    """A processor that has begun."""

    attempt: _Attempt
    begun: Begun


class Dispatch:
    """Sends requests to processors.

    Args:
        peers: calls them.
        balancer: chooses them.
        contact_of: says where a processor is; None once it is forgotten.
        tasks: owns the making of links.
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
        relay = job.relay
        while True:
            stream = await self._begin(job)
            attempt = stream.attempt
            relay.begin(stream.begun)
            try:
                yield self._opening(job, stream)
                while not (relay.complete or attempt.ended):
                    for piece in self._given(relay, attempt, await attempt.next()):
                        yield piece
                if not attempt.ended:
                    await self._ending(relay, attempt)
            except TinkerError as error:
                another = self._note(job, attempt.offer, error)
                # A foreign server says that a request is too long once its processor has begun.
                too_long = is_context_length_exceeded(error)
                job.lost = job.lost or not too_long
                if not relay.complete:
                    if not another or (too_long and relay.sent):
                        raise
                    self._check_resumable(job, stream, error)
                    continue
            finally:
                attempt.close()
            return

    def _opening(self, job: Job, stream: _Stream) -> Accepted | Resumed:
        """Say who goes on, and bind those after it to the same weights."""
        begun, first = stream.begun, not job.accepted
        same = job.wanted.fingerprint in {None, begun.fingerprint}
        job.reproducible = job.reproducible and begun.deterministic and same
        if not first:
            return Resumed(reproducible=job.reproducible)
        job.accepted = True
        job.wanted = msgspec.structs.replace(
            job.wanted,
            revision=stream.attempt.offer.models[job.wanted.model],
            fingerprint=begun.fingerprint,
            waits=True,
        )
        return Accepted(
            request_id=job.request_id,
            prompt_tokens=begun.prompt_tokens,
            reproducible=job.reproducible,
        )

    @staticmethod
    def _given(relay: Relay, attempt: _Attempt, event: WorkEvent) -> tuple[PieceMessage, ...]:
        """Take what a processor says; returns what the client gets now."""
        if isinstance(event, PieceMessage):
            return relay.take(event)
        if isinstance(event, Ended):
            attempt.ended = True
            return relay.end(event)
        raise PeerProtocolError("a processor began twice")

    async def _ending(self, relay: Relay, attempt: _Attempt) -> None:
        """Hear what the processor claims, though the client has everything."""
        event = attempt.take()
        if event is None:
            late = LinkClosedError("a processor did not end its stream")
            async with Deadline(self._timers, ENDING_S, lambda: late):
                event = await attempt.next()
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
        changed = asyncio.Event()
        late = False

        def hedge() -> None:
            nonlocal late
            late = True
            changed.set()

        running = [self._ask(job, self._choose(job), changed)]
        timer = self._timers.call_later(self._config.hedge_after_s, hedge)
        try:
            job.asked()  # not before: what that takes would hold the request up
            while True:
                await changed.wait()
                changed.clear()
                for attempt in list(running):
                    begun = self._begun(job, attempt)
                    if begun is not None:
                        running.remove(attempt)
                        return _Stream(attempt, begun)
                    if attempt.error is not None:
                        running.remove(attempt)
                if not running:
                    running.append(self._ask(job, self._choose(job), changed))
                elif late and (second := self._choose_second(job)) is not None:
                    late = False
                    running.append(self._ask(job, second, changed))
        finally:
            timer.cancel()
            now = self._clock.monotonic()
            for attempt in running:
                attempt.close()
                self._balancer.unanswered(attempt.offer.peer, now - attempt.asked_at, now)

    def _choose(self, job: Job) -> Offer:
        if job.attempts < self._config.attempts:
            choice = self._balancer.choose(job.wanted, self._clock.monotonic())
            if isinstance(choice, Offer):
                return choice
            if choice is Shortage.UNKNOWN and job.too_long is not None and not job.lost:
                raise job.too_long  # there is no longer context
        else:
            choice = Shortage.AWAY
        raise self._shortage(job, choice) from job.last_error

    def _choose_second(self, job: Job) -> Offer | None:
        try:
            return self._choose(job)
        except TinkerError:
            return None

    def _shortage(self, job: Job, shortage: Shortage) -> TinkerError:
        if shortage is Shortage.UNKNOWN and not job.accepted:
            return model_not_found(
                f"No processor of this mesh runs {job.wanted.model!r} now; the list of models has "
                "those that do."
            )
        said = None if job.last_error is None else job.last_error.retry_after_ms
        after = max(self._config.retry_after_s * 1000, said or 0.0)
        if shortage is Shortage.FULL or _is_busy(job.last_error):
            return status_error(
                429, "Every processor is busy: try again later.", retry_after_ms=after
            )
        # What the last one said tells most; links' words would name addresses, a disk's its paths.
        why = f" ({job.last_error})" if type(job.last_error) in {EngineError, TrustError} else ""
        return status_error(
            503,
            f"No processor is left that could take or go on with this request{why}: try again "
            "later.",
            retry_after_ms=after,
        )

    def _ask(self, job: Job, offer: Offer, changed: asyncio.Event) -> _Attempt:
        """Ask a processor: at once where there is a link to it, else as soon as there is."""
        job.attempts += 1
        job.tried.add(offer.peer)
        place = self._balancer.take(offer, job.sequences)
        attempt = _Attempt(offer, place, self._clock.monotonic())
        try:
            attempt.replies = replies = self._open(job, offer)
            if replies.sent:
                replies.listen(changed.set)
            else:
                attempt.opening = self._tasks.spawn(
                    self._link(attempt, replies, changed), name=f"link to {offer.peer.short}"
                )
                attempt.opening.add_done_callback(partial(self._linked, attempt, changed))
        except TinkerError as error:
            attempt.error = error
            changed.set()
        except BaseException:
            attempt.close()
            raise
        return attempt

    @staticmethod
    async def _link(attempt: _Attempt, replies: Replies[WorkEvent], changed: asyncio.Event) -> None:
        try:
            await replies.open()
            replies.listen(changed.set)
        except Exception as error:  # noqa: BLE001 - raised where the attempt is looked at
            attempt.error = error
            changed.set()

    @staticmethod
    def _linked(attempt: _Attempt, changed: asyncio.Event, opening: asyncio.Task[None]) -> None:
        """Were it cancelled, and before its first step: nobody waits for ever."""
        if opening.cancelled() and attempt.error is None:
            attempt.error = LinkClosedError("this gateway stops")
            changed.set()

    def _open(self, job: Job, offer: Offer) -> Replies[WorkEvent]:
        contact = self._contact_of(offer.peer)
        if contact is None:
            raise PeerUnreachableError(f"processor {offer.peer.short} has left")
        with told_as_too_long():
            return self._peers.ask(
                contact,
                ProcessorApi.rpc_complete,
                job.work(offer),
                timeout_s=max(0.001, job.deadline - self._clock.monotonic()),
                idle_timeout_s=self._config.idle_timeout_s,
                trace=trace_of(job.request_id),
            )

    def _begun(self, job: Job, attempt: _Attempt) -> Begun | None:
        """Look whether a processor has begun; one that failed is closed, and has its error.

        Raises:
            TinkerError: the request is at fault, or its time is over.
        """
        try:
            begun = attempt.take()
            if begun is None:
                return None
            if not isinstance(begun, Begun):
                raise PeerProtocolError("a processor's stream does not begin with its beginning")
            job.relay.check_begun(begun)
        except TinkerError as error:
            attempt.error = error
            attempt.close()
            if not self._note(job, attempt.offer, error):
                raise
            return None
        now = self._clock.monotonic()
        self._balancer.answered(attempt.offer.peer, now - attempt.asked_at, now)
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
        elif is_context_length_exceeded(error):
            # Not all processors of a model need have one context.
            job.wanted, job.too_long = job.wanted.beyond(offer), error
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
