"""The public API as a program uses it; mypy checks that the types say what the README shows."""

from __future__ import annotations

import tinkex as tinker


def train(service: tinker.ServiceClient) -> float:
    """Train and sample, in blocking code."""
    client: tinker.TrainingClient = service.create_lora_training_client("m", rank=8).result()
    datum = tinker.Datum(
        model_input=tinker.ModelInput.from_ints([1, 2, 3]),
        loss_fn_inputs={"target_tokens": tinker.TensorData([2, 3, 4], "int64")},
    )
    loss = client.forward_backward([datum], "cross_entropy")
    client.optim_step(tinker.AdamParams(learning_rate=1e-4)).result()
    sampler: tinker.SamplingClient = client.save_weights_and_get_sampling_client().result()
    reply = sampler.sample(datum.model_input, 1, tinker.SamplingParams(max_tokens=5)).result()
    tokens: list[int] = reply.sequences[0].tokens
    return loss.result().metrics["loss:sum"] + len(tokens)


async def train_async(service: tinker.ServiceClient) -> str:
    """Do the same in async code."""
    client = await service.create_lora_training_client("m", rank=8)
    saved = await client.save_state("name")
    resumed = await service.create_training_client_from_state(saved.path)
    return resumed.model_id
