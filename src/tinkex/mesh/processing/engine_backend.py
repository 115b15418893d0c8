"""Our engine as a back end: text to tokens, samples in the engine's thread, tokens to pieces.

Owns what a job must keep of the model's bounds, and which adapters are loaded under which content
id. How tokens become text is `openai_api`'s, shared with the server; when each job runs, the
engine's.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tinkex._clock import Clock
from tinkex._timers import Timers
from tinkex.engine.device import resolve_device, resolve_dtype
from tinkex.engine.engine import Engine, EngineConfig, load_for_engine
from tinkex.engine.files.checkpoint import read_checkpoint
from tinkex.engine.models.revision import weights_revision
from tinkex.engine.models.tokenizer import load_fast_tokenizer
from tinkex.engine.sampling.sequence import SampleJob
from tinkex.errors import ConfigurationError, EngineBusyError, EngineError, InputError
from tinkex.mesh.api.processor import ServedModel
from tinkex.mesh.processing.backend import KEEP_ALIVE_S, Job, check_model
from tinkex.mesh.processing.engine_thread import EngineThread
from tinkex.mesh.processing.token_flow import TokenFlow
from tinkex.openai_api.model_text import ModelText
from tinkex.openai_api.refusal import model_not_found
from tinkex.openai_api.sampled_text import SampledTexts, Scores, with_echo
from tinkex.openai_api.sampling import fitted, sampling_fields
from tinkex.types import ModelInput, SamplingParams

if TYPE_CHECKING:
    from tinkex.openai_api.completer import CompletionRequest, Piece
    from tinkex.types import SampleResponse


class EngineRun:
    """A job in the engine."""

    deterministic = True

    def __init__(
        self,
        job: Job,
        prompt: list[int],
        texts: SampledTexts,
        flow: TokenFlow,
        outcome: asyncio.Future[SampleResponse],
        *,
        timers: Timers,
        cancel: Callable[[], None],
    ) -> None:
        self._job = job
        self._prompt = prompt
        self._texts = texts
        self._flow = flow
        self._outcome = outcome
        self._timers = timers
        self._cancel = cancel
        outcome.add_done_callback(lambda _: flow.came.set())

    @property
    def prompt_tokens(self) -> int:
        """Size of the prompt."""
        return len(self._prompt)

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were not computed anew; known after the last piece."""
        done = self._outcome.done() and not self._outcome.cancelled()
        if not done or self._outcome.exception() is not None:
            return 0
        return self._outcome.result().prompt_cache_hit_tokens

    def cancel(self) -> None:
        """End the sampling. Harmless after the end."""
        if not self._outcome.done():
            self._outcome.cancel()
            self._cancel()

    def pieces(self) -> AsyncGenerator[Piece | None, None]:
        """Give what is new; None after a while without anything.

        Raises:
            TinkerError: the job failed.
        """
        request, sampled = self._job.request, self._sampled()
        if self._job.resume:
            request = replace(request, echo=False)
        if not (request.echo or request.prompt_logprobs):
            return sampled
        return with_echo(sampled, self._texts, request, self._scores)

    async def _sampled(self) -> AsyncGenerator[Piece | None, None]:
        while True:
            done = self._outcome.done()  # before the tokens are taken: none comes after it
            came = self._flow.take()
            for piece in self._texts.add(came):
                yield piece
            if done:
                break
            if not came and not await self._something_came():
                yield None
        for index, sequence in enumerate(self._outcome.result().sequences):
            if index not in self._job.finished:
                # One that had all its tokens when it came, but not its end.
                last = self._texts.end(index, sequence.stop_reason)
                if last is not None:
                    yield last

    async def _something_came(self) -> bool:
        if self._outcome.done():
            return True
        silent = False

        def sign() -> None:
            nonlocal silent
            silent = True
            self._flow.came.set()

        timer = self._timers.call_later(KEEP_ALIVE_S, sign)
        try:
            await self._flow.came.wait()
        finally:
            timer.cancel()
        return not silent

    def _scores(self) -> Scores:
        response = self._outcome.result()
        return response.prompt_logprobs, response.topk_prompt_logprobs


