"""When the circuit opens, what it lets through, and when it closes."""

from __future__ import annotations

import asyncio

import pytest
from client_support import settle
from scripted_tinker import API, ok, scripted_peer, service

import tinkex as tinker
from tinkex.client.circuit_breaker import CircuitBreaker, CircuitBreakerPolicy, CircuitState
from tinkex.errors import APIConnectionError, CircuitOpenError, InternalServerError
from tinkex.testing import VirtualClock
from tinkex.testing.server import PeerResponse


class Circuit:
    """A breaker, and requests that end when the test says so."""

    def __init__(self, **policy):
        self.clock = VirtualClock()
        self.events = []
        self.breaker = CircuitBreaker(
            CircuitBreakerPolicy(**policy),
            self.clock,
            lambda _, **attributes: self.events.append(attributes["state"]),
        )
        self.sent = 0

    async def send(self, status=200):
        async def answer():
            self.sent += 1
            if status is None:
                raise APIConnectionError("gone")
            return status

        return await self.breaker.run(answer, failed=lambda answer: answer >= 500)

    def begin(self):
        """Start a request; returns its task and the future that ends it."""
        ending = asyncio.get_running_loop().create_future()

        async def answer():
            self.sent += 1
            return await ending

        task = asyncio.create_task(self.breaker.run(answer, failed=lambda status: status >= 500))
        return task, ending

    async def fail(self, count):
        for _ in range(count):
            await self.send(503)


async def test_failures_in_parallel_are_all_counted():
    """client.md 5: circuit breaker loses failures."""
    circuit = Circuit(threshold=20)
    requests = [circuit.begin() for _ in range(20)]
    await settle()
    for _, ending in requests:
        ending.set_result(503)
    await asyncio.gather(*(task for task, _ in requests))
    assert circuit.breaker.state is CircuitState.OPEN


@pytest.mark.parametrize("quota", [1, 3])
async def test_half_open_admits_exactly_its_quota(quota):
    """client.md 5: half-open lets all probes through."""
    circuit = Circuit(threshold=1, probes=quota, reset_seconds=30.0)
    await circuit.fail(1)
    circuit.clock.advance(30.0)
    requests = [circuit.begin() for _ in range(10)]
    await settle()
    assert circuit.sent == 1 + quota
    refused = [task for task, _ in requests if task.done()]
    assert len(refused) == 10 - quota
    assert all(isinstance(task.exception(), CircuitOpenError) for task in refused)
    for task, ending in requests:
        if not task.done():
            ending.set_result(200)
            await task
    assert circuit.breaker.state is CircuitState.CLOSED
    assert circuit.events == ["open", "half_open", "closed"]


async def test_open_circuit_sends_nothing_and_says_until_when():
    circuit = Circuit(threshold=2, reset_seconds=30.0)
    await circuit.fail(1)
    with pytest.raises(APIConnectionError):
        await circuit.send(None)
    circuit.clock.advance(10.0)
    with pytest.raises(CircuitOpenError, match="20 s") as caught:
        await circuit.send()
    assert caught.value.retry_after_ms == pytest.approx(20_000)
    assert circuit.sent == 2


async def test_success_starts_the_count_anew():
    circuit = Circuit(threshold=3)
    await circuit.fail(2)
    await circuit.send(404)
    await circuit.fail(2)
    assert circuit.breaker.state is CircuitState.CLOSED


async def test_failed_probe_opens_it_again_for_the_whole_time():
    circuit = Circuit(threshold=1, reset_seconds=30.0)
    await circuit.fail(1)
    circuit.clock.advance(30.0)
    await circuit.fail(1)
    circuit.clock.advance(29.0)
    with pytest.raises(CircuitOpenError):
        await circuit.send()


async def test_cancelled_probe_gives_its_place_to_another():
    circuit = Circuit(threshold=1)
    await circuit.fail(1)
    circuit.clock.advance(30.0)
    task, _ = circuit.begin()
    await settle()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await circuit.send() == 200
    assert circuit.breaker.state is CircuitState.CLOSED


