"""The engine's thread: whose turn it is, and what becomes of failures.

The engine here is scripted: it shows the order of calls, which the real one hides.
"""

import asyncio
import threading
from types import SimpleNamespace

import pytest
from server_support import settle

from tinkex.errors import EngineBusyError, EngineError, InputError
from tinkex.server.models.jobs import EngineJobs
from tinkex.server.records.work import Source, Work, current_work
from tinkex.testing.clock import VirtualClock


class ScriptedTask:
    def __init__(self, engine, name, slices, tokens=0):
        self.engine, self.name, self.left = engine, name, slices
        self.next_tokens, self.joins = tokens, bool(tokens)

    @property
    def finished(self):
        return self.left == 0

    def run_microbatch(self):
        self.engine.work(self.name, self.engine.training_cost)
        self.left -= 1
        return self.left == 0

    def result(self):
        return f"{self.name} done"


class ScriptedEngine:
    """Writes down what it does, and lets the clock run for as long as that takes."""

    def __init__(self, clock, *, training_cost=1.0, sampling_cost=1.0):
        self.clock = clock
        self.training_cost, self.sampling_cost = training_cost, sampling_cost
        self.log, self.samples, self.cancelled = [], {}, []
        self.served = {}
        self.config = SimpleNamespace(microbatch_tokens=100)
        self.gate = threading.Event()
        self.gate.set()
        self.broken_step = None
        self.broken_turns = None
        self.sampling_room = 10**6

    def work(self, name, cost):
        assert self.gate.wait(10)
        self.log.append(name)
        self.clock.advance(cost)

    def run_together(self, tasks):
        self.work("+".join(task.name for task in tasks), self.training_cost)
        for task in tasks:
            task.left -= 1

    def add_sample(self, job):
        if job.length < 0:
            raise InputError("bad prompt")
        if len(self.samples) >= self.sampling_room:
            raise EngineBusyError("all in use")
        self.samples[job.job_id] = job.length

    def cancel_sample(self, job_id):
        self.cancelled.append(job_id)
        self.samples.pop(job_id, None)

    def has_sampling_work(self):
        if self.broken_turns is not None:
            raise self.broken_turns
        return bool(self.samples)

    def step(self):
        if self.broken_step is not None:
            raise self.broken_step
        self.work("sample", self.sampling_cost)
        self.served = dict.fromkeys(self.samples, 1)
        self.samples = {job_id: left - 1 for job_id, left in self.samples.items()}
        ended = [job_id for job_id, left in self.samples.items() if left == 0]
        for job_id in ended:
            del self.samples[job_id]
        return [
            SimpleNamespace(job_id=job_id, response=ScriptedResponse(job_id), error=None)
            for job_id in ended
        ]

    prefilled_tokens = 11
    cached_tokens = 7
    preemptions = 2

    def places(self):
        return {("adapter", "host"): (2, 64)}


class ScriptedResponse(str):
    """The job's id, and one sequence of three tokens."""

    __slots__ = ()
    sequences = (SimpleNamespace(tokens=[1, 2, 3]),)


def sample_job(job_id, length=1, owner="someone"):
    return SimpleNamespace(job_id=job_id, length=length, owner=owner)


@pytest.fixture
async def make_jobs():
    running = []

    async def make(**costs):
        clock = VirtualClock()
        engine = ScriptedEngine(clock, **costs)
        faults = []
        jobs = EngineJobs(engine, name="test", clock=clock, on_fault=faults.append)
        running.append((jobs, engine))
        jobs.start()
        return SimpleNamespace(jobs=jobs, engine=engine, faults=faults)

    yield make
    for jobs, engine in running:
        engine.gate.set()
        await jobs.stop()


@pytest.fixture
async def rig(make_jobs):
    return await make_jobs()


def train(rig, lane, slices):
    return rig.jobs.train(lane, lambda engine: ScriptedTask(engine, lane, slices))


def call(rig, lane, name, cost=1.0):
    return rig.jobs.call(lane, lambda engine: engine.work(name, cost))


async def test_work_runs_in_the_thread_and_its_outcome_comes_back(rig):
    thread = await rig.jobs.call("a", lambda _engine: threading.current_thread().name)
    assert thread == "engine test"
    assert await train(rig, "a", 2) == "a done"


async def test_work_of_a_lane_runs_in_the_order_it_came(rig):
    rig.engine.gate.clear()
    work = [train(rig, "a", 2), call(rig, "a", "optim"), train(rig, "a", 1)]
    rig.engine.gate.set()
    await asyncio.gather(*work)
    assert rig.engine.log == ["a", "a", "optim", "a"]


