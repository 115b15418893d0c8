"""What handlers hear, and that they break nothing (A6.1)."""

from __future__ import annotations

import gc
import logging
import re
import weakref
from pathlib import Path

import pytest
from scripted_tinker import (
    API,
    JumpingClock,
    datum,
    future,
    ok,
    output,
    sampled,
    scripted_peer,
    service,
    training_client,
)

import tinkex as tinker
from tinkex import regularizers
from tinkex.client import events
from tinkex.client.events import EventHub, EventSource
from tinkex.client.runtime import Runtime
from tinkex.testing import VirtualClock


def test_handler_hears_events_until_it_is_detached():
    hub, heard = EventHub(), []
    detach = hub.attach(heard.append)
    hub.emit("http.retry", hub, delay=1.0)
    detach()
    hub.emit("http.retry", hub, delay=2.0)
    assert [(event.name, event.attributes["delay"]) for event in heard] == [("http.retry", 1.0)]


def test_handler_can_be_scoped_to_one_client():
    hub, heard = EventHub(), []
    mine, other = object(), object()
    hub.attach(heard.append, source=mine)
    hub.emit("a", mine)
    hub.emit("b", other)
    assert [event.name for event in heard] == ["a"]


def test_handler_goes_with_the_client_that_it_is_scoped_to():
    hub, heard = EventHub(), []
    client = EventSource("ServiceClient", "")
    sampler = EventSource("SamplingClient", "s", client)
    handler = Handler()
    gone = weakref.ref(handler)
    hub.attach(handler, source=client)
    hub.attach(heard.append)
    del handler, client
    gc.collect()
    assert gone() is not None  # what the client made is there still
    del sampler
    gc.collect()
    assert gone() is None
    hub.emit("a", hub)
    assert [event.name for event in heard] == ["a"]


class Handler:
    def __call__(self, event):
        raise AssertionError(event)


def test_handler_that_fails_reaches_neither_the_caller_nor_the_other_handlers(caplog):
    hub, heard = EventHub(), []

    def fail(_):
        raise ValueError("a handler's own mistake")

    hub.attach(fail)
    hub.attach(heard.append)
    with caplog.at_level(logging.CRITICAL, "tinkex.client"):
        hub.emit("a", hub)
    assert len(heard) == 1


def test_retry_is_an_event_with_its_reason():
    runtime = Runtime(clock=JumpingClock())
    heard = []
    with scripted_peer() as peer, service(peer, runtime=runtime) as client:
        runtime.events.attach(heard.append, source=client.event_source)
        capabilities = f"{API}/get_server_capabilities"
        models = ok({"supported_models": []})
        peer.expect(capabilities, ok({}, 503, retry_after="3"), models, method="GET")
        client.get_server_capabilities()
    (retry,) = [event for event in heard if event.name == "http.retry"]
    assert retry.attributes["status"] == 503
    assert retry.attributes["delay"] == 3.0


def test_exchange_has_a_beginning_and_an_end_with_its_duration():
    heard = []
    with scripted_peer() as peer, service(peer) as client:
        client.on_event(heard.append)
        peer.expect(f"{API}/get_server_capabilities", ok({"supported_models": []}), method="GET")
        client.get_server_capabilities()
    began, ended = [event for event in heard if event.name.startswith("http.request")][:2]
    assert (began.name, ended.name) == ("http.request.start", "http.request.stop")
    assert began.attributes == {"method": "GET", "path": f"{API}/get_server_capabilities"}
    assert ended.attributes["status"] == 200
    assert ended.attributes["duration"] >= 0.0


def test_exchange_without_an_answer_ends_with_an_exception():
    heard = []
    with scripted_peer() as peer:
        url = peer.url
    with tinker.ServiceClient(base_url=url, api_key="tml-key", max_retries=0) as client:
        client.on_event(heard.append)
        with pytest.raises(tinker.APIConnectionError):
            client.get_server_capabilities()
    ended = heard[-1]
    assert ended.name == "http.request.exception"
    assert ended.attributes["error_type"] == "APIConnectionError"


