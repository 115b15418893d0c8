"""The training loop: epochs of batches, a learning rate that falls, evaluation, checkpoints.

Owns the order of the calls. One step is always under way while the results of the last are read,
so the server never waits for the client. What is shown or kept of a step is the caller's business.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from tinkex import types
from tinkex.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tinkex._clock import Clock
    from tinkex.client.future import APIFuture
    from tinkex.client.training import TrainingClient

Schedule = Literal["linear", "cosine", "constant"]

_FULL_TUNING_RATE = 5e-5
_LORA_FACTOR = 10.0
_REFERENCE_WIDTH = 2000.0
_WIDTH_EXPONENT = 0.78
_RATE_OF_UNKNOWN = 2e-4


def recommended_learning_rate(hidden_size: int | None) -> float:
    """Return a starting value for the peak learning rate of a LoRA adapter under Adam.

    5e-5 * 10 * (2000 / hidden_size)^0.78: ten times what full fine-tuning takes, and less for wider
    models (Schulman and others, "LoRA Without Regret", 2025); independent of the rank. 2e-4 when
    the width of the model is not known.
    """
    if not hidden_size:
        return _RATE_OF_UNKNOWN
    narrower: float = (_REFERENCE_WIDTH / hidden_size) ** _WIDTH_EXPONENT
    return _FULL_TUNING_RATE * _LORA_FACTOR * narrower


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """What the loop does."""

    learning_rate: float
    """Peak rate of Adam."""
    epochs: int = 1
    """Times each example is seen."""
    batch_size: int = 8
    """Examples in a step."""
    schedule: Schedule = "linear"
    """How the rate falls from its peak: to 0 over the run, or not at all."""
    evaluate_every: int = 0
    """Steps between two evaluations; 0 evaluates after the last alone."""
    save_every: int = 0
    """Steps between two checkpoints; 0 saves at the end alone."""
    seed: int = 0
    """Seeds the order of the examples."""

    def __post_init__(self) -> None:
        """Check every setting.

        Raises:
            ConfigurationError: some are wrong; the message names all of them.
        """
        problems = [
            f"{name} must be at least {least}, not {getattr(self, name)}"
            for name, least in (
                ("epochs", 1),
                ("batch_size", 1),
                ("evaluate_every", 0),
                ("save_every", 0),
            )
            if getattr(self, name) < least
        ]
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            problems.append(f"learning_rate must be a positive number, not {self.learning_rate}")
        if self.schedule not in {"linear", "cosine", "constant"}:
            problems.append(f"schedule {self.schedule!r} is none of linear, cosine, constant")
        if problems:
            raise ConfigurationError(problems)


@dataclass(frozen=True, slots=True)
class TrainStep:
    """What one step came to."""

    step: int
    """Steps done, from 1."""
    total: int
    """Steps of the whole run."""
    epoch: float
    """Times the data has been seen, with a fraction."""
    loss: float
    """Mean negative log-probability of the learned tokens of this batch, nats per token."""
    learning_rate: float
    tokens: int
    """Tokens of this batch, learned or not."""
    seconds: float
    """Wall time from the step before to this one."""
    eval_loss: float | None = None
    """Loss on the examples kept back, where it was computed after this step."""


def steps_in(examples: int, settings: TrainSettings) -> int:
    """Count the steps of a run; the last batch of an epoch may be smaller."""
    return settings.epochs * math.ceil(examples / settings.batch_size)


def learning_rate_at(step: int, total: int, settings: TrainSettings) -> float:
    """Return the rate of step `step`, from 0, of `total`."""
    progress = step / total
    share = {
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        "constant": 1.0,
    }[settings.schedule]
    return settings.learning_rate * share


def batches(
    examples: Sequence[types.Datum], settings: TrainSettings
) -> Iterator[list[types.Datum]]:
    """Yield the batches of the whole run, every epoch in an order of its own."""
    order = random.Random(settings.seed)  # noqa: S311 - shuffling, no secret
    for _ in range(settings.epochs):
        epoch = list(examples)
        order.shuffle(epoch)
        for start in range(0, len(epoch), settings.batch_size):
            yield epoch[start : start + settings.batch_size]


def train(
    client: TrainingClient,
    examples: Sequence[types.Datum],
    settings: TrainSettings,
    *,
    clock: Clock,
    held_out: Sequence[types.Datum] = (),
    first_step: int = 0,
    on_step: Callable[[TrainStep], None] = lambda _: None,
    on_save: Callable[[int], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Run the loop.

    Args:
        client: trains.
        examples: to learn from.
        settings: how.
        clock: measures the steps.
        held_out: to evaluate on.
        first_step: steps already done, when a run is resumed; their batches are passed over.
        on_step: called after each step.
        on_save: called with the steps done when a checkpoint is due, the last one included.
        stop: asked once a step; True makes that step the last, and a checkpoint due.
    """
    run = _Run(client, settings, len(examples), held_out, clock, on_step)
    under_way: _Step | None = None
    for number, batch in enumerate(batches(examples, settings)):
        if number < first_step:
            continue
        coming = run.begin(number, batch)  # on its way before the one before it is awaited
        if under_way is not None:
            run.finish(under_way)
        under_way = coming
        stopping = stop()
        save = stopping or run.due(number, settings.save_every)
        if save or run.due(number, settings.evaluate_every):
            # these must see the weights of this step, and not of the next
            run.finish(under_way)
            under_way = None
        if save:
            on_save(number + 1)
        if stopping:
            return


