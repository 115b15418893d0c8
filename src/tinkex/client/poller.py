"""Fetch the result of a request the server works on: `retrieve_future` until there is one.

Owns what each answer means and how long to wait before the next question:

| answer | what happens |
|---|---|
| the result | it is decoded and returned |
| a body with the key `error` | `RequestFailedError` with its category, at once |
| `try_again`, 408 | asked again at once, but never sooner than the floor interval |
| `complete_metadata` | asked for the payload, once there is room for it |
| 409, 429, 5xx, no answer | back-off, doubling with jitter; any good answer resets it |
| 402 | a pause between questions, as long as the server's client config allows |
| 410 | `FutureExpiredError`: whether to submit the operation again is not decided here |
| 400, an answer out of place | a few more tries with back-off, then its error |
| any other status | its error, at once |

`x-should-retry` overrides the two middle rows for 4xx and 5xx. There is no end to it but the
result: the caller's time-out cancels it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

import orjson

from tinkex.client.retry import Failure
from tinkex.client.transport import HttpRequest, Reply, error_from_reply
from tinkex.errors import (
    APIConnectionError,
    APIResponseValidationError,
    CertificateError,
    FutureExpiredError,
    RequestFailedError,
    TinkerError,
)
from tinkex.types import QueueState, RequestErrorCategory
from tinkex.wire import endpoints
from tinkex.wire import headers as names

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from random import Random

    from tinkex._clock import Clock
    from tinkex.client.budget import Budget

T = TypeVar("T")

_LOG = logging.getLogger("tinkex.client")


@dataclass(frozen=True, slots=True)
class PollPolicy:
    """Every interval of the polls, in seconds."""

    floor: float = 0.5
    """Between the starts of two polls of one future."""
    timeout: float = 45.0
    """Of one poll; a server holds it for about 30."""
    telling_timeout: float = 5.0
    """Of telling the server which results were fetched."""
    initial_delay: float = 1.0
    """Of the back-off; doubles with each failure in a row."""
    max_delay: float = 30.0
    """The doubling stops here."""
    jitter: float = 0.25
    """Up to this share of the delay is taken off it at random."""
    bad_answers: int = 3
    """How many 400s or misplaced answers in a row are asked again."""
    billing_delay: float = 5.0
    """Between polls while the account is blocked."""
    billing_limit: float = 3600.0
    """How long a blocked account is waited for."""


class QueueStateObserver(Protocol):
    """Is told why a request waits."""

    def on_queue_state_change(
        self, queue_state: QueueState, queue_state_reason: str | None
    ) -> None:
        """Take note of the new state."""
        ...


class QueueWatch:
    """Tells an observer about the queue state of one client, once per change.

    Args:
        observer: is told.
        emit: sends the event `future.queue_state`.
    """

    def __init__(self, observer: QueueStateObserver, emit: Callable[..., None]) -> None:
        self._observer = observer
        self._emit = emit
        self._last = QueueState.ACTIVE

    def report(self, state: QueueState, reason: str | None = None) -> None:
        """Note the state an answer carried; an observer that raises breaks nothing."""
        if state == self._last:
            return
        self._last = state
        self._emit("future.queue_state", queue_state=state.value, reason=reason)
        try:
            self._observer.on_queue_state_change(state, reason)
        except Exception:  # noqa: BLE001 - it is the user's code
            _LOG.exception("The queue-state observer failed")


@dataclass(frozen=True, slots=True)
class PendingResult(Generic[T]):
    """A request the server has accepted, and how to read what it will come to."""

    request_id: str
    request_type: str
    """Name of the operation in the header `X-Tinker-Request-Type`."""
    decode: Callable[[Reply], T]
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of every poll."""
    roundtrip: float = 0.0
    """Seconds it took to submit the request."""
    watch: QueueWatch | None = None


_DONE_ONCE = frozenset({"ForwardBackward", "OptimStep"})
"""What changes a training run each time that it is submitted."""
_DONE = (
    "It was done, as far as is known: submitted again, it would be done twice. Go on without its "
    "result, or from a checkpoint."
)

# --- what an answer means ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """The result is in the answer."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Waiting:
    """No result yet."""

    state: QueueState | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class MetadataOnly:
    """The result is there, and this large; ask again for it."""

    size: int


@dataclass(frozen=True, slots=True)
class Trouble:
    """No result this time."""

    kind: Literal["transient", "bad", "unpaid", "final"]
    error: TinkerError
    told_delay: float | None = None


