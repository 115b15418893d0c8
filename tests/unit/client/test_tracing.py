"""OpenTelemetry: what the client does is a span, and the server gets the trace (A6.1).

In a process of its own: a tracer provider is set once for each process.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from patience import PATIENCE_S

pytest.importorskip("opentelemetry.sdk")

SUPPORT = Path(__file__).parents[2] / "support"

PROGRAM = """
    import sys
    sys.path.insert(0, sys.argv[1])
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)

    import tinkex as tinker
    from scripted_tinker import API, future, ok, sampled, scripted_peer, service

    with scripted_peer() as peer, service(peer) as client:
        peer.expect(f"{API}/asample", future(1, sample_sequence_ids=["s"]))
        peer.expect(f"{API}/retrieve_future", sampled())
        sampler = client.create_sampling_client(base_model="tinkex/sprout").result(10)
        with trace.get_tracer("program").start_as_current_span("mine") as mine:
            params = tinker.SamplingParams(max_tokens=1)
            sampler.sample(tinker.ModelInput.from_ints([1]), 1, params).result(10)
        (request,) = peer.requests_to(f"{API}/asample")

    spans = {span.name: span for span in exporter.get_finished_spans()}
    sample, post = spans["sample"], spans[f"POST {API}/asample"]
    assert sample.parent.span_id == mine.get_span_context().span_id
    assert post.parent.span_id == sample.get_span_context().span_id
    assert post.attributes["http.response.status_code"] == 200
    trace_id = format(mine.get_span_context().trace_id, "032x")
    span_id = format(post.get_span_context().span_id, "016x")
    assert request.headers["traceparent"].startswith(f"00-{trace_id}-{span_id}-"), request.headers
"""


def test_calls_are_spans_of_the_callers_trace_and_the_server_gets_it():
    program = textwrap.dedent(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-c", program, str(SUPPORT)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
