"""Accepted work and its results.

Owns the life of a future: pending, completed or failed, delivered, expired. A waiter is woken in
the moment its result comes; nothing polls. Knows nothing of what computes a result or of its bytes.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, OrderedDict
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from tinkex.errors import EngineError, InputError
from tinkex.server.refusal import MAX_WORDS, gone, not_found, shortened, try_later
from tinkex.types import RequestErrorCategory

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from tinkex._timers import Timer, Timers
    from tinkex.errors import TinkerError
    from tinkex.server.load.gate import KeyGate
    from tinkex.server.observe.futures import FutureWatch
    from tinkex.server.records.work import Work

REQUEST_ID_BYTES = 16
TOMBSTONES = 10_000
MAX_KEPT = 200_000
"""Outcomes kept, however small: each takes about `OVERHEAD_BYTES` besides its content."""
OVERHEAD_BYTES = 1600
BUSY_RETRY_S = 1.0


class Operation(Enum):
    """What a future is the result of."""

    CREATE_MODEL = "create_model"
    FORWARD_BACKWARD = "forward_backward"
    OPTIM_STEP = "optim_step"
    SAVE_WEIGHTS = "save_weights"
    LOAD_WEIGHTS = "load_weights"
    SAVE_WEIGHTS_FOR_SAMPLER = "save_weights_for_sampler"
    SAVE_WEIGHTS_EXTERNAL = "save_weights_external"
    UNLOAD_MODEL = "unload_model"
    SAMPLE = "sample"
    CREATE_CUSTOM_LOSS = "create_custom_loss"


def _without_ballast(error: TinkerError) -> TinkerError:
    """Return an error fit to be kept: without frames, and without a long piece of the request."""
    text = str(error)
    if len(text) > MAX_WORDS:
        kind = InputError if error.category == RequestErrorCategory.User else EngineError
        return kind(shortened(text))
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


class Waiter:
    """Somebody who waits on the event loop, and may be woken by whoever has a reason."""

    __slots__ = ("_woken",)

    def __init__(self) -> None:
        self._woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __await__(self) -> Generator[Any, None, None]:
        return self._woken.__await__()

    def wake(self) -> None:
        """End the wait; harmless when it has ended."""
        if not self._woken.done():
            self._woken.set_result(None)


class Keeper(Protocol):
    """Keeps the ends of requests where they outlive the process: the journal."""

    def finish(self, future: Future) -> asyncio.Future[None]:
        """Keep how a request ended; the future ends when that is on disk."""

    def forget(self, request_id: str) -> None:
        """Let go of how it ended."""


class Future:
    """One accepted request. Completed once, by whoever did the work."""

    __slots__ = (
        "_expiry",
        "_store",
        "_waiters",
        "accepted",
        "delivered",
        "ended",
        "error",
        "on_cancel",
        "on_finished",
        "operation",
        "owner",
        "request_bytes",
        "request_id",
        "result",
        "result_bytes",
        "work",
    )

    def __init__(
        self,
        store: FutureStore,
        owner: str,
        operation: Operation,
        request_bytes: int,
        request_id: str,
    ) -> None:
        self.request_id = request_id
        self.owner = owner
        self.operation = operation
        self.request_bytes = request_bytes
        """Size of the decoded request, in bytes; counted until the work is done."""
        self.result: Any = None
        self.result_bytes = 0
        """Estimated size of the result, in bytes."""
        self.error: TinkerError | None = None
        self.delivered = False
        self.accepted: asyncio.Future[None] | None = None
        """Ends when the request is kept on disk; None where it is not to be."""
        self.ended: asyncio.Future[None] | None = None
        """Ends when how it ended is; None where that is not to be, and before."""
        self.on_cancel: Callable[[], None] | None = None
        """Stops the work; None where it cannot be stopped."""
        self.on_finished: Callable[[Future], None] | None = None
        """Called once when it is done; set it before it can be."""
        self.work: Work | None = None
        """What the work takes, where that is written down."""
        self._store = store
        self._waiters: set[Waiter] = set()
        self._expiry: Timer | None = None

    @property
    def done(self) -> bool:
        """Whether it has a result or an error."""
        return self.result is not None or self.error is not None

    def complete(self, result: Any, *, size: int = 0) -> None:
        """Set the result, of about `size` bytes; ignored when done already."""
        if not self.done:
            self.result, self.result_bytes = result, size
            self._finish()

    def fail(self, error: TinkerError) -> None:
        """Set the error; ignored when done already.

        It is kept without the frames that it was raised in: they would hold the request's data.
        """
        if not self.done:
            self.error = _without_ballast(error)
            self.result_bytes = len(str(self.error))
            self._finish()

    def cancel(self, error: TinkerError) -> None:
        """Stop the work if it can be stopped, and fail with `error`."""
        if not self.done:
            if self.on_cancel is not None:
                self.on_cancel()
            self.fail(error)

    def wake(self) -> None:
        """Wake every waiter, done or not."""
        for waiter in self._waiters:
            waiter.wake()

    def add_waiter(self, waiter: Waiter) -> None:
        """Wake `waiter` when this is done, at once if it is already; `drop_waiter` ends that."""
        self._waiters.add(waiter)
        if self.done:
            waiter.wake()

    def drop_waiter(self, waiter: Waiter) -> None:
        """Forget a waiter."""
        self._waiters.discard(waiter)

    def mark_delivered(self) -> None:
        """Note that a reply with the result was sent; from now on it is kept briefly."""
        if not self.delivered:
            self.delivered = True
            self._store._delivered(self)  # noqa: SLF001 - the two classes are one mechanism

    def expire_after(self, seconds: float, timers: Timers, forget: Callable[[], None]) -> None:
        """Let `forget` be called in `seconds`, in place of any earlier arrangement."""
        self.stop_expiry()
        self._expiry = timers.call_later(seconds, forget)

    def stop_expiry(self) -> None:
        """Cancel the arrangement of `expire_after`."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _finish(self) -> None:
        self.on_cancel = None
        self._store._finished(self)  # noqa: SLF001 - as above
        self.wake()
        if self.on_finished is not None:
            self.on_finished(self)
        if self._store.on_finished is not None:
            self._store.on_finished(self)


