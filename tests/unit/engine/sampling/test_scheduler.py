"""Who prefills, starts and decodes next."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from engine_support import job

from tinkex.engine.sampling.scheduler import Scheduler
from tinkex.engine.sampling.sequence import JobState, RunningSequence, SamplingRule
from tinkex.engine.sampling.stops import StopRule
from tinkex.engine.sampling.uniform import UniformStream

RULE = SamplingRule(1.0, 0, 1.0, 0, StopRule(frozenset()))


def state(name, *, prompt=10, max_tokens=10, num_samples=1, weights=None, owner="", sampler=None):
    request = job(name, [1] * prompt, sampler, num_samples=num_samples, owner=owner)
    return JobState(request, weights, np.ones(prompt, np.int64), max_tokens, RULE)


def scheduler(**changes):
    return Scheduler(**{"max_running": 4, "cache_tokens": 10_000, "ahead_tokens": 4096, **changes})


def names(states):
    return [s.job.job_id for s in states]


def turn(s):
    """Grant, compute the prompts of what was admitted, and start; gives (admitted, started)."""
    admitted, started = [], []
    while (grants := s.grant()).admitted or grants.starts:
        admitted += names(grants.admitted)
        made = [RunningSequence(st, i, UniformStream(0, i)) for st, i in grants.starts]
        s.run(made)
        started += made
        for one in s.prefill_order():
            s.charge_prefill(one, len(one.prompt))
            s.prompt_done(one)
    return admitted, started


def end(s, sequence, tokens=None):
    """Decode a sequence to its end."""
    for _ in range(sequence.state.max_tokens if tokens is None else tokens):
        s.charge_decode(s.running)
    s.finish(sequence)


def test_jobs_of_a_party_come_in_order_of_arrival():
    s = scheduler(max_running=2)
    for name in "abc":
        s.add(state(name))
    assert turn(s)[0] == ["a", "b"]
    s.finish(s.running[1])
    assert turn(s)[0] == ["c"]
    assert turn(s) == ([], [])


def test_running_sequences_are_bounded():
    s = scheduler(max_running=3)
    s.add(state("a", num_samples=5))
    assert [x.index for x in turn(s)[1]] == [0, 1, 2]
    assert turn(s) == ([], [])
    s.finish(s.running[0])
    assert [x.index for x in turn(s)[1]] == [3]


def test_no_prompt_is_prefilled_while_samples_of_its_party_wait_to_start():
    s = scheduler(max_running=3)
    s.add(state("a", num_samples=5))
    s.add(state("b"))
    assert turn(s)[0] == ["a"]


def test_memory_is_reserved_for_the_longest_possible_end():
    s = scheduler(cache_tokens=400)
    s.add(state("a", max_tokens=150))  # a row of 256
    s.add(state("b", max_tokens=150))
    admitted, (running,) = turn(s)
    assert admitted == ["a"]
    assert s.free_tokens == 400 - 256
    s.finish(running)
    assert turn(s)[0] == ["b"]


def long(name, **changes):
    """A job that may fill a row of 1,024."""
    return state(name, max_tokens=1000, **changes)


def fill(sequence, tokens):
    """Let a sequence have so many tokens more, prompt included."""
    sequence.tokens += [0] * (tokens - len(sequence.state.prompt) - len(sequence.tokens))


def test_of_a_long_sample_no_more_is_reserved_than_is_ahead():
    s = scheduler(cache_tokens=512, ahead_tokens=100)
    for name in "abcde":
        s.add(long(name))
    admitted, started = turn(s)
    assert admitted == ["a", "b", "c", "d"]
    assert s.free_tokens == 0
    fill(started[0], 128)
    assert not started[0].is_full


def test_older_sample_takes_from_the_youngest_which_goes_on_later():
    s = scheduler(cache_tokens=512, ahead_tokens=100)
    for name in "abcde":
        s.add(long(name))
    _, started = turn(s)
    for sequence in started:
        fill(sequence, 129)
    assert s.grow(started) == [started[3], started[2]]
    assert s.running == started[:2]
    assert [x.is_full for x in s.running] == [False, False]
    assert turn(s) == ([], [])
    s.finish(started[0])
    admitted, (again,) = turn(s)
    assert admitted == ["c"]
    assert again.index == 0
    s.finish(started[1])
    assert turn(s)[0] == ["d"]
    while s.running:
        s.finish(s.running[0])
        turn(s)
    assert (s.free_tokens, s._slots) == (512, 0)


def test_sample_waits_in_its_place_where_younger_ones_could_not_give_enough():
    s = scheduler(cache_tokens=512, ahead_tokens=100)
    for name in "abcd":
        s.add(long(name))
    _, started = turn(s)
    fill(started[3], 129)
    assert s.grow(started) == []
    assert started[3].is_full
    assert s.running == started
    s.finish(started[0])
    assert s.grow(started[1:]) == []
    assert not started[3].is_full


def test_sample_whose_end_is_reserved_is_never_preempted():
    s = scheduler(cache_tokens=512, ahead_tokens=100)
    s.add(long("long"))
    for name in "abc":
        s.add(state(name, max_tokens=110))
    _, (first, *others) = turn(s)
    fill(first, 129)
    assert s.grow([first]) == []
    assert first.is_full
    assert s.running == [first, *others]


def test_oldest_that_needs_memory_is_not_starved_by_small_jobs():
    s = scheduler(max_running=8, cache_tokens=512, ahead_tokens=100)
    s.add(long("long", owner="long"))
    s.add(state("small", owner="small", max_tokens=300))
    _, (first, _) = turn(s)
    fill(first, 129)
    for i in range(100):
        s.add(state(f"small{i}", owner=f"other{i}"))
        s.grow([first])
        turn(s)
        if not first.is_full:
            break
        if i % 2 or s._slots == 8:  # there is never a moment without small ones
            s.finish(s.running[-1])
    assert not first.is_full
    assert i < 3 * 512 // 64


def test_sample_that_fills_more_than_there_is_goes_on_when_it_is_alone():
    s = scheduler(cache_tokens=200, ahead_tokens=100)
    s.add(long("long", num_samples=2))
    _, (first,) = turn(s)
    for length in (129, 257, 513):
        fill(first, length)
        assert s.grow([first]) == []
        assert not first.is_full


def test_one_request_always_runs_however_large():
    s = scheduler(cache_tokens=1)
    s.add(state("a", prompt=300, max_tokens=500, num_samples=2))
    assert [x.index for x in turn(s)[1]] == [0]
    assert s.free_tokens == 0
    s.finish(s.running[0])
    assert [x.index for x in turn(s)[1]] == [1]


def test_reservation_is_returned_in_full():
    s = scheduler()
    for i in range(6):
        s.add(state(str(i), prompt=20 * i + 5, num_samples=i % 3 + 1, sampler=str(i % 2)))
    while s.has_work:
        turn(s)
        s.finish(s.running[0])
    assert s.free_tokens == 10_000
    assert s._slots == 0
    assert not s._slots_of


def test_sequences_of_one_adapter_lie_together():
    s = scheduler(max_running=6)
    one, other = object(), object()
    for i, weights in enumerate((one, None, other, one, None, other)):
        s.add(state(str(i), weights=weights))
    turn(s)
    order = [id(x.state.weights) for x in s.running]
    assert sum(a != b for a, b in pairwise(order)) == 2


def test_dropped_job_leaves_every_queue():
    s = scheduler(max_running=2)
    jobs = [state("a", num_samples=4), state("b", sampler="x"), state("c", sampler="x")]
    for one in jobs:
        s.add(one)
    _, started = turn(s)
    assert s.drop(jobs[0]) == [x for x in started if x.state is jobs[0]]
    s.drop(jobs[1])
    assert s.drop(jobs[2]) == []
    assert not s.has_work
    assert s.free_tokens == 10_000
    assert s._slots == 0
    assert not s._slots_of


@pytest.mark.parametrize("computed", [False, True])
def test_job_dropped_before_its_first_sample_gives_back_what_was_held(computed):
    s = scheduler()
    one = state("a", num_samples=3)
    s.add(one)
    assert names(s.grant().admitted) == ["a"]
    if computed:
        s.prompt_done(one)
    assert s.drop(one) == []
    assert not s.has_work
    assert (s.free_tokens, s._slots) == (10_000, 0)


# --- fairness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mine", [{"owner": "me"}, {"sampler": "mine"}])
def test_thousand_queued_prompts_do_not_hold_up_anothers_one(mine):
    s = scheduler()
    for i in range(1000):
        s.add(state(str(i)))
    turn(s)
    s.add(state("mine", **mine))
    end(s, s.running[0])
    assert turn(s)[0] == ["mine"]


def test_thousand_samples_of_one_job_do_not_hold_up_anothers_one():
    s = scheduler()
    s.add(state("many", num_samples=1000))
    turn(s)
    s.add(state("mine", owner="me"))
    end(s, s.running[0])
    assert turn(s)[0] == ["mine"]


def test_newcomer_does_not_wait_for_the_end_of_anothers_samples():
    s = scheduler(max_running=16)
    for i in range(100):
        s.add(state(f"a{i}", owner="a"))
    assert len(turn(s)[0]) == 16
    for i in range(5):
        s.add(state(f"b{i}", owner="b"))
    assert turn(s)[0] == ["b0"]
    s.add(state("c", owner="c"))
    assert turn(s)[0] == ["c"]
    s.add(state("d", owner="d"))
    assert turn(s)[0] == []  # eighteen run: that is all there is
    for _ in range(3):
        s.finish(s.running[0])
    assert turn(s)[0] == ["d"]


def test_second_sampler_of_an_owner_gets_half_of_what_is_left_for_newcomers():
    s = scheduler(max_running=16)
    for i in range(100):
        s.add(state(f"a{i}", sampler="a"))
    turn(s)
    for name in "bcd":
        s.add(state(name, sampler=name))
    assert turn(s)[0] == ["b"]
    s.add(state("other", owner="other"))
    assert turn(s)[0] == ["other"]


def test_newcomer_finds_memory_beside_anothers_samples():
    s = scheduler(max_running=64, cache_tokens=1024)
    for i in range(100):
        s.add(state(f"a{i}", owner="a"))
    assert len(turn(s)[0]) == 16
    s.add(state("large", owner="b", max_tokens=500))
    s.add(state("small", owner="c", max_tokens=100))
    assert turn(s)[0] == ["small"]
    assert s.free_tokens == 0
    s.add(state("late", owner="d"))
    assert turn(s)[0] == []


def served(s, owners, rounds):
    """Keep every slot busy; gives the tokens that each owner's sequences got."""
    got = dict.fromkeys(owners, 0)
    for _ in range(rounds):
        turn(s)
        s.charge_decode(s.running)
        for x in list(s.running):
            got[x.state.job.owner] += 1
            x.tokens.append(0)
            if len(x.tokens) == x.state.max_tokens:
                s.finish(x)
    return got


