"""Requests and answers are lost: the work is done once all the same (A8.1)."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest
from client_support import batch
from faulty_proxy import Fault, faulty_proxy
from server_support import BASE_MODEL, KEY

import tinkex as tinker
from tinkex.errors import SkippedCallError

STEPS = 5


def train_and_sample(url, runtime):
    """A small run whose figures would tell if any step were done twice or not at all."""
    losses, tokens = [], []
    with tinker.ServiceClient(base_url=url, api_key=KEY, runtime=runtime) as service:
        client = service.create_lora_training_client(BASE_MODEL, rank=4, seed=1).result(60)
        for _ in range(STEPS):
            output = client.forward_backward(batch(), "cross_entropy")
            client.optim_step(tinker.AdamParams(learning_rate=1e-2))
            losses.append(output.result(60).metrics["loss:sum"])
        sampler = client.save_weights_and_get_sampling_client().result(60)
        params = tinker.SamplingParams(max_tokens=5, seed=1, stop=[])
        prompt = tinker.ModelInput.from_ints([5, 6, 7])
        futures = [sampler.sample(prompt, 2, params) for _ in range(8)]
        tokens = [[s.tokens for s in one.result(60).sequences] for one in futures]
    return losses, tokens


def spoil(seed, share):
    order = random.Random(seed)
    lock = threading.Lock()
    counts = {"faults": 0}

    def choose(path):
        if path.endswith(("client/config", "session_heartbeat", "finish")):
            return None
        with lock:
            if order.random() >= share:
                return None
            counts["faults"] += 1
            status = order.choice([408, 429, 500, 502, 503])
            named = {"retry-after-ms": "5"} if status == 429 else {}
            return Fault(status, named, lose_answer=order.random() < 0.5)

    choose.counts = counts
    return choose


@pytest.mark.parametrize("seed", [1, 2])
def test_lost_requests_and_lost_answers_change_no_figure(server, runtime, seed):
    clean = train_and_sample(server.url, runtime)
    choose = spoil(seed, 0.3)
    with faulty_proxy(server.url, choose) as url:
        spoiled = train_and_sample(url, runtime)
    assert choose.counts["faults"] > 10
    assert spoiled == clean


def test_refused_call_is_typed_and_the_server_goes_on_serving_this_client(server, runtime):
    faults = iter([Fault(422)])

    def choose(path):
        return next(faults, None) if path.endswith("forward_backward") else None

    with (
        faulty_proxy(server.url, choose) as url,
        tinker.ServiceClient(base_url=url, api_key=KEY, runtime=runtime) as service,
    ):
        client = service.create_lora_training_client(BASE_MODEL, rank=4).result(60)
        with pytest.raises(tinker.UnprocessableEntityError, match="spoiled"):
            client.forward_backward(batch(), "cross_entropy").result(60)
        # no number was lost: the server waits for nothing, and these come through at once
        client.forward_backward(batch(), "cross_entropy").result(10)
        client.optim_step(tinker.AdamParams()).result(10)


async def test_cancelled_tasks_leave_client_and_server_usable(server):
    service = tinker.ServiceClient(base_url=server.url, api_key=KEY)
    client = await service.create_lora_training_client(BASE_MODEL, rank=4)
    for _ in range(5):
        task = asyncio.create_task(client.forward_backward(batch(), "cross_entropy").coroutine())
        await asyncio.to_thread(lambda: None)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    try:
        await client.optim_step(tinker.AdamParams()).result_async(30)
    except SkippedCallError:
        await client.optim_step(tinker.AdamParams()).result_async(30)
    assert (await client.forward_backward(batch(), "cross_entropy")).metrics["loss:sum"] > 0
    await service.close()


def test_failed_future_has_its_category_and_spares_the_next_call(server):
    with tinker.ServiceClient(base_url=server.url, api_key=KEY) as service:
        client = service.create_lora_training_client(BASE_MODEL, rank=4).result(60)
        bad = tinker.Datum(
            tinker.ModelInput.from_ints([5, 6]), {"target_tokens": [7, 8], "weights": [1.0, 1.0]}
        )
        failing = client.forward_backward([bad], "no_such_loss")
        with pytest.raises(tinker.RequestFailedError, match="no_such_loss") as caught:
            failing.result(30)
        assert caught.value.category == "user"
        assert client.forward([bad], "cross_entropy").result(30).metrics["num_tokens:sum"] == 2
