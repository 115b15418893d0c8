"""The supervised part of the demo: teach the base model to translate English into French.

Owns the training loop and its figures; what is shown while it runs is the caller's business.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tinkex import types
from tinkex.demo import rendering, translation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tinkex._clock import Clock
    from tinkex.client.sampling import SamplingClient
    from tinkex.client.training import TrainingClient


@dataclass(frozen=True, slots=True)
class SupervisedSettings:
    """What the loop does; the defaults suit `tinkex/sprout` on two CPU cores."""

    steps: int = 150
    """Optimiser steps."""
    batch_size: int = 16
    """Sentence pairs in a step."""
    learning_rate: float = 4e-3
    """Peak rate of Adam; falls linearly to a tenth of it."""
    evaluate_every: int = 50
    """Steps between two evaluations on the held-out pairs."""
    seed: int = 0
    """Seeds the order of the examples."""


@dataclass(frozen=True, slots=True)
class SupervisedStep:
    """What one step showed."""

    step: int
    """Steps done, from 1."""
    loss: float
    """Mean negative log-probability of the target tokens of this batch, nats per token."""
    tokens: int
    """Tokens trained on in this step, prompt and completion."""
    seconds: float
    """Wall time of this step."""
    held_out_loss: float | None
    """Loss on the held-out pairs after this step, where it was evaluated."""


@dataclass(slots=True)
class SupervisedResult:
    """The whole run."""

    held_out_loss_before: float
    steps: list[SupervisedStep] = field(default_factory=list)

    @property
    def held_out_loss_after(self) -> float:
        """The last held-out loss of the run."""
        losses = [step.held_out_loss for step in self.steps if step.held_out_loss is not None]
        return losses[-1] if losses else self.held_out_loss_before

    @property
    def tokens_per_second(self) -> float:
        """Trained tokens per second of wall time, evaluation left out."""
        seconds = sum(step.seconds for step in self.steps)
        return sum(step.tokens for step in self.steps) / seconds if seconds else 0.0


def learning_rate_at(step: int, settings: SupervisedSettings) -> float:
    """Return the rate of step `step` (from 0): linear decay to a tenth of the peak."""
    progress = step / max(settings.steps - 1, 1)
    return settings.learning_rate * (1.0 - 0.9 * progress)


def batches(
    examples: Sequence[types.Datum], settings: SupervisedSettings
) -> Iterator[list[types.Datum]]:
    """Yield shuffled batches for ever, each example once an epoch."""
    order = random.Random(settings.seed)  # noqa: S311 - shuffling, not secrets
    pool: list[types.Datum] = []
    while True:
        while len(pool) < settings.batch_size:
            epoch = list(examples)
            order.shuffle(epoch)
            pool.extend(epoch)
        yield pool[: settings.batch_size]
        del pool[: settings.batch_size]


def mean_loss(client: TrainingClient, data: Sequence[types.Datum]) -> float:
    """Return the mean loss on `data`, nats per target token, without training on it."""
    output = client.forward(list(data), "cross_entropy").result()
    return output.metrics["loss:sum"] / target_token_count(data)


def target_token_count(data: Sequence[types.Datum]) -> float:
    """Count the tokens that carry weight."""
    return float(sum(np.sum(datum.loss_fn_inputs["weights"].to_numpy()) for datum in data))


def train(
    client: TrainingClient,
    tokenizer: Any,
    settings: SupervisedSettings,
    *,
    clock: Clock,
    on_step: Callable[[SupervisedStep], None] = lambda _: None,
) -> SupervisedResult:
    """Fine-tune the adapter behind `client` on the training pairs.

    Args:
        client: a fresh training client.
        tokenizer: the base model's tokenizer.
        settings: steps, batch size and rates.
        clock: measures the steps.
        on_step: called after each step.

    Returns:
        Losses before, during and after.
    """
    train_pairs, held_out_pairs = translation.load()
    examples = [rendering.supervised_datum(e.messages, e.reply, tokenizer) for e in train_pairs]
    held_out = [rendering.supervised_datum(e.messages, e.reply, tokenizer) for e in held_out_pairs]
    result = SupervisedResult(held_out_loss_before=mean_loss(client, held_out))
    stream = batches(examples, settings)
    for step in range(settings.steps):
        batch = next(stream)
        start = clock.monotonic()
        # Both calls are on their way before the first result is awaited.
        forward_backward = client.forward_backward(batch, "cross_entropy")
        rate = learning_rate_at(step, settings)
        optim = client.optim_step(types.AdamParams(learning_rate=rate))
        loss = forward_backward.result().metrics["loss:sum"] / target_token_count(batch)
        optim.result()
        seconds = clock.monotonic() - start
        done = step + 1
        evaluate = done % settings.evaluate_every == 0 or done == settings.steps
        record = SupervisedStep(
            step=done,
            loss=loss,
            tokens=sum(datum.model_input.length for datum in batch),
            seconds=seconds,
            held_out_loss=mean_loss(client, held_out) if evaluate else None,
        )
        result.steps.append(record)
        on_step(record)
    return result


def translate(
    sampler: SamplingClient,
    tokenizer: Any,
    sentences: Sequence[translation.Example],
    *,
    max_tokens: int = 40,
) -> list[str]:
    """Return the greedy reply to each sentence's prompt."""
    params = types.SamplingParams(max_tokens=max_tokens, temperature=0.0)
    futures = [
        sampler.sample(
            prompt=types.ModelInput.from_ints(
                rendering.prompt_tokens(sentence.messages, tokenizer)
            ),
            num_samples=1,
            sampling_params=params,
        )
        for sentence in sentences
    ]
    return [
        tokenizer.decode(future.result().sequences[0].tokens, skip_special_tokens=True).strip()
        for future in futures
    ]
