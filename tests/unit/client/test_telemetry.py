"""What is reported to the server, when, and that it never holds anybody up (A6.2)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from types import SimpleNamespace

import pytest
from client_support import settle, status_error
from recordings import load
from scripted_tinker import API, ok, scripted_peer, service

from tinkex.client.future import APIFuture
from tinkex.client.retry import RetryPolicy
from tinkex.client.telemetry import Telemetry
from tinkex.errors import APIConnectionError, ClientClosedError, InputError, NotFoundError
from tinkex.testing import VirtualClock
from tinkex.types import TelemetrySendRequest


class Sender:
    """Takes batches, or answers them with an error."""

    def __init__(self, clock, *answers):
        self.clock = clock
        self.config = SimpleNamespace(retry=RetryPolicy())
        self.batches = []
        self.answers = list(answers)
        self.gate = None

    async def call(self, endpoint, body, *, timeout, policy):  # noqa: ASYNC109 - of one request
        assert endpoint.name == "telemetry"
        assert policy.max_retries == 0
        assert timeout == 5.0
        if self.gate is not None:
            await self.gate.wait()
        if self.answers and isinstance(answer := self.answers.pop(0), Exception):
            raise answer
        self.batches.append((self.clock.monotonic(), body))


def telemetry(*answers):
    clock = VirtualClock()
    sender = Sender(clock, *answers)
    return Telemetry(sender, sdk_version="0.38.0", process_uuid="process-1"), sender, clock


@pytest.fixture
async def running():
    tasks = []

    def run(reporter):
        tasks.append(asyncio.create_task(reporter.run()))
        return reporter

    yield run
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_events_wait_for_one_another_and_go_out_together(running):
    reporter, sender, clock = telemetry()
    running(reporter)
    await settle()
    reporter.log("first")
    await settle()
    clock.advance(9.9)
    reporter.log("second")
    await settle()
    assert sender.batches == []
    clock.advance(0.1)
    await settle(30)
    ((sent_at, batch),) = sender.batches
    assert sent_at == pytest.approx(10.0)
    assert [event.event_name for event in batch.events] == ["first", "second"]
    assert [event.event_session_index for event in batch.events] == [0, 1]


async def test_nothing_to_say_starts_no_timer(running):
    """client.md 5: reporter multiplies timers."""
    reporter, sender, clock = telemetry()
    running(reporter)
    for _ in range(5):
        await settle()
        clock.advance(60.0)
    assert sender.batches == []
    assert clock.sleeps == []


async def test_many_events_share_one_timer(running):
    """client.md 5: reporter multiplies timers."""
    reporter, sender, clock = telemetry()
    running(reporter)
    await settle()
    for number in range(250):
        reporter.log("event", {"number": number})
    await settle()
    assert clock.sleeps == [10.0]
    clock.advance(10.0)
    await settle(50)
    assert [len(batch.events) for _, batch in sender.batches] == [100, 100, 50]
    assert reporter.counts.sent == 250


async def test_exception_goes_out_at_once(running):
    reporter, sender, clock = telemetry()
    running(reporter)
    await settle()
    reporter.log_exception(ValueError("broken"))
    await settle(30)
    assert clock.monotonic() == 0.0
    ((_, batch),) = sender.batches
    (event,) = batch.events
    assert (event.event, event.error_type) == ("UNHANDLED_EXCEPTION", "ValueError")


async def test_drain_takes_what_is_there_and_is_not_held_up_by_what_comes(running):
    """client.md 5: reporter blocks its own drain."""
    reporter, sender, _ = telemetry()
    sender.gate = asyncio.Event()
    reporter.log("before")
    draining = asyncio.create_task(reporter.flush())
    await settle()
    reporter.log("during")
    sender.gate.set()
    await draining
    assert [event.event_name for _, batch in sender.batches for event in batch.events] == ["before"]
    assert reporter.counts.queued == 1


async def test_failed_sends_are_counted_as_failed():
    """client.md 5: reporter counts failed sends as sent."""
    reporter, sender, _ = telemetry(status_error(500), None)
    for _ in range(3):
        reporter.log("lost")
    await reporter.flush()
    reporter.log("taken")
    await reporter.flush()
    counts = reporter.counts
    assert (counts.sent, counts.failed, counts.queued, counts.dropped) == (1, 3, 0, 0)
    assert len(sender.batches) == 1


async def test_full_queue_drops_what_comes_and_says_so():
    reporter, _, _ = telemetry()
    for _ in range(10_000):
        assert reporter.log("event")
    assert not reporter.log("one too many")
    assert reporter.counts.dropped == 1
    assert reporter.counts.queued == 10_000


async def test_server_that_is_gone_raises_nothing_into_close():
    reporter, _, _ = telemetry(APIConnectionError("gone"))
    reporter.session_started("sess-1")
    await reporter.close()
    assert reporter.counts.failed == 2


async def test_mistake_of_the_callers_is_a_user_error_without_traceback():
    reporter, sender, _ = telemetry()
    reporter.log_exception(InputError("rank must be positive"))
    reporter.log_exception(NotFoundError("no such run", status_code=404))
    await reporter.flush()
    ((_, batch),) = sender.batches
    assert [event.event_name for event in batch.events] == ["user_error", "user_error"]
    assert batch.events[0].event_data == {
        "error_type": "InputError",
        "message": "rank must be positive",
    }
    assert batch.events[1].event_data["status_code"] == 404
    assert {event.severity for event in batch.events} == {"WARNING"}


async def test_no_key_is_ever_reported():
    """A2.5"""
    reporter, sender, _ = telemetry()
    with pytest.raises(KeyError), reporter.capture_exceptions():
        _ = {}["tml-very-secret"]
    await reporter.flush()
    text = sender.batches[0][1].model_dump_json()
    assert "very-secret" not in text
    assert "KeyError" in text


async def test_session_begins_and_ends_once():
    reporter, sender, clock = telemetry()
    reporter.session_started("sess-1")
    clock.advance(1.5)
    await reporter.close()
    await reporter.close()
    ((_, batch),) = sender.batches
    assert batch.session_id == "sess-1"
    assert [event.event for event in batch.events] == ["SESSION_START", "SESSION_END"]
    assert batch.events[1].duration == "0:00:01.500000"


async def test_without_a_session_batches_say_so():
    reporter, sender, _ = telemetry()
    reporter.log("event")
    await reporter.close()
    ((_, batch),) = sender.batches
    assert batch.session_id.startswith("sessionless-")
    assert [event.event for event in batch.events] == ["GENERIC_EVENT"]


def test_recorded_batches_read_and_write_the_same():
    bodies = [
        exchange["request"]["body"]
        for exchange in load("telemetry")["exchanges"]
        if exchange["request"]["path"].endswith("/telemetry")
    ]
    assert bodies
    for body in bodies:
        message = TelemetrySendRequest.model_validate_json(json.dumps(body))
        assert json.loads(message.model_dump_json()) == body


def reported(peer):
    return [
        event
        for request in peer.requests_to(f"{API}/telemetry")
        for event in json.loads(request.body)["events"]
    ]


def test_failed_call_is_reported_with_the_session_around_it():
    with scripted_peer() as peer:
        refused = ok({"detail": "no such model"}, 404)
        peer.expect(f"{API}/get_server_capabilities", refused, method="GET")
        with service(peer) as client:
            client.create_sampling_client(base_model="tinkex/sprout").result(10)
            with pytest.raises(NotFoundError):
                client.get_server_capabilities()
            sampler = client.create_sampling_client(base_model="tinkex/sprout").result(10)
            assert sampler.get_telemetry() is client.get_telemetry()
        found = [(event["event"], event.get("event_name")) for event in reported(peer)]
    assert found == [
        ("SESSION_START", None),
        ("GENERIC_EVENT", "user_error"),
        ("SESSION_END", None),
    ]


def test_exception_that_ends_a_with_block_is_reported():
    with scripted_peer() as peer:
        with contextlib.suppress(ZeroDivisionError), service(peer) as client:
            client.create_sampling_client(base_model="tinkex/sprout").result(10)
            _ = 1 / 0
        found = [event["event"] for event in reported(peer)]
    assert found == ["SESSION_START", "UNHANDLED_EXCEPTION", "SESSION_END"]


def test_nothing_is_reported_when_it_is_switched_off(monkeypatch):
    monkeypatch.setenv("TINKEX_TELEMETRY", "0")
    with scripted_peer() as peer:
        with service(peer) as client:
            client.create_sampling_client(base_model="tinkex/sprout").result(10)
            assert client.get_telemetry() is None
        assert reported(peer) == []


def test_closing_is_no_failure():
    reporter, _, _ = telemetry()
    future = APIFuture()
    future.reject(ClientClosedError("closed"))
    reporter.observe(future)
    assert reporter.counts.queued == 0
