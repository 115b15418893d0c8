"""Futures of an event loop whose outcomes come from a thread that owns an engine.

Owns making them, settling several with one wake-up of the loop, and turning exceptions into
answers. Knows nothing of the work. Server and mesh each have such a thread.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias

from tinkex.errors import EngineError, TinkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Settled: TypeAlias = "tuple[asyncio.Future[Any], Any, TinkerError | None]"
"""A future, and its result or its error."""


class Outcomes:
    """The outcomes of one thread's work.

    Args:
        place: what the thread works for, as in `server`, for messages.
        on_fault: told of exceptions that are bugs rather than answers.
    """

    def __init__(self, place: str, on_fault: Callable[[BaseException], None]) -> None:
        self._place = place
        self._on_fault = on_fault
        self._loop: asyncio.AbstractEventLoop | None = None
        self.open: set[asyncio.Future[Any]] = set()
        """Those that are to come; the event loop's own."""

    # on the event loop

    def start(self) -> None:
        """Bring outcomes to the event loop that runs."""
        self._loop = asyncio.get_running_loop()

    def new(self) -> asyncio.Future[Any]:
        """Make the future of an outcome."""
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.open.add(outcome)
        outcome.add_done_callback(self.open.discard)
        return outcome

    def fail_open(self, error: TinkerError) -> None:
        """Fail those that are to come: the thread works no more."""
        for outcome in list(self.open):
            settle(outcome, None, error)

    # in the thread

    def on_loop(self, act: Callable[[], None]) -> None:
        """Have the event loop do something."""
        assert self._loop is not None, "started"
        try:
            self._loop.call_soon_threadsafe(act)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    def answer(self, raised: Exception) -> TinkerError:
        """Return what a request is told of an exception; one that is a bug is reported."""
        if isinstance(raised, TinkerError):
            return raised
        self._on_fault(raised)
        return EngineError(
            f"The {self._place} failed in this request ({type(raised).__name__}). It is not your "
            f"input's fault; the {self._place}'s log has the details. Send it again, or report it."
        )


def settle(outcome: asyncio.Future[Any], result: Any, error: TinkerError | None) -> None:
    """Set a future's result or error, if nobody did before; call it on the event loop."""
    if outcome.done():
        return
    if error is None:
        outcome.set_result(result)
        return
    outcome.set_exception(error)
    outcome.exception()  # who waits gets it all the same; a job that was cancelled has nobody


def settle_all(settled: Sequence[Settled]) -> None:
    """Settle several; call it on the event loop."""
    for outcome, result, error in settled:
        settle(outcome, result, error)