class _Uncollected:
    """Outcomes that nobody fetched yet, by owner.

    Where they have to make room, those of who has most of them do: what one user leaves lying must
    not cost another a result.
    """

    def __init__(self) -> None:
        self._by_owner: dict[str, OrderedDict[str, Future]] = {}
        self._sizes: Counter[str] = Counter()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, future: Future) -> None:
        """Keep one."""
        self._by_owner.setdefault(future.owner, OrderedDict())[future.request_id] = future
        self._sizes[future.owner] += OVERHEAD_BYTES + future.result_bytes
        self._count += 1

    def remove(self, future: Future) -> bool:
        """Let go of one; say whether it was there."""
        mine = self._by_owner.get(future.owner)
        if mine is None or mine.pop(future.request_id, None) is None:
            return False
        self._count -= 1
        self._sizes[future.owner] -= OVERHEAD_BYTES + future.result_bytes
        if not mine:
            del self._by_owner[future.owner], self._sizes[future.owner]
        return True

    def next_to_go(self, spare: Future) -> Future | None:
        """Give the oldest of who has most, but never `spare`; None when there is no other."""
        for owner, _ in self._sizes.most_common(2):  # one of them is another owner
            oldest = next(iter(self._by_owner[owner].values()))
            if oldest is not spare:
                return oldest
        return None


