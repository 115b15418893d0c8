"""The bridge between the event loop and an engine: one thread, which owns the engine.

Owns the thread, its queues and whose turn it is. Knows nothing of HTTP, users or futures' ids.
Work comes in from the event loop and its outcome goes back there; the engine is touched by the
thread alone.

Whose turn: a lane is one training run, and its work runs in the order it came. Lanes take turns by
microbatch, so a long batch of one run does not hold up the others: owners first, by the tokens that
each had, then the lanes of each (`load/turns.py`). Training and sampling share the thread by time
spent, so neither starves the other, however long their slices are.

What finds all memory in use (`EngineBusyError`: more adapters are at work than there is room for)
waits until something that runs has ended, and is then begun again in its turn.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tinkex._outcomes import Outcomes, settle, settle_all
from tinkex.errors import EngineBusyError, EngineError
from tinkex.server.load.arrivals import Arrivals
from tinkex.server.load.turns import Turns
from tinkex.server.observe.statistics import EngineCounter
from tinkex.server.records.work import current_work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tinkex._clock import Clock
    from tinkex._outcomes import Settled
    from tinkex.engine.engine import Engine
    from tinkex.engine.sampling.sequence import SampleJob
    from tinkex.errors import TinkerError
    from tinkex.server.load.turns import Lane
    from tinkex.server.observe.statistics import EngineStatistics
    from tinkex.server.records.work import Work
    from tinkex.types import ForwardBackwardOutput, SampleResponse

R = TypeVar("R")

_PATIENCE = 32
"""Samples that may be let in before a lane that waits for memory."""
_CALL_TOKENS = 128
"""What work without slices (an optimiser's step, a checkpoint) counts as in its lane's share."""
_MOST_PASSED = 16
"""Owners without memory for their samples that are passed over in one turn of the thread."""


class SteppedTask(Protocol):
    """Work that runs in slices: the engine's TrainingTask."""

    def run_microbatch(self) -> bool:
        """Run one slice; true when it was the last."""

    def result(self) -> ForwardBackwardOutput:
        """Return the outcome, after the last slice."""

    @property
    def finished(self) -> bool:
        """Whether no slice is left, or it has failed."""

    @property
    def joins(self) -> bool:
        """Whether its next slice may run together with those of other lanes."""

    @property
    def next_tokens(self) -> int:
        """Size of its next slice, in tokens."""


@dataclass(slots=True, eq=False)
class _Work:
    """Something to do for a lane. Without slices `begin` returns the outcome itself."""

    begin: Callable[[Engine], Any]
    outcome: asyncio.Future[Any]
    stepped: bool = False
    task: SteppedTask | None = None
    failed: TinkerError | None = None
    """Why it cannot go on."""
    counted_on: Work | None = None
    """The request that its time is counted on."""


@dataclass(slots=True, eq=False)
class _Sample:
    """A sample to make."""

    job: SampleJob
    outcome: asyncio.Future[SampleResponse]
    counted_on: Work | None


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How a piece of work stands after its turn."""

    finished: bool
    result: Any = None
    error: TinkerError | None = None
    busy: bool = False
    """Not begun, as all memory is in use; `error` says so."""


class EngineJobs:
    """Runs work on one engine, in its own thread.

    Args:
        engine: the engine; nobody else may touch it once this has started.
        name: names the thread.
        clock: measures the slices.
        on_fault: told of exceptions that are bugs rather than answers.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        name: str,
        clock: Clock,
        on_fault: Callable[[BaseException], None],
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._on_fault = on_fault
        self._thread = threading.Thread(target=self._run, name=f"engine {name}", daemon=True)
        self._changed = threading.Condition()
        # Guarded by `_changed`:
        self._turns: Turns[_Work] = Turns()
        self._inbox: deque[_Sample] = deque()
        self._cancels: deque[str] = deque()
        self._stopping = False
        self._failure: TinkerError | None = None
        self._outcomes = Outcomes("server", on_fault)
        # The thread's own:
        self._blocked: deque[Lane[_Work]] = deque()
        """Lanes whose next work waits for memory; they are in no turn."""
        self._hungry: set[Lane[_Work]] = set()
        """These, and those that have a turn again but no memory yet."""
        self._overtaken = 0
        """Samples let in since a lane that waited for memory got it."""
        self._arrived: Arrivals[_Sample] = Arrivals()
        """Samples not yet in the engine; an owner's first may wait for memory."""
        self._samples: dict[str, _Sample] = {}
        self._training_s = 0.0
        self._sampling_s = 0.0
        self._sampled_last = False
        self._counter = EngineCounter(engine)

    def start(self) -> None:
        """Start the thread; call it on the event loop that submits the work."""
        self._outcomes.start()
        self._thread.start()

    async def stop(self) -> None:
        """Let the slice that runs come to its end, and end the thread; other work is dropped."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)
        self._outcomes.fail_open(
            EngineError("The server is stopping. Send the request again once it is back.")
        )

    @property
    def failure(self) -> TinkerError | None:
        """Why nothing runs any more and every submission fails; None while all is well."""
        return self._failure

    @property
    def statistics(self) -> EngineStatistics:
        """What the engine did and holds, as of its last turn; safe from any thread."""
        return self._counter.latest

    def lane_waits(self, lane_name: str) -> bool:
        """Whether a lane's work waits for memory that others use; safe from any thread."""
        with self._changed:
            lane = self._turns.lane(lane_name)
        return lane is not None and lane in self._hungry

    def sample_waits(self, job_id: str) -> bool:
        """Whether a sample waits for memory that others use; safe from any thread."""
        return job_id in self._arrived

    # called on the event loop

    def call(self, lane: str, work: Callable[[Engine], R], *, owner: str = "") -> asyncio.Future[R]:
        """Run `work` when the lane's earlier work is done; it is in the owner's share."""
        return self._submit(lane, owner, work, stepped=False)

    def train(
        self, lane: str, begin: Callable[[Engine], SteppedTask], *, owner: str = ""
    ) -> asyncio.Future[ForwardBackwardOutput]:
        """Begin a task when the lane's earlier work is done, and run it slice by slice."""
        return self._submit(lane, owner, begin, stepped=True)

    def sample(
        self, job: SampleJob, counted_on: Work | None = None
    ) -> asyncio.Future[SampleResponse]:
        """Sample, along with whatever else is being sampled; the time is counted on a request."""
        outcome = self._outcomes.new()
        with self._changed:
            if self._failure is None:
                self._inbox.append(_Sample(job, outcome, counted_on))
                self._changed.notify()
                return outcome
        outcome.set_exception(self._failure)
        return outcome

    def cancel_sample(self, job_id: str) -> None:
        """Stop sampling for a job; its outcome does not come any more."""
        with self._changed:
            self._cancels.append(job_id)
            self._changed.notify()

    def drop_lane(self, lane_name: str, error: TinkerError) -> None:
        """Fail everything that a lane has not finished."""
        with self._changed:
            lane = self._turns.drop(lane_name)
        if lane is None:
            return
        for work in list(lane.queue):
            settle(work.outcome, None, error)

    def _submit(
        self, lane_name: str, owner: str, begin: Callable[[Engine], Any], *, stepped: bool
    ) -> asyncio.Future[Any]:
        outcome = self._outcomes.new()
        with self._changed:
            if self._failure is None:
                work = _Work(begin, outcome, stepped, counted_on=current_work.get())
                self._turns.add(lane_name, owner, work)
                self._changed.notify()
                return outcome
        outcome.set_exception(self._failure)
        return outcome

    # called in the thread

    def _run(self) -> None:
        try:
            self._take_turns()
        except BaseException as raised:  # noqa: BLE001 - nobody else would hear of it, and wait for ever
            self._break_down(raised)

    def _break_down(self, raised: BaseException) -> None:
        """Fail everything, now and from now on: whose turn it is cannot be trusted any more."""
        error = EngineError(
            f"The server's engine broke down ({type(raised).__name__}) and runs nothing any more; "
            "the server's log has the details. Restart the server, and go on from a checkpoint."
        )
        with self._changed:
            self._failure = error
        try:
            self._on_fault(raised)
        finally:
            self._outcomes.on_loop(partial(self._outcomes.fail_open, error))

    def _take_turns(self) -> None:
        while True:
            self._publish()
            with self._changed:
                while not self._stopping and not self._has_work():
                    self._changed.wait()
                if self._stopping:
                    return
                while self._inbox:
                    self._arrived.add(self._inbox.popleft())
                cancelled = list(self._cancels)
                self._cancels.clear()
            self._cancel_samples(cancelled)
            self._sate(lane for lane in list(self._hungry) if lane.dropped)
            self._take_samples()
            if self._blocked and not self._in_progress():
                self._unblock()
            if self._training_is_next():
                seconds = self._timed(self._training_slice)
                self._training_s += seconds
                self._counter.trained(seconds)
            elif self._engine.has_sampling_work():
                seconds = self._timed(self._sampling_slice)
                self._sampling_s += seconds
                self._counter.sampled(seconds)

    def _publish(self) -> None:
        """Let others see how the engine stands."""
        with self._changed:
            lanes, waiting = len(self._turns), len(self._arrived) + len(self._inbox)
        self._counter.publish(
            lanes=lanes,
            lanes_without_memory=len(self._hungry),
            samples=len(self._samples) + waiting,
            samples_without_memory=len(self._arrived),
        )

    def _has_work(self) -> bool:
        waiting = self._turns or self._inbox or self._cancels or self._blocked or self._arrived
        return bool(waiting or self._engine.has_sampling_work())

    def _in_progress(self) -> bool:
        """Whether anything holds memory that it will give back."""
        with self._changed:
            begun = any(lane.queue[0].task is not None for lane in self._turns.waiting)
        return begun or self._engine.has_sampling_work()

    def _unblock(self) -> None:
        """Give the lanes that wait for memory their turns again."""
        with self._changed:
            for lane in self._blocked:
                self._turns.give_back(lane)
        self._blocked.clear()

    def _training_is_next(self) -> bool:
        """Decide by time spent since both last had work; on a tie, alternate."""
        if not self._turns or not self._engine.has_sampling_work():
            self._training_s = self._sampling_s = 0.0
            self._sampled_last = not self._turns
            return bool(self._turns)
        if self._training_s == self._sampling_s:
            self._sampled_last = not self._sampled_last
            return not self._sampled_last
        return self._training_s < self._sampling_s

    def _timed(self, run_slice: Callable[[], None]) -> float:
        start = self._clock.monotonic()
        run_slice()
        return self._clock.monotonic() - start

    def _training_slice(self) -> None:
        """Run a slice of the lane whose turn it is, and put the lane behind the others.

        When its next slice is a small one, those of the lanes behind it go along.
        """
        with self._changed:
            lane = self._turns.take()
        if lane is None:
            return
        lanes = [lane]
        start = self._clock.monotonic()
        outcome = self._begin(lane.queue[0])
        if outcome is not None and outcome.busy:
            if self._in_progress():
                self._blocked.append(lane)
                self._hungry.add(lane)
                return
            outcome = _Outcome(finished=True, error=outcome.error)
        self._sate([lane])
        if outcome is None:
            lanes += self._joining(lane)
            weights = [_tokens(one.queue[0]) for one in lanes]
            self._run_slices([one.queue[0] for one in lanes])
            self._charge(lanes, weights, start)
            outcomes = [self._outcome(one.queue[0]) for one in lanes]
        else:
            outcomes = [outcome]
            self._charge(lanes, [_CALL_TOKENS], start)
        finished = []
        with self._changed:
            for one, ended in zip(lanes, outcomes, strict=True):
                work = one.queue[0]
                if ended.finished:
                    one.queue.popleft()
                    finished.append((work.outcome, ended.result, ended.error))
                self._turns.give_back(one)
        if finished:
            self._unblock()
        self._post(finished)

    def _charge(self, lanes: list[Lane[_Work]], weights: list[int], start: float) -> None:
        """Charge lanes for what they had, and the requests for the time since `start`."""
        self._count(
            [(lane.queue[0].counted_on, w) for lane, w in zip(lanes, weights, strict=True)], start
        )
        with self._changed:
            for lane, weight in zip(lanes, weights, strict=True):
                self._turns.charge(lane, weight)

    def _joining(self, first: Lane[_Work]) -> list[Lane[_Work]]:
        """Take the lanes whose next slices fit into one with that of `first`: owners in turn."""
        task = first.queue[0].task
        if task is None or not task.joins:
            return []
        room = self._engine.config.microbatch_tokens - task.next_tokens
        taken: list[Lane[_Work]] = []
        with self._changed:
            waiting = self._turns.candidates(first)
        full = False
        for lane in waiting:
            work = lane.queue[0]
            if room <= 0 or not work.stepped or (full and work.task is None):
                continue
            outcome = self._begin(work)
            if outcome is not None:  # what could not begin says so in its own turn
                full = full or outcome.busy
                continue
            self._sate([lane])
            assert work.task is not None
            if work.task.joins and work.task.next_tokens <= room:
                room -= work.task.next_tokens
                taken.append(lane)
        with self._changed:
            for lane in taken:
                self._turns.take_this(lane)
        return taken

    def _begin(self, work: _Work) -> _Outcome | None:
        """Begin a piece of work, if it has not begun; its outcome when that is all there is."""
        if work.failed is not None:
            return _Outcome(finished=True, error=work.failed)
        if work.task is not None:
            return None
        try:
            begun = work.begin(self._engine)
        except EngineBusyError as busy:
            return _Outcome(finished=False, error=busy, busy=True)
        except Exception as raised:  # noqa: BLE001 - one request's failure is its own answer
            work.failed = self._outcomes.answer(raised)
            return _Outcome(finished=True, error=work.failed)
        if not work.stepped:
            return _Outcome(finished=True, result=begun)
        work.task = begun
        return None

    def _run_slices(self, works: list[_Work]) -> None:
        tasks = [work.task for work in works if work.task is not None]
        self._counter.tokens_trained(sum(task.next_tokens for task in tasks))
        try:
            if len(tasks) > 1:
                self._engine.run_together(tasks)  # type: ignore[arg-type]  # these are its own
            else:
                tasks[0].run_microbatch()
        except Exception as raised:  # noqa: BLE001 - as in _begin
            works[0].failed = self._outcomes.answer(raised)

    def _outcome(self, work: _Work) -> _Outcome:
        """Say how a slice ended."""
        assert work.task is not None
        if work.failed is not None:
            return _Outcome(finished=True, error=work.failed)
        if not work.task.finished:
            return _Outcome(finished=False)
        try:
            return _Outcome(finished=True, result=work.task.result())
        except Exception as raised:  # noqa: BLE001 - as in _begin
            return _Outcome(finished=True, error=self._outcomes.answer(raised))

    def _sate(self, lanes: Iterable[Lane[_Work]]) -> None:
        """Note that lanes wait for memory no more."""
        for lane in lanes:
            if lane in self._hungry:
                self._hungry.remove(lane)
                self._overtaken = 0

    def _take_samples(self) -> None:
        """Let samples into the engine, owners in turn, but for those that wait for memory.

        Lanes that wait for it are overtaken by so many samples, and no more.
        """
        passed: set[str] = set()
        while (owner := self._arrived.next_owner(passed)) is not None:
            if len(passed) >= _MOST_PASSED or (self._hungry and self._overtaken >= _PATIENCE):
                return
            sample = self._arrived.first(owner)
            try:
                self._engine.add_sample(sample.job)
            except Exception as raised:  # noqa: BLE001 - as in _begin
                if isinstance(raised, EngineBusyError) and self._in_progress():
                    passed.add(owner)
                    continue
                self._post([(sample.outcome, None, self._outcomes.answer(raised))])
            else:
                self._samples[sample.job.job_id] = sample
                self._overtaken += bool(self._hungry)
            self._arrived.pop(owner)

    def _cancel_samples(self, job_ids: list[str]) -> None:
        if not job_ids:
            return
        self._arrived.remove(job_ids)
        for job_id in job_ids:
            if self._samples.pop(job_id, None) is not None:
                self._cancel_in_engine(job_id)
        self._unblock()

    def _sampling_slice(self) -> None:
        start = self._clock.monotonic()
        try:
            finished = self._engine.step()
        except Exception as raised:  # noqa: BLE001 - whatever it is, the batch cannot go on
            self._fail_samples(self._outcomes.answer(raised))
            self._unblock()
            return
        served = self._engine.served.items()
        shares = [(self._samples[job_id], n) for job_id, n in served if job_id in self._samples]
        self._count([(sample.counted_on, tokens) for sample, tokens in shares], start)
        if finished:
            self._unblock()
        for end in finished:
            if end.response is not None:
                self._counter.finished(end.response)
        self._post(
            [
                (sample.outcome, end.response, end.error)
                for end in finished
                if (sample := self._samples.pop(end.job_id, None)) is not None
            ]
        )

    def _count(self, shares: Sequence[tuple[Work | None, int]], start: float) -> None:
        """Divide the time since `start` among the requests it was spent on, by their tokens."""
        seconds = self._clock.monotonic() - start
        total = sum(tokens for _, tokens in shares)
        for work, tokens in shares:
            if work is not None:
                work.spend(seconds * tokens / total, start)

    def _fail_samples(self, error: TinkerError) -> None:
        """Drop every sample in the engine: a step failed, and the next would fail alike."""
        samples, self._samples = self._samples, {}
        for job_id in samples:
            self._cancel_in_engine(job_id)
        self._post([(sample.outcome, None, error) for sample in samples.values()])

    def _cancel_in_engine(self, job_id: str) -> None:
        try:
            self._engine.cancel_sample(job_id)
        except Exception as raised:  # noqa: BLE001 - the thread must go on for everybody else
            self._on_fault(raised)

    def _post(self, settled: list[Settled]) -> None:
        """Hand outcomes to the event loop, all with one wake-up."""
        if settled:
            self._outcomes.on_loop(partial(settle_all, settled))


def _tokens(work: _Work) -> int:
    """Weigh the next slice of a piece of work, for the division of time: 1 at least."""
    return 1 if work.task is None else max(1, work.task.next_tokens)
