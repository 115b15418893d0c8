"""The training runs that are live, and the order of their work.

Owns what a run is while it is loaded: its adapter's engine, the order of its requests, and which
requests it has seen. Knows nothing of what a request does.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from tinkex.errors import InputError, TinkerError
from tinkex.server.records.usage import Usage
from tinkex.server.runs.sequencing import FIRST_SEQ_ID, Sequencer
from tinkex.types import AdamOptimizerConfig

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from tinkex._clock import Clock
    from tinkex._timers import Timer, Timers
    from tinkex.engine.engine import Engine
    from tinkex.server.futures import Future, Operation
    from tinkex.server.models.bases import HostedBase
    from tinkex.server.models.jobs import SteppedTask
    from tinkex.server.sampling.samplers import MutableWeights
    from tinkex.types import ForwardBackwardOutput, LoraConfig, OptimizerConfig

R = TypeVar("R")

SEEN_REQUESTS = 4096


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request came to."""

    result: Any
    size: int = 0
    """Its estimated size in bytes."""
    usage: Usage = field(default_factory=Usage)
    """What it is counted as, besides the engine's time."""
    metrics: dict[str, float] | None = None
    """What a training step told, to be kept; None for anything else."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The journal's row of a request."""

    request_id: str
    operation: Operation | None = None
    """None for a gap in the sequence."""
    nbytes: int = 0
    """Size of its body."""


@dataclass(slots=True, eq=False)
class RunRequest:
    """One request of a run, in its turn."""

    future: Future | None
    """Who waits for it; None for what the server does for itself, or does again."""
    perform: Callable[[], Awaitable[Answer]]
    """Does it. Must hand its work to the engine before it first waits, unless `alone`."""
    alone: bool = False
    """Whether it waits for the run's earlier requests, and later ones wait for it. Needed where
    more than the engine is involved, such as the database."""
    seq_id: int | None = None
    """Its place in the sequence, if it has one."""
    kept: Kept | None = None
    """Its row in the journal; None where a snapshot need not cover it."""

    def fail(self, error: TinkerError) -> None:
        """Tell who waits that it will not be done."""
        if self.future is not None:
            self.future.fail(error)


class Seen:
    """Which requests came, so that a repetition gets the first one's future."""

    def __init__(self) -> None:
        self._by_id: OrderedDict[int, tuple[bytes, str]] = OrderedDict()

    def add(self, seq_id: int, digest: bytes, future: Future) -> None:
        """Note a request."""
        self._by_id[seq_id] = (digest, future.request_id)
        if len(self._by_id) > SEEN_REQUESTS:
            self._by_id.popitem(last=False)

    def remove(self, seq_id: int) -> None:
        """Forget a request that was not accepted after all."""
        self._by_id.pop(seq_id, None)

    def restore(self, seq_id: int, digest: bytes, request_id: str) -> None:
        """Note a request that an earlier process accepted."""
        self._by_id[seq_id] = (digest, request_id)

    def request_id(self, seq_id: int, digest: bytes, what: str) -> str | None:
        """Return the id of the future of an earlier, equal request; None when there is none.

        Raises:
            InputError: when the earlier request was another one.
        """
        earlier = self._by_id.get(seq_id)
        if earlier is None:
            return None
        if earlier[0] != digest:
            raise InputError(
                f"seq_id {seq_id} of {what} was used before, for a different request. Give each "
                "request a seq_id of its own; only an exact repetition may use one again."
            )
        return earlier[1]


