"""`SamplingClient`: samples from a base model or from saved weights.

Owns what a sample request is and how it is repeated: a 429 holds back every client of the key, and
the request goes out again under the same sequence id, so the server never samples twice.
"""

from __future__ import annotations

import itertools
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tinkex._backoff import retry_after_seconds
from tinkex.client import operations, sample_rules
from tinkex.client.chunking import estimate_prompt_bytes
from tinkex.client.client_future import ClientFuture
from tinkex.client.deprecated import awaited_twin, twin
from tinkex.client.events import EventSource, acting_for
from tinkex.client.poller import PendingResult, QueueWatch
from tinkex.client.queue_log import QueueStateLog
from tinkex.client.retry import Failure, RetryPolicy
from tinkex.client.sender import failure_of, read_answer
from tinkex.client.tokenizer import resolve_tokenizer
from tinkex.client.transport import error_from_reply
from tinkex.errors import (
    APIConnectionError,
    APIResponseValidationError,
    CertificateError,
    CircuitOpenError,
    FutureExpiredError,
    InputError,
    TinkerError,
)
from tinkex.types import (
    CreateSamplingSessionRequest,
    SampleRequest,
    SampleResponse,
    SamplingParams,
)
from tinkex.wire import endpoints
from tinkex.wire import headers as names

if TYPE_CHECKING:
    from collections.abc import Callable

    from tinkex.client.connection import Connection, ServerWishes
    from tinkex.client.events import Event
    from tinkex.client.future import APIFuture
    from tinkex.client.session import Session
    from tinkex.client.telemetry import Telemetry
    from tinkex.types import (
        ClientConfigResponse,
        ModelInput,
        QueueState,
        SaveWeightsForSamplerResponse,
        SaveWeightsForSamplerResponseInternal,
        TensorData,
    )

_LARGE_PROMPT_BYTES = 128 * 2**10
_THROTTLED_WEIGHT = 20
"""A prompt counts this many times its bytes while the server throttles this key."""


@dataclass(frozen=True)
class RetryConfig:
    """How a sampling client repeats a request. The defaults are the official ones."""

    max_connections: int | None = 1000
    """Kept for programs that set it; the server's client config decides."""
    progress_timeout: float = 7200.0
    """Seconds without an answer after which a request is given up."""
    retry_delay_base: float = 0.5
    """Seconds before the first retry; doubles with each."""
    retry_delay_max: float = 10.0
    """Seconds; the doubling stops here."""
    jitter_factor: float = 0.25
    """Up to this share of a delay is taken off it at random."""
    enable_retry_logic: bool = True
    """Whether a 5xx, a lost connection or an expired result is tried again; a 429 always is."""
    enable_stuck_detection: bool = True
    """Whether `progress_timeout` counts."""
    retryable_exceptions: tuple[type[Exception], ...] = (TimeoutError, APIConnectionError)
    """Failures without an answer that are tried again."""

    def policy(self) -> RetryPolicy:
        """Return the policy these settings describe."""
        return RetryPolicy(
            max_retries=None if self.enable_retry_logic else 0,
            max_elapsed=self.progress_timeout if self.enable_stuck_detection else None,
            initial_delay=self.retry_delay_base,
            max_delay=self.retry_delay_max,
            jitter=self.jitter_factor,
        )

    def within(self, server: ClientConfigResponse) -> RetryConfig:
        """Return these settings without what the server's client config switches off."""
        return replace(
            self,
            enable_retry_logic=self.enable_retry_logic and not server.sample_no_retries,
            enable_stuck_detection=(
                self.enable_stuck_detection and server.sample_enable_stuck_detection
            ),
        )


@dataclass(slots=True)
class _Sampling:
    """One call under way: what it sends, and how often it went wrong."""

    request: SampleRequest
    sdk_method: str
    config: RetryConfig
    started: float
    """In the seconds of the client's clock."""
    attempt: int = 0

    @property
    def prompt_bytes(self) -> int:
        """Estimate the size of the prompt."""
        return estimate_prompt_bytes(self.request.prompt.chunks)


