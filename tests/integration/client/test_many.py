"""Many clients at once: of several keys, training and sampling, from threads and from tasks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from client_support import batch
from patience import PATIENCE_S
from server_support import BASE_MODEL, KEY, OTHER_KEY

import tinkex as tinker
from tinkex.errors import ClientClosedError
from tinkex.types import SessionHeartbeatRequest
from tinkex.wire import endpoints

PROMPT = tinker.ModelInput.from_ints([5, 6, 7])
PARAMS = tinker.SamplingParams(max_tokens=3, seed=1, stop=[])


def login(server, key=KEY):
    return {"base_url": server.url, "api_key": key}


def client_threads():
    return [thread for thread in threading.enumerate() if thread.name == "tinkex-client"]


def test_two_services_of_different_keys_do_not_touch_each_other(server):
    with tinker.ServiceClient(**login(server, OTHER_KEY)) as other:
        theirs = other.create_lora_training_client(BASE_MODEL, rank=4).result(30)
        saved = theirs.save_state("theirs").result(30)
        with tinker.ServiceClient(**login(server)) as mine:
            client = mine.create_lora_training_client(BASE_MODEL, rank=4).result(30)
            with pytest.raises(tinker.TinkerError):
                client.load_state(saved.path).result(30)
        with pytest.raises(ClientClosedError):
            client.optim_step(tinker.AdamParams())
        assert theirs.forward(batch(1), "cross_entropy").result(30).metrics


def test_several_training_clients_and_many_samplers_work_at_once(server):
    before = len(client_threads())
    with tinker.ServiceClient(**login(server)) as service:
        clients = [
            service.create_lora_training_client(BASE_MODEL, rank=4, seed=seed) for seed in range(3)
        ]
        clients = [client.result(60) for client in clients]

        def train(client):
            losses = []
            for _ in range(3):
                output = client.forward_backward(batch(2), "cross_entropy")
                client.optim_step(tinker.AdamParams(learning_rate=1e-2))
                losses.append(output.result(60).metrics["loss:sum"])
            return losses

        def sample(client):
            sampler = client.save_weights_and_get_sampling_client().result(60)
            futures = [sampler.sample(PROMPT, 1, PARAMS) for _ in range(10)]
            return [one.result(60).sequences[0].tokens for one in futures]

        with ThreadPoolExecutor(9) as pool:
            trained = [pool.submit(train, client) for client in clients]
            sampled = [pool.submit(sample, client) for client in clients for _ in range(2)]
            for one in trained:
                losses = one.result(120)
                assert losses[-1] < losses[0]
            for one in sampled:
                tokens = one.result(120)
                assert len(tokens) == 10
                assert all(sequence == tokens[0] for sequence in tokens)
    assert len(client_threads()) == before


async def test_hundred_awaited_samples_come_back_from_one_loop(server):
    service = tinker.ServiceClient(**login(server))
    sampler = await service.create_sampling_client(base_model=BASE_MODEL)
    responses = await asyncio.gather(*(sampler.sample(PROMPT, 1, PARAMS) for _ in range(100)))
    assert {tuple(response.sequences[0].tokens) for response in responses} == {
        tuple(responses[0].sequences[0].tokens)
    }
    await service.close()


def test_saved_state_goes_on_in_another_process_of_the_same_key(server):
    with tinker.ServiceClient(**login(server)) as first:
        client = first.create_lora_training_client(BASE_MODEL, rank=4, seed=1).result(30)
        client.forward_backward(batch(2), "cross_entropy")
        client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result(30)
        path = client.save_state("half").result(30).path
        expected = client.forward(batch(2), "cross_entropy").result(30).metrics["loss:sum"]
    with tinker.ServiceClient(**login(server)) as second:
        client = second.create_training_client_from_state_with_optimizer(path).result(30)
        assert client.get_info().lora_rank == 4
        found = client.forward(batch(2), "cross_entropy").result(30).metrics["loss:sum"]
        assert found == pytest.approx(expected, rel=1e-6)
        sampler = client.save_weights_and_get_sampling_client(name="named").result(30)
        assert sampler.get_base_model() == BASE_MODEL
        assert len(sampler.compute_logprobs(PROMPT).result(30)) == 3


def test_heartbeat_reaches_the_real_server(server):
    """Bug row: heartbeat sent to a path the stub accepted and the server did not."""
    with tinker.ServiceClient(**login(server)) as service:
        sampler = service.create_sampling_client(base_model=BASE_MODEL).result(30)
        sender, session_id = service._connection.sender, service._session.known_id

        async def beat(name):
            return await sender.call(
                endpoints.SESSION_HEARTBEAT, SessionHeartbeatRequest(session_id=name)
            )

        service._connection.submit(beat, session_id).result(10)
        with pytest.raises(tinker.APIStatusError):
            service._connection.submit(beat, "no-such-session").result(10)
        assert sampler.sample(PROMPT, 1, PARAMS).result(30).sequences


PROGRAM = """
import tinkex
service = tinkex.ServiceClient(base_url={url!r}, api_key={key!r})
sampler = service.create_sampling_client(base_model={model!r}).result(30)
params = tinkex.SamplingParams(max_tokens=3)
futures = [sampler.sample(tinkex.ModelInput.from_ints([5, 6]), 1, params) for _ in range(10)]
print(len([future.result(30) for future in futures]))
"""


@pytest.mark.parametrize("end", ["", "service.close().result(10)"])
def test_program_ends_with_exit_code_0_however_busy_the_machine_is(server, end):
    """The HTTP library aborted the process where a request ended while the interpreter did."""
    code = PROGRAM.format(url=server.url, key=login(server)["api_key"], model=BASE_MODEL) + end

    def run(_):
        return subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    with ThreadPoolExecutor(4) as threads:
        for done in threads.map(run, range(12)):
            assert (done.returncode, done.stdout) == (0, "10\n"), done.stderr