class FutureStore:
    """All futures of a server, bounded in number (pending, kept), request bytes and result bytes.

    Args:
        timers: ends the life of results.
        delivered_ttl_s: seconds that a delivered result stays.
        undelivered_ttl_s: seconds that a result nobody fetched stays.
        max_open: futures that may be pending; more are refused with a 429.
        max_request_bytes: request data that may be pending; more is refused with a 429.
        max_result_bytes: results kept; above it some are dropped: the oldest that were delivered,
            then the oldest of the owner who has most.
    """

    def __init__(
        self,
        timers: Timers,
        *,
        delivered_ttl_s: float,
        undelivered_ttl_s: float,
        max_open: int,
        max_request_bytes: int,
        max_result_bytes: int,
    ) -> None:
        self.keeper: Keeper | None = None
        """Keeps the ends of accepted requests; None while nothing is to be kept."""
        self._timers = timers
        self._delivered_ttl_s = delivered_ttl_s
        self._undelivered_ttl_s = undelivered_ttl_s
        self._max_open = max_open
        self._max_request_bytes = max_request_bytes
        self._max_result_bytes = max_result_bytes
        self.on_finished: Callable[[Future], None] | None = None
        """Called once for every future, when it is done."""
        self.watch: FutureWatch | None = None
        """Told of every future's beginning and end."""
        self.gate: KeyGate | None = None
        """Holds each key to its limits."""
        self._futures: dict[str, Future] = {}
        self._kept = _Uncollected()
        self._kept_delivered: OrderedDict[str, Future] = OrderedDict()
        self._expired: OrderedDict[str, str] = OrderedDict()
        self.open_count = 0
        """Futures that are pending."""
        self.open_bytes = 0
        """Request data of the pending futures."""
        self.result_bytes = 0
        """Results kept, in bytes."""
        self._drained: Waiter | None = None
        self._left = 0

    def __len__(self) -> int:
        return len(self._futures)

    def check_room(self, request_bytes: int) -> None:
        """Refuse a request that does not fit now.

        Raises:
            Refusal: 429 when too much is pending, or the key has used what it may.
        """
        if self.gate is not None:
            self.gate.check()
        if self.open_count >= self._max_open:
            raise try_later(
                f"{self.open_count} requests are pending on this server. Wait and send again.",
                retry_after_s=BUSY_RETRY_S,
            )
        if self.open_bytes and self.open_bytes + request_bytes > self._max_request_bytes:
            raise try_later(
                f"{self.open_bytes} bytes of requests are pending on this server. "
                "Wait and send again.",
                retry_after_s=BUSY_RETRY_S,
            )

    def open(
        self,
        owner: str,
        operation: Operation,
        *,
        request_bytes: int = 0,
        request_id: str | None = None,
    ) -> Future:
        """Make a pending future, with an id of its own or that of a request accepted before."""
        name = request_id or f"req-{secrets.token_hex(REQUEST_ID_BYTES)}"
        future = Future(self, owner, operation, request_bytes, name)
        self._futures[future.request_id] = future
        self.open_count += 1
        self.open_bytes += request_bytes
        if self.watch is not None:
            self.watch.opened(future)
        if self.gate is not None:
            self.gate.opened(future)
        return future

    def restore(
        self,
        owner: str,
        operation: Operation,
        request_id: str,
        *,
        result: Any = None,
        error: TinkerError | None = None,
        size: int = 0,
    ) -> Future:
        """Make the future of a request accepted by an earlier process: ended, or pending again.

        Args:
            owner: whose it is.
            operation: what it is the result of.
            request_id: its id.
            result: what it came to, of about `size` bytes.
            error: why it failed. With neither it is pending.
            size: of the result.
        """
        future = self.open(owner, operation, request_id=request_id)
        if error is not None:
            future.fail(error)
        elif result is not None:
            future.complete(result, size=size)
        # Only now: how it ended is kept already.
        future.accepted = asyncio.get_running_loop().create_future()
        future.accepted.set_result(None)
        return future

    def failed(self, owner: str, operation: Operation, error: TinkerError) -> Future:
        """Make a future that has failed already."""
        future = self.open(owner, operation)
        future.fail(error)
        return future

    def discard(self, future: Future) -> None:
        """Forget a pending future whose request was not accepted after all."""
        if not future.done and self._futures.pop(future.request_id, None) is not None:
            self.open_count -= 1
            self.open_bytes -= future.request_bytes
            if self.watch is not None:
                self.watch.discarded(future)
            if self.gate is not None:
                self.gate.finished(future)
            future.wake()

    def get(self, owner: str, request_id: str) -> Future:
        """Return the owner's future.

        Raises:
            Refusal: 410 for one that has expired, 404 for one that never was or is another's.
        """
        future = self._futures.get(request_id)
        if future is not None and future.owner == owner:
            return future
        if self._expired.get(request_id) == owner:
            raise gone(
                f"The result of {request_id} was dropped: it is kept for "
                f"{self._delivered_ttl_s:g} s after delivery and {self._undelivered_ttl_s:g} s "
                "otherwise. Submit the request again."
            )
        raise not_found(f"There is no request {request_id!r} with this key.")

    def known(self, request_id: str) -> Future | None:
        """Return a future by id whoever owns it, or None when it has expired."""
        return self._futures.get(request_id)

    def forget_delivered(self, owner: str, request_id: str) -> None:
        """Drop a result that its client says it has; harmless for any other id."""
        future = self._kept_delivered.get(request_id)
        if future is not None and future.owner == owner:
            self._forget(future)

    @contextmanager
    def waiter(self, future: Future, seconds: float) -> Iterator[Waiter]:
        """Give something to await that ends when the future is done or woken, or in `seconds`."""
        waiter = Waiter()
        future.add_waiter(waiter)
        timer = None if future.done else self._timers.call_later(seconds, waiter.wake)
        try:
            yield waiter
        finally:
            if timer is not None:
                timer.cancel()
            future.drop_waiter(waiter)

    async def drain(self, seconds: float, *, but: int = 0) -> bool:
        """Wait until all but so many are done, `seconds` at most; say whether none is pending."""
        self._left = but
        if self.open_count > but:
            self._drained = Waiter()
            timer = self._timers.call_later(seconds, self._drained.wake)
            await self._drained
            timer.cancel()
        return not self.open_count

    def wake_all(self) -> None:
        """Wake every waiter: the server is stopping."""
        for future in self._futures.values():
            future.wake()

    def fail_all(self, error: TinkerError) -> None:
        """Fail every pending future: nothing will complete them any more."""
        for future in list(self._futures.values()):
            future.fail(error)

    def _finished(self, future: Future) -> None:
        self.open_count -= 1
        self.open_bytes -= future.request_bytes
        self.result_bytes += future.result_bytes
        if self._drained is not None and self.open_count <= self._left:
            self._drained.wake()
        if self.watch is not None:
            self.watch.finished(future)
        if self.gate is not None:
            self.gate.finished(future)
        if future.accepted is not None and self.keeper is not None:
            future.ended = self.keeper.finish(future)
        self._kept.add(future)
        self._arrange_expiry(future, self._undelivered_ttl_s)
        self._drop_above_limit(spare=future)

    def _delivered(self, future: Future) -> None:
        if self._kept.remove(future):
            self._kept_delivered[future.request_id] = future
            self._arrange_expiry(future, self._delivered_ttl_s)

    def _arrange_expiry(self, future: Future, seconds: float) -> None:
        future.expire_after(seconds, self._timers, lambda: self._forget(future))

    def _drop_above_limit(self, spare: Future) -> None:
        while self._above_limit:
            delivered = next(iter(self._kept_delivered.values()), None)
            oldest = delivered or self._kept.next_to_go(spare)
            if oldest is None:
                return
            self._forget(oldest)

    @property
    def _above_limit(self) -> bool:
        count = len(self._kept) + len(self._kept_delivered)
        return self.result_bytes > self._max_result_bytes or count > MAX_KEPT

    def _forget(self, future: Future) -> None:
        if self._futures.pop(future.request_id, None) is None:
            return
        future.stop_expiry()
        self._kept.remove(future)
        self._kept_delivered.pop(future.request_id, None)
        self.result_bytes -= future.result_bytes
        if future.accepted is not None and self.keeper is not None:
            self.keeper.forget(future.request_id)
        self._expired[future.request_id] = future.owner
        if len(self._expired) > TOMBSTONES:
            self._expired.popitem(last=False)
