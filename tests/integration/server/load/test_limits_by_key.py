"""What one key may do and hold: told, refused with the time to wait, and nobody else's."""

import asyncio

import orjson
import pytest
from server_support import OTHER_KEY, batch_json, sample_json

from tinkex._clock import SystemClock
from tinkex.server.app import build_app
from tinkex.server.config import Limits
from tinkex.server.load.limited import FREE_PATHS, SEQUENCED_PATHS, counts
from tinkex.server.observe.requests import templates
from tinkex.testing.clock import VirtualClock

STEP = {"adam_params": {"learning_rate": 0.01}}


@pytest.fixture
def limited(make_config, serve):
    """Serve with other limits: the app, on a clock that stands unless it is moved."""

    def start(clock=None, **limits):
        return serve(make_config(limits=Limits(max_rank=64, **limits)), clock or VirtualClock())

    return start


def assert_refused(response, *words):
    assert response.status_code == 429, response.text
    wait = int(response.headers["retry-after-ms"]) / 1000
    assert 0 < wait <= 60
    assert int(response.headers["retry-after"]) >= wait
    for word in words:
        assert word in response.json()["detail"]
    return wait


async def test_requests_above_the_rate_are_refused_until_the_time_they_are_told(limited):
    clock = VirtualClock()
    async with limited(clock, requests_per_minute=6) as api:
        for left in range(5, -1, -1):
            response = await api.get("/training_runs")
            assert response.status_code == 200
            assert response.headers["x-ratelimit-limit-requests"] == "6"
            assert response.headers["x-ratelimit-remaining-requests"] == str(left)
            assert response.headers["x-ratelimit-reset-requests"] == f"{10 * (6 - left):.3f}s"
        refused = await api.get("/training_runs")
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        wait = assert_refused(refused, "6 requests a minute")
        assert (await api.get("/training_runs", key=OTHER_KEY)).status_code == 200
        clock.advance(wait)
        assert (await api.get("/training_runs")).status_code == 200
        assert_refused(await api.get("/training_runs"))
        text = (await api.client.get("/metrics")).text
        assert 'tinkex_refusals_total{limit="requests"} 2.0' in text


async def test_polls_and_heartbeats_are_free(limited):
    async with limited(requests_per_minute=2) as api:
        session = await api.session()
        await api.get("/training_runs")
        assert_refused(await api.get("/training_runs"))
        for _ in range(5):
            beat = {"session_id": session, "type": "session_heartbeat"}
            assert (await api.post("/session_heartbeat", beat)).status_code == 200
            poll = await api.post("/retrieve_future", {"request_id": "req-none"})
            assert poll.status_code == 404
        finish = {"reason": {"type": "success"}, "detail": None}
        assert (await api.post(f"/sessions/{session}/finish", finish)).status_code == 200


def test_paths_that_are_named_here_exist(make_config, make_engine):
    app = build_app(make_config(), {"tiny/qwen3": make_engine()}, clock=SystemClock())
    there = {path for _, path in templates(app.routes)}
    assert there >= FREE_PATHS
    assert there >= SEQUENCED_PATHS
    assert counts("/api/v1/asample")
    assert counts("/api/v1/create_model")


async def test_tokens_are_set_right_when_the_work_has_ended(limited):
    clock = VirtualClock()
    async with limited(clock, tokens_per_minute=60) as api:
        sampler = await api.sampler()
        before = await api.get("/training_runs")
        assert before.headers["x-ratelimit-remaining-tokens"] == "60"
        sample = sample_json(sampler, tokens=range(5, 25), max_tokens=7, num_samples=3)
        result = await api.result(await api.ok("/asample", sample))
        sampled = sum(len(one["tokens"]) for one in result["sequences"])
        after = await api.get("/training_runs")
        assert after.headers["x-ratelimit-remaining-tokens"] == str(60 - 20 - sampled)
        again = sample_json(sampler, 1, tokens=range(5, 55), max_tokens=1)
        await api.result(await api.ok("/asample", again))
        refused = await api.post("/asample", sample_json(sampler, 2))
        wait = assert_refused(refused, "60 tokens a minute")
        clock.advance(wait)
        await api.result(await api.ok("/asample", sample_json(sampler, 2)))


async def hang_up_on_tokens(api, body):
    """Ask for a stream and go away with its first tokens; how many these were."""
    gone, seen = asyncio.Event(), []
    data = orjson.dumps(body)
    headers = {"host": "localhost", "x-api-key": api.key, "content-type": "application/json"}
    headers["content-length"] = str(len(data))
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST"}
    scope |= {"scheme": "http", "path": "/api/v1/sample_stream", "raw_path": b"", "root_path": ""}
    scope |= {"query_string": b"", "client": ("127.0.0.1", 1), "server": ("localhost", 80)}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]
    messages = [{"type": "http.request", "body": data, "more_body": False}]

    async def receive():
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        for line in message.get("body", b"").split(b"\n\n"):
            event = orjson.loads(line.removeprefix(b"data: ")) if line.startswith(b"data") else {}
            if event.get("type") == "tokens":
                seen.append(len(event["tokens"]))
                gone.set()

    await api.app(scope, receive, send)
    return sum(seen)


