"""How a request gets into its training run's sequence.

Owns acceptance: a request that names a run and a sequence id is always accepted, and whatever is
wrong with it comes through its future, because a client whose request is refused on the spot leaves
a gap in the sequence. A repetition gets the future of the first. Knows nothing of what is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinkex.errors import EngineError, InputError
from tinkex.server.runs import Answer, RunRequest, TrainingRun

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tinkex.server.futures import Future, FutureStore, Operation
    from tinkex.server.runs import Runs
    from tinkex.server.sessions import SessionRegistry

    Perform = Callable[[TrainingRun], Callable[[], Awaitable[Answer]]]


class Submissions:
    """The way in for everything that a client asks of a live run."""

    def __init__(self, runs: Runs, futures: FutureStore, sessions: SessionRegistry) -> None:
        self._runs = runs
        self._futures = futures
        self._sessions = sessions

    def submit(
        self,
        owner: str,
        operation: Operation,
        model_id: str,
        seq_id: int | None,
        digest: bytes,
        perform_on: Perform,
        *,
        request_bytes: int = 0,
        alone: bool = False,
    ) -> Future:
        """Put a request into its run's sequence, or find the future of the same one before.

        Args:
            owner: who asks.
            operation: what the future is the result of.
            model_id: the run.
            seq_id: its place in the sequence; None puts it after what runs now.
            digest: of the request's content; tells a repetition from another request.
            perform_on: given the run, returns what does the work in its turn.
            request_bytes: size of the request's data.
            alone: see `RunRequest.alone`.

        Raises:
            APIStatusError: 429 when too much is pending. Never for the request that the run waits
                for: it is the one that lets the others go.
        """
        run = self._runs.find(owner, model_id)
        if run is None:
            return self._futures.failed(owner, operation, self._runs.missing(model_id))
        self._sessions.touch_id(run.session_id)
        if seq_id is not None:
            try:
                earlier = run.seen.request_id(seq_id, digest, f"model {model_id!r}")
            except InputError as error:
                return self._futures.failed(owner, operation, error)
            if earlier is not None:
                return self.again(owner, operation, earlier)
        if seq_id != run.next_seq_id:
            self._futures.check_room(request_bytes)
        future = self._futures.open(owner, operation, request_bytes=request_bytes)
        if seq_id is not None:
            run.seen.add(seq_id, digest, future)
        run.offer(seq_id, RunRequest(future, perform_on(run), alone=alone))
        return future

    def again(self, owner: str, operation: Operation, request_id: str) -> Future:
        """Return the future of a request that came before; a failed one when it was dropped."""
        return self._futures.known(request_id) or self._futures.failed(
            owner,
            operation,
            EngineError("This request was run before, and its result is no longer kept."),
        )