def test_owners_get_equal_tokens_however_long_their_samples():
    s = scheduler(max_running=3)
    for i in range(3000):
        s.add(state(f"long{i}", owner="long", prompt=1, max_tokens=50))
        s.add(state(f"short{i}", owner="short", prompt=1, max_tokens=3))
    got = served(s, ("long", "short"), 1000)
    assert sum(got.values()) == 3000
    assert abs(got["long"] - got["short"] * 4 / 3) < 150  # each short sample has a prompt token too


def test_owner_with_many_samplers_gets_no_more_than_another():
    s = scheduler(max_running=2)
    for i in range(400):
        s.add(state(f"one{i}", owner="one", sampler=f"s{i % 8}"))
        s.add(state(f"two{i}", owner="two", sampler="s"))
    got = served(s, ("one", "two"), 400)
    assert abs(got["one"] - got["two"]) <= 40


def test_samplers_of_an_owner_take_turns():
    s = scheduler(max_running=1)
    for i in range(10):
        s.add(state(f"a{i}", owner="me", sampler="a"))
    for i in range(2):
        s.add(state(f"b{i}", owner="me", sampler="b"))
    order = []
    while len(order) < 4:
        order += turn(s)[0]
        end(s, s.running[0])
    assert order == ["a0", "b0", "a1", "b1"]