async def test_lanes_take_turns_by_microbatch(rig):
    rig.engine.gate.clear()
    first = call(rig, "first", "first")
    work = [train(rig, "a", 3), train(rig, "b", 3), call(rig, "c", "c")]
    rig.engine.gate.set()
    await asyncio.gather(first, *work)
    assert rig.engine.log[1:] == ["a", "b", "c", "a", "b", "a", "b"]


async def test_fifty_runs_of_one_owner_hold_up_the_only_run_of_another_by_one_turn_each(rig):
    rig.engine.gate.clear()
    first = call(rig, "x", "first")
    many = [
        rig.jobs.train(f"m{n}", lambda engine: ScriptedTask(engine, "m", 2), owner="many")
        for n in range(50)
    ]
    one = rig.jobs.train("one", lambda engine: ScriptedTask(engine, "one", 5), owner="one")
    rig.engine.gate.set()
    await asyncio.gather(first, one, *many)
    log = rig.engine.log
    until_one_was_done = log[: len(log) - log[::-1].index("one")]
    assert until_one_was_done.count("m") <= 6


async def test_short_request_does_not_wait_for_a_long_batch_of_another_run(rig):
    rig.engine.gate.clear()
    long = train(rig, "long", 100)
    short = train(rig, "short", 1)
    rig.engine.gate.set()
    await short
    assert rig.engine.log.index("short") <= 2
    await long


async def test_sample_comes_back_under_its_own_id(rig):
    answers = await asyncio.gather(*(rig.jobs.sample(sample_job(f"s{i}", i + 1)) for i in range(5)))
    assert answers == [f"s{i}" for i in range(5)]


@pytest.mark.parametrize(("training_cost", "sampling_cost"), [(10.0, 1.0), (1.0, 10.0), (3.0, 3.0)])
async def test_training_and_sampling_share_the_thread_by_time(
    make_jobs, training_cost, sampling_cost
):
    rig = await make_jobs(training_cost=training_cost, sampling_cost=sampling_cost)
    rig.engine.gate.clear()
    work = [train(rig, "a", 30), rig.jobs.sample(sample_job("s", 300))]
    rig.engine.gate.set()
    await asyncio.gather(*work)
    log, costs = rig.engine.log, {"a": training_cost, "sample": sampling_cost}
    both = log[: min(len(log) - log[::-1].index(kind) for kind in costs)]
    spent = {kind: both.count(kind) * cost for kind, cost in costs.items()}
    assert abs(spent["a"] - spent["sample"]) <= 3 * max(costs.values())
    await rig.jobs.stop()


async def test_equally_cheap_slices_alternate(make_jobs):
    rig = await make_jobs(training_cost=0.0, sampling_cost=0.0)
    rig.engine.gate.clear()
    work = [train(rig, "a", 9), rig.jobs.sample(sample_job("s", 9))]
    rig.engine.gate.set()
    await asyncio.gather(*work)
    log = rig.engine.log[1:9]
    assert log in (["sample", "a"] * 4, ["a", "sample"] * 4)
    await rig.jobs.stop()


async def test_training_idle_for_long_gets_no_credit_for_it(make_jobs):
    rig = await make_jobs()
    await rig.jobs.sample(sample_job("warm", 50))
    rig.engine.log.clear()
    rig.engine.gate.clear()
    work = [rig.jobs.sample(sample_job("s", 20)), train(rig, "a", 20)]
    rig.engine.gate.set()
    await asyncio.gather(*work)
    assert rig.engine.log[:20].count("sample") >= 8
    await rig.jobs.stop()


async def test_bad_input_fails_its_own_request_and_no_other(rig):
    def refuse(_engine):
        raise InputError("unknown loss")

    bad = rig.jobs.train("a", refuse)
    good = train(rig, "a", 1)
    with pytest.raises(InputError, match="unknown loss"):
        await bad
    assert await good == "a done"
    with pytest.raises(InputError, match="bad prompt"):
        await rig.jobs.sample(sample_job("s", -1))
    assert rig.faults == []


async def test_bug_becomes_the_servers_fault_and_is_reported(rig):
    with pytest.raises(EngineError, match="ZeroDivisionError") as caught:
        await rig.jobs.call("a", lambda _engine: 1 / 0)
    assert caught.value.category == "server"
    assert [type(fault) for fault in rig.faults] == [ZeroDivisionError]
    assert await train(rig, "a", 1) == "a done"


