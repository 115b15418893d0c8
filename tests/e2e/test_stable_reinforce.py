"""A program that samples with record_stability_info and learns with stable_reinforce."""

import numpy as np
import pytest
from flows import BASE_MODEL

pytestmark = [
    pytest.mark.interop,
    pytest.mark.filterwarnings("ignore"),  # what the official package leaves open is its own affair
]

PROMPT = [300, 301, 302, 303]
WANTED = 400
"""Tokens below this id earn a reward."""


def learn(sdk, login, *, steps, learning_rate):
    """Give the mean reward of each step."""
    rewards = []
    params = sdk.SamplingParams(max_tokens=6, temperature=1.0, seed=5, stop=[])
    with sdk.ServiceClient(**login) as service:
        training = service.create_lora_training_client(BASE_MODEL, rank=8, seed=1).result()
        for _ in range(steps):
            sampler = training.save_weights_and_get_sampling_client(
                record_stability_info=True
            ).result()
            response = sampler.sample(sdk.ModelInput.from_ints(PROMPT), 16, params).result()
            gains = np.array([np.mean(np.array(s.tokens) < WANTED) for s in response.sequences])
            rewards.append(float(gains.mean()))
            data = [
                datum(sdk, sequence, gain - gains.mean())
                for sequence, gain in zip(response.sequences, gains, strict=True)
            ]
            passed = training.forward_backward(data, "stable_reinforce", {"kl_coeff": 0.01})
            training.optim_step(sdk.AdamParams(learning_rate=learning_rate)).result()
            metrics = passed.result().metrics
            if gains.std():  # of equal rewards nothing is learned, and nothing counted
                assert metrics["ratio:mean"] == pytest.approx(1, abs=1e-4)
                assert metrics["clip_fraction:mean"] == 0
    return rewards


def datum(sdk, sequence, advantage):
    tokens, name = list(sequence.tokens), sequence.sequence_id
    whole = PROMPT + tokens
    context = len(PROMPT) - 1
    made = sdk.Datum(
        model_input=sdk.ModelInput.from_ints(whole[:-1]),
        loss_fn_inputs={
            "target_tokens": np.array(whole[1:]),
            "advantages": np.array([0.0] * context + [advantage] * len(tokens), np.float32),
        },
    )
    return made.with_provenance(
        model_input=[
            sdk.PromptProvenanceSpan(sequence_id=name, length=len(PROMPT)),
            sdk.SampledProvenanceSpan(sequence_id=name, length=len(tokens) - 1),
        ],
        loss_fn_inputs=[
            sdk.PromptProvenanceSpan(sequence_id=name, offset=1, length=context),
            sdk.SampledProvenanceSpan(sequence_id=name, length=len(tokens)),
        ],
    )


@pytest.mark.parametrize("name", ["tinker", "tinkex"])
def test_reward_grows_when_learning(name, load_sdk, login):
    rewards = learn(load_sdk(name), login, steps=4, learning_rate=1e-2)
    assert rewards[-1] > rewards[0] + 0.3


def test_reward_stays_when_not_learning(load_sdk, login):
    rewards = learn(load_sdk("tinker"), login, steps=3, learning_rate=0.0)
    assert rewards[0] == rewards[1] == rewards[2]
