"""What follows a call that fails: nothing steps on a gradient that is not whole."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import wait

import pytest
from scripted_tinker import (
    API,
    KEY,
    JumpingClock,
    datum,
    future,
    ok,
    output,
    scripted_peer,
    sequence_ids,
    service,
    training_client,
)

import tinkex as tinker
from tinkex.client.runtime import Runtime
from tinkex.errors import BlockingCallError, CredentialError, InputError, SkippedCallError
from tinkex.testing.server import PeerResponse
from tinkex.wire import proto

TRAIN, STEP, POLL = f"{API}/forward_backward", f"{API}/optim_step", f"{API}/retrieve_future"
PARAMS = tinker.AdamParams()


@pytest.fixture
def peer():
    with scripted_peer({"billing_exception_max_pause_duration_sec": 0}) as running:
        yield running


@pytest.fixture
def client(peer):
    with service(peer) as running:
        yield training_client(peer, running)


def test_failing_custom_loss_takes_the_queued_step_with_it_and_leaves_the_client_usable(
    peer, client
):
    pytest.importorskip("torch")
    peer.expect(TRAIN, future("forward"))
    peer.expect(POLL, output())

    def loss(data, logprobs):
        raise LookupError("my own mistake")

    failing = client.forward_backward_custom([datum()], loss)
    queued = client.optim_step(PARAMS)
    with pytest.raises(LookupError, match="my own mistake"):
        failing.result(10)
    with pytest.raises(SkippedCallError, match="my own mistake"):
        queued.result(10)
    peer.expect(STEP, future("step"))
    peer.always(POLL, ok({"metrics": {}}))
    client.optim_step(PARAMS).result(10)
    assert sequence_ids(peer, "optim_step") == [2]


@pytest.mark.parametrize("call", ["forward_backward", "forward"])
@pytest.mark.parametrize("status", [402, 413, 422])
def test_refused_batch_takes_the_step_that_was_queued_for_its_gradient_with_it(
    peer, client, call, status
):
    """Adam moves the weights without a gradient, too: by its momentum."""
    peer.expect(TRAIN, ok({"detail": "not this one"}, status))
    peer.always(POLL, ok({"metrics": {}}))
    if call == "forward":
        peer.expect(STEP, future("queued"))
    refused = getattr(client, call)([datum()], "cross_entropy")
    queued = client.optim_step(PARAMS)
    with pytest.raises(tinker.APIStatusError, match="not this one"):
        refused.result(10)
    if call == "forward":
        queued.result(10)
    else:
        with pytest.raises(SkippedCallError, match="not this one"):
            queued.result(10)
    peer.expect(STEP, future("later"))
    client.optim_step(PARAMS).result(10)
    assert sequence_ids(peer, "optim_step") == ([1, 2] if call == "forward" else [1])


def test_batch_that_was_put_off_to_the_end_leaves_no_gap_that_the_server_waits_for(peer):
    with service(peer, runtime=Runtime(clock=JumpingClock())) as running:
        client = training_client(peer, running)
        peer.always(TRAIN, ok({"detail": "too many requests"}, 429, retry_after="1"))
        with pytest.raises(tinker.RateLimitError, match="too many requests"):
            client.forward_backward([datum()], "cross_entropy").result(10)
        peer.expect(STEP, future("step"))
        peer.always(POLL, ok({"metrics": {}}))
        client.optim_step(PARAMS).result(10)
    assert sequence_ids(peer, "optim_step") == [1]


@pytest.mark.parametrize("name", [None, "named"])
def test_skipped_save_that_nobody_has_read_lets_no_later_step_through(peer, client, name):
    peer.expect(TRAIN, ok({"detail": "not this one"}, 422))
    refused = client.forward_backward([datum()], "cross_entropy")
    over = threading.Event()
    saved = client.save_weights_and_get_sampling_client(name)
    saved.add_done_callback(lambda _: over.set())
    assert over.wait(10)
    with pytest.raises(SkippedCallError, match="not this one"):
        client.optim_step(PARAMS).result(10)
    assert peer.requests_to(STEP) == []
    with pytest.raises(SkippedCallError, match="not this one"):
        saved.result(10)
    with pytest.raises(tinker.UnprocessableEntityError):
        refused.result(10)


def test_batch_that_cannot_be_encoded_takes_the_step_that_was_queued_for_it_with_it(peer, client):
    image = tinker.Datum(
        tinker.ModelInput([tinker.types.ImageAssetPointerChunk("somewhere", "png")]),
        {"target_tokens": [1]},
    )
    refused = client.forward_backward([image], "cross_entropy")
    queued = client.optim_step(PARAMS)
    with pytest.raises(InputError, match="ImageChunk"):
        refused.result(10)
    with pytest.raises(SkippedCallError, match="ImageChunk"):
        queued.result(10)
    assert peer.requests_to(STEP) == []


@pytest.mark.parametrize("raised", [SystemExit, asyncio.CancelledError, KeyboardInterrupt])
def test_custom_loss_that_raises_what_is_no_error_fails_as_any_other(peer, client, raised):
    """SystemExit would end the client's loop, a cancellation pass for that of the call itself."""
    pytest.importorskip("torch")
    peer.expect(TRAIN, future("forward"))
    peer.expect(POLL, output())
    gate = threading.Event()

    def loss(data, logprobs):
        gate.wait(10)
        raise raised("enough")

    failing = client.forward_backward_custom([datum()], loss)
    queued = client.optim_step(PARAMS)
    gate.set()
    with pytest.raises(RuntimeError, match=f"{raised.__name__} was raised: enough"):
        failing.result(10)
    with pytest.raises(SkippedCallError, match="enough"):
        queued.result(10)
    peer.expect(STEP, future("step"))
    peer.always(POLL, ok({"metrics": {}}))
    client.optim_step(PARAMS).result(10)


