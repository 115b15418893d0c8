"""How a training run comes to be: fresh, or from a checkpoint.

Owns making runs and undoing a failed attempt. One creation a (session, model_seq_id): a repetition
gets the future of the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinkex.errors import EngineError, InputError, TinkerError
from tinkex.server.futures import Operation
from tinkex.server.refusal import bad_request, invalid_fields
from tinkex.server.runs import Answer, RunRequest, TrainingRun, model_id_of
from tinkex.server.store import RunRow
from tinkex.types import CreateModelResponse, LoadWeightsResponse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tinkex.engine.engine import Engine
    from tinkex.server.bases import HostedBase
    from tinkex.server.futures import Future
    from tinkex.server.services import Services
    from tinkex.server.sessions import Session
    from tinkex.server.store import CheckpointRow
    from tinkex.types import CreateModelRequest, LoadWeightsRequest, LoraConfig, OptimizerConfig


class Creation:
    """Makes training runs."""

    def __init__(self, services: Services) -> None:
        self._s = services

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
        base = self._s.bases.get(request.base_model)
        run = self._new_run(
            session, request.model_seq_id, base, request.base_model, request.user_metadata
        )
        run.optimizer_config = request.optimizer_config
        kind = request.optimizer_config.type

        async def perform() -> Answer:
            await run.call(lambda engine: engine.create_adapter(run.model_id, lora, kind))
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
                loader = self._loader(run.model_id, row, request.optimizer, run.optimizer_config)
                run.lora = await run.call(loader)
                return Answer(LoadWeightsResponse(path=request.path, model_id=run.model_id))

            return perform

        assert request.model_id is not None
        return self._s.submissions.submit(
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
            saved = await self._s.checkpoints.optimizer_config(row)
            run.optimizer_config = request.optimizer_config or saved
            loader = self._loader(run.model_id, row, request.optimizer, run.optimizer_config)
            lora = await run.call(loader)
            await self._record(run, lora)
            return Answer(LoadWeightsResponse(path=request.path, model_id=run.model_id))

        return self._start_run(
            session, request.model_seq_id, run, digest, perform, Operation.LOAD_WEIGHTS
        )

    def _repeated_creation(
        self, session: Session, model_seq_id: int, digest: bytes
    ) -> Future | None:
        model_id = session.model_ids.get(model_seq_id)
        if model_id is None:
            return None
        run = self._s.runs.find(session.owner, model_id)
        if run is None or run.creation[0] != digest:
            raise bad_request(
                f"model_seq_id {model_seq_id} of session {session.session_id!r} was used before, "
                "for a different model. Give each model a model_seq_id of its own."
            )
        return self._s.submissions.again(session.owner, Operation.CREATE_MODEL, run.creation[1])

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

    def _loader(
        self, model_id: str, row: CheckpointRow, optimizer: bool, config: OptimizerConfig
    ) -> Callable[[Engine], LoraConfig]:
        if optimizer and not row.has_optimizer:
            raise InputError(
                f"Checkpoint {row.key.path} has no optimiser state: load it without the optimiser, "
                "or load one that save_state wrote."
            )
        folder = self._s.blobs.folder(row.key)
        return lambda engine: engine.load_adapter(
            model_id, folder, optimizer=optimizer, optimizer_type=config.type
        )

    async def _check_same_base(self, row: CheckpointRow, base: HostedBase) -> None:
        trained_on = await self._s.checkpoints.base_of(row)
        if self._s.bases.find(trained_on) is not base:
            raise InputError(
                f"Checkpoint {row.key.path} was trained on base model {trained_on!r}, not on "
                f"{base.name!r}: load it into a model of its own base."
            )


def _check_rank(rank: int, highest: int) -> None:
    if not 1 <= rank <= highest:
        raise invalid_fields(f"lora_config.rank is {rank}: it must be 1..{highest}.")


def _as_input(error: TinkerError) -> TinkerError:
    """Make a refusal fit for a future: it is the caller's input that was refused."""
    return error if isinstance(error, InputError | EngineError) else InputError(str(error))


def _stopped() -> TinkerError:
    return EngineError("The model was not made: the server stopped or failed meanwhile.")