async def test_failing_step_fails_the_samples_in_it_and_the_next_ones_work(rig):
    rig.engine.broken_step = RuntimeError("out of memory")
    samples = [rig.jobs.sample(sample_job(f"s{i}", 3)) for i in range(2)]
    for sample in samples:
        with pytest.raises(EngineError):
            await sample
    assert sorted(rig.engine.cancelled) == ["s0", "s1"]
    rig.engine.broken_step = None
    assert await rig.jobs.sample(sample_job("again")) == "again"


async def test_dropped_lane_fails_what_waits_and_abandons_what_runs(rig):
    rig.engine.gate.clear()
    running, waiting = train(rig, "a", 50), train(rig, "a", 1)
    other = train(rig, "b", 1)
    rig.jobs.drop_lane("a", InputError("session over"))
    for work in (running, waiting):
        with pytest.raises(InputError, match="session over"):
            await work
    rig.engine.gate.set()
    assert await other == "b done"
    assert await call(rig, "a", "cleanup") is None
    assert rig.engine.log.count("a") <= 1


async def test_cancelled_sample_leaves_the_engine(rig):
    outcome = rig.jobs.sample(sample_job("s", 10**9))
    await call(rig, "x", "something later")
    rig.jobs.cancel_sample("s")
    rig.jobs.cancel_sample("never-there")
    assert await rig.jobs.sample(sample_job("t", 2)) == "t"
    assert rig.engine.cancelled == ["s"]
    assert not outcome.done()
    outcome.cancel()


async def test_stop_ends_the_thread_and_fails_what_is_left(make_jobs):
    rig = await make_jobs()
    rig.engine.gate.clear()
    long = 10**9
    work = [train(rig, "a", long), train(rig, "b", 3), rig.jobs.sample(sample_job("s", long))]
    work[1].add_done_callback(lambda outcome: outcome.exception())
    stopping = asyncio.create_task(rig.jobs.stop())
    rig.engine.gate.set()
    await stopping
    assert isinstance(work[0].exception(), EngineError)
    assert isinstance(work[2].exception(), EngineError)
    assert not rig.jobs._thread.is_alive()


async def test_stop_without_start_is_harmless():
    engine = ScriptedEngine(VirtualClock())
    await EngineJobs(engine, name="x", clock=VirtualClock(), on_fault=print).stop()


async def test_small_slices_of_several_lanes_run_together(rig):
    rig.engine.gate.clear()
    held = call(rig, "x", "first")

    def small(lane, slices, tokens):
        return rig.jobs.train(lane, lambda engine: ScriptedTask(engine, lane, slices, tokens))

    work = [small("a", 2, 40), small("b", 1, 40), small("c", 1, 40), train(rig, "d", 1)]
    rig.engine.gate.set()
    done = await asyncio.gather(held, *work)
    assert done[1:] == ["a done", "b done", "c done", "d done"]
    # 100 tokens hold two of them; one that joins nobody has its own turn
    assert rig.engine.log == ["first", "a+b", "c+a", "d"]


async def test_lane_that_cannot_begin_says_so_alone(rig):
    rig.engine.gate.clear()
    held = call(rig, "x", "first")

    def broken(_engine):
        raise InputError("datum 0 is odd")

    good = rig.jobs.train("a", lambda engine: ScriptedTask(engine, "a", 1, 10))
    bad = rig.jobs.train("b", broken)
    rig.engine.gate.set()
    assert await good == "a done"
    with pytest.raises(InputError, match="datum 0 is odd"):
        await bad
    await held
    assert rig.engine.log == ["first", "a"]


@pytest.mark.parametrize("fault", [RuntimeError("bug"), MemoryError(), SystemExit(1)])
async def test_fault_in_the_turn_taking_fails_everything_at_once_and_for_good(make_jobs, fault):
    rig = await make_jobs()
    rig.engine.gate.clear()
    running = call(rig, "a", "first")
    work = [
        train(rig, "a", 1),
        train(rig, "b", 50),
        call(rig, "c", "c"),
        rig.jobs.sample(sample_job("s", 50)),
    ]
    rig.engine.broken_turns = fault
    rig.engine.gate.set()
    for outcome in [running, *work]:
        with pytest.raises(EngineError, match=type(fault).__name__) as caught:
            await asyncio.wait_for(outcome, 10)
        assert caught.value.category == "server"
    later = [train(rig, "a", 1), call(rig, "new", "d"), rig.jobs.sample(sample_job("t"))]
    for outcome in later:
        assert outcome.done()
        with pytest.raises(EngineError, match="Restart the server"):
            await outcome
    assert rig.faults == [fault]
    assert isinstance(rig.jobs.failure, EngineError)
    rig.jobs.cancel_sample("s")
    rig.jobs.drop_lane("b", InputError("session over"))
    await rig.jobs.stop()


