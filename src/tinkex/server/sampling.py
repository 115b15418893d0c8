"""What a client asks of a sampling session, from acceptance to result.

Owns sampling sessions' making and ending, loading weights for them once however many use them, and
the way of a sample request to the engine and back.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tinkex.engine.sampling.sequence import SampleJob
from tinkex.errors import EngineError, InputError, TinkerError
from tinkex.server.futures import Operation
from tinkex.server.refusal import bad_request, invalid_fields, not_found
from tinkex.server.samplers import FixedWeights, SamplingSession, Snapshot, sampler_id_of
from tinkex.server.store import SamplerRow
from tinkex.server.streaming import TokenStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from tinkex.server.bases import HostedBase
    from tinkex.server.completions import CompletionLog
    from tinkex.server.futures import Future
    from tinkex.server.services import Services
    from tinkex.server.sessions import Session
    from tinkex.server.store import CheckpointRow
    from tinkex.types import CreateSamplingSessionRequest, SampleRequest, SampleResponse

BYTES_PER_TOKEN = 8
CLONE_NUMBERS = 1_000_000_000
"""Sequence ids of one client of a sampling session: client c counts from c times this."""


class Sampling:
    """Runs the requests of sampling sessions."""

    def __init__(self, services: Services) -> None:
        self._s = services
        self._loaded: dict[str, Snapshot] = {}

    # sessions

    async def create_session(self, owner: str, request: CreateSamplingSessionRequest) -> str:
        """Make a sampling session on a base model or a checkpoint; return its id.

        Raises:
            Refusal: for an unknown session or base model, a number in use for other weights, or a
                request that names neither.
            InputError: for a checkpoint that is not there or does not load.
        """
        session = self._s.sessions.get(owner, request.session_id)
        number = request.sampling_session_seq_id
        earlier = self._s.samplers.find(owner, session.sampler_ids.get(number, ""))
        if earlier is not None:
            if (earlier.model_path, request.base_model or earlier.base_name) != (
                request.model_path,
                earlier.base_name,
            ):
                raise bad_request(
                    f"sampling_session_seq_id {number} was used before, for other weights. Give "
                    "each sampling session a number of its own."
                )
            return earlier.sampler_id
        base_name, snapshot = await self._weights(owner, request.base_model, request.model_path)
        if number in session.sampler_ids:
            # A repetition overtook this one while the weights were loading.
            snapshot.release()
            return session.sampler_ids[number]
        sampling_session = SamplingSession(
            sampler_id=sampler_id_of(session.session_id, number),
            owner=owner,
            session_id=session.session_id,
            base_name=base_name,
            model_path=request.model_path,
            weights=FixedWeights(snapshot),
        )
        await self.open_session(session, number, sampling_session)
        return sampling_session.sampler_id

    async def open_session(
        self, session: Session, number: int, sampling_session: SamplingSession
    ) -> None:
        """Make a sampling session known; if its client's session has ended meanwhile, free it."""
        session.sampler_ids[number] = sampling_session.sampler_id
        self._s.samplers.add(sampling_session)
        await self._s.store.add_sampler(
            SamplerRow(
                sampler_id=sampling_session.sampler_id,
                session_id=session.session_id,
                owner=sampling_session.owner,
                base_model=sampling_session.base_name,
                model_path=sampling_session.model_path,
                created_at=self._s.clock.now(),
            )
        )
        if self._s.sessions.find(session.session_id) is None:
            self.end(sampling_session.sampler_id)
            raise not_found(self._s.sessions.missing(session.session_id))

    def end(self, sampler_id: str) -> None:
        """End a sampling session: stop its samples and free its weights."""
        session = self._s.samplers.remove(sampler_id)
        if session is None:
            return
        error = InputError(self._missing(sampler_id))
        for future in list(session.pending):
            future.cancel(error)
        session.close()

    async def _weights(
        self, owner: str, base_name: str | None, model_path: str | None
    ) -> tuple[str, Snapshot]:
        """Return weights to sample from, counted for the caller: (base model's name, weights)."""
        if model_path is None:
            if base_name is None:
                raise invalid_fields("Give base_model, model_path, or both.")
            return base_name, Snapshot(self._s.bases.get(base_name), None)
        row = await self._s.checkpoints.resolve(owner, model_path)
        trained_on = await self._s.checkpoints.base_of(row)
        base = self._s.bases.get(trained_on)
        if base_name is not None and self._s.bases.get(base_name) is not base:
            raise InputError(
                f"Checkpoint {model_path} was trained on base model {trained_on!r}, not on "
                f"{base_name!r}. Leave base_model out."
            )
        return base_name or trained_on, await self._load(row, base)

    async def _load(self, row: CheckpointRow, base: HostedBase) -> Snapshot:
        """Load a checkpoint into the engine, or share the snapshot that is there already."""
        engine_id = f"{row.key.path}@{row.created_at}"
        snapshot = self._loaded.get(engine_id)
        if snapshot is not None:
            snapshot.acquire()
        else:
            folder = self._s.blobs.folder(row.key)
            snapshot = Snapshot(base, engine_id, on_freed=lambda: self._loaded.pop(engine_id, None))
            snapshot.load(lambda engine: engine.load_sampler(engine_id, folder))
            self._loaded[engine_id] = snapshot
        try:
            await snapshot.loaded()
        except BaseException:
            snapshot.release()
            raise
        return snapshot

    def join(self, owner: str, sampler_id: str) -> int:
        """Number one more client of a sampling session, from 1.

        Raises:
            Refusal: 404 for a sampling session that is not there.
        """
        session = self.find(owner, sampler_id)
        session.clones += 1
        return session.clones

    def find(self, owner: str, sampler_id: str) -> SamplingSession:
        """Return the owner's live sampling session; its client's session lives on.

        Raises:
            Refusal: 404 for one that is not there.
        """
        session = self._s.samplers.find(owner, sampler_id)
        if session is None:
            raise not_found(self._missing(sampler_id))
        self._s.sessions.touch_id(session.session_id)
        return session

    # samples

    async def sample(
        self, owner: str, request: SampleRequest, digest: bytes
    ) -> tuple[Future, list[str]]:
        """Take a sample request: (its future, the ids of the sequences that will come).

        Raises:
            Refusal: for a sampling session that is not there, or what is not supported.
        """
        self._check(request)
        session = None
        if request.sampling_session_id is not None:
            session = self.find(owner, request.sampling_session_id)
            earlier = self._earlier(session, request, digest)
            if earlier is not None:
                return earlier, _sequence_ids(request, earlier)
        size = BYTES_PER_TOKEN * request.prompt.length
        self._s.futures.check_room(size)
        if session is None:
            _, snapshot = await self._weights(owner, request.base_model, request.model_path)
        else:
            snapshot = self._current(session)
        future = self._s.futures.open(owner, Operation.SAMPLE, request_bytes=size)
        if session is not None and request.seq_id is not None:
            session.seen.add(request.seq_id, digest, future)
            log = session.log(request.seq_id // CLONE_NUMBERS, self._s.futures.known)
            future.on_finished = log.note
        sequence_ids = _sequence_ids(request, future)
        self._submit(future, snapshot, request, session, sequence_ids)
        return future, sequence_ids

    async def stream(
        self, owner: str, request: SampleRequest
    ) -> tuple[Future, list[str], TokenStream]:
        """Take a sample request whose tokens are wanted as they come.

        Raises:
            Refusal: as of `sample`; or the request has a `seq_id`, as a stream is not repeated.
        """
        self._check(request)
        if request.seq_id is not None:
            raise invalid_fields("A stream takes no seq_id: it is not repeated.")
        size = BYTES_PER_TOKEN * request.prompt.length
        self._s.futures.check_room(size)
        session = None
        if request.sampling_session_id is None:
            _, snapshot = await self._weights(owner, request.base_model, request.model_path)
        else:
            session = self.find(owner, request.sampling_session_id)
            snapshot = self._current(session)
        future = self._s.futures.open(owner, Operation.SAMPLE, request_bytes=size)
        sequence_ids = _sequence_ids(request, future)
        tokens = TokenStream(asyncio.get_running_loop())
        self._submit(future, snapshot, request, session, sequence_ids, on_token=tokens.push)
        return future, sequence_ids, tokens

    def _current(self, session: SamplingSession) -> Snapshot:
        current = session.weights.current()
        if current is None:
            raise not_found(self._missing(session.sampler_id))
        return current.acquire()

    def _check(self, request: SampleRequest) -> None:
        limit = self._s.config.limits.max_num_samples
        if not 1 <= request.num_samples <= limit:
            raise invalid_fields(f"num_samples is {request.num_samples}: it must be 1..{limit}.")
        if request.record_stability_info and request.sampling_session_id is None:
            raise invalid_fields(
                "record_stability_info needs a sampling_session_id: what is recorded belongs to "
                "its session."
            )
        if request.sampling_session_id is not None and (
            request.base_model is not None or request.model_path is not None
        ):
            raise invalid_fields(
                "Give either sampling_session_id, or base_model or model_path, not both."
            )

    def _earlier(
        self, session: SamplingSession, request: SampleRequest, digest: bytes
    ) -> Future | None:
        if request.seq_id is None:
            return None
        futures = self._s.futures
        log = session.log(request.seq_id // CLONE_NUMBERS, futures.known)
        try:
            earlier = session.seen.request_id(
                request.seq_id, digest, f"sampling session {session.sampler_id!r}"
            )
        except InputError as error:
            return _told(log, futures.failed(session.owner, Operation.SAMPLE, error))
        if earlier is None:
            return None
        known = futures.known(earlier)
        if known is not None:
            return known
        lost = EngineError("This sample was made before, and is no longer kept.")
        return _told(log, futures.failed(session.owner, Operation.SAMPLE, lost))

    def _submit(
        self,
        future: Future,
        snapshot: Snapshot,
        request: SampleRequest,
        session: SamplingSession | None,
        sequence_ids: list[str],
        on_token: Callable[[int, int, float], None] | None = None,
    ) -> None:
        """Send a request to the engine; whatever comes of it, let go of the weights after it."""
        jobs = snapshot.base.jobs
        outcome = jobs.sample(
            SampleJob(
                job_id=future.request_id,
                sampler_id=snapshot.engine_id,
                prompt=request.prompt,
                num_samples=request.num_samples,
                sampling_params=request.sampling_params,
                prompt_logprobs=bool(request.prompt_logprobs),
                topk_prompt_logprobs=request.topk_prompt_logprobs,
                topk_sample_logprobs=request.topk_sample_logprobs,
                prompt_logprobs_last_n=request.prompt_logprobs_last_n,
                sequence_ids=sequence_ids,
                target_prompt_logprobs=request.target_prompt_logprobs,
                prompt_alt_tokens_k=request.prompt_alt_tokens_k,
                owner=future.owner,
                on_token=on_token,
            )
        )
        if session is not None:
            session.pending.add(future)

        def stop() -> None:
            jobs.cancel_sample(future.request_id)
            outcome.cancel()

        def ended(outcome: asyncio.Future[SampleResponse]) -> None:
            snapshot.release()
            if session is not None:
                session.pending.discard(future)
            if outcome.cancelled():
                return
            error = outcome.exception()
            if error is None:
                if session is not None and request.record_stability_info:
                    self._s.recordings.add(
                        session.owner, session.session_id, request.prompt, outcome.result()
                    )
                future.complete(outcome.result(), size=_result_bytes(request, outcome.result()))
            else:
                future.fail(error if isinstance(error, TinkerError) else EngineError(str(error)))

        future.on_cancel = stop
        outcome.add_done_callback(ended)

    def _missing(self, sampler_id: str) -> str:
        return (
            f"Sampling session {sampler_id!r} is not open: it never was, its session was finished "
            f"or silent for more than {self._s.config.session_ttl_s:g} s, the server was "
            "restarted, or it belongs to another key. Create a new sampling client."
        )


def _told(log: CompletionLog, future: Future) -> Future:
    log.note(future)
    return future


def _sequence_ids(request: SampleRequest, future: Future) -> list[str]:
    """Name the sequences of a request, in the order in which they will come."""
    if request.sampling_session_id is None or request.seq_id is None:
        prefix = future.request_id
    else:
        prefix = f"{request.sampling_session_id}:{request.seq_id}"
    return [f"{prefix}:{index}" for index in range(request.num_samples)]


def _result_bytes(request: SampleRequest, response: SampleResponse) -> int:
    arrays = (sequence.tokens_np for sequence in response.sequences)
    sampled = sum(tokens.size for tokens in arrays if tokens is not None)
    asked = request.target_prompt_logprobs
    prompt = request.prompt.length * (
        1 + request.topk_prompt_logprobs + request.prompt_alt_tokens_k
    ) + (0 if asked is None else asked.values.size)
    return BYTES_PER_TOKEN * (sampled + prompt)