def test_pause_earns_no_credit():
    s = scheduler(max_running=1)
    for i in range(40):
        s.add(state(f"a{i}", owner="a"))
    for _ in range(20):
        turn(s)
        end(s, s.running[0])
    for i in range(20):
        s.add(state(f"b{i}", owner="b"))
    order = []
    for _ in range(8):
        order += turn(s)[0]
        end(s, s.running[0])
    assert sum(name.startswith("a") for name in order) == 4


def test_leaving_and_coming_back_pays_no_debt():
    s = scheduler(max_running=1)
    for i in range(60):
        s.add(state(f"b{i}", owner="b", max_tokens=10))
    order = []
    for i in range(6):  # one request at a time, ten times as long as another's
        s.add(state(f"a{i}", owner="a", max_tokens=100))
        while f"a{i}" not in order:
            order += turn(s)[0]
            end(s, s.running[0])
    b_between = order.index("a5") - order.index("a1") - 4
    assert b_between >= 16


def test_large_request_is_not_starved_by_small_ones():
    s = scheduler(max_running=8, cache_tokens=512)
    s.add(state("first", owner="small"))
    s.add(state("second", owner="small"))
    turn(s)
    s.add(state("large", owner="large", max_tokens=500))
    admitted = []
    for i in range(100):
        s.add(state(f"small{i}", owner=f"other{i}"))
        admitted += turn(s)[0]
        if "large" in admitted:
            break
        if i % 2:  # there is never a moment without small ones
            end(s, s.running[0])
    assert "large" not in admitted[:3]  # it lets some by while there is room for them
    assert len(admitted) <= 512 // 64 + 2


def test_large_request_waits_for_a_job_that_was_let_in_before():
    s = scheduler(max_running=4, cache_tokens=512)
    s.add(state("before", owner="a", num_samples=30))
    turn(s)
    s.add(state("large", owner="b", max_tokens=500))
    for i in range(60):
        s.add(state(f"small{i}", owner="c"))
    order = []
    while "large" not in order:
        order += turn(s)[0]
        end(s, s.running[0])
    assert len(order) <= 512 // 64 + 2
    while s.has_work:
        turn(s)
        s.finish(s.running[0])
    assert s.free_tokens == 512