def test_custom_loss_runs_off_the_clients_loop_and_may_wait_for_other_calls(peer, client):
    pytest.importorskip("torch")
    peer.expect(TRAIN, future("forward"), future("backward"))
    peer.always(POLL, output())
    peer.always(f"{API}/get_server_capabilities", ok({"supported_models": []}), method="GET")
    threads = []

    def loss(data, logprobs):
        threads.append(threading.current_thread().name)
        with service(peer) as other:
            assert other.get_server_capabilities().supported_models == []
        return logprobs[0].sum(), {}

    client.forward_backward_custom([datum()], loss).result(10)
    assert "tinkex-client" not in threads


def test_custom_loss_that_waits_for_a_later_call_of_its_client_is_told(peer, client):
    pytest.importorskip("torch")
    peer.expect(TRAIN, future("forward"), future("backward"))
    peer.expect(STEP, future("step"))
    peer.always(POLL, output())
    later, told = [], []

    def loss(_data, logprobs):
        later.append(client.optim_step(PARAMS))
        with pytest.raises(BlockingCallError, match="with another client"):
            later[0].result(10)
        with pytest.raises(BlockingCallError, match="with another client"):
            asyncio.run(later[0].result_async(10))
        told.append(True)
        return logprobs[0].sum(), {}

    client.forward_backward_custom([datum()], loss).result(10)
    assert told
    assert wait(later, 10).done == set(later)  # it was sent after its turn came


def test_cancelled_custom_loss_lets_the_next_call_go(peer, client):
    pytest.importorskip("torch")
    gate = threading.Event()
    peer.expect(TRAIN, future("forward"))
    peer.expect(POLL, PeerResponse.of_json({"type": "try_again"}), output())
    started = threading.Event()

    def loss(data, logprobs):
        started.set()
        gate.wait(10)
        return logprobs[0].sum(), {}

    cancelled = client.forward_backward_custom([datum()], loss)
    assert started.wait(10)
    assert cancelled.cancel()
    peer.expect(STEP, future("step"))
    peer.always(POLL, ok({"metrics": {}}))
    client.optim_step(PARAMS).result(10)
    gate.set()


