"""What a server does first: it goes on where an earlier process ended, however that ended.

Owns the order of it. Sessions live on, results are there to be fetched, samplers sample, and each
run is brought to its last snapshot, from where its journalled requests are carried out once more,
in their old order. What had ended is done again for its effect only: its client has, or gets, the
answer that was kept. What had not ended gets its future's result now.

Nothing here is visible to clients but that it takes time: they wait for futures as before.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinkex.errors import DamagedDataError, EngineError, TinkerError
from tinkex.server.durable.entries import decode_result
from tinkex.server.durable.replay import Replay
from tinkex.server.futures import Operation
from tinkex.server.runs.creation import Making
from tinkex.types import (
    CreateCustomLossRequest,
    CreateModelRequest,
    LoadWeightsRequest,
    LoadWeightsResponse,
    UnloadModelResponse,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tinkex.server.durable.entries import KeptEntry
    from tinkex.server.durable.journal import SnapshotRow
    from tinkex.server.futures import Future
    from tinkex.server.runs.runs import TrainingRun
    from tinkex.server.services import Services
    from tinkex.server.sessions import Session
    from tinkex.server.storage.store import RunRow, SamplerRow

DAMAGED = "what it was asked is damaged in the database"
SNAPSHOTS_DAMAGED = "its snapshots are damaged"
NOT_LOADED = "its base model is not loaded: start the server with it"
MAKINGS = frozenset({Operation.CREATE_MODEL, Operation.LOAD_WEIGHTS})


@dataclass(slots=True, eq=False)
class _Found:
    """What an earlier process left of one run."""

    making: KeptEntry
    """The request that made it."""
    requests: list[KeptEntry]
    """The others, in the order of acceptance."""
    snapshots: Sequence[SnapshotRow]
    """The newest first."""

    @property
    def model_id(self) -> str:
        """Its id."""
        return self.making.entry.target

    @property
    def is_made(self) -> bool:
        """Whether its adapter was there: it is told, or at least there is a snapshot of it."""
        ended_well = self.making.finished and self.making.error is None
        return ended_well or bool(self.snapshots)


class Recovery:
    """Brings back what an earlier process had."""

    def __init__(self, services: Services) -> None:
        self._s = services
        self._replay = Replay(services)

    @property
    def replaying(self) -> int:
        """Requests that are being carried out once more."""
        return self._replay.pending

    async def restore(self) -> None:
        """Bring everything back; what is computed once more goes on in the background."""
        journal, store = self._s.journal, self._s.store
        entries, snapshots = await journal.entries(), await journal.snapshots()
        rows, samplers = await store.live_sessions(), await store.live_samplers()
        sessions = {
            row.session_id: self._s.sessions.restore(
                row.session_id, row.owner, row.key_id or row.owner
            )
            for row in rows
        }
        self._s.sampling_sessions.first_cursor = await journal.begin_numbering()
        self._restore_results(entries)
        await self._restore_losses(entries, sessions)
        await self._restore_recordings(sessions)
        found = _by_run(entries, snapshots)
        runs = {one.model_id: await self._bring_back(one, sessions) for one in found}
        for sampler in samplers:
            self._s.sampling_sessions.restore(sampler, runs.get(sampler.run_id or ""))
        # Before anything is carried out: what that makes is not to be taken for a leftover.
        await asyncio.to_thread(self._s.snapshots.clear_unknown, _names(runs, samplers))
        for one in found:
            run = runs[one.model_id]
            if run is not None:
                covering = self._s.snapshots.history(run).covering
                self._replay.offer(run, one.requests, covering)
        await self._finish_others(entries, runs)
        if entries or rows:
            self._s.logger.info(
                "recovered",
                sessions=len(rows),
                runs=sum(run is not None for run in runs.values()),
                samplers=len(samplers),
                requests=sum(not one.finished for one in entries),
                replaying=self.replaying,
            )

    def _restore_results(self, entries: Sequence[KeptEntry]) -> None:
        """Make the futures of what has ended, for clients that have not fetched it."""
        for one in entries:
            if not (one.finished and one.kept):
                continue
            entry, error, result = one.entry, one.error, None
            if one.result is not None:
                try:
                    result = decode_result(entry, one.result)
                except (TinkerError, ValueError) as broken:
                    self._s.fault(broken)
            if result is None and error is None:
                error = EngineError("The result of this request was lost. Send it again.")
            self._s.futures.restore(
                entry.owner,
                entry.asked,
                entry.request_id,
                result=result,
                error=error,
                size=one.result_bytes,
            )

    async def _restore_losses(
        self, entries: Sequence[KeptEntry], sessions: Mapping[str, Session]
    ) -> None:
        """Read the custom losses again, before the batches that name them."""
        for one in entries:
            entry = one.entry
            session = sessions.get(entry.session_id)
            if entry.operation is not Operation.CREATE_CUSTOM_LOSS or session is None:
                continue
            if one.damaged:
                self._fail_damaged(one)
                continue
            if not entry.body:
                continue  # it was refused, and would be again
            request = CreateCustomLossRequest.model_validate_json(entry.body)
            session.loss_requests[request.custom_loss_seq_id] = (entry.digest, entry.request_id)
            future = None if one.finished else self._pending(one)
            if one.error is None:
                self._s.custom_losses.read(session, request, future)
        await self._s.tasks.finished()

    async def _restore_recordings(self, sessions: Mapping[str, Session]) -> None:
        """Take back what was sampled for training, before the batches that use it."""
        journal, recordings = self._s.journal, self._s.recordings
        for request_id, session_id, owner, body in await journal.recordings():
            if session_id not in sessions:
                journal.drop_recording(request_id)
                continue
            try:
                recordings.restore(request_id, owner, session_id, body)
            except (ValueError, KeyError) as broken:
                self._s.fault(broken)

    def _fail_damaged(self, one: KeptEntry) -> None:
        self._s.logger.error("request damaged", request_id=one.entry.request_id)
        if not one.finished:
            error = EngineError("This request is damaged in the database. Send it again.")
            self._pending(one).fail(error)

    def _pending(self, one: KeptEntry) -> Future:
        entry = one.entry
        return self._s.futures.restore(entry.owner, entry.asked, entry.request_id)

    # runs

    async def _bring_back(
        self, found: _Found, sessions: Mapping[str, Session]
    ) -> TrainingRun | None:
        """Make a run again, with the adapter of its last good snapshot."""
        making = found.making
        session = sessions.get(making.entry.session_id)
        if session is None or making.error is not None:
            return None
        if making.damaged:
            await self._lose(found, DAMAGED)
            return None
        if not found.is_made:
            return await self._make_first(session, making)
        row = await self._s.store.run(making.entry.owner, found.model_id)
        run = None if row is None else self._remade(session, making, row)
        if run is None:
            await self._lose(found, NOT_LOADED, EngineError)
            return None
        self._know(session, run, making)
        try:
            await self._load_state(run, found)
        except TinkerError as error:
            self._s.runs.remove(run.model_id)
            kind = DamagedDataError if isinstance(error, DamagedDataError) else EngineError
            await self._lose(found, str(error), kind)
            return None
        covering = self._s.snapshots.history(run).covering
        if any(one.damaged and not one.is_covered_by(covering) for one in found.requests):
            self._s.runs.remove(run.model_id)
            await self._lose(found, DAMAGED)
            return None
        if not making.finished:
            self._pending(making).complete(_made(making, run))
        return run

    async def _make_first(self, session: Session, making: KeptEntry) -> TrainingRun | None:
        """Begin to make a run that was accepted and not made."""
        entry, future = making.entry, self._pending(making)
        request = _request(making)
        try:
            if isinstance(request, CreateModelRequest):
                run, perform = self._s.creation.fresh(session, request)
            else:
                run, perform = await self._s.creation.loaded(session, request)
        except TinkerError as error:
            future.fail(error)
            return None
        self._know(session, run, making)
        number = request.model_seq_id
        assert number is not None
        self._s.creation.make(
            Making(session, number, run, perform, entry.digest, entry.asked), future
        )
        return run

    def _remade(self, session: Session, making: KeptEntry, row: RunRow) -> TrainingRun | None:
        return self._s.creation.restored(session, _request(making), row)

    def _know(self, session: Session, run: TrainingRun, making: KeptEntry) -> None:
        number = _request(making).model_seq_id
        assert number is not None
        session.model_ids[number] = run.model_id
        run.creation = (making.entry.digest, making.entry.request_id)
        self._s.runs.add(run)

    async def _load_state(self, run: TrainingRun, found: _Found) -> None:
        """Load a run's last good snapshot, or make its adapter as at the first time.

        Raises:
            DamagedDataError: no snapshot is good.
            TinkerError: this server, as it is set up now, does not take the adapter.
        """
        snapshots = self._s.snapshots
        newest = found.snapshots[0].generation if found.snapshots else 0
        for one in found.snapshots:
            folder = snapshots.folder(run.model_id, one.generation)
            try:
                await self._s.creation.restore_state(run, folder)
            except DamagedDataError as error:
                self._s.logger.warning("snapshot damaged", model_id=run.model_id, error=str(error))
                continue
            run.go_on_with(one.next_seq_id)
            self._go_on_from(run, one.generation, newest)
            return
        if newest > 1:
            raise DamagedDataError(SNAPSHOTS_DAMAGED)
        # All that it was ever asked is in the journal still.
        request, made_at = _request(found.making), found.making.finished_at
        if isinstance(request, CreateModelRequest):
            await self._s.creation.create_again(run, request)
        elif made_at is not None:
            await self._s.creation.load_again(run, request, made_at)
        else:  # only a snapshot says that it was made, and that is damaged
            raise DamagedDataError(SNAPSHOTS_DAMAGED)
        self._go_on_from(run, 0, newest)

    def _go_on_from(self, run: TrainingRun, generation: int, newest: int) -> None:
        """Count a run's snapshots from a good one on, as if no later one had been."""
        self._s.snapshots.restored(run, generation)
        if generation < newest:
            self._s.journal.drop_snapshots(run.model_id, above=generation)

    async def _lose(
        self, found: _Found, why: str, kind: type[EngineError] = DamagedDataError
    ) -> None:
        """Say that a run cannot go on; every request of it that has not ended fails."""
        self._s.logger.error("run not recovered", model_id=found.model_id, reason=why)
        owner = found.making.entry.owner
        advice = await self._s.checkpoints.to_go_on_from(owner, found.model_id)
        error = kind(f"Model {found.model_id!r} was not recovered after a restart: {why}. {advice}")
        self._s.runs.lose(owner, found.model_id, error)
        for one in [found.making, *found.requests]:
            if not one.finished:
                self._pending(one).fail(error)

    # what belongs to no run that is there

    async def _finish_others(
        self, entries: Sequence[KeptEntry], runs: Mapping[str, TrainingRun | None]
    ) -> None:
        for one in entries:
            entry = one.entry
            if entry.operation is Operation.SAMPLE:
                if one.finished:
                    self._s.sampling.restore_sample(entry)
                elif one.damaged:
                    self._fail_damaged(one)
                else:
                    await self._s.sampling.sample_again(entry)
            elif not one.finished and self._s.futures.known(entry.request_id) is None:
                if entry.operation is Operation.UNLOAD_MODEL and entry.target not in runs:
                    # It was let go; only to say so was left.
                    self._pending(one).complete(UnloadModelResponse(model_id=entry.target))
                else:
                    self._pending(one).fail(
                        EngineError("The session of this request ended. Create a new one.")
                    )


