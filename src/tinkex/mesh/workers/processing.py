"""A processor's answers to gateways: permits, slots, pieces as they come.

Owns the order of the checks and the life of one request. What runs it is a back end's, who may
fetch an adapter's files `blobs`'.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import msgspec

from tinkex._clock import Clock
from tinkex.errors import (
    EngineBusyError,
    InputError,
    NotFoundError,
    TinkerError,
    UnsupportedError,
)
from tinkex.mesh.api.completion import (
    CompletionMessage,
    Counted,
    PieceMessage,
    completion_request,
    piece_messages,
)
from tinkex.mesh.api.processor import (
    Begun,
    CountTokens,
    Describe,
    Description,
    Ended,
    ProcessorApi,
    Work,
    WorkEvent,
)
from tinkex.mesh.deadline import within
from tinkex.mesh.processing.backend import Backend, Job, Run
from tinkex.mesh.processing.slots import Slots
from tinkex.mesh.rpc.service import Call
from tinkex.mesh.trust.permits import Permit, PermitCheck
from tinkex.mesh.workers.request_log import log_ended, request_of
from tinkex.mesh.workers.serving.bounds import cost_of
from tinkex.openai_api.completer import CompletionRequest

_LOG = logging.getLogger("tinkex.mesh.processor")
MOST_COMPLETIONS = 128
"""Of one request."""
LEAVING_RETRY_MS = 1000.0
FETCHING_RETRY_MS = 5000.0


class AdapterFiles(Protocol):
    """Where adapters' files are, or can be had."""

    async def folder(self, content: str, *, permit: bytes, certificate: bytes) -> Path:
        """Return the folder with an adapter's files, fetched and verified.

        What is being fetched goes on where nobody waits for it any more.

        Raises:
            NotFoundError: nobody has them.
            TrustError: the permit does not let this processor have them.
        """


