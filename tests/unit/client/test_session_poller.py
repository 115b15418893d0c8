"""Completions asked for together: each reaches its waiter, whatever comes first or goes wrong."""

import asyncio
import itertools

import orjson
import pytest
from client_support import settle

from tinkex.client.budget import Budget
from tinkex.client.poller import PendingResult, Poller, PollPolicy
from tinkex.client.session_poller import SessionPoller
from tinkex.client.supervision import MAX_RESTARTS, supervised
from tinkex.client.transport import HttpRequest, Reply
from tinkex.errors import APIConnectionError, APIStatusError, BackgroundTaskError
from tinkex.testing.clock import VirtualClock


def reply(status, body):
    return Reply(
        status, {"content-type": "application/json"}, orjson.dumps(body), "POST", "http://peer/x"
    )


def done(*ids, cursor, size=7):
    completions = [
        {"state": "finished", "request_id": one, "response_payload_uncompressed_size": size}
        for one in ids
    ]
    return reply(200, {"completions": completions, "cursor": cursor})


class Peer:
    """Answers retrieve_futures from a queue that the test fills; fetches answer at once."""

    def __init__(self):
        self.clock = VirtualClock(autojump=True)
        self.rng = type("Half", (), {"random": lambda self: 0.5})()
        self.asked = []
        self.fetched = []
        self.answers = asyncio.Queue()
        self.events = []
        self.tasks = set()

    def request(self, endpoint, body, timeout):
        return HttpRequest("POST", endpoint.path, "k", body.model_dump(), timeout=timeout)

    async def send(self, request):
        if request.path.endswith("retrieve_future"):
            body = orjson.loads(request.body)
            self.fetched.append(body)
            return reply(200, {"value": body["request_id"]})
        self.asked.append(request)
        if request.body.get("timeout") == 0.0:
            return reply(200, {"completions": [], "cursor": request.body["prev_cursor"]})
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def emit(self, name, **attributes):
        self.events.append((name, attributes))

    def spawn(self, operation, *arguments):
        task = asyncio.ensure_future(operation(*arguments))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


@pytest.fixture
async def peer():
    return Peer()


@pytest.fixture
async def poller(peer):
    single = Poller(peer.send, peer.clock, peer.rng, peer.emit, Budget(100), PollPolicy())
    return SessionPoller(peer, single, peer.spawn, sampling_session_id="s", clone=3)


def pending(name):
    return PendingResult(name, "Sample", lambda answer: orjson.loads(answer.body)["value"])


async def fetch(poller, name):
    with poller.call():
        return await poller.fetch(pending(name))


async def test_one_question_stands_for_all_requests(peer, poller):
    calls = [asyncio.ensure_future(fetch(poller, f"r{n}")) for n in range(100)]
    await settle()
    assert len(peer.asked) == 1
    target = {"type": "sampling_session", "sampling_session_id": "s", "cloned_sampler_id": 3}
    assert peer.asked[0].body["target"] == target
    peer.answers.put_nowait(done(*(f"r{n}" for n in range(60)), cursor=60))
    await settle(30)
    peer.answers.put_nowait(done(*(f"r{n}" for n in range(60, 100)), cursor=100))
    assert await asyncio.gather(*calls) == [f"r{n}" for n in range(100)]
    assert [one.body["prev_cursor"] for one in peer.asked[:2]] == [0, 60]
    # the result is there: it is asked for whole, once
    assert all(one["allow_metadata_only"] is False for one in peer.fetched)
    assert len(peer.fetched) == 100


async def test_server_hears_what_was_fetched_and_the_task_ends(peer, poller):
    call = asyncio.ensure_future(fetch(poller, "a"))
    await settle()
    peer.answers.put_nowait(done("a", cursor=1))
    assert await call == "a"
    await settle(30)
    told = peer.asked[-1]
    assert told.body["retrieved_request_ids"] == ["a"]
    assert (told.body["timeout"], told.timeout) == (0.0, 5.0)
    assert not peer.tasks
    again = asyncio.ensure_future(fetch(poller, "b"))
    await settle()
    peer.answers.put_nowait(done("b", cursor=2))
    assert await again == "b"


async def test_nothing_is_waited_for_once_all_is_told_however_long_that_took(peer, poller):
    """Else a client that nobody uses lives on with its question, and the server holds it open."""
    call = asyncio.ensure_future(fetch(poller, "a"))
    await settle()
    peer.clock.advance(5.0)
    peer.answers.put_nowait(done("a", cursor=1))
    assert await call == "a"
    await settle(30)
    assert [one.body.get("timeout") for one in peer.asked] == [None, 0.0]
    assert not peer.tasks