@pytest.mark.parametrize("call", ["forward_backward", "forward"])
def test_cancelled_call_takes_only_those_with_it_that_needed_its_gradient(peer, client, call):
    gate = threading.Event()
    peer.expect(STEP, PeerResponse(200, b'{"request_id": "first"}', gate=gate))
    peer.always(POLL, ok({"metrics": {}}))
    first = client.optim_step(PARAMS)
    cancelled = getattr(client, call)([datum()], "cross_entropy")
    behind = client.optim_step(PARAMS)
    cancelled.cancel()
    if call == "forward":
        peer.expect(STEP, future("behind"))
    peer.always(STEP, future("later"))
    later = client.optim_step(PARAMS)
    gate.set()
    first.result(10)
    later.result(10)
    if call == "forward":
        behind.result(10)
    else:
        with pytest.raises(SkippedCallError, match="cancelled"):
            behind.result(10)
    assert peer.requests_to(TRAIN) == []


def test_data_may_be_changed_by_the_caller_after_the_call(peer, client):
    gate = threading.Event()
    peer.expect(STEP, PeerResponse(200, b'{"request_id": "step"}', gate=gate))
    peer.expect(TRAIN, future("train"))
    peer.always(
        POLL,
        lambda request: ok({"metrics": {}}) if request.json()["request_id"] == "step" else output(),
    )
    inputs = {name: [1, 2] for name in ("target_tokens", "logprobs", "advantages")}
    data = [tinker.Datum(tinker.ModelInput.from_ints([1, 2]), inputs)]
    config = {"clip_low_threshold": 0.5}
    step = client.optim_step(PARAMS)
    call = client.forward_backward(data, "ppo", config)
    data.clear()
    config["clip_low_threshold"] = 9.0
    gate.set()
    call.result(10)
    step.result(10)
    (request,) = peer.requests_to(TRAIN)
    sent = proto.decode_forward_backward_request(request.body).forward_backward_input
    assert len(sent.data) == 1
    assert sent.loss_fn_config == {"clip_low_threshold": 0.5}


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.save_state(3),
        lambda client: client.save_state("name", ttl_seconds="long"),
        lambda client: client.save_weights_for_sampler(None),
        lambda client: client.load_state(7),
        lambda client: client.optim_step({"learning_rate": 1}),
        lambda client: client.forward_backward([{"model_input": [1]}], "cross_entropy"),
        lambda client: client.forward_backward([], "cross_entropy"),
        lambda client: client.forward_backward_custom([], lambda data, logprobs: None),
        lambda client: client.forward_backward_custom([datum()], "cross_entropy"),
        lambda client: client.forward_backward_custom(
            [tinker.Datum(tinker.ModelInput.from_ints([1]), {})], lambda data, logprobs: None
        ),
    ],
)
def test_wrong_arguments_are_refused_at_the_call_and_use_no_number(peer, client, call):
    with pytest.raises((InputError, TypeError)):
        call(client)
    peer.expect(STEP, future("step"))
    peer.always(POLL, ok({"metrics": {}}))
    client.optim_step(PARAMS).result(10)
    assert sequence_ids(peer, "optim_step") == [1]


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.forward_backward([datum()], "a\udce9"),
        lambda client: client.forward_backward([datum()], "cross_entropy", {"a\udce9": 1.0}),
        lambda client: client.load_state("tinker://a\udce9/weights/b"),
    ],
)
def test_text_that_cannot_be_sent_is_refused_and_uses_no_number(peer, client, call):
    """A lone surrogate, as Python makes it of a file's name that is no UTF-8."""
    with pytest.raises(InputError, match="surrogates not allowed"):
        call(client).result(10)
    peer.expect(STEP, future("step"))
    peer.always(POLL, ok({"metrics": {}}))
    client.optim_step(PARAMS).result(10)
    assert sequence_ids(peer, "optim_step") == [1]