async def test_answer_to_a_request_from_before_the_circuit_opened_changes_nothing():
    circuit = Circuit(threshold=1)
    late, ending = circuit.begin()
    await settle()
    await circuit.fail(1)
    ending.set_result(200)
    await late
    assert circuit.breaker.state is CircuitState.OPEN


@pytest.mark.parametrize("wrong", [{"threshold": 0}, {"probes": 0}, {"reset_seconds": 0.0}])
def test_policy_that_cannot_work_is_refused(wrong):
    with pytest.raises(ValueError, match="circuit breaker"):
        CircuitBreakerPolicy(**wrong)


def test_client_with_a_breaker_stops_asking_a_server_that_fails():
    policy = CircuitBreakerPolicy(threshold=2, reset_seconds=1000.0)
    capabilities = f"{API}/get_server_capabilities"
    with (
        scripted_peer() as peer,
        service(peer, circuit_breaker=policy, max_retries=0) as client,
    ):
        peer.expect(capabilities, ok({}, 500), ok({}, 500), method="GET")
        for _ in range(2):
            with pytest.raises(InternalServerError):
                client.get_server_capabilities()
        with pytest.raises(CircuitOpenError):
            client.get_server_capabilities()
        assert len(peer.requests_to(capabilities)) == 2


def test_streamed_samples_open_the_circuit_and_are_refused_when_it_is_open():
    policy = CircuitBreakerPolicy(threshold=2, reset_seconds=1000.0)
    once = tinker.RetryConfig(enable_retry_logic=False)
    prompt, params = tinker.ModelInput.from_ints([1]), tinker.SamplingParams(max_tokens=1)
    stream = f"{API}/sample_stream"
    with scripted_peer() as peer, service(peer, circuit_breaker=policy) as client:
        made = client.create_sampling_client(base_model="m", retry_config=once)
        sampler = made.result(10)
        peer.expect(stream, ok({}, 500), PeerResponse(drop=True))
        for error in (InternalServerError, tinker.APIConnectionError, CircuitOpenError):
            with pytest.raises(error):
                list(sampler.sample_stream(prompt, params))
        with pytest.raises(CircuitOpenError):
            sampler.sample(prompt, 1, params).result(10)
        assert len(peer.requests_to(stream)) == 2


def test_open_circuit_is_told_to_who_streams_at_once():
    """It is no lost connection: to try again would wait for as long as the circuit is open."""
    policy = CircuitBreakerPolicy(threshold=1, reset_seconds=1000.0)
    prompt, params = tinker.ModelInput.from_ints([1]), tinker.SamplingParams(max_tokens=1)
    with scripted_peer() as peer, service(peer, circuit_breaker=policy) as client:
        sampler = client.create_sampling_client(base_model="m").result(10)
        peer.expect(f"{API}/sample_stream", ok({}, 500))
        with pytest.raises(CircuitOpenError):
            list(sampler.sample_stream(prompt, params))
        assert len(peer.requests_to(f"{API}/sample_stream")) == 1


@pytest.mark.parametrize("retries", [0, 1])
def test_refusal_says_whether_an_earlier_try_of_the_request_had_left(retries):
    """What was sent once may be held by the server: its sequence number is not for another call."""
    policy = CircuitBreakerPolicy(threshold=1, reset_seconds=1000.0)
    capabilities = f"{API}/get_server_capabilities"
    with (
        scripted_peer() as peer,
        service(peer, circuit_breaker=policy, max_retries=retries) as client,
    ):
        peer.expect(capabilities, ok({}, 500), method="GET")
        with pytest.raises(CircuitOpenError if retries else InternalServerError) as first:
            client.get_server_capabilities()
        with pytest.raises(CircuitOpenError) as second:
            client.get_server_capabilities()
        assert not second.value.tried
        if retries:
            assert first.value.tried
