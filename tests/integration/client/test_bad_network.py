"""Over a network that cuts, resets, garbles, drips and falls silent, every call ends in time.

It ends in a result or a typed error; no thread is left, nothing that was sent is done twice, and
what works in the end gives the figures of a good network.
"""

import gc
import logging
import random
import threading
import weakref

import pytest
from client_support import batch
from fault_proxy import fault_proxy
from server_support import BASE_MODEL, KEY

import tinkex as tinker
from tinkex.errors import ResultTimeoutError

PROMPT = tinker.ModelInput.from_ints([5, 6, 7])
PARAMS = tinker.SamplingParams(max_tokens=4, seed=3)
# A silent connection holds a poll up for its whole 45 s: silence has a test of its own below.
FAULTS = ("reset", "garbage", "cut", "half-close", "delay", "drip")


def http(status, *headers, body=b'{"detail": "storm"}'):
    lines = [
        f"HTTP/1.1 {status} x",
        "content-type: application/json",
        "connection: close",
        *headers,
    ]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body


def train_and_sample(url, runtime):
    """Two steps and some samples: (losses, tokens)."""
    with tinker.ServiceClient(base_url=url, api_key=KEY, runtime=runtime, timeout=1.0) as service:
        client = service.create_lora_training_client(BASE_MODEL, rank=4, seed=1).result(60)
        losses = []
        for _ in range(2):
            loss = client.forward_backward(batch(3), "cross_entropy")
            client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result(60)
            losses.append(loss.result(60).metrics["loss:sum"])
        sampler = client.save_weights_and_get_sampling_client().result(60)
        futures = [sampler.sample(PROMPT, 1, PARAMS) for _ in range(20)]
        return losses, [future.result(60).sequences[0].tokens for future in futures]


@pytest.fixture
def expected(server, runtime):
    return train_and_sample(server.url, runtime)


def some(fault, seed, share=0.4):
    order = random.Random(seed)
    return lambda _number: fault if order.random() < share else None


@pytest.mark.parametrize("fault", FAULTS)
def test_work_is_done_all_the_same_and_once(server, runtime, expected, fault):
    with fault_proxy(server.url, some(fault, 7)) as url:
        assert train_and_sample(url, runtime) == expected


@pytest.mark.parametrize(
    "answer",
    [
        http(429, "retry-after: 0.05"),
        http(503),
        http(500, body=b"<html>oops</html>"),
        http(429, "retry-after: -5"),
        http(502, "retry-after: soon"),
    ],
    ids=["429", "503", "html", "negative", "words"],
)
def test_storm_of_refusals_is_lived_through(server, runtime, expected, answer):
    with fault_proxy(server.url, some(answer, 5)) as url:
        assert train_and_sample(url, runtime) == expected


@pytest.mark.parametrize("fault", ["reset", "garbage", "cut", "silence", http(503)])
def test_network_that_stays_bad_ends_every_call_in_a_typed_error_in_its_time(
    server, runtime, fault
):
    with (
        fault_proxy(server.url, lambda _n: fault) as url,
        tinker.ServiceClient(
            base_url=url, api_key=KEY, runtime=runtime, timeout=0.3, max_retries=2
        ) as service,
    ):
        calls = [
            lambda: service.create_lora_training_client(BASE_MODEL, rank=4),
            lambda: service.create_sampling_client(base_model=BASE_MODEL),
            lambda: service.create_rest_client().list_training_runs(),
        ]
        for call in calls:
            with pytest.raises(tinker.TinkerError) as caught:
                call().result(20)
            assert not isinstance(caught.value, ResultTimeoutError)  # it ended by itself


def test_call_ends_at_its_own_time_limit_whatever_the_network_does(server, runtime):
    with (
        fault_proxy(server.url, lambda _n: "silence") as url,
        tinker.ServiceClient(base_url=url, api_key=KEY, runtime=runtime) as service,
    ):
        future = service.create_sampling_client(base_model=BASE_MODEL)
        with pytest.raises(TimeoutError):
            future.result(0.3)
        future.cancel()


def test_nothing_is_left_behind(server, runtime, caplog):
    caplog.set_level(logging.ERROR, "tinkex.client")  # pytest keeps what warnings were made of
    before = set(threading.enumerate())
    alive = []
    for seed in range(5):
        with (
            fault_proxy(server.url, some("cut", seed)) as url,
            tinker.ServiceClient(
                base_url=url, api_key=KEY, runtime=runtime, timeout=1.0
            ) as service,
        ):
            sampler = service.create_sampling_client(base_model=BASE_MODEL).result(60)
            futures = [sampler.sample(PROMPT, 1, PARAMS) for _ in range(10)]
            for future in futures:
                future.result(60)
            alive += [weakref.ref(one) for one in (service, sampler, *futures)]
        del service, sampler, futures, future
    gc.collect()
    assert [one() for one in alive if one() is not None] == []
    names = {"tinkex-client"}
    left = [t for t in threading.enumerate() if t not in before and t.name in names]
    assert left == []