class EngineBackend:
    """Runs one engine.

    Args:
        engine: this takes it over.
        text: its base model's tokenizer and chat template.
        revision: of its weights.
        clock: tells the time.
        on_fault: told of exceptions that are bugs rather than answers.
        max_adapters: adapters loaded at once; above it the one not used for longest goes.
    """

    def __init__(
        self,
        engine: Engine,
        text: ModelText,
        *,
        revision: str,
        clock: Clock,
        on_fault: Callable[[BaseException], None],
        max_adapters: int = 64,
    ) -> None:
        self._engine = engine
        self._text = text
        self._thread = EngineThread(engine, name=engine.base.name, on_fault=on_fault)
        self._timers = Timers(clock, on_error=on_fault)
        self._adapters: OrderedDict[str, int] = OrderedDict()
        """Content ids, and how many jobs use each; latest used last."""
        self._loading: dict[str, asyncio.Future[None]] = {}
        self._max_adapters = max_adapters
        self._jobs = 0
        self._state = "new"
        self.slots = engine.config.max_running
        self.model = ServedModel(
            name=engine.base.name,
            max_context_length=engine.context_length,
            revision=revision,
            backend="engine",
            adapters=True,
        )
        self.fingerprint = fingerprint_of(engine, revision)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Content ids of the adapters that are loaded, latest used first."""
        return tuple(reversed(self._adapters))

    @property
    def adapters_in_use(self) -> tuple[str, ...]:
        """Content ids of those that jobs use now, or whose files are being read.

        The files of the others may go: the engine has its own copy of what it loaded.
        """
        return (*self._loading, *(one for one, uses in self._adapters.items() if uses))

    @property
    def failure(self) -> str:
        """Why it can do nothing any more; empty while it can."""
        return self._thread.failure

    async def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()
        self._timers.start()
        self._state = "running"

    async def stop(self) -> None:
        """End what runs, and the thread. Harmless twice, and before `start`."""
        if self._state == "stopped":
            return
        before, self._state = self._state, "stopped"
        if before == "running":
            await self._thread.stop()
            await self._timers.stop()
        self._engine.close()

    async def count_tokens(self, request: CompletionRequest) -> int:
        """Count a prompt's tokens.

        Raises:
            TinkerError: as `begin`.
        """
        check_model(request, self.model)
        return len(await self._text.encode(request.prompt, self._engine.context_length))

    async def begin(self, job: Job) -> EngineRun:
        """Check a job and begin it.

        Raises:
            APIStatusError: another model or adapter than is here, or what does not fit it.
            InputError: something in the request is wrong.
        """
        check_model(job.request, self.model)
        if job.adapter and job.adapter not in self._adapters:
            raise model_not_found(f"The adapter {job.adapter[:16]} is not loaded here.")
        self._use(job.adapter, 1)
        try:
            return await self._begin(job)
        except BaseException:
            self._use(job.adapter, -1)
            raise

    async def _begin(self, job: Job) -> EngineRun:
        context = self._engine.context_length
        prompt = await self._text.encode(job.request.prompt, context)
        job = replace(job, request=fitted(job.request, len(prompt), context))
        request = job.request
        if job.resume and request.prompt_logprobs:
            raise InputError("a request for prompt_logprobs cannot be resumed: begin it anew")
        texts = SampledTexts(
            request, prompt, self._text.vocabulary, self._text.tool_form(request.prompt)
        )
        if job.resume:
            if len(job.resume) != request.n:
                raise InputError(f"resume has {len(job.resume)} completions of {request.n}")
            texts.given(job.resume)
        self._jobs += 1
        job_id = str(self._jobs)
        end = self._text.turn_end(request.prompt)
        flow = TokenFlow(
            asyncio.get_running_loop(),
            request.n,
            lambda held: self._thread.hold(job_id, held=held),
            self._thread.after_step,
        )
        outcome = self._thread.sample(
            SampleJob(
                job_id=job_id,
                sampler_id=job.adapter or None,
                prompt=ModelInput.from_ints(prompt),
                num_samples=request.n,
                sampling_params=SamplingParams(**sampling_fields(request, end)),
                prompt_logprobs=request.prompt_logprobs,
                topk_prompt_logprobs=request.top_logprobs if request.prompt_logprobs else 0,
                topk_sample_logprobs=request.top_logprobs,
                owner=job.account,
                on_token=flow.push,
                also_stop_at_end=True,
                resume=job.resume,
                ended=job.finished,
            )
        )
        outcome.add_done_callback(lambda _: self._use(job.adapter, -1))
        return EngineRun(
            job,
            prompt,
            texts,
            flow,
            outcome,
            timers=self._timers,
            cancel=lambda: self._thread.cancel(job_id),
        )

    # --- adapters -------------------------------------------------------------

    async def load_adapter(self, content: str, folder: Path) -> None:
        """Load an adapter's files for sampling; once, however many ask for it.

        Raises:
            InputError: it is of another base model, or its layers or rank do not fit.
            EngineError: it is damaged.
            EngineBusyError: there is no room now.
        """
        if content in self._adapters:
            return
        loading = self._loading.get(content)
        if loading is None:
            loading = asyncio.ensure_future(self._load(content, folder))
            self._loading[content] = loading
            loading.add_done_callback(lambda _: self._loading.pop(content, None))
        await asyncio.shield(loading)

    async def _load(self, content: str, folder: Path) -> None:
        self._make_room()
        # Not in the engine's thread: everybody's completions would wait for the disk.
        contents = await asyncio.to_thread(read_checkpoint, folder, optimizer=False)
        await self._thread.call(lambda engine: engine.load_sampler(content, contents))
        self._adapters[content] = 0

    def _make_room(self) -> None:
        """Let go of adapters that nobody uses, the one not used for longest first."""
        while len(self._adapters) + len(self._loading) > self._max_adapters:
            idle = next((one for one, uses in self._adapters.items() if not uses), None)
            if idle is None:
                raise EngineBusyError(
                    "All adapters that this processor has room for are in use.",
                    retry_after_ms=1000,
                )
            del self._adapters[idle]
            self._thread.call(lambda engine, gone=idle: engine.remove_sampler(gone))  # type: ignore[misc]

    def _use(self, adapter: str, change: int) -> None:
        if adapter in self._adapters:
            self._adapters[adapter] += change
            self._adapters.move_to_end(adapter)


def fingerprint_of(engine: Engine, revision: str) -> str:
    """Hash everything that the bits of an engine's samples depend on: 16 hexadecimal digits."""
    told = {**engine.numerics(), "model": engine.base.name, "revision": revision}
    if (told["device"], told["dtype"]) != ("cpu", "float32"):
        # Only there a row's bits are known not to tell of its neighbours: elsewhere no other
        # processor is an equal, and what goes on after a loss is said not to be reproducible.
        told["process"] = secrets.token_hex(8)
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def engine_config(
    *,
    device: str,
    dtype: str,
    weight_dtype: str | None,
    threads: int | None,
    max_context_length: int | None,
    kv_cache_tokens: int,
) -> EngineConfig:
    """Make an engine's settings for this machine; `auto` takes the best that it has.

    Raises:
        ConfigurationError: the machine has no such device, or the device no such dtype.
    """
    found = resolve_device(device)
    return EngineConfig(
        device=found,
        dtype=resolve_dtype(dtype, found),
        weight_dtype=weight_dtype,
        threads=threads,
        max_context_length=max_context_length,
        kv_cache_tokens=kv_cache_tokens,
    )


def load_engine_backend(
    source: str,
    *,
    name: str | None,
    config: EngineConfig,
    clock: Clock,
    on_fault: Callable[[BaseException], None],
) -> EngineBackend:
    """Load a base model and make its back end; slow, so call it off the event loop.

    Args:
        source: a folder in Hugging Face's layout, a hub id, or `tinkex/sprout`.
        name: what the mesh calls it; `source` when absent.
        config: of the engine.
        clock: tells the time.
        on_fault: told of exceptions that are bugs rather than answers.

    Raises:
        ConfigurationError: there is no such model, or it has no tokenizer.
    """
    base = load_for_engine(source, config, name=name)
    try:
        tokenizer = load_fast_tokenizer(base.tokenizer_id)
    except EngineError as error:
        raise ConfigurationError(str(error)) from error
    if tokenizer is None:
        raise ConfigurationError(f"{source} has no fast tokenizer: the mesh speaks text, add one")
    text = ModelText(base.name, tokenizer, clock)
    revision = weights_revision(base)
    engine = Engine(base, config, clock=clock)
    return EngineBackend(engine, text, revision=revision, clock=clock, on_fault=on_fault)
