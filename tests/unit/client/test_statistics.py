"""Counts and percentiles of what a client did."""

from __future__ import annotations

import pytest

from tinkex.client.events import Event
from tinkex.client.statistics import ClientStatistics, percentile
from tinkex.testing import VirtualClock


def stop(duration, name="http.request.stop", **attributes):
    attributes = {"method": "POST", "path": "/api/v1/asample", **attributes}
    return Event(name, None, {"duration": duration, **attributes})


def test_percentiles_are_those_of_the_durations_seen():
    statistics = ClientStatistics(VirtualClock())
    for number in range(1, 101):
        statistics(stop(float(number)))
    (found,) = statistics.snapshot().values()
    assert (found.count, found.errors) == (100, 0)
    assert (found.p50, found.p95, found.p99) == (50.0, 95.0, 99.0)


def test_only_what_lies_in_the_window_counts():
    clock = VirtualClock()
    statistics = ClientStatistics(clock, window=60.0)
    statistics(stop(9.0))
    clock.advance(50.0)
    statistics(stop(1.0))
    clock.advance(20.0)
    (found,) = statistics.snapshot().values()
    assert (found.count, found.p99) == (1, 1.0)
    clock.advance(60.0)
    assert statistics.snapshot() == {}


def test_operations_are_told_apart_and_errors_counted():
    statistics = ClientStatistics(VirtualClock())
    statistics(stop(1.0, status=200))
    statistics(stop(1.0, status=503))
    statistics(Event("train.stop", None, {"duration": 2.0, "operation": "optim_step"}))
    statistics(Event("sample.exception", None, {"duration": 3.0}))
    statistics(Event("limiter.backoff", None, {"seconds": 1.0}))
    found = statistics.snapshot()
    assert {name: (one.count, one.errors) for name, one in found.items()} == {
        "http POST /api/v1/asample": (2, 1),
        "sample": (1, 1),
        "train optim_step": (1, 0),
    }


@pytest.mark.parametrize(("share", "expected"), [(0.01, 1), (0.5, 2), (0.75, 3), (1.0, 4)])
def test_percentile_is_the_nearest_rank(share, expected):
    assert percentile([1, 2, 3, 4], share) == expected