@dataclass(frozen=True, slots=True)
class _Step:
    """A step whose requests are on their way."""

    number: int
    batch: list[types.Datum]
    rate: float
    forward_backward: APIFuture[types.ForwardBackwardOutput]
    optim_step: APIFuture[types.OptimStepResponse]


class _Run:
    """What the steps of one run have in common."""

    def __init__(
        self,
        client: TrainingClient,
        settings: TrainSettings,
        examples: int,
        held_out: Sequence[types.Datum],
        clock: Clock,
        on_step: Callable[[TrainStep], None],
    ) -> None:
        self._client = client
        self._settings = settings
        self._total = steps_in(examples, settings)
        self._per_epoch = math.ceil(examples / settings.batch_size)
        self._held_out = held_out
        self._clock = clock
        self._on_step = on_step
        self._finished_at = clock.monotonic()

    def due(self, number: int, every: int) -> bool:
        """Whether something done every so many steps comes after step `number`, from 0."""
        done = number + 1
        return done == self._total or (every > 0 and done % every == 0)

    def begin(self, number: int, batch: list[types.Datum]) -> _Step:
        """Send the requests of a step."""
        rate = learning_rate_at(number, self._total, self._settings)
        return _Step(
            number,
            batch,
            rate,
            self._client.forward_backward(batch, "cross_entropy"),
            self._client.optim_step(types.AdamParams(learning_rate=rate)),
        )

    def finish(self, step: _Step) -> None:
        """Wait for a step and report it."""
        loss = step.forward_backward.result().metrics["loss:sum"] / learned_tokens(step.batch)
        step.optim_step.result()
        seconds = self._clock.monotonic() - self._finished_at
        evaluate = self._held_out and self.due(step.number, self._settings.evaluate_every)
        self._on_step(
            TrainStep(
                step=step.number + 1,
                total=self._total,
                epoch=(step.number + 1) / self._per_epoch,
                loss=loss,
                learning_rate=step.rate,
                tokens=sum(datum.model_input.length for datum in step.batch),
                seconds=seconds,
                eval_loss=self._eval_loss() if evaluate else None,
            )
        )
        self._finished_at = self._clock.monotonic()

    def _eval_loss(self) -> float:
        return mean_loss(self._client, self._held_out, self._settings.batch_size)


def mean_loss(client: TrainingClient, data: Sequence[types.Datum], batch_size: int) -> float:
    """Return the mean loss on `data`, nats per learned token, without training on it."""
    outputs = [
        client.forward(list(data[start : start + batch_size]), "cross_entropy")
        for start in range(0, len(data), batch_size)
    ]
    return sum(output.result().metrics["loss:sum"] for output in outputs) / learned_tokens(data)


def learned_tokens(data: Sequence[types.Datum]) -> float:
    """Count the tokens that carry weight."""
    return float(sum(np.sum(datum.loss_fn_inputs["weights"].to_numpy()) for datum in data))
