"""What cannot work is refused by a typed error that says what to do, before any request."""

import math

import pytest
from scripted_tinker import KEY, datum, scripted_peer, service, training_client

import tinkex as tinker
from tinkex import errors
from tinkex.types import DimuonParams

Adam = tinker.AdamParams
PROMPT = tinker.ModelInput.from_ints([1, 2])
NAN = math.nan


def example(tokens=(1, 2), **inputs):
    chosen = {"target_tokens": [1, 2], "weights": [1.0, 1.0], **inputs}
    return tinker.Datum(tinker.ModelInput.from_ints(list(tokens)), chosen)


def train(*data, loss="cross_entropy", config=None):
    return lambda client: client.forward_backward(list(data), loss, config)


TRAINING = {
    "no data": (train(), "list of datums is empty"),
    "a number": (lambda c: c.forward_backward(3, "cross_entropy"), "list of Datum, not int"),
    "one datum": (lambda c: c.forward_backward(datum(), "cross_entropy"), "list of Datum"),
    "a dict": (train({"a": 1}), r"data\[0\] must be a Datum, not dict"),
    "the second": (train(datum(), example(weights=[1.0])), r"data\[1\]: .*'weights'.* 2 tokens"),
    "empty input": (
        train(tinker.Datum(tinker.ModelInput([]), {"target_tokens": []})),
        "model input is empty",
    ),
    "negative token": (train(example((1, -1))), "negative"),
    "targets too short": (train(example(target_tokens=[1])), "one row for each token"),
    "NaN weight": (train(example(weights=[1.0, NAN])), "'weights'.* nan at position 1"),
    "infinite weight": (train(example(weights=[math.inf, 1.0])), "inf at position 0"),
    "loss of another type": (train(datum(), loss=7), "name of a loss"),
    "inputs that the loss lacks": (train(datum(), loss="ppo"), "needs .*logprobs, advantages"),
    "setting that is no number": (
        train(datum(), loss="cross_entropy", config={"x": NAN}),
        r"loss_fn_config\['x'\]",
    ),
    "custom loss that is none": (lambda c: c.forward_backward_custom([datum()], 3), "function"),
    "learning rate below 0": (lambda c: c.optim_step(Adam(learning_rate=-1)), "learning_rate"),
    "learning rate NaN": (lambda c: c.optim_step(Adam(learning_rate=NAN)), "learning_rate"),
    "beta of 1": (lambda c: c.optim_step(Adam(beta2=1)), "beta2"),
    "eps below 0": (lambda c: c.optim_step(Adam(eps=-1e-9)), "eps"),
    "weight decay": (lambda c: c.optim_step(Adam(weight_decay=NAN)), "weight_decay"),
    "clip below 0": (
        lambda c: c.optim_step(Adam(grad_clip_norm=-1)),
        "grad_clip_norm",
    ),
    "no parameters": (lambda c: c.optim_step({"learning_rate": 1}), "AdamParams"),
    "name that climbs": (lambda c: c.save_state("a/../b"), "checkpoint name"),
    "name that is empty": (lambda c: c.save_weights_for_sampler(""), "checkpoint name"),
    "name that is none": (lambda c: c.save_weights_external(5), "name must be a string"),
    "life below 0": (lambda c: c.save_state("a", ttl_seconds=-5), "ttl_seconds"),
    "life of a truth": (lambda c: c.save_state("a", ttl_seconds=True), "ttl_seconds"),
    "path of a file": (lambda c: c.load_state("/tmp/x"), "tinker://"),
    "path of another type": (lambda c: c.load_state_with_optimizer(5), "tinker://"),
}
SAMPLING = {
    "no sequences": (lambda c, p: c.sample(PROMPT, 0, p()), "num_samples"),
    "text as prompt": (lambda c, p: c.sample("hello", 1, p()), "prompt"),
    "empty prompt": (lambda c, p: c.sample(tinker.ModelInput([]), 1, p()), "prompt is empty"),
    "no tokens": (lambda c, p: c.sample(PROMPT, 1, p(max_tokens=0)), "max_tokens"),
    "temperature": (lambda c, p: c.sample(PROMPT, 1, p(temperature=-1)), "temperature"),
    "temperature NaN": (lambda c, p: c.sample(PROMPT, 1, p(temperature=NAN)), "temperature"),
    "top_p": (lambda c, p: c.sample(PROMPT, 1, p(top_p=2)), "top_p"),
    "top_k": (lambda c, p: c.sample(PROMPT, 1, p(top_k=-2)), "top_k"),
    "alternatives": (lambda c, p: c.sample(PROMPT, 1, p(), topk_prompt_logprobs=-1), "topk"),
    "stream": (lambda c, p: c.sample_stream(PROMPT, p(top_p=0)), "top_p"),
}
SERVICE = {
    "rank": (lambda s: s.create_lora_training_client("m", rank=0), "rank must be at least 1"),
    "rank as text": (lambda s: s.create_lora_training_client("m", rank="8"), "rank"),
    "model that is none": (lambda s: s.create_lora_training_client(5), "base_model"),
    "model without a name": (lambda s: s.create_lora_training_client(""), "get_server_capabil"),
    "nothing to train": (
        lambda s: s.create_lora_training_client(
            "m", train_mlp=False, train_attn=False, train_unembed=False
        ),
        "Nothing to train",
    ),
    "state": (lambda s: s.create_training_client_from_state("file:///x"), "tinker://"),
    "no model": (lambda s: s.create_sampling_client(), "model_path or a base_model"),
    "path": (lambda s: s.create_sampling_client(model_path="x"), "tinker://"),
    "checkpoint": (
        lambda s: s.create_rest_client().delete_checkpoint_from_tinker_path("x"),
        "no checkpoint path",
    ),
    "limit": (lambda s: s.create_rest_client().list_training_runs(limit=-1), "limit"),
    "run": (lambda s: s.create_rest_client().get_training_run(5), "training_run_id"),
}


