"""Metrics, health and logs of a running server."""

import io
import re
from dataclasses import replace

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_support import BASE_MODEL, OTHER_KEY, Api, batch_json, sample_json

from tinkex._clock import SystemClock
from tinkex._logs import make_logger
from tinkex.errors import EngineError
from tinkex.server.app import build_app

ID = re.compile(r"sess-|req-|key-|tml-|[0-9a-f]{16}")


async def scrape(api, **kwargs):
    response = await api.client.get("/metrics", **kwargs)
    assert response.status_code == 200, response.text
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def at(seen, name, **labels):
    return seen[(f"tinkex_{name}", *sorted(labels.items()))]


async def test_metrics_tell_what_the_server_did_and_holds(api):
    model_id = await api.model()
    await api.result(await api.ok("/forward_backward", batch_json(model_id, 1)))
    await api.failure(await api.ok("/forward_backward", batch_json(model_id, 2, loss_fn="none")))
    sampler = await api.sampler()
    await api.result(await api.ok("/asample", sample_json(sampler, num_samples=2)))
    await api.get("/training_runs/no:such:run")
    await api.get("/nowhere")
    await api.quiet()
    seen = await scrape(api)
    base = {"base_model": BASE_MODEL}
    route = "/api/v1/forward_backward"
    assert at(seen, "http_requests_total", method="POST", route=route, status="200") == 2
    template = "/api/v1/training_runs/{run_id}"
    assert at(seen, "http_requests_total", method="GET", route=template, status="404") == 1
    assert at(seen, "http_requests_total", method="GET", route="unknown", status="404") == 1
    assert at(seen, "http_request_duration_seconds_count", route=route) == 2
    operation = {"operation": "forward_backward"}
    assert at(seen, "futures_finished_total", outcome="ok", **operation) == 1
    assert at(seen, "futures_finished_total", outcome="user", **operation) == 1
    assert at(seen, "future_duration_seconds_count", **operation) == 2
    assert at(seen, "engine_seconds_total", work="training", **base) > 0
    assert at(seen, "engine_seconds_total", work="sampling", **base) > 0
    assert at(seen, "tokens_total", kind="trained", **base) == 4
    assert at(seen, "tokens_total", kind="prefilled", **base) == 3
    assert at(seen, "tokens_total", kind="cached", **base) == 0
    assert 0 < at(seen, "tokens_total", kind="sampled", **base) <= 8
    assert at(seen, "adapters", kind="adapter", place="host", **base) == 1
    assert at(seen, "adapters_bytes", kind="adapter", place="host", **base) > 0
    assert at(seen, "adapters", kind="adapter", place="disk", **base) == 0
    assert at(seen, "queue_length", queue="lanes", **base) == 0
    assert at(seen, "sessions") == 2
    assert at(seen, "training_runs") == 1
    assert at(seen, "futures_open") == 0
    assert at(seen, "database_bytes") > 0
    assert at(seen, "http_requests_in_progress") == 1
    assert at(seen, "faults_total") == 0


async def test_labels_hold_no_ids_and_no_users(api):
    for _ in range(3):
        model_id = await api.model()
        await api.get(f"/training_runs/{model_id}")
        await api.client.request("BREW", f"/api/v1/{model_id}")
    seen = await scrape(api)
    assert [labels for labels in seen if ID.search(str(labels))] == []
    methods = {dict(labels[1:])["method"] for labels in seen if "method" in dict(labels[1:])}
    assert methods <= {"GET", "POST", "other"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Forwarded-For", "203.0.113.9"),
        ("X-Forwarded-Host", "tinkex.example.org"),
        ("Via", "1.1 proxy"),
        ("Host", "tinkex.example.org"),
        ("Host", "192.0.2.7:8000"),
    ],
)
async def test_metrics_are_not_shown_through_a_proxy_on_this_machine(
    make_config, serve, name, value
):
    async with serve(make_config(allowed_hosts=("tinkex.example.org",))) as api:
        await scrape(api, headers={"Host": "127.0.0.1:8000"})
        assert (await api.client.get("/metrics", headers={name: value})).status_code == 403
        await scrape(api, headers={name: value, "X-API-Key": api.key})


async def test_metrics_are_for_this_machine_and_for_administrators(api):
    await scrape(api)
    elsewhere = {"headers": {"X-Forwarded-For": "203.0.113.9"}}
    refused = await api.client.get("/metrics", **elsewhere)
    assert refused.status_code == 403
    assert "admin key" in refused.json()["detail"]
    elsewhere["headers"]["X-API-Key"] = OTHER_KEY
    assert (await api.client.get("/metrics", **elsewhere)).status_code == 403
    elsewhere["headers"]["X-API-Key"] = "tml-wrong-key-0123456789"
    assert (await api.client.get("/metrics", **elsewhere)).status_code == 401
    elsewhere["headers"]["X-API-Key"] = api.key
    await scrape(api, **elsewhere)


async def test_two_servers_in_one_process_count_apart(make_config, make_engine, tmp_path):
    other = replace(make_config(), data_dir=tmp_path / "second")
    apps = [
        build_app(config, {BASE_MODEL: make_engine()}, clock=SystemClock())
        for config in (make_config(), other)
    ]
    first, second = [app.state.services.metrics for app in apps]
    first.refused("requests")
    assert b'tinkex_refusals_total{limit="requests"} 1.0' in first.render()
    assert b"tinkex_refusals_total{" not in second.render()


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/api/v1/healthz"])
async def test_health_needs_no_key(api, path):
    response = await api.client.get(path)
    assert response.status_code == 200
    assert response.json()["status"] in {"ok", "ready"}


async def test_stopping_server_is_alive_and_not_ready(api):
    api.services.begin_stop()
    response = await api.client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["status"] == "draining"
    assert response.headers["retry-after"]
    assert (await api.client.get("/healthz")).status_code == 200


async def test_broken_engine_is_neither(api):
    (base,) = api.services.bases

    base.jobs._failure = EngineError("The server's engine broke down.")
    for path in ("/healthz", "/readyz", "/api/v1/healthz"):
        response = await api.client.get(path)
        assert response.status_code == 503
        assert response.json()["status"] == "failed"
        assert "broke down" in response.json()["detail"]


async def test_failure_of_ours_is_logged_under_the_id_of_its_request(make_config, make_engine):
    lines = io.StringIO()
    engine = make_engine()
    logger = make_logger("error", lines)
    app = build_app(make_config(), {BASE_MODEL: engine}, clock=SystemClock(), logger=logger)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://localhost"
        ) as client,
    ):
        api = Api(app, client)
        model_id = await api.model()

        def full(*_args, **_options):
            raise EngineError("the disk is full")

        engine.optim_step = full
        body = {"model_id": model_id, "seq_id": 1, "adam_params": {"learning_rate": 0.1}}
        response = await api.post("/optim_step", body)
        message, category = await api.failure(response.json())
    assert (message, category) == ("the disk is full", "server")
    (line,) = [line for line in lines.getvalue().splitlines() if "work failed" in line]
    assert f"request_id={response.headers['x-request-id']}" in line
    assert f"future={response.json()['request_id']}" in line
    assert "operation=optim_step" in line
    assert "the disk is full" in line
    assert api.key not in lines.getvalue()
