"""What a worker counts of its calls, as whoever reads its metrics sees it."""

import pytest
from prometheus_client import generate_latest

from tinkex.mesh.identity import KeyPair
from tinkex.mesh.rpc.observer import CallReport
from tinkex.mesh.workers.metrics import WorkerMetrics

PEER = KeyPair(b"p" * 32).peer_id


@pytest.fixture
def metrics():
    return WorkerMetrics()


def ended(metrics, method="echo.say", incoming=True, error=None, seconds=0.0, sizes=(0, 0)):
    metrics.call_ended(CallReport(PEER, method, incoming, error, seconds, 1, *sizes))


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(f"tinkex_mesh_{name}", labels)


def test_calls_are_counted_by_method_direction_and_outcome(metrics):
    for _ in range(3):
        ended(metrics)
    ended(metrics, error="NotFoundError")
    ended(metrics, incoming=False)
    ended(metrics, "echo.count")

    def count(method, direction, outcome):
        return value(metrics, "calls_total", method=method, direction=direction, outcome=outcome)

    assert count("echo.say", "incoming", "ok") == 3
    assert count("echo.say", "incoming", "NotFoundError") == 1
    assert count("echo.say", "outgoing", "ok") == 1
    assert count("echo.count", "incoming", "ok") == 1
    assert count("echo.count", "outgoing", "ok") is None
    assert metrics.answered == 5


def test_times_are_in_the_buckets_that_they_fit_in(metrics):
    for seconds in (0.0004, 0.001, 0.0011, 0.3, 1000.0):
        ended(metrics, seconds=seconds)
    labels = {"method": "echo.say", "direction": "incoming"}
    name = "call_duration_seconds"

    def until(bound):
        return value(metrics, f"{name}_bucket", le=bound, **labels)

    # A time that is a bound is within it, and each bucket has those before it.
    assert [until(bound) for bound in ("0.001", "0.0025", "0.25", "0.5", "300.0", "+Inf")] == [
        2.0,
        3.0,
        3.0,
        4.0,
        4.0,
        5.0,
    ]
    assert value(metrics, f"{name}_count", **labels) == 5
    assert value(metrics, f"{name}_sum", **labels) == pytest.approx(1000.3025)


def test_bytes_are_those_of_both_parts(metrics):
    ended(metrics, sizes=(10, 1000))
    ended(metrics, sizes=(1, 0), error="NotFoundError")
    ended(metrics, incoming=False, sizes=(7, 8))

    def total(direction, part):
        return value(metrics, "call_bytes_total", method="echo.say", direction=direction, part=part)

    assert (total("incoming", "request"), total("incoming", "reply")) == (11, 1000)
    assert (total("outgoing", "request"), total("outgoing", "reply")) == (7, 8)


def test_metrics_can_be_read_before_anything_was_counted_and_again_after(metrics):
    empty = generate_latest(metrics.registry).decode()
    assert "# TYPE tinkex_mesh_calls_total counter" in empty
    assert "# TYPE tinkex_mesh_call_duration_seconds histogram" in empty
    for _ in range(2):
        ended(metrics, seconds=0.002)
        text = generate_latest(metrics.registry).decode()
    wanted = 'tinkex_mesh_calls_total{direction="incoming",method="echo.say",outcome="ok"} 2.0'
    assert wanted in text


def test_links_are_counted_while_they_live_and_by_how_they_ended(metrics):
    for _ in range(3):
        metrics.link_opened(PEER)
    metrics.link_ended(PEER, "idle", False)
    metrics.link_ended(PEER, "silent", True)
    assert value(metrics, "links") == 1
    assert value(metrics, "links_ended_total", how="orderly") == 1
    assert value(metrics, "links_ended_total", how="lost") == 1