class Processor(ProcessorApi):
    """Answers gateways.

    Args:
        backend: runs the model.
        permits: what is demanded of a request.
        slots: who may run now.
        files: adapters' files; None where the back end has no adapters.
        clock: tells how long it took.
    """

    def __init__(
        self,
        backend: Backend,
        permits: PermitCheck,
        slots: Slots,
        files: AdapterFiles | None,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._backend = backend
        self._permits = permits
        self._slots = slots
        self._files = files
        self.leaving = False
        """Whether new requests are refused."""
        self.tokens: Counter[str] = Counter(prompt=0, cached=0, completion=0)
        """Of what began here: those prompted with, those of them from the cache, those sampled."""

    async def rpc_complete(self, request: Work, call: Call) -> AsyncIterator[WorkEvent]:
        """Complete a prompt, once the permit holds."""
        message = _decoded(request.request)
        permit = self._permits.check(
            request.permit,
            caller=call.peer,
            request=request.request,
            model=message.model,
            tokens=message.n * (message.max_tokens or 0),
        )
        if self.leaving:
            raise EngineBusyError(
                "This processor is about to stop: use another.", retry_after_ms=LEAVING_RETRY_MS
            )
        job, came = self._job(message, permit, request), self._clock.monotonic()
        if job.adapter:
            await self._fetch(job, request, call, came)
        waited_s = self._clock.monotonic() - came
        size = message.n - len(request.finished)
        async with self._slots.take(permit.account, size, waited_s=waited_s):
            began, made, outcome = self._clock.monotonic(), 0, "left"
            run = await self._begin(job, request, call, came)
            try:
                self._permits.prove(request.permit)  # not earlier: the engine works meanwhile
                self._permits.keep()
                known = run.prompt_tokens
                self._check_reserved(message, known)
                yield Begun(
                    prompt_tokens=known,
                    fingerprint=self._backend.fingerprint,
                    deterministic=run.deterministic,
                )
                async with aclosing(run.pieces()) as pieces:
                    async for piece in pieces:
                        if piece is None:
                            yield PieceMessage(0)
                            continue
                        made += 0 if piece.echo else len(piece.tokens)
                        for part in piece_messages(piece):
                            yield part
                prompt = known or self._believable(message, run.prompt_tokens)
                yield Ended(
                    completion_tokens=made,
                    cached_tokens=min(run.cached_tokens, prompt),
                    prompt_tokens=0 if known else prompt,
                )
                outcome = "ok"
            except TinkerError as error:
                outcome = type(error).__name__
                raise
            finally:
                run.cancel()
                self.tokens.update(
                    prompt=run.prompt_tokens, cached=run.cached_tokens, completion=made
                )
                log_ended(
                    _LOG,
                    request_of(call.trace),
                    outcome,
                    base_model=self._backend.model.name,
                    prompt_tokens=run.prompt_tokens,
                    cached_tokens=run.cached_tokens,
                    completion_tokens=made,
                    seconds=round(self._clock.monotonic() - began, 4),
                )

    async def rpc_describe(self, request: Describe, call: Call) -> Description:  # noqa: ARG002
        """Say what is here."""
        return self.description

    async def rpc_count_tokens(self, request: CountTokens, call: Call) -> Counted:  # noqa: ARG002
        """Count a prompt's tokens."""
        return Counted(await self._backend.count_tokens(completion_request(request.request)))

    @property
    def description(self) -> Description:
        """What is here, and how busy it is."""
        idle = self.leaving or self._backend.failure
        return Description(
            models=(self._backend.model,),
            adapters=self._backend.adapters,
            fingerprint=self._backend.fingerprint,
            slots=self._slots.total,
            free_slots=0 if idle else self._slots.free,
            waiting=self._slots.waiting,
        )

    def _job(self, message: CompletionMessage, permit: Permit, work: Work) -> Job:
        if not 1 <= message.n <= MOST_COMPLETIONS:
            raise InputError(f"n is {message.n}: it must be 1 to {MOST_COMPLETIONS}")
        if work.resume and len(work.resume) != message.n:
            raise InputError(f"resume has {len(work.resume)} completions of {message.n}")
        if any(not 0 <= index < message.n for index in work.finished) or (
            len(set(work.finished)) != len(work.finished) or (work.finished and not work.resume)
        ):
            raise InputError("finished names completions that there are not, or without resume")
        if permit.adapter and not self._backend.model.adapters:
            raise UnsupportedError("This processor's back end cannot load adapters of the mesh.")
        return Job(
            request=_bounded(completion_request(message), permit),
            account=permit.account,
            adapter=permit.adapter,
            resume=work.resume,
            finished=work.finished,
        )

    def _believable(self, message: CompletionMessage, count: int) -> int:
        """Lower a foreign server's count of a prompt to what its gateway reserved for it.

        Such a server may put a template of its own around each prompt, however short that is; a
        gateway takes who counts more than it reserved for a liar.
        """
        return min(count, cost_of(message, self._backend.model.max_context_length).prompt)

    def _check_reserved(self, message: CompletionMessage, count: int) -> None:
        """Refuse a prompt of more tokens than its gateway reserved, which would not believe it.

        Raises:
            UnsupportedError: the model's chat template adds more than any that is known.
        """
        reserved = cost_of(message, self._backend.model.max_context_length).prompt
        if count > reserved:
            raise UnsupportedError(
                f"{message.model} makes {count} tokens of this prompt, and gateways reserve "
                f"{reserved}: its chat template, or its tokenizer, adds more than they know of. "
                "Serve it with a shorter template."
            )

    async def _fetch(self, job: Job, work: Work, call: Call, came: float) -> None:
        """Get an adapter's files, if it is not loaded, and load it.

        Args:
            job: names the adapter.
            work: has the permit for the files.
            call: whose permit it is.
            came: monotonic seconds, since when the gateway hears nothing.
        """
        if job.adapter in self._backend.adapters:
            return
        self._permits.prove(work.permit)  # before anybody else is asked
        if self._files is None:
            raise UnsupportedError("This processor has no store for adapters.")
        assert call.certificate is not None, "gateways alone may call"
        coming = self._files.folder(
            job.adapter, permit=work.fetch, certificate=call.certificate.encoded
        )
        left_s = came + self._slots.longest_wait_s - self._clock.monotonic()
        try:
            folder = await within(self._clock, max(0.0, left_s), coming)
        except TimeoutError:
            raise EngineBusyError(
                "The adapter's files are still on their way to this processor.",
                retry_after_ms=FETCHING_RETRY_MS,
            ) from None
        await self._backend.load_adapter(job.adapter, folder)

    async def _begin(self, job: Job, work: Work, call: Call, came: float) -> Run:
        try:
            return await self._run(job, work, call, came)
        except TinkerError:
            self._permits.prove(work.permit)  # what is wrong with the work is told of it too
            raise

    async def _run(self, job: Job, work: Work, call: Call, came: float) -> Run:
        try:
            return await self._backend.begin(job)
        except NotFoundError:
            if not job.adapter or self._files is None:
                raise
        # It had to go for another adapter while this request waited.
        await self._fetch(job, work, call, came)
        return await self._backend.begin(job)


def _decoded(request: bytes) -> CompletionMessage:
    try:
        return msgspec.msgpack.decode(request, type=CompletionMessage)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise InputError(f"the request is no completion request ({error!s:.200})") from None


def _bounded(request: CompletionRequest, permit: Permit) -> CompletionRequest:
    """Hold a request that names no number of tokens to what was permitted."""
    if request.max_tokens is not None:
        return request
    return replace(request, max_tokens=permit.max_tokens // request.n, as_context_allows=True)
