"""Bad input gets a typed error that says what to do; the server goes on serving the others."""

import numpy as np
import pytest
from flows import BASE_MODEL, datum, random_batch

import tinkex

pytestmark = [
    pytest.mark.interop,
    # The official package warns of its own deprecated calls, and leaves sockets to the collector.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(params=["tinker", "tinkex"])
def sdk(request, load_sdk):
    return load_sdk(request.param)


@pytest.fixture
def service(sdk, login):
    with sdk.ServiceClient(**login) as client:
        yield client


@pytest.fixture
def client(service):
    return service.create_lora_training_client(BASE_MODEL, rank=4).result()


def test_unknown_base_model_is_refused_by_name(sdk, service):
    with pytest.raises(sdk.APIStatusError, match=r"no-such/model.*tinkex/sprout") as caught:
        service.create_lora_training_client("no-such/model").result()
    assert 400 <= caught.value.status_code < 500


@pytest.mark.parametrize("rank", [0, 100_000])
def test_rank_out_of_bounds_is_refused(sdk, service, rank):
    with pytest.raises((sdk.APIStatusError, ValueError), match="rank"):
        service.create_lora_training_client(BASE_MODEL, rank=rank).result()


def test_wrong_key_is_refused(sdk, login):
    with (
        pytest.raises(sdk.AuthenticationError, match=r"[Kk]ey"),
        sdk.ServiceClient(base_url=login["base_url"], api_key="tml-wrong") as service,
    ):
        service.create_lora_training_client(BASE_MODEL).result()


def bad_calls(sdk):
    good = [500, 501, 502, 503]
    long = list(range(300, 400)) * 50

    def inputs(**arrays):
        return [sdk.Datum(model_input=sdk.ModelInput.from_ints(good), loss_fn_inputs=arrays)]

    target = np.asarray([501, 502, 503, 504])
    return {
        "unknown loss": (random_batch(sdk), "no_such_loss", "no_such_loss"),
        "target longer than input": (
            inputs(target_tokens=np.arange(500, 509)),
            "cross_entropy",
            "target_tokens",
        ),
        "token outside the vocabulary": ([datum(sdk, [500, 999_999, 3])], "cross_entropy", "vocab"),
        "NaN weights": (
            inputs(target_tokens=target, weights=np.asarray([1, np.nan, 1, 1], np.float32)),
            "cross_entropy",
            "weights",
        ),
        "sequence too long": ([datum(sdk, long)], "cross_entropy", "at most"),
    }


REFUSED_AT_THE_CALL = {"target longer than input", "NaN weights"}
"""By our client, before any request."""


@pytest.mark.parametrize("case", list(bad_calls(tinkex)))
def test_bad_batch_fails_its_future_and_nothing_else(sdk, client, case):
    data, loss, message = bad_calls(sdk)[case]
    before = client.forward(random_batch(sdk), "cross_entropy").result().metrics["loss:sum"]
    if sdk is tinkex and case in REFUSED_AT_THE_CALL:
        with pytest.raises(tinkex.errors.InputError, match=message):
            client.forward_backward(data, loss)
    else:
        bad = client.forward_backward(data, loss)
        step = client.optim_step(sdk.AdamParams(learning_rate=0.0))
        with pytest.raises(sdk.RequestFailedError, match=message) as caught:
            bad.result()
        assert "user" in str(caught.value.category).lower()
        step.result()
    after = client.forward(random_batch(sdk), "cross_entropy").result().metrics["loss:sum"]
    assert after == before
