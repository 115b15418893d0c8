"""A session's heartbeat, and what the server says to its users."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest
from client_support import settle, status_error
from playback import Playback
from recordings import load
from scripted_tinker import API, ok, scripted_peer, service

from tinkex.client.retry import RetryPolicy
from tinkex.client.session import _keep_alive
from tinkex.errors import APIConnectionError, ClientClosedError
from tinkex.testing import VirtualClock
from tinkex.types import SessionHeartbeatRequest
from tinkex.wire import endpoints


class Sender:
    """Notes the heartbeats; answers what it is told to."""

    def __init__(self, clock, *answers):
        self.clock = clock
        self.config = SimpleNamespace(heartbeat_seconds=10.0, retry=RetryPolicy())
        self.beats = []
        self.events = []
        self.answers = list(answers)

    def emit(self, name, **attributes):
        self.events.append((name, attributes))

    async def call(self, endpoint, body, *, timeout, policy):  # noqa: ASYNC109 - of one request
        self.beats.append((self.clock.monotonic(), endpoint.name, body.session_id, timeout))
        assert policy.max_retries == 0
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return {}


async def beat(clock, count, seconds=10.0):
    for _ in range(count):
        await settle()
        clock.advance(seconds)
    await settle()


async def test_heartbeat_goes_out_every_ten_seconds():
    clock = VirtualClock()
    sender = Sender(clock)
    task = asyncio.create_task(_keep_alive(sender, "sess-1"))
    await beat(clock, 5)
    assert [moment for moment, *_ in sender.beats] == [10, 20, 30, 40, 50]
    assert sender.beats[0][1:] == ("session_heartbeat", "sess-1", 10.0)
    task.cancel()


async def test_heartbeat_ends_when_the_server_says_the_session_is_over():
    clock = VirtualClock()
    sender = Sender(clock, None, status_error(410))
    task = asyncio.create_task(_keep_alive(sender, "sess-1"))
    await beat(clock, 5)
    assert task.done()
    assert len(sender.beats) == 2


async def test_lost_heartbeats_are_told_once_after_two_minutes_and_go_on(caplog):
    clock = VirtualClock()
    troubles = [APIConnectionError("gone"), status_error(503)] * 10
    sender = Sender(clock, *troubles)
    task = asyncio.create_task(_keep_alive(sender, "sess-1"))
    with caplog.at_level(logging.WARNING, "tinkex.client"):
        await beat(clock, 11)
        assert caplog.records == []
        await beat(clock, 12)
    assert len(caplog.records) == 1
    assert "sess-1" in caplog.text
    assert len(sender.beats) == 23
    assert [name for name, _ in sender.events] == ["session.heartbeat_failed"] * 20
    task.cancel()


async def test_slow_server_delays_no_other_sessions_heartbeat():
    """Bug row: serial heartbeats: one slow server delays all."""
    clock = VirtualClock()

    class Slow(Sender):
        async def call(self, *_, **__):
            await asyncio.Event().wait()

    slow = asyncio.create_task(_keep_alive(Slow(clock), "slow"))
    sender = Sender(clock)
    quick = asyncio.create_task(_keep_alive(sender, "quick"))
    await beat(clock, 3)
    assert len(sender.beats) == 3
    slow.cancel()
    quick.cancel()


def test_heartbeat_is_the_recorded_one():
    player = Playback("session_heartbeat")
    recorded = load("session_heartbeat")["exchanges"]
    with player.server:
        connection = player.connection()
        for exchange in recorded:
            request = SessionHeartbeatRequest(session_id=exchange["request"]["body"]["session_id"])

            async def send(request=request):
                await connection.sender.call(
                    endpoints.SESSION_HEARTBEAT, request, policy=connection.config.retry.never()
                )

            future = connection.submit(send)
            if exchange["response"]["status"] >= 400:
                assert future.exception(10) is not None
            else:
                future.result(10)
        connection.close()
    assert player.asked() == player.recorded()


@pytest.mark.parametrize(
    ("field", "level"),
    [("info_message", "INFO"), ("warning_message", "WARNING"), ("error_message", "ERROR")],
)
def test_what_the_server_wants_its_users_to_read_is_logged(field, level, caplog):
    with scripted_peer() as peer, service(peer) as client:
        peer.expect(f"{API}/create_session", ok({"session_id": "sess-1", field: "read this"}))
        with caplog.at_level(logging.INFO, "tinkex.client"):
            client.create_sampling_client(base_model="m").result(10)
    assert [(r.levelname, r.message) for r in caplog.records] == [(level, "read this")]


def test_failed_creation_is_tried_again_by_the_next_call():
    with scripted_peer() as peer, service(peer, max_retries=0) as client:
        peer.expect(f"{API}/create_session", ok({"detail": "full"}, 503))
        failing = client.create_sampling_client(base_model="m")
        assert "full" in str(failing.exception(10))
        client.create_sampling_client(base_model="m").result(10)


def test_concurrent_first_calls_create_one_session():
    with scripted_peer() as peer, service(peer) as client:
        futures = [client.create_sampling_client(base_model="m") for _ in range(20)]
        for one in futures:
            one.result(10)
        assert len(peer.requests_to(f"{API}/create_session")) == 1
        assert len(peer.requests_to(f"{API}/client/config")) == 1


async def test_finished_session_gives_no_id():
    player = Playback("session_finish")
    with player.server, player.service("sess-2") as client:
        await client._session.finish("success", "done")
        with pytest.raises(ClientClosedError):
            await client._session.id()
        await client._connection.sender.transport.close()