async def test_completion_that_comes_before_its_request_is_known_is_kept(peer, poller):
    with poller.call():
        first = asyncio.ensure_future(fetch(poller, "a"))
        await settle()
        peer.answers.put_nowait(done("a", "b", cursor=2))
        assert await first == "a"
        assert await asyncio.wait_for(poller.fetch(pending("b")), 5) == "b"
    assert not poller._early


async def test_completions_of_nobody_are_forgotten_with_the_last_call(peer, poller):
    call = asyncio.ensure_future(fetch(poller, "a"))
    await settle()
    peer.answers.put_nowait(done("a", *(f"gone{n}" for n in range(50)), cursor=51))
    await call
    assert poller._early == {}


async def test_cancelled_call_leaves_nothing_behind(peer, poller):
    kept = asyncio.ensure_future(fetch(poller, "kept"))
    gone = asyncio.ensure_future(fetch(poller, "gone"))
    await settle()
    gone.cancel()
    await settle()
    peer.answers.put_nowait(done("gone", "kept", cursor=2))
    assert await kept == "kept"
    assert poller._waiting == {}
    assert poller._early == {}


@pytest.mark.parametrize(
    "trouble", [reply(503, {"detail": "x"}), reply(429, {}), APIConnectionError("lost")]
)
async def test_trouble_that_passes_is_waited_for_with_growing_delays(peer, poller, trouble):
    call = asyncio.ensure_future(fetch(poller, "a"))
    for _ in range(8):
        peer.answers.put_nowait(trouble)
    peer.answers.put_nowait(done("a", cursor=1))
    assert await call == "a"
    delays = [attributes["delay"] for name, attributes in peer.events if name == "future.poll"]
    assert delays == [0.875, 1.75, 3.5, 7.0, 14.0, 26.25, 26.25, 26.25]


@pytest.mark.parametrize("status", [401, 403, 404, 410])
async def test_refusal_ends_the_waiting_of_everybody_and_the_next_call_asks_anew(
    peer, poller, status
):
    calls = [asyncio.ensure_future(fetch(poller, name)) for name in "ab"]
    await settle()
    peer.answers.put_nowait(reply(status, {"detail": "no"}))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(one, Exception) for one in outcomes)
    call = asyncio.ensure_future(fetch(poller, "c"))
    peer.answers.put_nowait(done("c", cursor=1))
    assert await call == "c"


async def test_bad_answers_are_asked_again_three_times(peer, poller):
    call = asyncio.ensure_future(fetch(poller, "a"))
    for _ in range(4):
        peer.answers.put_nowait(reply(400, {"detail": "bad"}))
    with pytest.raises(APIStatusError):
        await call
    assert len(peer.asked) == 4


async def test_answers_without_news_keep_the_floor(peer, poller):
    call = asyncio.ensure_future(fetch(poller, "a"))
    before = peer.clock.monotonic()
    for cursor in range(5):
        peer.answers.put_nowait(done(cursor=cursor))
    peer.answers.put_nowait(done("a", cursor=9))
    await call
    assert peer.clock.monotonic() - before >= 5 * 0.5


async def test_crash_is_an_event_and_the_work_goes_on(peer, poller):
    """client.md section 5: a background task's crash leaves the caller waiting for ever."""
    call = asyncio.ensure_future(fetch(poller, "a"))
    for _ in range(2):
        peer.answers.put_nowait(RuntimeError("a bug"))
    peer.answers.put_nowait(done("a", cursor=1))
    assert await call == "a"
    assert [name for name, _ in peer.events].count("background.crash") == 2


async def test_crash_again_and_again_is_told_to_everybody_who_waits(peer, poller):
    calls = [asyncio.ensure_future(fetch(poller, name)) for name in "ab"]
    for _ in range(MAX_RESTARTS + 1):
        peer.answers.put_nowait(RuntimeError("a bug"))
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, BackgroundTaskError)
        assert "a bug" in str(outcome)


async def test_crashes_far_apart_never_end_the_work():
    clock, events, numbers = VirtualClock(autojump=True), [], itertools.count()

    async def work():
        if next(numbers) < 20:
            await clock.sleep(2.0)
            raise RuntimeError("now and then")

    await supervised("work", work, clock, lambda name, **kw: events.append((name, kw)))
    assert len(events) == 20
