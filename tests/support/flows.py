"""One program, written once, run with the official SDK and with ours: `sdk` is either module."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np

BASE_MODEL = "tinkex/sprout"


def datum(sdk: Any, tokens: list[int], *, context: int = 0) -> Any:
    """A cross-entropy example; the first `context` targets carry no weight."""
    weights = np.ones(len(tokens) - 1, dtype=np.float32)
    weights[:context] = 0.0
    return sdk.Datum(
        model_input=sdk.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": np.asarray(tokens[1:], dtype=np.int64),
            "weights": weights,
        },
    )


def random_batch(sdk: Any, *, seed: int = 0, count: int = 4, length: int = 24) -> list[Any]:
    order = random.Random(seed)
    return [datum(sdk, [order.randrange(300, 1500) for _ in range(length)]) for _ in range(count)]


@dataclass
class Run:
    """What a run of the flow showed."""

    losses: list[float] = field(default_factory=list)
    logprobs: list[np.ndarray] = field(default_factory=list)
    state_path: str = ""
    sampler_path: str = ""
    tokens: list[list[int]] = field(default_factory=list)
    sample_logprobs: list[list[float]] = field(default_factory=list)
    stop_reasons: list[str] = field(default_factory=list)


def train_and_sample(
    sdk: Any, login: dict[str, str], *, learning_rate: float, steps: int = 20
) -> Run:
    """Create, `steps` times forward_backward and optim_step, save, sample."""
    run = Run()
    with sdk.ServiceClient(**login) as service:
        client = service.create_lora_training_client(BASE_MODEL, rank=8, seed=7).result()
        batch = random_batch(sdk)
        for _ in range(steps):
            forward_backward = client.forward_backward(batch, "cross_entropy")
            optim = client.optim_step(sdk.AdamParams(learning_rate=learning_rate))
            output = forward_backward.result()
            optim.result()
            run.losses.append(output.metrics["loss:sum"])
            run.logprobs.append(
                np.concatenate([o["logprobs"].to_numpy() for o in output.loss_fn_outputs])
            )
        run.state_path = client.save_state("twenty").result().path
        run.sampler_path = client.save_weights_for_sampler("twenty").result().path
        sampler = service.create_sampling_client(model_path=run.sampler_path).result()
        prompt = sdk.ModelInput.from_ints([300, 301, 302, 303])
        params = sdk.SamplingParams(max_tokens=8, temperature=0.7, seed=11, stop=[])
        response = sampler.sample(prompt, 2, params).result()
        for sequence in response.sequences:
            run.tokens.append(list(sequence.tokens))
            run.sample_logprobs.append(list(sequence.logprobs))
            run.stop_reasons.append(str(sequence.stop_reason))
    return run