def test_handler_of_a_service_client_hears_its_sampling_client_and_that_one_only_itself():
    runtime = Runtime(clock=JumpingClock())
    everything, of_sampler, of_other = [], [], []
    with scripted_peer() as peer, service(peer, runtime=runtime) as client:
        peer.expect(f"{API}/asample", future(1, sample_sequence_ids=["s"]))
        peer.expect(f"{API}/retrieve_future", sampled())
        sampler = client.create_sampling_client(base_model="tinkex/sprout").result(10)
        other = client.create_sampling_client(base_model="tinkex/sprout").result(10)
        client.on_event(everything.append)
        sampler.on_event(of_sampler.append)
        other.on_event(of_other.append)
        params = tinker.SamplingParams(max_tokens=1)
        sampler.sample(tinker.ModelInput.from_ints([1]), 1, params).result(10)
    assert [event.name for event in of_sampler] == [
        "sample.start",
        "http.request.start",
        "http.request.stop",
        "request.submitted",
        "http.request.start",
        "http.request.stop",
        "sample.stop",
    ]
    assert {event.source.kind for event in of_sampler} == {"SamplingClient"}
    assert all(event in everything for event in of_sampler)
    assert of_other == []


def test_reader_that_waits_in_vain_is_an_event():
    heard = []
    with scripted_peer() as peer, service(peer, runtime=Runtime(clock=VirtualClock())) as client:
        peer.always(f"{API}/get_server_capabilities", ok({}, 503, retry_after="5"), method="GET")
        client.on_event(heard.append)
        with pytest.raises(tinker.TinkerError, match="No result after"):
            client.server_capabilities().result(timeout=0.05)
    (late,) = [event for event in heard if event.name == "future.timeout"]
    assert late.attributes == {"seconds": 0.05}


def test_each_term_of_a_loss_is_an_event_with_value_and_gradient():
    pytest.importorskip("torch")

    def loss(data, logprobs):
        return sum((one**2).sum() for one in logprobs), {}

    heard = []
    with scripted_peer() as peer, service(peer) as client:
        training = training_client(peer, client)
        peer.always(f"{API}/forward_backward", future("f"))
        peer.always(f"{API}/retrieve_future", output())
        training.on_event(heard.append)
        regular = regularizers.with_regularizers(loss, [regularizers.l1(0.5)])
        training.forward_backward_custom([datum()], regular).result(10)
    told = [event for event in heard if event.name.startswith("regularizer.")]
    assert [event.name for event in told] == ["regularizer.start", "regularizer.stop"]
    end = told[1].attributes
    assert (end["term"], end["weight"], end["value"]) == ("l1", 0.5, 1.0)
    assert end["grad_norm"] == pytest.approx(2**0.5)
    assert end["duration"] >= 0


def test_run_that_is_taken_up_again_is_an_event():
    heard, failures = [], [tinker.APIConnectionError("gone")]

    with scripted_peer() as peer:

        def connect():
            runtime = Runtime(clock=JumpingClock())
            client = tinker.ServiceClient(base_url=peer.url, api_key="tml-x", runtime=runtime)
            client.on_event(heard.append)
            return client

        def work(training, checkpoint):
            if failures:
                raise failures.pop()
            return "done"

        peer.always(
            f"{API}/training_runs/sess-1:train:0/checkpoints", ok({"checkpoints": []}), "GET"
        )
        found = tinker.run_with_recovery(connect, lambda s: training_client(peer, s), work)
    assert found == "done"
    told = [event for event in heard if event.name.startswith("recovery.")]
    assert [event.name for event in told] == ["recovery.start", "recovery.stop"]
    assert told[0].attributes == {"attempt": 1, "path": None}


def test_every_event_that_is_sent_stands_in_the_tables():
    sources = Path(events.__file__).parent.glob("*.py")
    text = "".join(path.read_text() for path in [*sources, Path(regularizers.__file__)])
    sent = set(re.findall(r'emit\(\s*"([\w.]+)"', text))
    sent |= set(re.findall(r'operation\(\s*"([\w.]+)"', text))
    assert len(sent) > 10
    guide = Path(__file__).parents[3] / "docs" / "guides" / "telemetry.md"
    for table in (events.__doc__, guide.read_text()):
        missing = {name for name in sent if f"`{name}" not in table}
        missing -= {name for name in missing if f"`.{name.rpartition('.')[2]}`" in table}
        assert not missing