class TrainingRun:
    """One adapter in training.

    Args:
        model_id: its id on the wire.
        owner: whose it is.
        session_id: the session that it lives and ends with.
        base: its base model.
        base_name: the name by which the client asked for that.
        user_metadata: the client's own notes.
        max_held: requests that may wait for an earlier sequence id.
        gap_timeout_s: seconds that a missing sequence id blocks.
        clock: tells time.
        timers: watches the gap time-out.
        perform: starts a request in the background, and calls back at its end.
        on_skip: told of a gap in the sequence: the id with which the run goes on.
    """

    def __init__(
        self,
        *,
        model_id: str,
        owner: str,
        session_id: str,
        base: HostedBase,
        base_name: str,
        user_metadata: dict[str, Any] | None,
        max_held: int,
        gap_timeout_s: float,
        clock: Clock,
        timers: Timers,
        perform: Callable[[TrainingRun, RunRequest, Callable[[], None]], None],
        on_skip: Callable[[TrainingRun, int], Kept],
    ) -> None:
        self.model_id = model_id
        self.owner = owner
        self.session_id = session_id
        self.base = base
        self.base_name = base_name
        self.user_metadata = user_metadata
        self.lora: LoraConfig | None = None
        """Shape of the adapter; None until it is made."""
        self.optimizer_config: OptimizerConfig = AdamOptimizerConfig()
        """Kind of its optimiser."""
        self.creation: tuple[bytes, str] = (b"", "")
        """Digest of the request that made the run, and the id of its future."""
        self.inflight: MutableWeights | None = None
        """What its `inflight` samplers sample from."""
        self.seen = Seen()
        self.created_at = clock.now()
        self.last_request_at = self.created_at
        """Unix seconds."""
        self.closed: TinkerError | None = None
        """Why it takes no more requests; None while it does."""
        self._clock = clock
        self._timers = timers
        self._gap_timeout_s = gap_timeout_s
        self._gap_timer: Timer | None = None
        self._perform = perform
        self._on_skip = on_skip
        self.next_to_begin = FIRST_SEQ_ID
        """The sequence id after those of the requests that have begun."""
        self._queue: deque[RunRequest] = deque()
        self._active = 0
        self._alone = False
        self._sequencer: Sequencer[RunRequest] = Sequencer(
            release=self.enqueue,
            abandon=lambda request, error: request.fail(error),
            arm=self._arm_gap_timer,
            disarm=self._disarm_gap_timer,
            max_held=max_held,
        )

    @property
    def next_seq_id(self) -> int:
        """The sequence id that runs next."""
        return self._sequencer.next_seq_id

    @property
    def held(self) -> int:
        """Requests that wait for an earlier sequence id."""
        return self._sequencer.held

    def holds(self, future: Future) -> bool:
        """Whether a request waits for an earlier sequence id."""
        return any(request.future is future for request in self._sequencer.waiting)

    def offer(self, request: RunRequest) -> None:
        """Take a request; without a sequence id it runs after those that run now."""
        self.last_request_at = self._clock.now()
        if self.closed is not None:
            request.fail(self.closed)
        elif request.seq_id is None:
            self.enqueue(request)
        else:
            self._sequencer.offer(request.seq_id, request)

    def go_on_with(self, seq_id: int) -> None:
        """Continue an earlier process's sequence with `seq_id`."""
        self._sequencer.next_seq_id = self.next_to_begin = seq_id

    def skip_again(self, seq_id: int, kept: Kept) -> None:
        """Go on with `seq_id` after a gap, as an earlier process did."""
        self._enqueue_skip(seq_id, kept)
        self._sequencer.go_on_with(seq_id)

    def enqueue(self, request: RunRequest) -> None:
        """Take a request whose turn in the sequence it is."""
        self._queue.append(request)
        self._start_ready()

    def call(self, work: Callable[[Engine], R]) -> asyncio.Future[R]:
        """Run `work` on the engine, in this run's lane.

        Raises:
            TinkerError: when the run has ended.
        """
        if self.closed is not None:
            raise self.closed
        return self.base.jobs.call(self.model_id, work, owner=self.owner)

    def train(
        self, begin: Callable[[Engine], SteppedTask]
    ) -> asyncio.Future[ForwardBackwardOutput]:
        """Begin a task on the engine, in this run's lane.

        Raises:
            TinkerError: when the run has ended.
        """
        if self.closed is not None:
            raise self.closed
        return self.base.jobs.train(self.model_id, begin, owner=self.owner)

    def close(self, error: TinkerError) -> None:
        """Fail everything unfinished and free the adapter."""
        if self.closed is not None:
            return
        self.abandon(error)
        if self.inflight is not None:
            self.inflight.close()
        freed = self.base.jobs.call(
            self.model_id,
            lambda engine: engine.remove_adapter(self.model_id),
            owner=self.owner,
        )
        freed.add_done_callback(_ignore_outcome)

    def abandon(self, error: TinkerError) -> None:
        """Fail everything unfinished; the adapter stays until the engine ends."""
        self.closed = error
        self._sequencer.close(error)
        queue, self._queue = self._queue, deque()
        for request in queue:
            request.fail(error)
        self.base.jobs.drop_lane(self.model_id, error)

    def _start_ready(self) -> None:
        """Start requests from the front, as far as those that want to be alone allow."""
        while self._queue and not self._alone:
            if self._queue[0].alone and self._active:
                return
            request = self._queue.popleft()
            self._active += 1
            self._alone = request.alone
            if request.seq_id is not None:
                self.next_to_begin = request.seq_id + 1
            self._perform(self, request, self._ended)

    def _ended(self) -> None:
        self._active -= 1
        if not self._active:
            self._alone = False
        self._start_ready()

    def _arm_gap_timer(self) -> None:
        self._gap_timer = self._timers.call_later(self._gap_timeout_s, self._skip_gap)

    def _skip_gap(self) -> None:
        """Go on after an id that did not come. That is kept first, then told."""
        to = self._sequencer.after_gap
        if to is not None:
            self._enqueue_skip(to, self._on_skip(self, to))
            self._sequencer.skip_gap(self._gap_timeout_s)

    def _enqueue_skip(self, to: int, kept: Kept) -> None:
        """Let the gap take its place among the requests: a snapshot after it covers it."""

        async def perform() -> Answer:
            return Answer(None)

        self.enqueue(RunRequest(None, perform, seq_id=to - 1, kept=kept))

    def _disarm_gap_timer(self) -> None:
        if self._gap_timer is not None:
            self._gap_timer.cancel()
            self._gap_timer = None


