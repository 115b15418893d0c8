"""Our client against a real server: what the flow of test_same_program.py leaves out."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from flows import BASE_MODEL, random_batch

import tinkex as tinker


@pytest.fixture
def service(login):
    with tinker.ServiceClient(**login) as client:
        yield client


@pytest.fixture
def client(service):
    return service.create_lora_training_client(BASE_MODEL, rank=4, seed=1).result()


def test_custom_loss_trains_as_the_same_loss_of_the_server(service, client):
    twin = service.create_lora_training_client(BASE_MODEL, rank=4, seed=1).result()
    batch = random_batch(tinker)

    def cross_entropy(data, logprobs):
        weights = [datum.loss_fn_inputs["weights"].to_torch() for datum in data]
        pairs = zip(logprobs, weights, strict=True)
        return sum(-(lp * w).sum() for lp, w in pairs), {"mine:sum": 1.0}

    for _ in range(3):
        ours = client.forward_backward_custom(batch, cross_entropy)
        client.optim_step(tinker.AdamParams(learning_rate=1e-3))
        theirs = twin.forward_backward(batch, "cross_entropy")
        twin.optim_step(tinker.AdamParams(learning_rate=1e-3))
        metrics = ours.result().metrics
        assert metrics["mine:sum"] == 1.0
        assert metrics["loss:sum"] == pytest.approx(theirs.result().metrics["loss:sum"], rel=1e-5)


def test_logprobs_of_a_prompt_equal_the_training_forward(client):
    tokens = [300, 400, 500, 600]
    sampler = client.save_weights_and_get_sampling_client().result()
    found = sampler.compute_logprobs(tinker.ModelInput.from_ints(tokens)).result()
    datum = tinker.Datum(
        tinker.ModelInput.from_ints(tokens[:-1]), {"target_tokens": np.asarray(tokens[1:])}
    )
    output = client.forward([datum], "cross_entropy").result().loss_fn_outputs[0]
    assert found[0] is None
    assert found[1:] == pytest.approx(output["logprobs"].data, abs=1e-4)


def test_fifty_threads_sample_at_once(client):
    """A4.4"""
    sampler = client.save_weights_and_get_sampling_client().result()

    def one(number):
        prompt = tinker.ModelInput.from_ints([300 + number, 301])
        params = tinker.SamplingParams(max_tokens=3, seed=number, stop=[])
        return list(sampler.sample(prompt, 1, params).result().sequences[0].tokens)

    with ThreadPoolExecutor(50) as pool:
        together = list(pool.map(one, range(50)))
    assert together[:5] == [one(number) for number in range(5)]


def test_unloaded_run_says_so_and_its_checkpoints_stay(service, client):
    path = client.save_state("kept").result().path
    client.unload().result()
    with pytest.raises(tinker.RequestFailedError) as caught:
        client.forward_backward(random_batch(tinker), "cross_entropy").result()
    assert caught.value.category == "user"
    resumed = service.create_training_client_from_state(path).result()
    assert resumed.get_info().lora_rank == 4


def test_expired_session_is_a_typed_error_that_says_what_to_do(service, client):
    service.close().result()
    with pytest.raises(tinker.TinkerError, match="new ServiceClient"):
        client.optim_step(tinker.AdamParams()).result()


def test_capabilities_name_the_base_model(service):
    names = [m.model_name for m in service.get_server_capabilities().supported_models]
    assert BASE_MODEL in names


async def test_async_program_trains_and_samples(login):
    with tinker.ServiceClient(**login) as service:
        client = await service.create_lora_training_client(BASE_MODEL, rank=2)
        first = client.forward_backward(random_batch(tinker), "cross_entropy")
        step = client.optim_step(tinker.AdamParams(learning_rate=1e-2))
        before = (await first).metrics["loss:sum"]
        await step
        after = (await client.forward(random_batch(tinker), "cross_entropy")).metrics["loss:sum"]
        assert after < before
        sampler = await client.save_weights_and_get_sampling_client(name="named")
        reply = await sampler.sample(
            tinker.ModelInput.from_ints([300]), 1, tinker.SamplingParams(max_tokens=2, stop=[])
        )
        assert len(reply.sequences[0].tokens) == 2


def test_text_goes_to_tokens_and_back(login):
    with tinker.ServiceClient(**login) as service:
        sampler = service.create_sampling_client(base_model="tinkex/sprout").result()
        tokens = sampler.encode("The quick brown fox")
        assert sampler.decode(tokens) == "The quick brown fox"
        prompt = tinker.ModelInput.from_text("The quick brown fox", sampler.get_tokenizer())
        assert prompt.to_ints() == tokens
