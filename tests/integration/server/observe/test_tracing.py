"""OpenTelemetry: a client's trace goes on in the server, as far as the engine."""

import asyncio

import pytest
from server_support import BASE_MODEL, Api, batch_json, sample_json

pytest.importorskip("opentelemetry.sdk")

import httpx
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tinkex._clock import SystemClock
from tinkex.errors import EngineError
from tinkex.server.app import build_app
from tinkex.server.observe.tracing import Tracing

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
async def traced(make_config, make_engine, exporter):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    engine = make_engine()
    tracing = Tracing(provider)
    app = build_app(make_config(), {BASE_MODEL: engine}, clock=SystemClock(), tracing=tracing)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://localhost"
        ) as client,
    ):
        api = Api(app, client)
        api.engine = engine
        yield api


def named(exporter, name):
    return [span for span in exporter.get_finished_spans() if span.name == name]


async def test_request_and_its_work_are_spans_of_the_clients_trace(traced, exporter):
    model_id = await traced.model()
    exporter.clear()
    future = await traced.ok("/forward_backward", batch_json(model_id, 1), headers=HEADERS)
    await traced.result(future)
    (post,) = named(exporter, "POST /api/v1/forward_backward")
    (work,) = named(exporter, "forward_backward")
    assert format(post.context.trace_id, "032x") == TRACE
    assert format(post.parent.span_id, "016x") == PARENT
    assert post.attributes["http.route"] == "/api/v1/forward_backward"
    assert post.attributes["http.response.status_code"] == 200
    assert post.attributes["tinkex.request_id"]
    assert work.parent.span_id == post.context.span_id
    assert work.attributes["tinkex.outcome"] == "ok"
    (queue,), (engine,) = named(exporter, "queue"), named(exporter, "engine")
    assert {queue.parent.span_id, engine.parent.span_id} == {work.context.span_id}
    assert work.start_time == queue.start_time <= queue.end_time == engine.start_time
    assert engine.start_time < engine.end_time == work.end_time
    assert work.attributes["tinkex.engine_seconds"] > 0


async def test_spans_hold_neither_keys_nor_prompts(traced, exporter):
    sampler = await traced.sampler()
    await traced.result(await traced.ok("/asample", sample_json(sampler, tokens=(77, 78, 79))))
    spans = exporter.get_finished_spans()
    assert traced.key not in str([span.to_json() for span in spans])
    assert {name for span in spans for name in span.attributes} == {
        "http.request.method",
        "http.route",
        "http.response.status_code",
        "tinkex.request_id",
        "tinkex.outcome",
        "tinkex.engine_seconds",
    }


async def test_failure_of_ours_marks_its_span_and_a_users_does_not(traced, exporter):
    model_id = await traced.model()
    await traced.failure(
        await traced.ok("/forward_backward", batch_json(model_id, 1, loss_fn="none"))
    )
    (work,) = named(exporter, "forward_backward")
    assert (work.attributes["tinkex.outcome"], work.status.is_ok) == ("user", True)

    def full(*_args, **_options):
        raise EngineError("the disk is full")

    traced.engine.optim_step = full
    body = {"model_id": model_id, "seq_id": 2, "adam_params": {"learning_rate": 0.1}}
    await traced.failure(await traced.ok("/optim_step", body))
    (work,) = named(exporter, "optim_step")
    assert (work.attributes["tinkex.outcome"], work.status.is_ok) == ("server", False)


async def test_work_of_requests_at_once_stays_with_its_own_request(traced, exporter):
    models = await asyncio.gather(*(traced.model() for _ in range(4)))
    exporter.clear()
    futures = await asyncio.gather(
        *(traced.ok("/forward_backward", batch_json(model, 1)) for model in models)
    )
    await asyncio.gather(*(traced.result(future) for future in futures))
    posts = {span.context.span_id for span in named(exporter, "POST /api/v1/forward_backward")}
    works = {span.parent.span_id for span in named(exporter, "forward_backward")}
    assert len(posts) == 4
    assert works == posts