class Runs:
    """The live runs, by model id."""

    def __init__(self, *, session_ttl_s: float) -> None:
        self._session_ttl_s = session_ttl_s
        self._runs: dict[str, TrainingRun] = {}
        self._lost: dict[str, tuple[str, TinkerError]] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, model_id: object) -> bool:
        """Whether a run is live, whoever owns it."""
        return model_id in self._runs

    @property
    def held(self) -> int:
        """Requests of all runs that wait for an earlier sequence id."""
        return sum(run.held for run in self._runs.values())

    def add(self, run: TrainingRun) -> None:
        """Make a run known."""
        self._runs[run.model_id] = run

    def find(self, owner: str, model_id: str) -> TrainingRun | None:
        """Return the owner's live run, or None."""
        run = self._runs.get(model_id)
        return run if run is not None and run.owner == owner else None

    def remove(self, model_id: str) -> TrainingRun | None:
        """Forget a run; the caller closes it."""
        return self._runs.pop(model_id, None)

    def clear(self) -> list[TrainingRun]:
        """Forget every run; the caller abandons them."""
        runs, self._runs = list(self._runs.values()), {}
        return runs

    def lose(self, owner: str, model_id: str, error: TinkerError) -> None:
        """Note why a run could not be brought back: its owner hears that from now on."""
        self._lost[model_id] = (owner, error)

    def missing(self, model_id: str, owner: str | None = None) -> TinkerError:
        """Say that a run is not live, and why that may be."""
        lost_by, error = self._lost.get(model_id, (None, None))
        if error is not None and owner == lost_by:
            return error
        return InputError(
            f"Model {model_id!r} is not loaded: it was never created, it was unloaded, its session "
            f"was finished or silent for more than {self._session_ttl_s:g} s, the server was "
            "restarted, or it belongs to another key. Its checkpoints remain: load one with "
            "create_training_client_from_state."
        )


def model_id_of(session_id: str, model_seq_id: int) -> str:
    """Name a session's n-th training run, in the form that clients compute for themselves."""
    return f"{session_id}:train:{model_seq_id}"


def _ignore_outcome(outcome: asyncio.Future[Any]) -> None:
    """Read an outcome that changes nothing, so that asyncio does not report it as lost."""
    if not outcome.cancelled():
        outcome.exception()
