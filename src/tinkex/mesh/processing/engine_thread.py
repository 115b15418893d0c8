"""The thread that owns a processor's engine: calls come in from the event loop, outcomes go back.

Samples run together, one step for all (continuous batching); between two steps come the calls:
loading an adapter, holding a sample, ending one. Knows nothing of text, permits or peers.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from tinkex._outcomes import Outcomes, settle, settle_all
from tinkex.errors import EngineError

if TYPE_CHECKING:
    from tinkex._outcomes import Settled
    from tinkex.engine.engine import Engine
    from tinkex.engine.sampling.sequence import SampleJob
    from tinkex.errors import TinkerError
    from tinkex.types import SampleResponse

R = TypeVar("R")

_STOPPED = "The processor has stopped."
_STILL = 8
"""Steps in a row that compute no token, after which all work is taken to wait for its readers. One
or two are usual: a prompt may be found whole in the cache."""


class EngineThread:
    """Runs one engine, in its own thread.

    `hold` is for both threads, `after_step` for the engine's; all other methods are for the event
    loop's.

    Args:
        engine: nobody else may touch it once this has started.
        name: names the thread.
        on_fault: told of exceptions that are bugs rather than answers.
    """

    def __init__(
        self, engine: Engine, *, name: str, on_fault: Callable[[BaseException], None]
    ) -> None:
        self._engine = engine
        self._on_fault = on_fault
        self._thread = threading.Thread(target=self._run, name=f"engine {name}", daemon=True)
        self._changed = threading.Condition()
        self._calls: deque[Callable[[], None]] = deque()
        """Guarded by `_changed`."""
        self._stopping = False
        self._outcomes = Outcomes("processor", on_fault)
        self._samples: dict[str, asyncio.Future[SampleResponse]] = {}
        """The thread's own: those that the engine has."""
        self._told: list[Callable[[], None]] = []
        """The thread's own: what the event loop does when the calls, or the step, are done."""
        self._still = 0
        """The thread's own: steps in a row that moved nothing."""
        self.failure = ""
        """Why nothing runs any more; empty while all is well."""

    def start(self) -> None:
        """Start the thread."""
        self._outcomes.start()
        self._thread.start()

    async def stop(self) -> None:
        """Let the step that runs come to its end, and end the thread; what waits fails."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)
        self._outcomes.fail_open(EngineError(_STOPPED))

    def call(self, work: Callable[[Engine], R]) -> asyncio.Future[R]:
        """Run `work` on the engine between two steps."""
        outcome: asyncio.Future[R] = self._outcomes.new()

        def act() -> None:
            try:
                result = work(self._engine)
            except Exception as raised:  # noqa: BLE001 - whatever it is becomes the answer
                self._post([(outcome, None, self._outcomes.answer(raised))])
            else:
                self._post([(outcome, result, None)])

        self._submit(act, outcome)
        return outcome

    def sample(self, job: SampleJob) -> asyncio.Future[SampleResponse]:
        """Sample, along with whatever else is being sampled."""
        outcome: asyncio.Future[SampleResponse] = self._outcomes.new()

        def act() -> None:
            try:
                self._engine.add_sample(job)
            except Exception as raised:  # noqa: BLE001 - as above
                self._post([(outcome, None, self._outcomes.answer(raised))])
            else:
                self._samples[job.job_id] = outcome

        self._submit(act, outcome)
        return outcome

    def cancel(self, job_id: str) -> None:
        """Stop sampling for a job; its outcome does not come any more."""

        def act() -> None:
            if self._samples.pop(job_id, None) is not None:
                self._engine.cancel_sample(job_id)

        self._submit(act)

    def hold(self, job_id: str, *, held: bool) -> None:
        """Let a job wait for its reader, or go on."""
        self._submit(lambda: self._engine.hold_sample(job_id, held=held))

    def after_step(self, act: Callable[[], None]) -> None:
        """Have the event loop do something when the step that runs has ended; called within it."""
        self._told.append(act)

    def _submit(self, act: Callable[[], None], outcome: asyncio.Future[Any] | None = None) -> None:
        with self._changed:
            if not self.failure and not self._stopping:
                self._calls.append(act)
                self._changed.notify()
                return
        if outcome is not None:
            settle(outcome, None, EngineError(self.failure or _STOPPED))

    # in the thread

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as raised:  # noqa: BLE001 - nobody else would hear of it, and wait for ever
            why = (
                f"The processor's engine broke down ({type(raised).__name__}) and runs nothing any "
                "more; its log has the details. Restart the processor."
            )
            with self._changed:
                self.failure = why
            self._tell()
            self._outcomes.on_loop(partial(self._outcomes.fail_open, EngineError(why)))
            self._on_fault(raised)

    def _turn(self) -> bool:
        """Do the calls that came, then a step; wait where that moves nothing. Whether to go on."""
        with self._changed:
            calls = list(self._calls)
            self._calls.clear()
        for act in calls:
            act()
            self._tell()
        if not self._engine.has_sampling_work():
            self._still = _STILL
        elif self._step() or calls:
            self._still = 0
        else:
            self._still += 1
        self._tell()
        with self._changed:
            # Nothing to do, or all that there is waits for its readers.
            while self._still >= _STILL and not (self._stopping or self._calls):
                self._changed.wait()
            return not self._stopping

    def _step(self) -> bool:
        """Run one step; whether it did anything."""
        try:
            finished = self._engine.step()
        except Exception as raised:  # noqa: BLE001 - whatever it is, the batch cannot go on
            self._drop_samples(self._outcomes.answer(raised))
            return True
        self._post(
            [
                (outcome, end.response, end.error)
                for end in finished
                if (outcome := self._samples.pop(end.job_id, None)) is not None
            ]
        )
        return bool(finished or self._engine.served)

    def _drop_samples(self, error: TinkerError) -> None:
        samples, self._samples = self._samples, {}
        for job_id in samples:
            self._engine.cancel_sample(job_id)
        self._post([(outcome, None, error) for outcome in samples.values()])

    def _post(self, settled: list[Settled]) -> None:
        """Hand outcomes to the event loop, with the next `_tell`."""
        if settled:
            self._told.append(partial(settle_all, settled))

    def _tell(self) -> None:
        """Have the event loop do all that waits for it, with one wake-up."""
        told, self._told = self._told, []
        if not told:
            return

        def do() -> None:
            for act in told:
                act()

        self._outcomes.on_loop(do)
