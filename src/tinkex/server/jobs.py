"""The bridge between the event loop and an engine: one thread, which owns the engine.

Owns the thread, its queues and whose turn it is. Knows nothing of HTTP, users or futures' ids.
Work comes in from the event loop and its outcome goes back there; the engine is touched by the
thread alone.

Whose turn: a lane is one training run, and its work runs in the order it came. Lanes take turns by
microbatch, so a long batch of one run does not hold up the others. Training and sampling share the
thread by time spent, so neither starves the other, however long their slices are.

What finds all memory in use (`EngineBusyError`: more adapters are at work than there is room for)
waits until something that runs has ended, and is then begun again in its turn.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tinkex.errors import EngineBusyError, EngineError, TinkerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tinkex._clock import Clock
    from tinkex.engine.engine import Engine
    from tinkex.engine.sampling.sequence import SampleJob
    from tinkex.types import ForwardBackwardOutput, SampleResponse

R = TypeVar("R")

_PATIENCE = 32
"""Samples that may be let in before a lane that waits for memory."""


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


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How a piece of work stands after its turn."""

    finished: bool
    result: Any = None
    error: TinkerError | None = None
    busy: bool = False
    """Not begun, as all memory is in use; `error` says so."""


@dataclass(slots=True, eq=False)
class _Lane:
    name: str
    queue: deque[_Work] = field(default_factory=deque)
    dropped: bool = False


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
        self._lanes: dict[str, _Lane] = {}
        self._turns: deque[_Lane] = deque()
        self._inbox: deque[tuple[SampleJob, asyncio.Future[SampleResponse]]] = deque()
        self._cancels: deque[str] = deque()
        self._stopping = False
        self._failure: TinkerError | None = None
        # The event loop's own:
        self._open: set[asyncio.Future[Any]] = set()
        # The thread's own:
        self._blocked: deque[_Lane] = deque()
        """Lanes whose next work waits for memory; they are in no turn."""
        self._hungry: set[_Lane] = set()
        """These, and those that have a turn again but no memory yet."""
        self._overtaken = 0
        """Samples let in since a lane that waited for memory got it."""
        self._arrived: deque[tuple[SampleJob, asyncio.Future[SampleResponse]]] = deque()
        """Samples not yet in the engine; the first may wait for memory."""
        self._samples: dict[str, asyncio.Future[SampleResponse]] = {}
        self._training_s = 0.0
        self._sampling_s = 0.0
        self._sampled_last = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start the thread; call it on the event loop that submits the work."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Let the slice that runs come to its end, and end the thread; other work is dropped."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)
        self._fail_open(
            EngineError("The server is stopping. Send the request again once it is back.")
        )

    @property
    def failure(self) -> TinkerError | None:
        """Why nothing runs any more and every submission fails; None while all is well."""
        return self._failure

    # called on the event loop

    def call(self, lane: str, work: Callable[[Engine], R]) -> asyncio.Future[R]:
        """Run `work` when the lane's earlier work is done."""
        return self._submit(lane, work, stepped=False)

    def train(
        self, lane: str, begin: Callable[[Engine], SteppedTask]
    ) -> asyncio.Future[ForwardBackwardOutput]:
        """Begin a task when the lane's earlier work is done, and run it slice by slice."""
        return self._submit(lane, begin, stepped=True)

    def sample(self, job: SampleJob) -> asyncio.Future[SampleResponse]:
        """Sample, along with whatever else is being sampled."""
        outcome = self._new_outcome()
        with self._changed:
            if self._failure is None:
                self._inbox.append((job, outcome))
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
            lane = self._lanes.pop(lane_name, None)
            if lane is None:
                return
            lane.dropped = True
        for work in list(lane.queue):
            _settle(work.outcome, None, error)

    def _submit(
        self, lane_name: str, begin: Callable[[Engine], Any], *, stepped: bool
    ) -> asyncio.Future[Any]:
        outcome = self._new_outcome()
        with self._changed:
            if self._failure is None:
                lane = self._lanes.get(lane_name)
                if lane is None:
                    lane = self._lanes[lane_name] = _Lane(lane_name)
                    self._turns.append(lane)
                lane.queue.append(_Work(begin, outcome, stepped))
                self._changed.notify()
                return outcome
        outcome.set_exception(self._failure)
        return outcome

    def _new_outcome(self) -> asyncio.Future[Any]:
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._open.add(outcome)
        outcome.add_done_callback(self._open.discard)
        return outcome

    def _fail_open(self, error: TinkerError) -> None:
        for outcome in list(self._open):
            _settle(outcome, None, error)

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
            self._on_loop(lambda: self._fail_open(error))

    def _take_turns(self) -> None:
        while True:
            with self._changed:
                while not self._stopping and not self._has_work():
                    self._changed.wait()
                if self._stopping:
                    return
                self._arrived.extend(self._inbox)
                self._inbox.clear()
                cancelled = list(self._cancels)
                self._cancels.clear()
            self._cancel_samples(cancelled)
            self._take_samples()
            if self._blocked and not self._in_progress():
                self._unblock()
            if self._training_is_next():
                self._training_s += self._timed(self._training_slice)
            elif self._engine.has_sampling_work():
                self._sampling_s += self._timed(self._sampling_slice)

    def _has_work(self) -> bool:
        waiting = self._turns or self._inbox or self._cancels or self._blocked or self._arrived
        return bool(waiting or self._engine.has_sampling_work())

    def _in_progress(self) -> bool:
        """Whether anything holds memory that it will give back."""
        with self._changed:
            begun = any(lane.queue and lane.queue[0].task is not None for lane in self._turns)
        return begun or self._engine.has_sampling_work()

    def _unblock(self) -> None:
        """Give the lanes that wait for memory their turns again, behind those that have one."""
        with self._changed:
            self._turns.extend(self._blocked)
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
            lane = self._take_lane()
        if lane is None:
            return
        lanes = [lane]
        outcome = self._begin(lane.queue[0])
        if outcome is not None and outcome.busy:
            if self._in_progress():
                self._blocked.append(lane)
                self._hungry.add(lane)
                return
            outcome = _Outcome(finished=True, error=outcome.error)
        self._sate(lane)
        if outcome is None:
            lanes += self._joining(lane)
            self._run_slices([one.queue[0] for one in lanes])
            outcomes = [self._outcome(one.queue[0]) for one in lanes]
        else:
            outcomes = [outcome]
        finished = []
        with self._changed:
            for one, ended in zip(lanes, outcomes, strict=True):
                work = one.queue[0]
                if ended.finished:
                    one.queue.popleft()
                    finished.append((work.outcome, ended.result, ended.error))
                if one.dropped:
                    continue
                if one.queue:
                    self._turns.append(one)
                else:
                    del self._lanes[one.name]
        if finished:
            self._unblock()
        self._post(finished)

    def _take_lane(self) -> _Lane | None:
        """Take the lane whose turn it is."""
        while self._turns:
            lane = self._turns.popleft()
            if not lane.dropped and lane.queue:
                return lane
            self._sate(lane)
        return None

    def _joining(self, first: _Lane) -> list[_Lane]:
        """Take the lanes whose next slices fit into one with that of `first`, in their order."""
        task = first.queue[0].task
        if task is None or not task.joins:
            return []
        room = self._engine.config.microbatch_tokens - task.next_tokens
        taken: list[_Lane] = []
        with self._changed:
            waiting = [lane for lane in self._turns if not lane.dropped and lane.queue]
        full = False
        for lane in waiting:
            work = lane.queue[0]
            if room <= 0 or not work.stepped or (full and work.task is None):
                continue
            outcome = self._begin(work)
            if outcome is not None:  # what could not begin says so in its own turn
                full = full or outcome.busy
                continue
            self._sate(lane)
            assert work.task is not None
            if work.task.joins and work.task.next_tokens <= room:
                room -= work.task.next_tokens
                taken.append(lane)
        with self._changed:
            for lane in taken:
                self._turns.remove(lane)
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
            work.failed = self._as_answer(raised)
            return _Outcome(finished=True, error=work.failed)
        if not work.stepped:
            return _Outcome(finished=True, result=begun)
        work.task = begun
        return None

    def _run_slices(self, works: list[_Work]) -> None:
        tasks = [work.task for work in works if work.task is not None]
        try:
            if len(tasks) > 1:
                self._engine.run_together(tasks)  # type: ignore[arg-type]  # these are its own
            else:
                tasks[0].run_microbatch()
        except Exception as raised:  # noqa: BLE001 - as in _begin
            works[0].failed = self._as_answer(raised)

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
            return _Outcome(finished=True, error=self._as_answer(raised))

    def _sate(self, lane: _Lane) -> None:
        """Note that a lane waits for memory no more."""
        if lane in self._hungry:
            self._hungry.remove(lane)
            self._overtaken = 0

    def _take_samples(self) -> None:
        """Let samples into the engine in their order, until one has to wait for memory.

        Lanes that wait for it are overtaken by so many samples, and no more.
        """
        while self._arrived:
            if self._hungry and self._overtaken >= _PATIENCE:
                return
            job, outcome = self._arrived[0]
            try:
                self._engine.add_sample(job)
            except Exception as raised:  # noqa: BLE001 - as in _begin
                if isinstance(raised, EngineBusyError) and self._in_progress():
                    return
                self._post([(outcome, None, self._as_answer(raised))])
            else:
                self._samples[job.job_id] = outcome
                self._overtaken += bool(self._hungry)
            self._arrived.popleft()

    def _cancel_samples(self, job_ids: list[str]) -> None:
        if not job_ids:
            return
        gone = set(job_ids)
        self._arrived = deque(one for one in self._arrived if one[0].job_id not in gone)
        for job_id in job_ids:
            if self._samples.pop(job_id, None) is not None:
                self._cancel_in_engine(job_id)
        self._unblock()

    def _sampling_slice(self) -> None:
        try:
            finished = self._engine.step()
        except Exception as raised:  # noqa: BLE001 - whatever it is, the batch cannot go on
            self._fail_samples(self._as_answer(raised))
            self._unblock()
            return
        if finished:
            self._unblock()
        self._post(
            [
                (outcome, end.response, end.error)
                for end in finished
                if (outcome := self._samples.pop(end.job_id, None)) is not None
            ]
        )

    def _fail_samples(self, error: TinkerError) -> None:
        """Drop every sample in the engine: a step failed, and the next would fail alike."""
        samples, self._samples = self._samples, {}
        for job_id in samples:
            self._cancel_in_engine(job_id)
        self._post([(outcome, None, error) for outcome in samples.values()])

    def _cancel_in_engine(self, job_id: str) -> None:
        try:
            self._engine.cancel_sample(job_id)
        except Exception as raised:  # noqa: BLE001 - the thread must go on for everybody else
            self._on_fault(raised)

    def _as_answer(self, raised: Exception) -> TinkerError:
        if isinstance(raised, TinkerError):
            return raised
        self._on_fault(raised)
        return EngineError(
            f"The server failed in this request ({type(raised).__name__}). It is not your input's "
            "fault; the server's log has the details. Send it again, or report it."
        )

    def _post(self, outcomes: list[tuple[asyncio.Future[Any], Any, TinkerError | None]]) -> None:
        """Hand outcomes to the event loop, all with one wake-up."""
        if not outcomes:
            return

        def deliver() -> None:
            for outcome, result, error in outcomes:
                _settle(outcome, result, error)

        self._on_loop(deliver)

    def _on_loop(self, act: Callable[[], None]) -> None:
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(act)
        except RuntimeError:
            # The loop is closed: the server ended without stop(), and nobody waits any more.
            return


def _settle(outcome: asyncio.Future[Any], result: Any, error: TinkerError | None) -> None:
    if outcome.done():
        return
    if error is None:
        outcome.set_result(result)
    else:
        outcome.set_exception(error)