class SamplingClient:
    """Samples from one set of weights. Made by the factories of the other clients.

    Every call returns at once with a future; hundreds may be under way, from threads or tasks.
    """

    def __init__(
        self,
        session: Session,
        *,
        sampling_session_id: str,
        base_model: str,
        model_path: str | None = None,
        retry_config: RetryConfig | None = None,
        record_stability_info: bool = False,
    ) -> None:
        self._connection: Connection = session.connection
        self.sampling_session_id = sampling_session_id
        self.model_path = model_path
        self._base_model = base_model
        self._retry_config = retry_config or RetryConfig()
        self._record_stability_info = record_stability_info
        self.event_source = EventSource(
            "SamplingClient", sampling_session_id, self._connection.sender.events.source
        )
        self._numbers = itertools.count()
        self._log = QueueStateLog(f"Sampling from {base_model}", self._connection.clock)
        self._watch = QueueWatch(self, self._connection.sender.emit)

    # --- sampling -------------------------------------------------------------------------------

    def sample(
        self,
        prompt: ModelInput,
        num_samples: int,
        sampling_params: SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
        target_prompt_logprobs: TensorData | None = None,
        prompt_alt_tokens_k: int = 0,
        prompt_logprobs_last_n: int | None = None,
    ) -> APIFuture[SampleResponse]:
        """Sample sequences that continue a prompt.

        Args:
            prompt: what the model reads first, at least one token.
            num_samples: how many sequences.
            sampling_params: length, temperature, stops, seed.
            include_prompt_logprobs: whether the logprob of each prompt token is wanted.
            topk_prompt_logprobs: how many of the likeliest tokens to give for each prompt position.
            topk_sample_logprobs: the same for each sampled position.
            target_prompt_logprobs: int64 [P - 1, K]: tokens whose logprobs are wanted at each
                prompt position; -1 asks for none.
            prompt_alt_tokens_k: how many alternative tokens to give for each prompt position.
            prompt_logprobs_last_n: compute prompt logprobs for the last n positions only.

        Raises:
            InputError: an argument has the wrong type or lies outside its range.

        Raises (from the future):
            RequestFailedError: the server refuses the request (category `user`) or failed.
            APIStatusError: an error status, to the end of what `retry_config` allows.
        """
        request = operations.checked(
            lambda: SampleRequest(
                num_samples=num_samples,
                prompt=prompt,
                sampling_params=sampling_params,
                sampling_session_id=self.sampling_session_id,
                prompt_logprobs=include_prompt_logprobs,
                topk_prompt_logprobs=topk_prompt_logprobs,
                topk_sample_logprobs=topk_sample_logprobs,
                target_prompt_logprobs=target_prompt_logprobs,
                prompt_alt_tokens_k=prompt_alt_tokens_k,
                prompt_logprobs_last_n=prompt_logprobs_last_n,
                record_stability_info=self._record_stability_info,
            )
        )
        sample_rules.check_request(request)
        with acting_for(self.event_source):
            return self._connection.submit(self._run, request, "SamplingClient.sample")

    def compute_logprobs(
        self, prompt: ModelInput, prompt_logprobs_last_n: int | None = None
    ) -> APIFuture[list[float | None]]:
        """Compute the logprob of each token of a prompt; None where there is none (the first).

        Args:
            prompt: the tokens.
            prompt_logprobs_last_n: compute the last n positions only.
        """
        request = operations.checked(
            lambda: SampleRequest(
                num_samples=1,
                prompt=prompt,
                sampling_params=SamplingParams(max_tokens=1),
                sampling_session_id=self.sampling_session_id,
                prompt_logprobs=True,
                prompt_logprobs_last_n=prompt_logprobs_last_n,
                record_stability_info=self._record_stability_info,
            )
        )
        sample_rules.check_request(request)
        with acting_for(self.event_source):
            return self._connection.submit(self._logprobs, request)

    # --- what it samples from -------------------------------------------------------------------

    def get_base_model(self) -> str:
        """Return the name of the base model."""
        return self._base_model

    def get_tokenizer(self) -> Any:
        """Return the base model's tokenizer, loading it once for each process.

        Raises:
            TokenizerError: it cannot be loaded.
        """
        return self._connection.runtime.tokenizers.get(resolve_tokenizer(self._base_model))

    def on_queue_state_change(
        self, queue_state: QueueState, queue_state_reason: str | None
    ) -> None:
        """Take note that requests wait in the server's queue: it is logged. Override to do more."""
        self._log.on_queue_state_change(queue_state, queue_state_reason)

    def get_telemetry(self) -> Telemetry | None:
        """Return what reports to the server; None when it is switched off."""
        return self._connection.telemetry

    def on_event(self, handler: Callable[[Event], None]) -> Callable[[], None]:
        """Call `handler` for every event of this client; return what detaches it."""
        return self._connection.runtime.events.attach(handler, source=self.event_source)

    # --- deprecated twins -----------------------------------------------------------------------

    sample_async = awaited_twin(sample)
    compute_logprobs_async = awaited_twin(compute_logprobs)
    get_base_model_async = twin(get_base_model)

    # --- how ------------------------------------------------------------------------------------

    async def _logprobs(self, request: SampleRequest) -> list[float | None]:
        response = await self._run(request, "SamplingClient.compute_logprobs")
        if response.prompt_logprobs is None:
            raise APIResponseValidationError("The server sent no prompt logprobs.")
        return response.prompt_logprobs

    async def _run(self, request: SampleRequest, sdk_method: str) -> SampleResponse:
        """Submit and fetch, as one operation for those who follow events."""
        with self._connection.sender.events.operation("sample", num_samples=request.num_samples):
            return await self._sampled(request, sdk_method)

    async def _sampled(self, request: SampleRequest, sdk_method: str) -> SampleResponse:
        """Submit and fetch; submit anew, under a new sequence id, what the server forgot."""
        connection = self._connection
        server = await connection.server()
        config = self._retry_config.within(server.config)
        call = _Sampling(request, sdk_method, config, connection.clock.monotonic())
        while True:
            call.request = request.model_copy(update={"seq_id": next(self._numbers)})
            try:
                async with AsyncExitStack() as in_flight:
                    pending = await self._submit(call, server, in_flight)
                    response = await server.poller.fetch(pending)
            except FutureExpiredError as error:
                await self._wait_to_repeat(call, Failure(None, {}), error)
            else:
                sample_rules.check_response(request, response)
                return response

    async def _submit(
        self, call: _Sampling, server: ServerWishes, in_flight: AsyncExitStack
    ) -> PendingResult[SampleResponse]:
        """Send a request until the server takes it; then `in_flight` holds its place.

        Nothing is held while this waits: whoever waits for a back-off keeps nobody else from
        sampling with another key.
        """
        connection = self._connection
        while True:
            await connection.limiter.wait()
            outcome = await self._attempt(call, server, in_flight)
            if isinstance(outcome, PendingResult):
                return outcome
            if outcome is not None:
                await self._wait_to_repeat(call, *outcome)

    async def _attempt(
        self, call: _Sampling, server: ServerWishes, in_flight: AsyncExitStack
    ) -> PendingResult[SampleResponse] | tuple[Failure, TinkerError] | None:
        """Send a request once, within the budgets of the server's client config.

        Returns:
            What the server's acceptance leads to, or what went wrong, or None when the key was
            told to back off while this waited for its turn.
        """
        connection = self._connection
        throttled = connection.limiter.throttled_recently()
        weight = _THROTTLED_WEIGHT if throttled else 1
        async with AsyncExitStack() as place, AsyncExitStack() as held:
            await place.enter_async_context(server.samples.hold())
            if throttled:
                await held.enter_async_context(server.throttled_posts.hold())
            await held.enter_async_context(server.sample_posts.hold())
            await held.enter_async_context(server.sample_bytes.hold(call.prompt_bytes * weight))
            if connection.limiter.remaining() > 0:
                return None
            outcome = await self._send(call)
            if isinstance(outcome, PendingResult):
                in_flight.push_async_exit(place.pop_all())
            return outcome

    async def _send(
        self, call: _Sampling
    ) -> PendingResult[SampleResponse] | tuple[Failure, TinkerError]:
        connection = self._connection
        sent_at = connection.clock.monotonic()
        request = connection.sender.request(
            endpoints.ASAMPLE,
            call.request,
            headers={names.SAMPLING_BACKPRESSURE: "1"},
            sdk_method=call.sdk_method,
        )
        try:
            reply = await connection.sender.send(request)
        except (CertificateError, CircuitOpenError):
            raise
        except call.config.retryable_exceptions as error:
            if not isinstance(error, TinkerError):
                raise
            return Failure(None, {}), error
        if reply.status >= 300:
            refusal = error_from_reply(reply)
            return failure_of(reply, refusal), refusal
        connection.limiter.succeeded(sent_at)
        future = read_answer(endpoints.ASAMPLE, reply)
        ids = future.sample_sequence_ids
        if ids is None or len(ids) != call.request.num_samples:
            raise APIResponseValidationError(
                f"The server promised {len(ids or ())} sequences instead of "
                f"{call.request.num_samples}."
            )
        return operations.pending_result(
            connection,
            future,
            operations.sample_result(ids),
            request_type="Sample",
            sdk_method=call.sdk_method,
            roundtrip=connection.clock.monotonic() - sent_at,
            watch=self._watch,
        )

    async def _wait_to_repeat(self, call: _Sampling, failure: Failure, error: TinkerError) -> None:
        """Wait as long as the failure asks for, or raise its error."""
        connection = self._connection
        policy = call.config.policy()
        elapsed = connection.clock.monotonic() - call.started
        if failure.status == 429:
            if policy.max_elapsed is not None and elapsed >= policy.max_elapsed:
                raise error
            self._back_off(failure, call.prompt_bytes)
            return
        delay = policy.delay(failure, call.attempt, elapsed, connection.sender.rng)
        if delay is None:
            raise error
        connection.sender.emit(
            "http.retry", path=endpoints.ASAMPLE.path, status=failure.status, delay=delay
        )
        call.attempt += 1
        await connection.clock.sleep(delay)

    def _back_off(self, failure: Failure, prompt_bytes: int) -> None:
        """Hold back every client of this key."""
        told = retry_after_seconds(failure.headers, failure.received_at)
        seconds = told or (5.0 if prompt_bytes > _LARGE_PROMPT_BYTES else 1.0)
        self._connection.limiter.back_off(seconds)
        self._connection.sender.emit("limiter.backoff", seconds=seconds)

    def __repr__(self) -> str:
        """Name the weights."""
        return f"SamplingClient({self.model_path or self._base_model!r})"


