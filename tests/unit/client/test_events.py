"""What handlers hear, and that they break nothing (A6.1)."""

from __future__ import annotations

import logging

from scripted_tinker import API, JumpingClock, ok, scripted_peer, service

from tinkex.client.events import EventHub
from tinkex.client.runtime import Runtime


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
        runtime.events.attach(heard.append, source=client._connection.sender)
        capabilities = f"{API}/get_server_capabilities"
        models = ok({"supported_models": []})
        peer.expect(capabilities, ok({}, 503, retry_after="3"), models, method="GET")
        client.get_server_capabilities()
    (retry,) = [event for event in heard if event.name == "http.retry"]
    assert retry.attributes["status"] == 503
    assert retry.attributes["delay"] == 3.0