def _by_run(
    entries: Sequence[KeptEntry], snapshots: Mapping[str, Sequence[SnapshotRow]]
) -> list[_Found]:
    found: dict[str, _Found] = {}
    for one in entries:
        entry = one.entry
        if entry.target in found:
            found[entry.target].requests.append(one)
        elif entry.operation in MAKINGS and not one.is_of_run and entry.body:
            found[entry.target] = _Found(one, [], snapshots.get(entry.target, ()))
    return list(found.values())


def _request(making: KeptEntry) -> CreateModelRequest | LoadWeightsRequest:
    entry = making.entry
    if entry.operation is Operation.CREATE_MODEL:
        return CreateModelRequest.model_validate_json(entry.body)
    return LoadWeightsRequest.model_validate_json(entry.body)


def _made(making: KeptEntry, run: TrainingRun) -> LoadWeightsResponse:
    """Answer the making of a run that ended with its snapshot: from a checkpoint."""
    request = _request(making)
    assert isinstance(request, LoadWeightsRequest), "a fresh run is told before its snapshot"
    return LoadWeightsResponse(path=request.path, model_id=run.model_id)


def _names(runs: Mapping[str, TrainingRun | None], samplers: Sequence[SamplerRow]) -> set[str]:
    """Name the folders that are to stay: also those of a run that could not be brought back."""
    return {*runs, *(one.sampler_id for one in samplers)}
