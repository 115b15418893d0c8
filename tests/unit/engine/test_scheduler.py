"""Who prefills, starts and decodes next."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from engine_support import job

from tinkex.engine.scheduler import Scheduler
from tinkex.engine.sequence import JobState, RunningSequence, SamplingRule
from tinkex.engine.stops import StopRule
from tinkex.engine.uniform import UniformStream

RULE = SamplingRule(1.0, 0, 1.0, 0, StopRule(frozenset()))


def state(name, *, prompt=10, max_tokens=10, num_samples=1, weights=None):
    request = job(name, [1] * prompt, num_samples=num_samples)
    return JobState(request, weights, np.ones(prompt, np.int64), max_tokens, RULE)


def scheduler(**changes):
    settings = {"max_running": 4, "prefill_tokens": 100, "cache_tokens": 10_000, **changes}
    return Scheduler(**settings)


def names(states):
    return [s.job.job_id for s in states]


def start(s):
    """Start what may start; gives the new sequences."""
    made = [RunningSequence(st, i, UniformStream(0, i)) for st, i in s.take_start()]
    s.run(made)
    return made


def test_jobs_are_prefilled_in_order_of_arrival_within_the_budget():
    s = scheduler()
    for name, prompt in (("a", 60), ("b", 30), ("c", 30)):
        s.add(state(name, prompt=prompt))
    assert names(s.take_prefill()) == ["a", "b"]
    assert names(s.take_prefill()) == ["c"]
    assert s.take_prefill() == []


def test_prompt_longer_than_the_budget_goes_alone_when_idle():
    s = scheduler()
    s.add(state("long", prompt=500))
    s.add(state("b"))
    assert names(s.take_prefill()) == ["long"]


def test_running_sequences_are_bounded():
    s = scheduler(max_running=3)
    s.add(state("a", num_samples=5))
    s.take_prefill()
    assert [x.index for x in start(s)] == [0, 1, 2]
    assert start(s) == []
    s.finish(s.running[0])
    assert [x.index for x in start(s)] == [3]


def test_no_prompt_is_prefilled_while_samples_wait_to_start():
    s = scheduler(max_running=3)
    s.add(state("a", num_samples=5))
    s.add(state("b"))
    assert names(s.take_prefill()) == ["a"]
    start(s)
    assert s.take_prefill() == []


def test_memory_is_reserved_for_the_longest_possible_end():
    s = scheduler(cache_tokens=400)
    s.add(state("a", max_tokens=150))  # prompt row 64, its sequence 256
    s.add(state("b", max_tokens=150))
    assert names(s.take_prefill()) == ["a"]
    (running,) = start(s)
    assert s.take_prefill() == []
    s.finish(running)
    assert names(s.take_prefill()) == ["b"]


def test_one_request_always_runs_however_large():
    s = scheduler(cache_tokens=1)
    s.add(state("a", prompt=300, max_tokens=500, num_samples=2))
    assert names(s.take_prefill()) == ["a"]
    assert len(start(s)) == 1
    s.finish(s.running[0])
    assert len(start(s)) == 1


def test_reservation_is_returned_in_full():
    s = scheduler()
    for i in range(6):
        s.add(state(str(i), prompt=20 * i + 5, num_samples=i % 3 + 1))
    while s.has_work:
        s.take_prefill()
        start(s)
        s.finish(s.running[0])
    assert s._reserved == 0


def test_sequences_of_one_adapter_lie_together():
    s = scheduler(max_running=6)
    one, other = object(), object()
    for i, weights in enumerate((one, None, other, one, None, other)):
        s.add(state(str(i), weights=weights))
    s.take_prefill()
    start(s)
    order = [id(x.state.weights) for x in s.running]
    assert sum(a != b for a, b in pairwise(order)) == 2


def test_dropped_job_leaves_every_queue():
    s = scheduler(max_running=2)
    jobs = [state("a", num_samples=3), state("b")]
    for one in jobs:
        s.add(one)
    s.take_prefill()
    started = start(s)
    assert s.drop(jobs[0]) == started
    assert s.drop(jobs[1]) == []
    assert not s.has_work
    assert s._reserved == 0
