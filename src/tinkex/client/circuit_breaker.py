"""Refuse early while a server is down: a circuit breaker, off unless the client is given one.

    closed ──(failures in a row reach the threshold)──> open
    open ──(`reset_seconds` have passed)──> half-open
    half-open ──(every probe succeeds)──> closed;  ──(one fails)──> open

A failure is a request without an answer or with a 5xx. Any other answer is a success: the server
lives. Owns the states, not what a failure is. Runs on one event loop; the clock is an argument.
After Nygard, "Release It!" (2nd ed. 2018), chapter 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from tinkex.errors import APIConnectionError, CircuitOpenError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tinkex._clock import Clock

T = TypeVar("T")


class CircuitState(StrEnum):
    """Whether requests go out."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class CircuitBreakerPolicy:
    """When a circuit opens and closes."""

    threshold: int = 5
    """Failures in a row that open it."""
    reset_seconds: float = 30.0
    """How long it stays open before probes go out."""
    probes: int = 1
    """Requests that go out while it is half-open; all must succeed to close it."""

    def __post_init__(self) -> None:
        if self.threshold < 1 or self.probes < 1 or not self.reset_seconds > 0:
            raise ValueError(
                "A circuit breaker needs threshold >= 1, probes >= 1 and reset_seconds > 0."
            )


class CircuitBreaker:
    """The circuit of one connection.

    Args:
        policy: when it opens and closes.
        clock: measures how long it is open.
        emit: sends the event `circuit.state`.
    """

    def __init__(
        self, policy: CircuitBreakerPolicy, clock: Clock, emit: Callable[..., None]
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._emit = emit
        self._state = CircuitState.CLOSED
        self._failures = 0
        self._opened_at = 0.0
        self._round = 0
        self._probes_out = 0
        self._probes_good = 0

    @property
    def state(self) -> CircuitState:
        """What it is now."""
        return self._state

    async def run(self, send: Callable[[], Awaitable[T]], failed: Callable[[T], bool]) -> T:
        """Send a request, if the circuit lets it out, and count what it comes to.

        Args:
            send: sends it.
            failed: whether an answer counts as a failure.

        Raises:
            CircuitOpenError: the circuit is open; nothing was sent.
        """
        admitted_in = self._admit()
        try:
            answer = await send()
        except APIConnectionError:
            self._failed(admitted_in)
            raise
        except BaseException:  # cancelled, say: it tells nothing about the server
            self._withdrawn(admitted_in)
            raise
        if failed(answer):
            self._failed(admitted_in)
        else:
            self._succeeded(admitted_in)
        return answer

    def _admit(self) -> int:
        """Let a request out, or refuse it; return the round it belongs to."""
        if self._state is CircuitState.OPEN:
            if self._remaining() > 0:
                raise self._refusal(self._remaining())
            self._change(CircuitState.HALF_OPEN)
        if self._state is CircuitState.HALF_OPEN:
            if self._probes_out + self._probes_good >= self._policy.probes:
                raise self._refusal(self._policy.reset_seconds)
            self._probes_out += 1
        return self._round

    def _succeeded(self, admitted_in: int) -> None:
        if admitted_in != self._round:
            return  # it was sent before the last change: it says nothing about the present state
        self._failures = 0
        if self._state is CircuitState.HALF_OPEN:
            self._probes_out -= 1
            self._probes_good += 1
            if self._probes_good == self._policy.probes:
                self._change(CircuitState.CLOSED)

    def _failed(self, admitted_in: int) -> None:
        if admitted_in != self._round:
            return
        self._failures += 1
        if self._state is CircuitState.HALF_OPEN or self._failures >= self._policy.threshold:
            self._change(CircuitState.OPEN)

    def _withdrawn(self, admitted_in: int) -> None:
        if admitted_in == self._round and self._state is CircuitState.HALF_OPEN:
            self._probes_out -= 1

    def _change(self, state: CircuitState) -> None:
        self._emit("circuit.state", state=state.value, failures=self._failures)
        self._state = state
        self._round += 1
        self._failures = self._probes_out = self._probes_good = 0
        if state is CircuitState.OPEN:
            self._opened_at = self._clock.monotonic()

    def _remaining(self) -> float:
        return self._opened_at + self._policy.reset_seconds - self._clock.monotonic()

    def _refusal(self, seconds: float) -> CircuitOpenError:
        return CircuitOpenError(
            f"The circuit breaker is {self._state.value.replace('_', '-')}: the server failed "
            f"{self._policy.threshold} times in a row. Nothing was sent; try again in "
            f"{seconds:.0f} s.",
            retry_after_ms=seconds * 1000.0,
        )
