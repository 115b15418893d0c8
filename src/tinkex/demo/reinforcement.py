"""The reinforcement part of the demo: small arithmetic, rewarded when the reply is the number.

Policy gradient with group-centred advantages: for each problem several replies are sampled, and a
reply's advantage is its reward less the mean of its group. The loss is `importance_sampling` unless
the settings name another, so tokens are weighted by how much likelier the trained policy finds them
than the one that sampled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tinkex import types
from tinkex.demo import arithmetic, rendering

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tinkex._clock import Clock
    from tinkex.client.future import APIFuture
    from tinkex.client.sampling import SamplingClient
    from tinkex.client.training import TrainingClient


@dataclass(frozen=True, slots=True)
class ReinforcementSettings:
    """What the loop does; the defaults suit `tinkex/sprout` on two CPU cores."""

    steps: int = 25
    """Optimiser steps; each samples afresh from the newest weights."""
    problems_per_step: int = 16
    """Different problems in a step."""
    group_size: int = 8
    """Replies sampled for each problem."""
    max_tokens: int = 12
    """Longest reply, in tokens."""
    learning_rate: float = 3e-3
    """Rate of Adam."""
    loss_fn: types.LossFnType = "importance_sampling"
    """A loss that takes sampling log-probabilities and advantages: this, `ppo` or `cispo`."""
    passes: int = 1
    """Optimiser updates on the replies of one step; from the second on the policy is another one
    than the one that sampled them."""
    held_out: int = 200
    """Problems of the evaluation before and after."""
    evaluate_every: int = 0
    """Steps between two evaluations in between; 0 for none."""
    seed: int = 0
    """Seeds the problems and the sampling."""


@dataclass(frozen=True, slots=True)
class ReinforcementStep:
    """What one step showed."""

    step: int
    """Steps done, from 1."""
    mean_reward: float
    """Mean reward over all replies of the step, 0 to 1."""
    sampled_tokens: int
    """Tokens sampled in the step."""
    sample_seconds: float
    """Wall time of saving the weights and sampling."""
    train_seconds: float
    """Wall time of forward, backward and the optimiser."""
    held_out_accuracy: float | None = None
    """Greedy accuracy on the held-out problems after this step, where it was evaluated."""


@dataclass(slots=True)
class ReinforcementResult:
    """The whole run."""

    accuracy_before: float
    accuracy_after: float = 0.0
    steps: list[ReinforcementStep] = field(default_factory=list)

    @property
    def gain(self) -> float:
        """Rise of the held-out accuracy, absolute."""
        return self.accuracy_after - self.accuracy_before

    @property
    def sampled_tokens_per_second(self) -> float:
        """Tokens sampled per second of sampling."""
        seconds = sum(step.sample_seconds for step in self.steps)
        return sum(step.sampled_tokens for step in self.steps) / seconds if seconds else 0.0


@dataclass(frozen=True, slots=True)
class Rollout:
    """One problem's group of replies."""

    prompt: list[int]
    replies: list[types.SampledSequence]
    rewards: list[float]

    def data(self) -> list[types.Datum]:
        """Return a training example for each reply that was better or worse than its group."""
        mean = sum(self.rewards) / len(self.rewards)
        return [
            rendering.policy_gradient_datum(
                self.prompt, reply.tokens, reply.logprobs or [], reward - mean
            )
            for reply, reward in zip(self.replies, self.rewards, strict=True)
            if reward != mean
        ]


def decode(tokens: Sequence[int], tokenizer: Any) -> str:
    """Return a reply's text, special tokens left out."""
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def prompt_of(problem: arithmetic.Problem, tokenizer: Any) -> list[int]:
    """Render a problem up to the point where the assistant answers."""
    return rendering.prompt_tokens(arithmetic.messages(problem), tokenizer)


def accuracy(
    sampler: SamplingClient,
    tokenizer: Any,
    problems: Sequence[arithmetic.Problem],
    *,
    max_tokens: int,
) -> float:
    """Return the share of `problems` answered rightly by greedy decoding."""
    params = types.SamplingParams(max_tokens=max_tokens, temperature=0.0)
    futures = [
        sampler.sample(types.ModelInput.from_ints(prompt_of(problem, tokenizer)), 1, params)
        for problem in problems
    ]
    rewards = [
        arithmetic.reward(problem, decode(future.result().sequences[0].tokens, tokenizer))
        for problem, future in zip(problems, futures, strict=True)
    ]
    return sum(rewards) / len(rewards)