def test_number_whose_fate_is_unknown_is_not_used_again(peer):
    with service(peer, max_retries=0) as running:
        client = training_client(peer, running)
        peer.expect(STEP, PeerResponse(drop=True), future("second"))
        peer.always(POLL, ok({"metrics": {}}))
        with pytest.raises(tinker.APIConnectionError):
            client.optim_step(PARAMS).result(10)
        client.optim_step(PARAMS).result(10)
    assert sequence_ids(peer, "optim_step") == [1, 2]


def test_number_of_a_refusal_after_an_attempt_without_an_answer_is_not_used_again(peer, client):
    """The first attempt may have been taken: its number is another request's."""
    peer.expect(STEP, PeerResponse(drop=True), ok({"detail": "the key has ended"}, 403))
    with pytest.raises(tinker.PermissionDeniedError):
        client.optim_step(PARAMS).result(10)
    peer.expect(STEP, future("next"))
    peer.always(POLL, ok({"metrics": {}}))
    client.optim_step(PARAMS).result(10)
    assert sequence_ids(peer, "optim_step") == [1, 1, 2]


def test_call_without_a_key_leaves_no_gap(peer, monkeypatch, tmp_path):
    """The credential command fails once: the next call's number is the one that was not sent."""
    fails = tmp_path / "fails"
    monkeypatch.delenv("TINKEX_API_KEY", raising=False)
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    monkeypatch.setenv("TINKEX_CREDENTIAL_CMD", f"test ! -e {fails} && echo {KEY}")
    clock = JumpingClock()
    with service(peer, api_key=None, runtime=Runtime(clock=clock)) as running:
        client = training_client(peer, running)
        fails.touch()
        clock.advance(3600)  # no key lives for so long
        with pytest.raises(CredentialError):
            client.optim_step(PARAMS).result(10)
        fails.unlink()
        peer.expect(STEP, future("next"))
        peer.always(POLL, ok({"metrics": {}}))
        client.optim_step(PARAMS).result(10)
    assert sequence_ids(peer, "optim_step") == [1]


def test_training_waits_while_the_account_is_blocked(caplog):
    clock = JumpingClock()
    runtime = Runtime(clock=clock)
    with scripted_peer() as peer, service(peer, runtime=runtime) as running:
        client = training_client(peer, running)
        peer.expect(STEP, *[ok({"detail": "pay"}, 402)] * 3, future("step"))
        peer.always(POLL, ok({"metrics": {}}))
        began = clock.monotonic()
        client.optim_step(PARAMS).result(10)
        assert clock.monotonic() - began == pytest.approx(15, abs=1)
        assert sequence_ids(peer, "optim_step") == [1] * 4
        told = [one.getMessage() for one in caplog.records if "402" in one.getMessage()]
        assert len(told) == 1
        peer.always(STEP, ok({"detail": "pay"}, 402))
        began = clock.monotonic()
        with pytest.raises(tinker.BillingError, match="pay"):
            client.optim_step(PARAMS).result(60)
        assert clock.monotonic() - began == pytest.approx(3600, abs=10)


def test_new_run_of_a_blocked_account_fails_at_once(peer):
    with scripted_peer() as blocked, service(blocked) as running:
        blocked.expect(f"{API}/create_model", ok({"detail": "pay"}, 402))
        with pytest.raises(tinker.BillingError, match="pay"):
            running.create_lora_training_client("tinkex/sprout").result(10)


def test_body_is_compressed_when_the_server_asks_for_it():
    with scripted_peer({"proto_compress_fwdbwd": True}) as peer, service(peer) as running:
        client = training_client(peer, running)
        peer.expect(TRAIN, future("one"))
        peer.always(POLL, output())
        client.forward([datum()], "cross_entropy").result(10)
        (request,) = peer.requests_to(TRAIN)
    assert request.headers["content-encoding"] == "zstd"
    assert request.body.startswith(b"\x28\xb5\x2f\xfd")
