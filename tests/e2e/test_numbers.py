"""The numbers a user sees through the API are right: sampler, trainer and PEFT agree."""

from importlib import resources

import numpy as np
import pytest
from flows import BASE_MODEL, random_batch

import tinkex as tinker

SPROUT = resources.files("tinkex") / "engine" / "assets" / "sprout"


@pytest.fixture
def service(login):
    with tinker.ServiceClient(**login) as client:
        yield client


@pytest.fixture
def trained(service):
    """A training client whose adapter differs clearly from the base model."""
    client = service.create_lora_training_client(BASE_MODEL, rank=4, seed=3).result()
    for _ in range(5):
        client.forward_backward(random_batch(tinker), "cross_entropy")
        client.optim_step(tinker.AdamParams(learning_rate=5e-3)).result()
    return client


def test_sampled_logprobs_equal_the_training_forward(trained):
    sampler = trained.save_weights_and_get_sampling_client().result()
    prompt = [300, 400, 500, 600]
    params = tinker.SamplingParams(max_tokens=40, temperature=1.0, seed=5, stop=[])
    response = sampler.sample(tinker.ModelInput.from_ints(prompt), 4, params).result()
    data = []
    for sequence in response.sequences:
        tokens = prompt + list(sequence.tokens)
        data.append(
            tinker.Datum(
                model_input=tinker.ModelInput.from_ints(tokens[:-1]),
                loss_fn_inputs={"target_tokens": np.asarray(tokens[1:])},
            )
        )
    outputs = trained.forward(data, "cross_entropy").result().loss_fn_outputs
    for sequence, output in zip(response.sequences, outputs, strict=True):
        forward = output["logprobs"].to_numpy()[len(prompt) - 1 :]
        assert np.max(np.abs(forward - np.asarray(sequence.logprobs))) < 1e-4


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_saved_adapter_gives_equal_logits_in_peft(trained, server):
    torch = pytest.importorskip("torch")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    path = trained.save_weights_for_sampler("for-peft").result().path
    folder = server.data_dir / "checkpoints" / path.removeprefix("tinker://")
    base = AutoModelForCausalLM.from_pretrained(SPROUT, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder).eval()
    tokens = [300, 400, 500, 600, 700, 800]
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0].double()
    expected = torch.log_softmax(logits, -1)[:-1].gather(1, torch.tensor(tokens[1:])[:, None])
    datum = tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": np.asarray(tokens[1:])},
    )
    output = trained.forward([datum], "cross_entropy").result().loss_fn_outputs[0]
    assert np.max(np.abs(output["logprobs"].to_numpy() - expected[:, 0].numpy())) < 1e-4


def test_same_seed_gives_same_tokens_alone_and_among_others(trained):
    sampler = trained.save_weights_and_get_sampling_client().result()
    params = tinker.SamplingParams(max_tokens=20, temperature=1.0, seed=99, stop=[])
    prompt = tinker.ModelInput.from_ints([310, 320, 330])
    alone = sampler.sample(prompt, 1, params).result().sequences[0].tokens
    others = [
        sampler.sample(
            tinker.ModelInput.from_ints([400 + i, 500]),
            2,
            tinker.SamplingParams(max_tokens=15 + i, seed=i, stop=[]),
        )
        for i in range(6)
    ]
    among = sampler.sample(prompt, 1, params).result().sequences[0].tokens
    for other in others:
        other.result()
    assert list(alone) == list(among)


def test_training_continues_from_saved_state_as_if_never_stopped(trained, service):
    batch = random_batch(tinker, seed=1)
    state = trained.save_state("resume").result().path
    resumed = service.create_training_client_from_state_with_optimizer(state).result()
    losses = {}
    for name, client in {"kept": trained, "resumed": resumed}.items():
        losses[name] = []
        for _ in range(3):
            output = client.forward_backward(batch, "cross_entropy").result()
            client.optim_step(tinker.AdamParams(learning_rate=5e-3)).result()
            losses[name].append(output.metrics["loss:sum"])
    assert losses["resumed"] == losses["kept"]