def collect(
    sampler: SamplingClient,
    tokenizer: Any,
    problems: Sequence[arithmetic.Problem],
    settings: ReinforcementSettings,
    *,
    seed: int,
) -> list[Rollout]:
    """Sample a group of replies to each problem and reward them."""
    futures = []
    for index, problem in enumerate(problems):
        prompt = prompt_of(problem, tokenizer)
        params = types.SamplingParams(
            max_tokens=settings.max_tokens, temperature=1.0, seed=seed + index
        )
        futures.append(
            (
                problem,
                prompt,
                sampler.sample(types.ModelInput.from_ints(prompt), settings.group_size, params),
            )
        )
    rollouts = []
    for problem, prompt, future in futures:
        replies = list(future.result().sequences)
        rewards = [arithmetic.reward(problem, decode(reply.tokens, tokenizer)) for reply in replies]
        rollouts.append(Rollout(prompt=prompt, replies=replies, rewards=rewards))
    return rollouts


def _improve(
    client: TrainingClient, data: list[types.Datum], settings: ReinforcementSettings
) -> None:
    """Take the step's optimiser updates on `data`; nothing to learn from means none."""
    if not data:
        return
    waiting: list[APIFuture[Any]] = []
    for _ in range(settings.passes):
        waiting.append(client.forward_backward(data, settings.loss_fn))
        waiting.append(client.optim_step(types.AdamParams(learning_rate=settings.learning_rate)))
    for future in waiting:
        future.result()


def train(
    client: TrainingClient,
    tokenizer: Any,
    settings: ReinforcementSettings,
    *,
    clock: Clock,
    on_step: Callable[[ReinforcementStep], None] = lambda _: None,
    on_accuracy: Callable[[float], None] = lambda _: None,
) -> ReinforcementResult:
    """Train the adapter behind `client` by policy gradient.

    Args:
        client: a fresh training client.
        tokenizer: the base model's tokenizer.
        settings: steps, group sizes and rates.
        clock: measures the steps.
        on_step: called after each step.
        on_accuracy: called with the held-out accuracy, before training and after it.

    Returns:
        Mean reward of each step and the greedy held-out accuracy before and after (and in between,
        where the settings ask for it).
    """
    held_out = arithmetic.held_out(settings.held_out)

    def measure() -> float:
        newest = client.save_weights_and_get_sampling_client().result()
        return accuracy(newest, tokenizer, held_out, max_tokens=settings.max_tokens)

    before = measure()
    on_accuracy(before)
    result = ReinforcementResult(accuracy_before=before)
    needed = settings.steps * settings.problems_per_step
    problems = arithmetic.problems(settings.seed, needed)
    for step in range(settings.steps):
        chosen = problems[step * settings.problems_per_step :][: settings.problems_per_step]
        start = clock.monotonic()
        sampler = client.save_weights_and_get_sampling_client().result()
        seed = settings.seed * 1_000_003 + step * settings.problems_per_step
        rollouts = collect(sampler, tokenizer, chosen, settings, seed=seed)
        sampled_at = clock.monotonic()
        data = [datum for rollout in rollouts for datum in rollout.data()]
        _improve(client, data, settings)
        trained_at = clock.monotonic()
        rewards = [reward for rollout in rollouts for reward in rollout.rewards]
        evaluate = settings.evaluate_every and (step + 1) % settings.evaluate_every == 0
        record = ReinforcementStep(
            step=step + 1,
            mean_reward=sum(rewards) / len(rewards),
            sampled_tokens=sum(len(r.tokens) for rollout in rollouts for r in rollout.replies),
            sample_seconds=sampled_at - start,
            train_seconds=trained_at - sampled_at,
            held_out_accuracy=measure() if evaluate else None,
        )
        result.steps.append(record)
        on_step(record)
    result.accuracy_after = measure()
    on_accuracy(result.accuracy_after)
    return result
