"""What each answer to retrieve_future means, and how long the next question waits (A3.1-A3.3)."""

import asyncio
import json
from random import Random

import pytest
from client_support import settle

from tinkex.client.budget import Budget
from tinkex.client.poller import PendingResult, Poller, PollPolicy, QueueWatch
from tinkex.client.transport import Reply
from tinkex.errors import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    FutureExpiredError,
    RequestFailedError,
)
from tinkex.testing import VirtualClock
from tinkex.types import QueueState

DONE = (200, {"path": "tinkex"})


class Peer:
    """Answers polls from a list; the last answer repeats."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.bodies = []
        self.clock = VirtualClock(autojump=True)
        self.asked_at = []
        self.poller = Poller(
            self.send,
            self.clock,
            Random(0),
            lambda *_, **__: None,
            Budget(100),
            PollPolicy(jitter=0.0),
        )

    async def send(self, request):
        self.bodies.append(json.loads(request.body))
        self.asked_at.append(self.clock.monotonic())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        status, body, *headers = answer
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {"content-type": "application/json", **(headers[0] if headers else {})}
        return Reply(status, named, content, "POST", "http://peer/api/v1/retrieve_future")

    async def fetch(self, watch=None, request_type="OptimStep"):
        pending = PendingResult("req-1", request_type, lambda reply: reply.body, watch=watch)
        return await self.poller.fetch(pending)

    @property
    def gaps(self):
        return [b - a for a, b in zip(self.asked_at[:-1], self.asked_at[1:], strict=True)]


@pytest.mark.parametrize("waiting", [(200, {"type": "try_again"}), (408, {})])
async def test_unfinished_work_is_asked_for_again_but_never_in_a_tight_loop(waiting):
    """The row "Polls in a tight loop on 408/5xx" of client.md 5; A3.2."""
    peer = Peer(*[waiting] * 20, DONE)
    await peer.fetch()
    assert len(peer.bodies) == 21
    assert min(peer.gaps) >= 0.5


@pytest.mark.parametrize("trouble", [(500, {}), (503, {}), (429, {}), APIConnectionError("gone")])
async def test_failing_server_is_asked_less_and_less_often(trouble):
    peer = Peer(*[trouble] * 8, DONE)
    await peer.fetch()
    assert peer.gaps == [1, 2, 4, 8, 16, 30, 30, 30]


async def test_good_answer_resets_the_back_off():
    peer = Peer((500, {}), (500, {}), (200, {"type": "try_again"}), (500, {}), DONE)
    await peer.fetch()
    assert peer.gaps == [1, 2, 0.5, 1]


async def test_server_that_says_when_is_asked_then():
    peer = Peer((429, {}, {"retry-after": "7"}), DONE)
    await peer.fetch()
    assert peer.gaps == [7]


@pytest.mark.parametrize(
    ("word", "category"), [("user", "user"), ("SERVER", "server"), ("odd", "unknown")]
)
async def test_failed_work_raises_at_once_with_its_category(word, category):
    peer = Peer((200, {"error": "weights are NaN", "category": word}))
    with pytest.raises(RequestFailedError, match="weights are NaN") as caught:
        await peer.fetch()
    assert caught.value.category == category
    assert caught.value.request_id == "req-1"
    assert len(peer.bodies) == 1


async def test_error_key_that_is_null_is_a_failure_too():
    with pytest.raises(RequestFailedError):
        await Peer((200, {"error": None})).fetch()


@pytest.mark.parametrize(
    ("request_type", "words"),
    [
        ("Sample", "Submit it again"),
        ("SaveWeights", "Submit it again"),
        ("ForwardBackward", "it would be done twice"),
        ("OptimStep", "it would be done twice"),
    ],
)
async def test_forgotten_result_says_whether_to_submit_again(request_type, words):
    peer = Peer((410, {}))
    with pytest.raises(FutureExpiredError, match=words):
        await peer.fetch(request_type=request_type)
    assert len(peer.bodies) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 422])
async def test_refusal_is_raised_at_once(status):
    peer = Peer((status, {"detail": "no"}))
    with pytest.raises(APIStatusError, match="no") as caught:
        await peer.fetch()
    assert caught.value.status_code == status
    assert len(peer.bodies) == 1


async def test_bad_request_is_asked_a_few_more_times():
    peer = Peer((400, {"detail": "odd"}))
    with pytest.raises(APIStatusError, match="odd"):
        await peer.fetch()
    assert len(peer.bodies) == 4


async def test_blocked_account_is_waited_for_and_then_reported(caplog):
    peer = Peer((402, {"detail": "pay"}))
    with pytest.raises(APIStatusError, match="pay"):
        await peer.fetch()
    assert set(peer.gaps) == {5.0}
    assert peer.asked_at[-1] == pytest.approx(3600, abs=5)
    [told] = [record.getMessage() for record in caplog.records]  # it is no silent hour
    assert told.startswith("Waiting for OptimStep: 402")


async def test_answer_that_is_no_json_is_a_typed_error():
    peer = Peer((200, b"<html>", {"content-type": "text/html"}))
    with pytest.raises(APIResponseValidationError, match="Tinker server"):
        await peer.fetch()
    assert len(peer.bodies) == 4


async def test_large_result_is_asked_for_once_there_is_room():
    size = {"status": "complete_metadata", "response_payload_size": 60}
    peer = Peer((200, size), DONE)
    await peer.fetch()
    assert [body["allow_metadata_only"] for body in peer.bodies] == [True, False]


@pytest.mark.parametrize("answer", [(200, {"type": "try_again"}), (503, {}), DONE])
async def test_cancellation_that_comes_with_the_answer_is_not_lost(answer):
    """The official client goes on polling, for nobody."""
    peer = Peer(answer)
    asked, coming = peer.send, asyncio.get_running_loop().create_future()

    async def send(request):
        await coming
        return await asked(request)

    peer.poller._send = send
    polling = asyncio.create_task(peer.fetch())
    await settle()
    coming.set_result(None)
    polling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await polling
    assert len(peer.bodies) == 0


async def test_size_announced_twice_is_an_error_not_a_loop():
    peer = Peer((200, {"status": "complete_metadata", "response_payload_size": 60}))
    with pytest.raises(APIResponseValidationError, match="announced"):
        await peer.fetch()


async def test_observer_hears_each_change_once():
    """A3.3"""
    heard = []

    class Observer:
        def on_queue_state_change(self, state, reason):
            heard.append((state, reason))
            raise RuntimeError("observers break nothing")

    def paused(state, reason=None):
        return (200, {"type": "try_again", "queue_state": state, "queue_state_reason": reason})

    full = paused("paused_capacity", "full")
    peer = Peer(full, full, paused("PAUSED_RATE_LIMIT"), paused("riddle"), DONE)
    await peer.fetch(QueueWatch(Observer(), lambda *_, **__: None))
    assert heard == [
        (QueueState.PAUSED_CAPACITY, "full"),
        (QueueState.PAUSED_RATE_LIMIT, None),
        (QueueState.UNKNOWN, None),
        (QueueState.ACTIVE, None),
    ]