async def test_what_the_engine_did_is_counted(make_jobs):
    rig = await make_jobs(training_cost=2.0, sampling_cost=3.0)
    work = rig.jobs.train("a", lambda engine: ScriptedTask(engine, "a", 2, tokens=40))
    await asyncio.gather(work, rig.jobs.sample(sample_job("s", 2)))
    await rig.jobs.call("a", lambda _engine: None)
    await rig.jobs.stop()
    seen = rig.jobs.statistics
    assert (seen.training_s, seen.sampling_s) == (4.0, 6.0)
    assert (seen.trained_tokens, seen.sampled_tokens) == (80, 3)
    assert (seen.prefilled_tokens, seen.cached_tokens, seen.preemptions) == (11, 7, 2)
    assert (seen.lanes, seen.samples) == (0, 0)
    assert seen.places == {("adapter", "host"): (2, 64)}


async def test_engine_without_a_fault_has_no_failure(rig):
    assert await train(rig, "a", 1) == "a done"
    assert rig.jobs.failure is None


class Room:
    """Memory for so many tasks: what is begun holds a place until it has ended."""

    def __init__(self, places):
        self.places, self.begun, self.refused = places, [], 0

    def take(self, engine, name, slices, tokens=0):
        if sum(not task.finished for task in self.begun) >= self.places:
            self.refused += 1
            raise EngineBusyError("all in use")
        self.begun.append(ScriptedTask(engine, name, slices, tokens))
        return self.begun[-1]

    def train(self, rig, name, slices, tokens=0):
        return rig.jobs.train(name, lambda engine: self.take(engine, name, slices, tokens))


@pytest.mark.parametrize("tokens", [0, 10])
async def test_work_that_finds_memory_in_use_waits_for_it(rig, tokens):
    room = Room(2)
    rig.engine.gate.clear()
    work = [room.train(rig, f"lane{n}", 3, tokens) for n in range(20)]
    rig.engine.gate.set()
    assert await asyncio.gather(*work) == [f"lane{n} done" for n in range(20)]
    assert room.refused
    assert [task.name for task in room.begun] == [f"lane{n}" for n in range(20)]


async def test_waiting_for_memory_takes_no_turns_from_sampling(make_jobs):
    rig = await make_jobs()
    room = Room(0)
    rig.engine.gate.clear()
    sample = rig.jobs.sample(sample_job("s", 50))
    waiting = room.train(rig, "a", 1)
    rig.engine.gate.set()
    await sample
    with pytest.raises(EngineBusyError):  # nothing is left that could make room
        await waiting
    assert room.refused <= 3
    assert rig.faults == []
    await rig.jobs.stop()


async def test_memory_of_a_dropped_lane_goes_to_who_waits(rig):
    room = Room(1)
    rig.engine.gate.clear()
    long = room.train(rig, "long", 10**9)
    waiting = room.train(rig, "waiting", 1)
    rig.engine.gate.set()
    await call(rig, "marker", "marker")
    assert room.refused
    assert (rig.jobs.lane_waits("waiting"), rig.jobs.lane_waits("long")) == (True, False)
    room.begun.clear()  # as an engine sees a task that nobody holds
    rig.jobs.drop_lane("long", InputError("session over"))
    with pytest.raises(InputError):
        await long
    assert await waiting == "waiting done"


async def test_waiting_lane_that_is_dropped_is_forgotten(rig):
    room = Room(1)
    rig.engine.gate.clear()
    work = [room.train(rig, name, slices) for name, slices in (("a", 10**9), ("b", 1), ("c", 1))]
    rig.engine.gate.set()
    await call(rig, "marker", "marker")
    assert room.refused
    for name in "ba":
        rig.jobs.drop_lane(name, InputError("session over"))
    room.begun.clear()  # as above
    assert await work[2] == "c done"
    for dropped in work[:2]:
        with pytest.raises(InputError):
            await dropped
    assert len(rig.jobs._turns) == 0


async def test_samples_that_find_memory_in_use_wait_in_their_order(rig):
    rig.engine.sampling_room = 2
    rig.engine.gate.clear()
    first = call(rig, "x", "first")
    samples = [rig.jobs.sample(sample_job(f"s{n}", 3)) for n in range(6)]
    rig.jobs.cancel_sample("s3")
    samples[3].cancel()
    rig.engine.gate.set()
    kept = samples[:3] + samples[4:]
    assert await asyncio.gather(*kept) == ["s0", "s1", "s2", "s4", "s5"]
    await first
    assert rig.engine.cancelled == []
    assert rig.faults == []