async def test_stream_that_is_broken_off_costs_what_it_handed_out(limited):
    async with limited(tokens_per_minute=10_000) as api:
        sampler = await api.sampler()
        body = sample_json(sampler, tokens=range(5, 25), max_tokens=100, num_samples=64, stop=[])
        del body["seq_id"]
        shown = await hang_up_on_tokens(api, body)
        await api.quiet()
        left = (await api.get("/training_runs")).headers["x-ratelimit-remaining-tokens"]
        assert shown > 0
        assert int(left) <= 10_000 - 20 - shown
        used = (await api.get("/usage?by=account")).json()["rows"][0]
        assert 10_000 - int(left) == used["prefilled_tokens"] + used["sampled_tokens"]


async def test_training_has_its_tokens_counted_and_a_failed_batch_gives_them_back(limited):
    async with limited(tokens_per_minute=1000) as api:
        model = await api.model()

        async def left():
            response = await api.get("/training_runs")
            return int(response.headers["x-ratelimit-remaining-tokens"])

        await api.result(await api.ok("/forward_backward", batch_json(model, 1, range(5, 36))))
        assert await left() == 970
        bad = batch_json(model, 2, range(5, 36), loss_fn="none")
        await api.failure(await api.ok("/forward_backward", bad))
        assert await left() == 970


async def test_request_that_others_wait_for_is_let_through_and_the_wait_is_explained(limited):
    clock = VirtualClock()
    async with limited(clock, requests_per_minute=4) as api:
        model = await api.model()  # with its session: two requests
        first = await api.ok("/optim_step", {"model_id": model, "seq_id": 1, **STEP})
        await api.result(first)
        # seq_id 3 comes before 2, and takes the last of the limit
        held = await api.ok("/optim_step", {"model_id": model, "seq_id": 3, **STEP})
        assert_refused(await api.post("/optim_step", {"model_id": model, "seq_id": 4, **STEP}))
        poll = asyncio.create_task(api.ok("/retrieve_future", {"request_id": held["request_id"]}))
        while not poll.done():
            await asyncio.sleep(0)  # noqa: TID251 - lets the poll arrive, waits for nothing
            clock.advance(1.0)
            if clock.monotonic() > 55:
                break
        answer = await poll
        assert answer["type"] == "try_again"
        assert answer["queue_state"] == "paused_rate_limit"
        assert "seq_id 2" in answer["queue_state_reason"]
        assert "4 requests a minute" in answer["queue_state_reason"]
        second = await api.ok("/optim_step", {"model_id": model, "seq_id": 2, **STEP})
        for future in (second, held):
            assert "metrics" in await api.result(future)


async def test_in_order_requests_of_a_run_are_bounded_too(limited):
    """Each of them is the one that runs next, which others might wait for: none does."""
    async with limited(max_open_futures_per_key=3) as api:
        model = await api.model()
        (base,) = api.services.bases
        release = asyncio.Event()

        async def held():
            await release.wait()

        loop = asyncio.get_running_loop()
        blocker = base.jobs.call(
            "blocker",
            lambda _engine: asyncio.run_coroutine_threadsafe(held(), loop).result(10),
        )
        futures = [
            await api.ok("/optim_step", {"model_id": model, "seq_id": n, **STEP}) for n in (1, 2, 3)
        ]
        refused = await api.post("/optim_step", {"model_id": model, "seq_id": 4, **STEP})
        assert_refused(refused, "3 requests of this key are pending")
        release.set()
        await blocker
        for future in futures:
            await api.result(future)
        last = await api.ok("/optim_step", {"model_id": model, "seq_id": 4, **STEP})
        assert "metrics" in await api.result(last)


async def test_sessions_runs_and_samplers_of_a_key_are_bounded(limited):
    async with limited(max_sessions_per_key=2, max_runs_per_key=2, max_samplers_per_key=1) as api:
        first, second = await api.session(), await api.session()
        body = {"tags": [], "user_metadata": {}, "sdk_version": "test", "type": "create_session"}
        assert_refused(await api.post("/create_session", body), "2 sessions of this key")
        assert await api.session(key=OTHER_KEY)
        await api.model(first, 0)
        await api.model(second, 0)
        create = {
            "session_id": first,
            "model_seq_id": 1,
            "base_model": "tiny/qwen3",
            "lora_config": {"rank": 4},
        }
        assert_refused(await api.post("/create_model", create), "2 training runs of this key")
        unloaded = await api.ok("/unload_model", {"model_id": f"{second}:train:0"})
        assert "error" not in await api.result(unloaded)
        assert "model_id" in await api.result(await api.ok("/create_model", create))
        assert_refused(
            await api.post("/create_model", {**create, "model_seq_id": 2}), "2 training runs"
        )
        await api.sampler(first)
        another = {"session_id": second, "sampling_session_seq_id": 0, "base_model": "tiny/qwen3"}
        assert_refused(await api.post("/create_sampling_session", another), "1 sampling sessions")
        finish = {"reason": {"type": "success"}, "detail": None}
        await api.post(f"/sessions/{first}/finish", finish)
        third = await api.session()
        await api.model(third, 0)
        await api.sampler(third)


async def test_without_rates_no_reply_speaks_of_them(api):
    response = await api.get("/training_runs")
    assert [name for name in response.headers if "ratelimit" in name] == []