@pytest.fixture
def peer():
    with scripted_peer() as peer:
        yield peer


@pytest.fixture
def client(peer):
    with service(peer) as client:
        yield client


def refused(peer, call, message):
    before = len(peer.requests)
    with pytest.raises(errors.InputError, match=message):
        call()
    assert len(peer.requests) == before


@pytest.mark.parametrize("case", TRAINING)
def test_training(peer, client, case):
    call, message = TRAINING[case]
    training = training_client(peer, client)
    refused(peer, lambda: call(training), message)


@pytest.mark.parametrize("case", SAMPLING)
def test_sampling(peer, client, case):
    call, message = SAMPLING[case]
    sampling = client.create_sampling_client(base_model="m").result(10)

    def params(**settings):
        return tinker.SamplingParams(**{"max_tokens": 1, **settings})

    refused(peer, lambda: call(sampling, params), message)


@pytest.mark.parametrize("case", SERVICE)
def test_service(peer, client, case):
    call, message = SERVICE[case]
    refused(peer, lambda: call(client), message)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"base_url": "nonsense"}, errors.ConfigurationError, "http://host:port"),
        ({"timeout": -1}, errors.ConfigurationError, "timeout"),
        ({"max_retries": -1}, errors.ConfigurationError, "max_retries"),
        ({"api_key": "abc"}, errors.CredentialError, "tml-"),
        ({"api_key": 5}, errors.CredentialError, "text, not int"),
    ],
)
def test_settings_of_a_client(settings, error, message):
    with pytest.raises(error, match=message):
        tinker.ServiceClient(**{"base_url": "http://127.0.0.1:1", "api_key": KEY, **settings})


@pytest.mark.parametrize("tokens", [["a"], [1.5], [[1, 2], [3]], "ab"])
def test_tokens_that_are_none(tokens):
    with pytest.raises(errors.InputError, match="okens"):
        tinker.ModelInput.from_ints(tokens)


def test_good_neighbours_of_what_is_refused_pass(peer, client):
    from tinkex.client import training_rules as rules

    rules.checked_data([example(target_tokens=[[1, 2], [3, 4]], weights=[[1.0, 0], [0, 1.0]])])
    rules.check_loss([example()], "a_loss_of_some_server", {"word": "x", "number": -1})
    rules.check_optimizer(Adam(learning_rate=0.0, beta1=0.0, eps=0.0))
    rules.check_optimizer(DimuonParams(learning_rate=1.0, grad_clip_norm=-1))  # does not clip
    rules.check_checkpoint("step-1", 1)
    image = tinker.ModelInput([tinker.types.ImageChunk(b"x", "png")])
    rules.checked_data([tinker.Datum(image, {"target_tokens": [1, 2, 3]})])
