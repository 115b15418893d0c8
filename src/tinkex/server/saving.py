"""Saving a training run's weights: as a checkpoint, or as a sampling session.

Owns names, expiries and what becomes of the snapshot. Where files lie is `blobs`, what is in them
is the engine's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinkex.errors import InputError
from tinkex.server.blobs import CheckpointKey
from tinkex.server.futures import Operation
from tinkex.server.refusal import invalid_fields
from tinkex.server.runs import Answer, TrainingRun
from tinkex.server.samplers import (
    FixedWeights,
    MutableWeights,
    SamplingSession,
    Snapshot,
    sampler_id_of,
)
from tinkex.server.sharing import check_ttl
from tinkex.types import (
    SaveWeightsExternalResponseInternal,
    SaveWeightsForSamplerResponseInternal,
    SaveWeightsResponse,
)
from tinkex.types.tinker_path import check_part

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tinkex.engine.engine import Engine
    from tinkex.server.futures import Future
    from tinkex.server.services import Services
    from tinkex.types import (
        SaveWeightsExternalRequest,
        SaveWeightsForSamplerRequest,
        SaveWeightsRequest,
    )


class Saving:
    """Runs the save requests of runs."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def save(self, owner: str, request: SaveWeightsRequest, digest: bytes) -> Future:
        """Save the adapter with its optimiser state."""

        def perform_on(run: TrainingRun) -> Callable[[], Awaitable[Answer]]:
            name = request.path if request.path is not None else _default_name(request.seq_id)
            key = CheckpointKey(run.model_id, "weights", name)

            async def perform() -> Answer:
                path = await self._save(
                    run,
                    key,
                    request.ttl_seconds,
                    request.user_metadata,
                    overwrite=request.overwrite,
                )
                return Answer(SaveWeightsResponse(path=path))

            return perform

        return self._s.submissions.submit(
            owner,
            Operation.SAVE_WEIGHTS,
            request.model_id,
            request.seq_id,
            digest,
            perform_on,
            alone=True,
        )

    def save_for_sampler(
        self, owner: str, request: SaveWeightsForSamplerRequest, digest: bytes
    ) -> Future:
        """Save the adapter for sampling: under a name, or as a sampling session.

        Raises:
            Refusal: when neither or both are asked for.
        """
        if (request.path is None) == (request.sampling_session_seq_id is None):
            raise invalid_fields(
                "save_weights_for_sampler needs either path (a name) or sampling_session_seq_id."
            )
        if request.path is None and (request.ttl_seconds, request.user_metadata) != (None, None):
            raise invalid_fields(
                "ttl_seconds and user_metadata belong to a checkpoint: give a path too, or neither."
            )
        if request.path is not None and request.kind != "snapshot":
            raise invalid_fields(f"kind {request.kind!r} takes no path: leave it out.")

        def perform_on(run: TrainingRun) -> Callable[[], Awaitable[Answer]]:
            async def perform() -> Answer:
                if request.path is None:
                    return await self._publish_sampler(run, request)
                key = CheckpointKey(run.model_id, "sampler_weights", request.path)
                path = await self._save(run, key, request.ttl_seconds, request.user_metadata)
                return Answer(SaveWeightsForSamplerResponseInternal(path=path))

            return perform

        return self._s.submissions.submit(
            owner,
            Operation.SAVE_WEIGHTS_FOR_SAMPLER,
            request.model_id,
            request.seq_id,
            digest,
            perform_on,
            alone=True,
        )

    def save_external(
        self, owner: str, request: SaveWeightsExternalRequest, digest: bytes
    ) -> Future:
        """Export the adapter in PEFT's format, to be fetched by signed addresses."""

        def perform_on(run: TrainingRun) -> Callable[[], Awaitable[Answer]]:
            key = CheckpointKey(run.model_id, "external_weights", request.path)

            async def perform() -> Answer:
                if request.age_encryption_recipients:
                    raise InputError(
                        "age_encryption_recipients is not available on this server: leave it out, "
                        "and encrypt the files after the download."
                    )
                path = await self._save(run, key, request.ttl_seconds, None, overwrite=True)
                return Answer(SaveWeightsExternalResponseInternal(path=path))

            return perform

        return self._s.submissions.submit(
            owner,
            Operation.SAVE_WEIGHTS_EXTERNAL,
            request.model_id,
            request.seq_id,
            digest,
            perform_on,
            alone=True,
        )

    async def _save(
        self,
        run: TrainingRun,
        key: CheckpointKey,
        ttl_seconds: int | None,
        user_metadata: dict[str, str] | None,
        *,
        overwrite: bool = False,
    ) -> str:
        check_part(key.name, "checkpoint name")
        check_ttl(ttl_seconds)
        optimizer = key.kind == "weights"
        blobs = self._s.blobs

        def write(engine: Engine) -> int:
            with blobs.write(key, overwrite=overwrite) as folder:
                engine.save_adapter(run.model_id, folder, optimizer=optimizer)
            return blobs.size(key)

        size = await run.call(write)
        await self._s.checkpoints.record(
            run,
            key,
            size_bytes=size,
            has_optimizer=optimizer,
            ttl_seconds=ttl_seconds,
            user_metadata=user_metadata,
        )
        return key.path

    async def _publish_sampler(
        self, run: TrainingRun, request: SaveWeightsForSamplerRequest
    ) -> Answer:
        """Take a snapshot and give the client a sampling session on it, without a checkpoint."""
        session = self._s.sessions.find(run.session_id)
        if session is None:
            raise self._s.runs.missing(run.model_id)
        number = request.sampling_session_seq_id
        assert number is not None
        if number in session.sampler_ids:
            raise InputError(
                f"sampling_session_seq_id {number} is in use already: give each sampling session "
                "a number of its own."
            )
        sampler_id = sampler_id_of(session.session_id, number)
        await run.call(lambda engine: engine.snapshot_sampler(sampler_id, run.model_id))
        snapshot = Snapshot(run.base, sampler_id)
        inflight = request.kind == "inflight"
        if inflight:
            weights: FixedWeights = self._publish_inflight(run, snapshot)
        else:
            weights = FixedWeights(snapshot)
        await self._s.sampling.open_session(
            session,
            number,
            SamplingSession(
                sampler_id=sampler_id,
                owner=run.owner,
                session_id=session.session_id,
                base_name=run.base_name,
                model_path=None,
                weights=weights,
                shared_weights=inflight,
            ),
        )
        return Answer(SaveWeightsForSamplerResponseInternal(sampling_session_id=sampler_id))

    @staticmethod
    def _publish_inflight(run: TrainingRun, snapshot: Snapshot) -> MutableWeights:
        if run.inflight is None:
            run.inflight = MutableWeights(snapshot)
        else:
            run.inflight.publish(snapshot)
        return run.inflight


def _default_name(seq_id: int | None) -> str:
    return f"{seq_id or 0:06d}"
