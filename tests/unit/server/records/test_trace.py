"""Where requests lie in a trace."""

import itertools
import random

import pytest

from tinkex.server.records.trace import Timeline


def row(start, end, *, began=None, source="s:train:0", name="optim_step", error=None):
    return {
        "request_id": f"req-{start}-{end}",
        "session_id": "s",
        "source_id": source,
        "operation": name,
        "accepted_at": start,
        "began_at": start if began is None else began,
        "finished_at": end,
        "engine_s": 0.25,
        "amounts": {"sampled_tokens": 3},
        "error": error,
    }


def events_of(*rows):
    timeline = Timeline()
    ordered = sorted(rows, key=lambda one: -one["finished_at"])
    return [event for one in ordered for event in timeline.events(one)]


def requests(events):
    return [event for event in events if event.get("cat") == "request"]


def test_a_request_is_a_slice_with_its_wait_and_its_run_in_it():
    whole, queued, running = events_of(row(10.0, 12.0, began=10.5, error="broken"))[1:]
    assert (whole["name"], whole["ts"], whole["dur"]) == ("optim_step", 10_000_000, 2_000_000)
    assert whole["args"] == {
        "request_id": "req-10.0-12.0",
        "engine_seconds": 0.25,
        "sampled_tokens": 3,
        "error": "broken",
    }
    assert (queued["name"], queued["ts"], queued["dur"]) == ("queued", 10_000_000, 500_000)
    assert (running["name"], running["ts"], running["dur"]) == ("running", 10_500_000, 1_500_000)


def test_what_never_ran_only_waited():
    one = {**row(1.0, 3.0), "began_at": None}
    assert [event["name"] for event in events_of(one)[1:]] == ["optim_step", "queued"]


def test_each_source_is_a_process_that_is_named_once():
    events = events_of(row(1, 2), row(3, 4), row(1, 2, source="s:sample:0"), row(5, 6, source=""))
    names = [(event["pid"], event["args"]["name"]) for event in events if event["ph"] == "M"]
    assert sorted(name for _, name in names) == ["s", "s:sample:0", "s:train:0"]
    assert len({pid for pid, _ in names}) == 3


def test_requests_one_after_another_share_a_lane():
    assert {event["tid"] for event in events_of(row(1, 2), row(2, 3), row(4, 5))} == {1}


@pytest.mark.parametrize("seed", range(20))
def test_no_request_covers_another_and_no_lane_is_wasted(seed):
    numbers = random.Random(seed)
    starts = [numbers.randrange(50) for _ in range(60)]
    rows = [row(start, start + 1 + numbers.randrange(20)) for start in starts]
    found = requests(events_of(*rows))
    lanes = {}
    for event in found:
        lanes.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    for spans in lanes.values():
        spans.sort()
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    most_at_once = max(
        sum(one["accepted_at"] <= moment < one["finished_at"] for one in rows)
        for moment in range(80)
    )
    assert len(lanes) == most_at_once