async def test_samples_without_memory_hold_up_nobody_elses(rig):
    def add(job):
        if job.owner == "large" and rig.engine.samples:
            raise EngineBusyError("all in use")
        rig.engine.samples[job.job_id] = job.length

    rig.engine.add_sample = add
    rig.engine.gate.clear()
    first = call(rig, "x", "first")
    small = [rig.jobs.sample(sample_job("long", 10**9, "small"))]
    large = [rig.jobs.sample(sample_job(f"l{n}", 2, "large")) for n in range(3)]
    small += [rig.jobs.sample(sample_job(f"s{n}", 1, "small")) for n in range(3)]
    rig.engine.gate.set()
    await asyncio.gather(first, *small[1:])
    assert [one.done() for one in large] == [False] * 3
    assert rig.jobs.sample_waits("l2")
    assert not rig.jobs.sample_waits("long")
    rig.jobs.cancel_sample("long")
    small[0].cancel()
    await asyncio.gather(*large)
    assert not rig.jobs.sample_waits("l2")


async def test_sample_that_can_never_have_memory_is_told(rig):
    rig.engine.sampling_room = 0
    with pytest.raises(EngineBusyError):
        await rig.jobs.sample(sample_job("s"))
    rig.engine.sampling_room = 1
    assert await rig.jobs.sample(sample_job("t")) == "t"


async def test_samples_that_keep_coming_do_not_keep_a_lane_from_memory_for_ever(rig):
    def begin(engine):
        if engine.samples:
            raise EngineBusyError("all in use")
        return ScriptedTask(engine, "lane", 1)

    rig.engine.sampling_room = 2
    rig.engine.gate.clear()
    samples = [rig.jobs.sample(sample_job(f"s{n}", 1 + n % 3)) for n in range(200)]
    lane = rig.jobs.train("lane", begin)
    rig.engine.gate.set()
    assert await lane == "lane done"
    await asyncio.gather(*samples)
    assert rig.engine.log.index("lane") < 100
    assert rig.engine.log.count("sample") > 100


def counted():
    return Work(Source(owner="o", key_id="k"), accepted_at=0.0, accepted=0.0)


async def counting(work, call):
    """Hand something to the engine as the task of a request would."""
    current_work.set(work)
    return await call()


async def test_time_in_a_lane_is_counted_on_the_request_that_handed_it_in(make_jobs):
    rig = await make_jobs(training_cost=2.0)
    work, other = counted(), counted()
    slices = asyncio.create_task(
        counting(work, lambda: rig.jobs.train("a", lambda engine: ScriptedTask(engine, "a", 3)))
    )
    call = asyncio.create_task(
        counting(other, lambda: rig.jobs.call("b", lambda engine: engine.work("b", 0.5)))
    )
    await asyncio.gather(slices, call)
    assert (work.engine_s, other.engine_s) == (6.0, 0.5)
    await rig.jobs.call("c", lambda engine: engine.work("c", 1.0))
    assert (work.engine_s, other.engine_s) == (6.0, 0.5)


async def test_time_of_a_slice_that_runs_share_is_divided_by_their_tokens(make_jobs):
    rig = await make_jobs(training_cost=4.0)
    works = {"a": counted(), "b": counted()}
    rig.engine.gate.clear()
    first = rig.jobs.call("z", lambda engine: engine.work("z", 0.0))
    tasks = [
        asyncio.create_task(
            counting(
                works[name],
                lambda name=name, tokens=tokens: rig.jobs.train(
                    name, lambda engine: ScriptedTask(engine, name, 1, tokens)
                ),
            )
        )
        for name, tokens in (("a", 30), ("b", 10))
    ]
    await settle()
    rig.engine.gate.set()
    await asyncio.gather(first, *tasks)
    assert "a+b" in rig.engine.log
    assert (works["a"].engine_s, works["b"].engine_s) == (3.0, 1.0)


async def test_time_of_a_step_is_divided_among_the_samples_in_it(make_jobs):
    rig = await make_jobs(sampling_cost=2.0)
    works = [counted(), counted()]
    rig.engine.gate.clear()
    outcomes = [
        rig.jobs.sample(sample_job(name, length), work)
        for name, length, work in (("x", 1, works[0]), ("y", 3, works[1]))
    ]
    rig.engine.gate.set()
    await asyncio.gather(*outcomes)
    assert sum(work.engine_s for work in works) == 2.0 * rig.engine.log.count("sample")
    assert works[1].engine_s > works[0].engine_s > 0