def judge(
    reply: Reply, request_id: str, request_type: str = ""
) -> Ready | Waiting | MetadataOnly | Trouble:
    """Say what one answer to `retrieve_future` means."""
    if reply.status == 408:
        return _waiting(_json_object(reply))
    if reply.status >= 300:
        return judge_error(reply, request_id, request_type)
    if "protobuf" in reply.content_type:
        return Ready(reply)
    answer = _json_object(reply)
    if answer is None:
        return Trouble("bad", _misplaced(reply, request_id, "is no JSON object"))
    if "error" in answer:
        return Trouble("final", _failure(answer, request_id))
    if answer.get("type") == "try_again":
        return _waiting(answer)
    if answer.get("status") == "complete_metadata":
        size = answer.get("response_payload_size")
        return MetadataOnly(size if isinstance(size, int) and size > 0 else 0)
    return Ready(reply)


def judge_error(reply: Reply, request_id: str, request_type: str = "") -> Trouble:
    """Say what an answer with an error status means."""
    if reply.status == 410:
        return Trouble(
            "final",
            FutureExpiredError(
                "The server no longer holds the result of this request. "
                + (_DONE if request_type in _DONE_ONCE else "Submit it again."),
                request_id=request_id,
            ),
        )
    error = error_from_reply(reply)
    failure = Failure(reply.status, reply.headers, received_at=reply.received_at)
    if reply.status == 402:
        return Trouble("unpaid", error)
    if failure.may_be_repeated():
        return Trouble("transient", error, failure.told_delay(60.0))
    return Trouble("bad" if reply.status == 400 else "final", error)


def _waiting(answer: Mapping[str, Any] | None) -> Waiting:
    state = (answer or {}).get("queue_state")
    reason = (answer or {}).get("queue_state_reason")
    return Waiting(
        QueueState.parse(state) if isinstance(state, str) else None,
        reason if isinstance(reason, str) else None,
    )


def _failure(answer: Mapping[str, Any], request_id: str) -> RequestFailedError:
    text = answer["error"]
    category = RequestErrorCategory.parse(str(answer.get("category", "")))
    message = f"The request failed: {text or 'the server gives no reason'}"
    return RequestFailedError(message, request_id, category)


def _misplaced(reply: Reply, request_id: str, what: str) -> APIResponseValidationError:
    return APIResponseValidationError(
        f"The answer to retrieve_future {what} (content type {reply.content_type or 'missing'!r}). "
        "Does the base URL lead to a Tinker server?",
        status_code=reply.status,
        response=lambda: reply.response,
        request_id=request_id,
    )


def _json_object(reply: Reply) -> dict[str, Any] | None:
    try:
        answer = orjson.loads(reply.body)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


# --- when to ask again -------------------------------------------------------


class Troubles:
    """What went wrong in a row, and how long to wait for it.

    Args:
        policy: every interval.
        clock: tells how long an account has been blocked.
        rng: source of the jitter.
    """

    def __init__(self, policy: PollPolicy, clock: Clock, rng: Random) -> None:
        self._policy = policy
        self._clock = clock
        self._rng = rng
        self.answered()

    def answered(self) -> None:
        """Forget them: the server works."""
        self._failures = 0
        self._bad_answers = 0
        self._unpaid_since: float | None = None
        self.first = False
        """Whether there was one alone, or the account has only now been found blocked."""

    def delay(self, trouble: Trouble) -> float | None:
        """Count one; return the seconds to wait, or None when it is the end."""
        policy = self._policy
        if trouble.kind == "final":
            return None
        if trouble.kind == "unpaid":
            now = self._clock.monotonic()
            self.first = self._unpaid_since is None
            if self._unpaid_since is None:
                self._unpaid_since = now
            return policy.billing_delay if now - self._unpaid_since < policy.billing_limit else None
        if trouble.kind == "bad":
            self._bad_answers += 1
            if self._bad_answers > policy.bad_answers:
                return None
        else:
            self._failures += 1
        self.first = self._failures + self._bad_answers == 1
        if trouble.told_delay is not None:
            return max(trouble.told_delay, policy.floor)
        exponent = min(self._failures + self._bad_answers - 1, 32)
        delay = min(policy.initial_delay * 2.0**exponent, policy.max_delay)
        return max(delay * (1.0 - policy.jitter * self._rng.random()), policy.floor)


class _Poll:
    """The state of one poll: what was asked when, and what went wrong in a row."""

    def __init__(self, troubles: Troubles, payload_size: int | None) -> None:
        self.troubles = troubles
        self.iteration = 0
        self.asked_at: float | None = None
        self.payload_size = payload_size


