"""Go on after a server or a connection was lost: from the latest checkpoint, optimiser included.

Owns when a run is taken up again, from where, and how often. What the run does is the caller's; it
must save as it goes, and everything after the last checkpoint is done again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, TypeVar

from tinkex._backoff import Backoff
from tinkex.errors import (
    APIConnectionError,
    APIStatusError,
    BackgroundTaskError,
    ClientClosedError,
    ConfigurationError,
    FutureExpiredError,
    RequestFailedError,
    SkippedCallError,
    TinkerError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tinkex.client.service import ServiceClient
    from tinkex.client.training import TrainingClient

T = TypeVar("T")

_LOG = logging.getLogger("tinkex.client")


@dataclass(frozen=True, slots=True)
class RecoveryPolicy:
    """How often a run is taken up again, and how long is waited before."""

    max_attempts: int = 5
    """Recoveries in a row without a new checkpoint; one that was saved starts the count anew."""
    initial_delay: float = 1.0
    """Seconds before the first one; doubles with each."""
    max_delay: float = 60.0
    """Seconds; the doubling stops here."""

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or self.initial_delay < 0 or self.max_delay < self.initial_delay:
            raise ConfigurationError(
                "A recovery policy needs max_attempts of 1 or more, and 0 <= initial_delay <= "
                "max_delay."
            )


@dataclass(frozen=True, slots=True)
class Recovery:
    """One recovery: what a callback is told."""

    attempt: int
    """From 1, since the last new checkpoint."""
    error: TinkerError
    """What ended the run."""
    checkpoint: str | None
    """Where it goes on; None when there is no checkpoint and it starts again."""


def is_recoverable(error: TinkerError) -> bool:
    """Whether a run that ended in `error` may go on from a checkpoint.

    Lost connections, failures of the server, and what a restart of the server forgot can be; what
    the caller did wrong cannot.
    """
    if isinstance(error, APIStatusError):
        return error.status_code >= 500 or error.status_code in {404, 410}
    if isinstance(error, RequestFailedError):
        return error.category != "user"
    lost = (APIConnectionError, FutureExpiredError, SkippedCallError, BackgroundTaskError)
    return isinstance(error, lost) and not isinstance(error, ClientClosedError)


def run_with_recovery(
    service: Callable[[], ServiceClient],
    start: Callable[[ServiceClient], TrainingClient],
    work: Callable[[TrainingClient, str | None], T],
    *,
    policy: RecoveryPolicy | None = None,
    on_recovery: Callable[[Recovery], None] = lambda _recovery: None,
) -> T:
    """Do a training run, taking it up again from its latest checkpoint when the server is lost.

        def work(training, checkpoint):
            for step in range(0 if checkpoint is None else steps_of(checkpoint), 100):
                ...
                training.save_state(f"step-{step}").result()

        run_with_recovery(tinkex.ServiceClient, start, work)

    Args:
        service: makes a client of the server; called once for each attempt.
        start: makes the training client of a new run.
        work: does the run: (training client, path of the checkpoint it begins from, or None).
        policy: how often.
        on_recovery: told of each recovery before it is waited for.

    Returns:
        What `work` returned.

    Raises:
        TinkerError: the run ended in an error that cannot be recovered from, or too often.
        Exception: what else `work` raised.
    """
    chosen = policy or RecoveryPolicy()
    backoff, rng = Backoff(chosen.initial_delay, chosen.max_delay, 0.25), Random()  # noqa: S311
    runs: list[str] = []
    checkpoint: str | None = None
    attempt = 0
    found: Recovery | None = None
    while True:
        with service() as client:
            try:
                newest = _latest(client, runs) if runs else None
                if newest is not None and newest != checkpoint:
                    checkpoint, attempt = newest, 0
                training = _begin(client, start, checkpoint, found)
                runs.append(training.model_id)
                return work(training, checkpoint)
            except TinkerError as error:
                attempt += 1
                if not is_recoverable(error) or attempt > chosen.max_attempts:
                    raise
                found = Recovery(attempt, error, checkpoint)
            clock = client.create_rest_client().clock
        _LOG.warning(
            "The run is taken up again (%d of %d) from %s: %s",
            attempt,
            chosen.max_attempts,
            checkpoint or "the beginning",
            found.error,
        )
        on_recovery(found)
        clock.sleep_sync(backoff.delay(attempt - 1, rng))


def _begin(
    client: ServiceClient,
    start: Callable[[ServiceClient], TrainingClient],
    checkpoint: str | None,
    recovery: Recovery | None,
) -> TrainingClient:
    def begin() -> TrainingClient:
        if checkpoint is None:
            return start(client)
        return client.create_training_client_from_state_with_optimizer(checkpoint).result()

    if recovery is None:
        return begin()
    events = client._connection.sender.events  # noqa: SLF001 - of the same package
    with events.operation("recovery", attempt=recovery.attempt, path=checkpoint):
        return begin()


def _latest(client: ServiceClient, runs: list[str]) -> str | None:
    """Find the newest training checkpoint of the runs so far."""
    rest = client.create_rest_client()
    found = []
    for run in runs:
        try:
            found += rest.list_checkpoints(run).result().checkpoints
        except APIStatusError as error:
            if error.status_code != 404:
                raise
    training = [one for one in found if one.checkpoint_type == "training"]
    return max(training, key=lambda one: one.time).tinker_path if training else None
