"""What a client asks of a training run, from acceptance to result.

Owns the meaning of each request: create, forward_backward, optim_step, save, load, unload. A request
that names a run and a sequence id is always accepted; whatever is wrong with it comes through its
future, because a client whose request is refused on the spot leaves a gap in the sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinkex.errors import EngineError, InputError, TinkerError
from tinkex.server.blobs import CheckpointKey, check_name
from tinkex.server.futures import Operation
from tinkex.server.refusal import bad_request, invalid_fields
from tinkex.server.runs import Answer, RunRequest, TrainingRun, model_id_of
from tinkex.server.samplers import (
    FixedWeights,
    MutableWeights,
    SamplingSession,
    Snapshot,
    sampler_id_of,
)
from tinkex.server.store import RunRow
from tinkex.types import (
    AdamParams,
    CreateModelResponse,
    LoadWeightsResponse,
    OptimStepResponse,
    SaveWeightsForSamplerResponse,
    SaveWeightsResponse,
    UnloadModelResponse,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tinkex.engine.engine import Engine
    from tinkex.server.bases import HostedBase
    from tinkex.server.decoding import ForwardBackwardCall
    from tinkex.server.futures import Future
    from tinkex.server.services import Services
    from tinkex.server.sessions import Session
    from tinkex.server.store import CheckpointRow
    from tinkex.types import (
        CreateModelRequest,
        LoadWeightsRequest,
        LoraConfig,
        OptimStepRequest,
        SaveWeightsForSamplerRequest,
        SaveWeightsRequest,
    )

MIN_TTL_S = 1
MAX_TTL_S = 10 * 366 * 86_400


class Training:
    """Runs the requests of training runs."""

    def __init__(self, services: Services) -> None:
        self._s = services

    # making a run

    def create(self, owner: str, request: CreateModelRequest, digest: bytes) -> Future:
        """Make a run with a fresh adapter.

        Raises:
            Refusal: for an unknown session or base model, a rank out of bounds, no LoRA, an
                optimiser that is not supported, or a model_seq_id used for another model.
        """
        session = self._s.sessions.get(owner, request.session_id)
        repeated = self._repeated_creation(session, request.model_seq_id, digest)
        if repeated is not None:
            return repeated
        lora = request.lora_config
        if lora is None:
            raise invalid_fields("lora_config is missing: this server trains LoRA adapters only.")
        _check_rank(lora.rank, self._s.config.limits.max_rank)
        _check_optimizer(request.optimizer_config)
        base = self._s.bases.get(request.base_model)
        run = self._new_run(
            session, request.model_seq_id, base, request.base_model, request.user_metadata
        )

        async def perform() -> Answer:
            await run.call(lambda engine: engine.create_adapter(run.model_id, lora))
            await self._record(run, lora)
            return Answer(CreateModelResponse(model_id=run.model_id))

        return self._start_run(session, request.model_seq_id, run, digest, perform)

    async def load(self, owner: str, request: LoadWeightsRequest, digest: bytes) -> Future:
        """Load a checkpoint: into a run that exists, or as a new one.

        Raises:
            Refusal: for a request that names neither or both, or asks for what is not supported.
        """
        if request.weights_access_token is not None:
            raise bad_request("weights_access_token is not supported by this server: leave it out.")
        _check_optimizer(request.optimizer_config)
        by_model, by_session = request.model_id is not None, request.session_id is not None
        if by_model == by_session or (by_session and request.model_seq_id is None):
            raise invalid_fields(
                "load_weights needs either model_id with seq_id, or session_id with model_seq_id."
            )
        if by_model:
            return self._load_into(owner, request, digest)
        return await self._load_as_new(owner, request, digest)

    def _load_into(self, owner: str, request: LoadWeightsRequest, digest: bytes) -> Future:
        def perform_on(run: TrainingRun) -> Callable[[], Awaitable[Answer]]:
            async def perform() -> Answer:
                row = await self._s.checkpoints.resolve(owner, request.path)
                await self._check_same_base(row, run.base)
                run.lora = await run.call(self._loader(run.model_id, row, request.optimizer))
                return Answer(LoadWeightsResponse(path=request.path, model_id=run.model_id))

            return perform

        assert request.model_id is not None
        return self._submit(
            owner,
            Operation.LOAD_WEIGHTS,
            request.model_id,
            request.seq_id,
            digest,
            perform_on,
            alone=True,
        )

    async def _load_as_new(self, owner: str, request: LoadWeightsRequest, digest: bytes) -> Future:
        assert request.session_id is not None
        assert request.model_seq_id is not None
        session = self._s.sessions.get(owner, request.session_id)
        try:
            row = await self._s.checkpoints.resolve(owner, request.path)
            base_name = request.base_model or await self._s.checkpoints.base_of(row)
            base = self._s.bases.get(base_name)
            await self._check_same_base(row, base)
        except TinkerError as error:
            return self._s.futures.failed(owner, Operation.LOAD_WEIGHTS, _as_input(error))
        # Looked up only now: a repetition may have come in while the checkpoint was looked up.
        repeated = self._repeated_creation(session, request.model_seq_id, digest)
        if repeated is not None:
            return repeated
        run = self._new_run(session, request.model_seq_id, base, base_name, request.user_metadata)

        async def perform() -> Answer:
            lora = await run.call(self._loader(run.model_id, row, request.optimizer))
            await self._record(run, lora)
            return Answer(LoadWeightsResponse(path=request.path, model_id=run.model_id))

        return self._start_run(
            session, request.model_seq_id, run, digest, perform, Operation.LOAD_WEIGHTS
        )

    def _repeated_creation(
        self, session: Session, model_seq_id: int, digest: bytes
    ) -> Future | None:
        model_id = session.model_ids.get(model_seq_id)
        run = None if model_id is None else self._s.runs.find(session.owner, model_id)
        if run is None:
            return None
        if run.creation[0] != digest:
            raise bad_request(
                f"model_seq_id {model_seq_id} of session {session.session_id!r} was used before, "
                "for a different model. Give each model a model_seq_id of its own."
            )
        return self._s.futures.known(run.creation[1]) or self._dropped(run.owner)

    def _new_run(
        self,
        session: Session,
        model_seq_id: int,
        base: HostedBase,
        base_name: str,
        user_metadata: dict[str, Any] | None,
    ) -> TrainingRun:
        if model_seq_id < 0:
            raise invalid_fields(f"model_seq_id is {model_seq_id}: it must not be negative.")
        return TrainingRun(
            model_id=model_id_of(session.session_id, model_seq_id),
            owner=session.owner,
            session_id=session.session_id,
            base=base,
            base_name=base_name,
            user_metadata=user_metadata,
            max_held=self._s.config.limits.max_held_requests,
            gap_timeout_s=self._s.config.sequence_gap_timeout_s,
            clock=self._s.clock,
            timers=self._s.timers,
            perform=self._s.perform,
        )

    def _start_run(
        self,
        session: Session,
        model_seq_id: int,
        run: TrainingRun,
        digest: bytes,
        perform: Callable[[], Awaitable[Answer]],
        operation: Operation = Operation.CREATE_MODEL,
    ) -> Future:
        """Make the run known and put its making first in its queue; undo both if that fails."""
        future = self._s.futures.open(session.owner, operation)
        run.creation = (digest, future.request_id)
        session.model_ids[model_seq_id] = run.model_id
        self._s.runs.add(run)

        async def perform_or_undo() -> Answer:
            try:
                return await perform()
            except BaseException as error:
                self._s.runs.remove(run.model_id)
                session.model_ids.pop(model_seq_id, None)
                run.close(error if isinstance(error, TinkerError) else _stopped())
                raise

        run.enqueue(RunRequest(future, perform_or_undo, alone=True))
        return future

    async def _record(self, run: TrainingRun, lora: LoraConfig) -> None:
        run.lora = lora
        await self._s.store.add_run(
            RunRow(
                run_id=run.model_id,
                session_id=run.session_id,
                owner=run.owner,
                base_model=run.base_name,
                lora_rank=lora.rank,
                train_attn=lora.train_attn,
                train_mlp=lora.train_mlp,
                train_unembed=lora.train_unembed,
                user_metadata=run.user_metadata,
                created_at=run.created_at,
                last_request_at=run.last_request_at,
            )
        )

    # working on a run

    def forward_backward(self, owner: str, call: ForwardBackwardCall) -> Future:
        """Run a batch forward, and backward unless it is forward only."""

        def perform_on(run: TrainingRun) -> Callable[[], Awaitable[Answer]]:
            async def perform() -> Answer:
                if call.problem is not None:
                    raise call.problem
                output = await run.train(
                    lambda engine: engine.begin_forward_backward(
                        run.model_id,
                        call.data,
                        call.loss_fn,
                        call.loss_fn_config,
                        forward_only=call.forward_only,
                    )
                )
                return Answer(output, call.result_bytes)

            return perform

        return self._submit(
            owner,
            Operation.FORWARD_BACKWARD,
            call.model_id,
            call.seq_id,
            call.digest,
            perform_on,
            request_bytes=call.request_bytes,
        )

    def optim_step(self, owner: str, request: OptimStepRequest, digest: bytes) -> Future:
        """Apply the gradients."""
        params = request.optim_params

        def perform_on(run: TrainingRun) -> Callable[[], Awaitable[Answer]]:
            async def perform() -> Answer:
                if not isinstance(params, AdamParams):
                    raise InputError(
                        f"Optimizer {params.type!r} is not supported by this server: use AdamParams."
                    )
                metrics = await run.call(lambda engine: engine.optim_step(run.model_id, params))
                return Answer(OptimStepResponse(metrics=metrics))

            return perform

        return self._submit(
            owner, Operation.OPTIM_STEP, request.model_id, request.seq_id, digest, perform_on
        )

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

        return self._submit(
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
        if request.path is not None and request.kind != "snapshot":
            raise invalid_fields(f"kind {request.kind!r} takes no path: leave it out.")

        def perform_on(run: TrainingRun) -> Callable[[], Awaitable[Answer]]:
            async def perform() -> Answer:
                if request.path is None:
                    return await self._publish_sampler(run, request)
                key = CheckpointKey(run.model_id, "sampler_weights", request.path)
                path = await self._save(run, key, request.ttl_seconds, request.user_metadata)
                return Answer(SaveWeightsForSamplerResponse(path=path))

            return perform

        return self._submit(
            owner,
            Operation.SAVE_WEIGHTS_FOR_SAMPLER,
            request.model_id,
            request.seq_id,
            digest,
            perform_on,
            alone=True,
        )

    def unload(self, owner: str, model_id: str) -> Future:
        """Free a run after its earlier requests; its checkpoints remain."""

        def perform_on(run: TrainingRun) -> Callable[[], Awaitable[Answer]]:
            async def perform() -> Answer:
                self._s.end_run(run, self._s.runs.missing(model_id))
                return Answer(UnloadModelResponse(model_id=model_id))

            return perform

        return self._submit(
            owner, Operation.UNLOAD_MODEL, model_id, None, b"", perform_on, alone=True
        )

    def _submit(
        self,
        owner: str,
        operation: Operation,
        model_id: str,
        seq_id: int | None,
        digest: bytes,
        perform_on: Callable[[TrainingRun], Callable[[], Awaitable[Answer]]],
        *,
        request_bytes: int = 0,
        alone: bool = False,
    ) -> Future:
        """Put a request into its run's sequence, or find the future of the same one before.

        Raises:
            Refusal: 429 when too much is pending. Never for the request that the run waits for:
                it is the one that lets the others go.
        """
        futures = self._s.futures
        run = self._s.runs.find(owner, model_id)
        if run is None:
            return futures.failed(owner, operation, self._s.runs.missing(model_id))
        self._s.touch(run.session_id)
        if seq_id is not None:
            try:
                earlier = run.seen.request_id(seq_id, digest, f"model {model_id!r}")
            except InputError as error:
                return futures.failed(owner, operation, error)
            if earlier is not None:
                return futures.known(earlier) or self._dropped(owner, operation)
        if seq_id != run.next_seq_id:
            futures.check_room(request_bytes)
        future = futures.open(owner, operation, request_bytes=request_bytes)
        if seq_id is not None:
            run.seen.add(seq_id, digest, future)
        run.offer(seq_id, RunRequest(future, perform_on(run), alone=alone))
        return future

    # saving and loading

    async def _save(
        self,
        run: TrainingRun,
        key: CheckpointKey,
        ttl_seconds: int | None,
        user_metadata: dict[str, str] | None,
        *,
        overwrite: bool = False,
    ) -> str:
        check_name(key.name)
        if ttl_seconds is not None and not MIN_TTL_S <= ttl_seconds <= MAX_TTL_S:
            raise InputError(
                f"ttl_seconds is {ttl_seconds}: it must be {MIN_TTL_S}..{MAX_TTL_S}, or None "
                "for a checkpoint that stays."
            )
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
        return Answer(SaveWeightsForSamplerResponse(sampling_session_id=sampler_id))

    @staticmethod
    def _publish_inflight(run: TrainingRun, snapshot: Snapshot) -> MutableWeights:
        if run.inflight is None:
            run.inflight = MutableWeights(snapshot)
        else:
            run.inflight.publish(snapshot)
        return run.inflight

    def _loader(
        self, model_id: str, row: CheckpointRow, optimizer: bool
    ) -> Callable[[Engine], LoraConfig]:
        if optimizer and not row.has_optimizer:
            raise InputError(
                f"Checkpoint {row.key.path} has no optimiser state: load it without the optimiser, "
                "or load one that save_state wrote."
            )
        folder = self._s.blobs.folder(row.key)
        return lambda engine: engine.load_adapter(model_id, folder, optimizer=optimizer)

    async def _check_same_base(self, row: CheckpointRow, base: HostedBase) -> None:
        trained_on = await self._s.checkpoints.base_of(row)
        if self._s.bases.find(trained_on) is not base:
            raise InputError(
                f"Checkpoint {row.key.path} was trained on base model {trained_on!r}, not on "
                f"{base.name!r}: load it into a model of its own base."
            )

    def _dropped(self, owner: str, operation: Operation = Operation.CREATE_MODEL) -> Future:
        return self._s.futures.failed(
            owner,
            operation,
            EngineError("This request was run before, and its result is no longer kept."),
        )


def _check_rank(rank: int, highest: int) -> None:
    if not 1 <= rank <= highest:
        raise invalid_fields(f"lora_config.rank is {rank}: it must be 1..{highest}.")


def _check_optimizer(config: Any) -> None:
    if config is not None and config.type != "adamw":
        raise bad_request(
            f"optimizer_config.type {config.type!r} is not supported by this server: use 'adamw'."
        )


def _as_input(error: TinkerError) -> TinkerError:
    """Make a refusal fit for a future: it is the caller's input that was refused."""
    return error if isinstance(error, InputError | EngineError) else InputError(str(error))


def _default_name(seq_id: int | None) -> str:
    return f"{seq_id or 0:06d}"


def _stopped() -> TinkerError:
    return EngineError("The model was not made: the server stopped or failed meanwhile.")