class Poller:
    """Asks for results on behalf of one connection.

    Args:
        send: sends one request and returns the reply, of whatever status.
        clock: waits.
        rng: source of the jitter.
        emit: sends an event: `emit(name, **attributes)`.
        payloads: bytes of results that may be on their way at once.
        policy: every interval.
    """

    def __init__(
        self,
        send: Callable[[HttpRequest], Awaitable[Reply]],
        clock: Clock,
        rng: Random,
        emit: Callable[..., None],
        payloads: Budget,
        policy: PollPolicy,
    ) -> None:
        self._send = send
        self._clock = clock
        self._rng = rng
        self._emit = emit
        self._payloads = payloads
        self.policy = policy

    def troubles(self) -> Troubles:
        """Begin to count troubles."""
        return Troubles(self.policy, self._clock, self._rng)

    async def fetch(self, pending: PendingResult[T], payload_size: int | None = None) -> T:
        """Return the result, however long it takes.

        Args:
            pending: what is asked for.
            payload_size: bytes of the result, 0 if unknown, where it is known to be there.

        Raises:
            RequestFailedError: the operation failed.
            FutureExpiredError: the server forgot it.
            APIStatusError: the server refuses to say.
            APIResponseValidationError: what it says cannot be understood.
        """
        poll = _Poll(self.troubles(), payload_size)
        while True:
            answer = await self._ask(poll, pending)
            if isinstance(answer, Ready):
                self._report(pending, Waiting(QueueState.ACTIVE, None))
                return pending.decode(answer.reply)
            if isinstance(answer, Trouble):
                await self._recover(poll, pending, answer)
            elif isinstance(answer, MetadataOnly) and poll.payload_size is not None:
                error = "announced the result twice and did not send it"
                await self._recover(poll, pending, self._bad(pending, error))
            else:
                poll.troubles.answered()
                if isinstance(answer, MetadataOnly):
                    poll.payload_size = answer.size
                else:
                    self._report(pending, answer)
                    await self._keep_floor(poll)

    async def _ask(
        self, poll: _Poll, pending: PendingResult[T]
    ) -> Ready | Waiting | MetadataOnly | Trouble:
        """Ask once; no budget is held when this returns."""
        poll.asked_at = self._clock.monotonic()
        request = self._request(poll, pending)
        poll.iteration += 1
        try:
            if poll.payload_size:
                async with self._payloads.hold(poll.payload_size):
                    reply = await self._send(request)
            else:
                reply = await self._send(request)
        except CertificateError as error:
            return Trouble("final", error)
        except APIConnectionError as error:
            return Trouble("transient", error)
        return judge(reply, pending.request_id, pending.request_type)

    def _request(self, poll: _Poll, pending: PendingResult[T]) -> HttpRequest:
        body = {
            "request_id": pending.request_id,
            "allow_metadata_only": poll.payload_size is None,
        }
        headers = {
            **pending.headers,
            names.REQUEST_ITERATION: str(poll.iteration),
            names.REQUEST_TYPE: pending.request_type,
        }
        if poll.iteration == 0:
            headers[names.CREATE_PROMISE_ROUNDTRIP_TIME] = str(pending.roundtrip)
        return HttpRequest(
            method="POST",
            path=endpoints.RETRIEVE_FUTURE.path,
            kind=endpoints.RETRIEVE_FUTURE.operation.value,
            body=orjson.dumps(body),
            headers=headers,
            timeout=self.policy.timeout,
        )

    async def _recover(self, poll: _Poll, pending: PendingResult[T], trouble: Trouble) -> None:
        """Wait as long as the trouble asks for, or raise its error."""
        delay = poll.troubles.delay(trouble)
        self._emit(
            "future.poll",
            request_id=pending.request_id,
            error=str(trouble.error),
            attempt=poll.iteration,
            delay=delay,
        )
        if delay is None:
            expired = isinstance(trouble.error, FutureExpiredError)
            self._emit(
                "future.expired" if expired else "future.failed",
                request_id=pending.request_id,
                error=str(trouble.error),
            )
            if isinstance(trouble.error, RequestFailedError):
                self._report(pending, Waiting(QueueState.ACTIVE, None))
            raise trouble.error
        if poll.troubles.first:
            _LOG.warning("Waiting for %s: %s", pending.request_type, trouble.error)
        await self._clock.sleep(delay)

    async def _keep_floor(self, poll: _Poll) -> None:
        assert poll.asked_at is not None
        early = poll.asked_at + self.policy.floor - self._clock.monotonic()
        if early > 0:
            await self._clock.sleep(early)

    def _report(self, pending: PendingResult[T], answer: Waiting) -> None:
        if pending.watch is not None and answer.state is not None:
            pending.watch.report(answer.state, answer.reason)

    def _bad(self, pending: PendingResult[T], what: str) -> Trouble:
        return Trouble(
            "bad",
            APIResponseValidationError(
                f"The server {what}.", status_code=200, request_id=pending.request_id
            ),
        )