class SamplingClientFuture(ClientFuture[SamplingClient]):
    """What the factories return: `.result()` or `await` gives the client."""


BackcompatSamplingClientFuture = SamplingClientFuture
"""The official name."""


def create_sampling_client(
    session: Session,
    *,
    model_path: str | APIFuture[SaveWeightsForSamplerResponse] | None = None,
    base_model: str | None = None,
    retry_config: RetryConfig | None = None,
    record_stability_info: bool = False,
    sdk_method: str,
) -> SamplingClientFuture:
    """Make a client of a base model or of saved weights, whose path may still be on its way.

    Raises:
        InputError: neither was given, or the path is no checkpoint's.
    """
    if model_path is None and base_model is None:
        raise InputError("A sampling client needs a model_path or a base_model.")
    if isinstance(model_path, str) and not model_path.startswith("tinker://"):
        raise InputError(
            f"model_path {model_path!r} must start with tinker://, as save_weights_for_sampler "
            "returns it. To sample from a base model, pass base_model."
        )
    number = session.next_sampler()

    async def run() -> SamplingClient:
        path = model_path
        if path is not None and not isinstance(path, str):
            path = (await path).path
        sender = session.connection.sender
        created = await sender.call(
            endpoints.CREATE_SAMPLING_SESSION,
            CreateSamplingSessionRequest(
                session_id=await session.id(),
                sampling_session_seq_id=number,
                base_model=base_model,
                model_path=path,
            ),
            sdk_method=sdk_method,
        )
        name = base_model
        if name is None:
            sampler = await sender.call(
                endpoints.GET_SAMPLER,
                path={"sampler_id": created.sampling_session_id},
                sdk_method=sdk_method,
            )
            name = sampler.base_model
        return SamplingClient(
            session,
            sampling_session_id=created.sampling_session_id,
            base_model=name,
            model_path=path,
            retry_config=retry_config,
            record_stability_info=record_stability_info,
        )

    return session.connection.submit_into(SamplingClientFuture(), run)


def ephemeral_sampling_client(
    session: Session,
    saved: APIFuture[SaveWeightsForSamplerResponseInternal],
    *,
    base_model: str,
    retry_config: RetryConfig | None = None,
    record_stability_info: bool = False,
) -> SamplingClientFuture:
    """Make a client of weights that were saved for nothing else."""

    async def run() -> SamplingClient:
        session_id = (await saved).sampling_session_id
        if session_id is None:
            raise APIResponseValidationError("The server sent no sampling session.")
        return SamplingClient(
            session,
            sampling_session_id=session_id,
            base_model=base_model,
            retry_config=retry_config,
            record_stability_info=record_stability_info,
        )

    return session.connection.submit_into(SamplingClientFuture(), run)
