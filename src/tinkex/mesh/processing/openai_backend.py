"""Any server that speaks OpenAI's API as a back end: Ollama, vLLM, llama.cpp, tinkex itself.

Owns the calls and the mapping of what fails. Such a server is not known to be deterministic, so
nothing is resumed on it; what it may not keep to is refused by name (`openai_wire`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx

from tinkex._clock import Clock
from tinkex._timers import Timers
from tinkex.errors import (
    ConfigurationError,
    EngineError,
    TinkerError,
    UnsupportedError,
)
from tinkex.mesh.api.processor import ServedModel
from tinkex.mesh.positive import not_positive
from tinkex.mesh.processing.backend import KEEP_ALIVE_S, Job, check_model
from tinkex.mesh.processing.openai_wire import (
    ERROR_BYTES,
    LONGEST_RETRY_S,
    RETRY_S,
    EventLines,
    ForeignCompletion,
    body_of,
    check_supported,
    estimated_tokens,
    failure_of,
    is_open_ended,
    most_tokens,
)
from tinkex.mesh.tasks import Tasks
from tinkex.openai_api.completer import ChatPrompt, CompletionRequest, Piece

UNREAD = 64
"""Pieces of each completion that may wait; then no more is read from the server."""
_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIBackendConfig:
    """Where the server is, and what it has. Its repr does not show the key."""

    url: str
    """Up to and with `/v1`."""
    model: str
    """What the server calls it."""
    api_key: str = field(default="", repr=False)
    name: str = ""
    """What the mesh calls it; empty: as the server does."""
    context_length: int = 4096
    """Tokens of prompt and completion: servers do not tell."""
    slots: int = 8
    """Completions at once."""
    idle_timeout_s: float = 300.0
    """A stream of which nothing comes for so long has failed."""

    def __post_init__(self) -> None:
        problems = []
        if not _is_url(self.url):
            problems.append(f"the back end's url is {self.url!r}: give http://HOST:PORT/v1")
        if not (self.api_key.isascii() and self.api_key.isprintable()):
            problems.append("the back end's key has characters that no key has: copy it anew")
        if not self.model:
            problems.append("the back end's model is empty: name one that the server has")
        problems += not_positive(self)
        if problems:
            raise ConfigurationError(problems)


def _is_url(text: str) -> bool:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    return url.scheme in {"http", "https"} and bool(url.host) and (url.port or 1) < 2**16


class OpenAIRun:
    """A job at the server: one stream for each completion."""

    deterministic = False

    def __init__(
        self,
        completions: list[ForeignCompletion],
        *,
        estimate: int,
        context: int,
        timers: Timers,
        idle_timeout_s: float,
    ) -> None:
        self.prompt_tokens = 0
        """Size of the prompt; known after the last piece."""
        self._estimate = estimate
        self._context = context
        self._completions = completions
        self._timers = timers
        self._idle_timeout_s = idle_timeout_s
        self._unread: asyncio.Queue[Piece | TinkerError | None] = asyncio.Queue(
            UNREAD * len(completions)
        )
        self._readers: list[asyncio.Task[None]] = []
        self._is_heard = False
        """Whether anything came since the last sign of life was given."""

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that the server had computed before, as it says."""
        return min(self.prompt_tokens, *(one.cached for one in self._completions))

    def begin(
        self, tasks: Tasks, read: Callable[[ForeignCompletion], AsyncGenerator[Piece | None, None]]
    ) -> None:
        """Begin to read all streams."""
        for one in self._completions:
            self._readers.append(
                tasks.spawn(self._read(read(one)), name=f"read completion {one.index}")
            )

    async def _read(self, stream: AsyncGenerator[Piece | None, None]) -> None:
        try:
            async with aclosing(stream) as pieces:
                async for piece in pieces:
                    self._is_heard = True
                    if piece is not None:
                        await self._unread.put(piece)
        except TinkerError as error:
            await self._unread.put(error)
        except Exception:
            # A fault of ours: told to who sees to faults, and whoever reads does not wait for ever.
            await self._unread.put(EngineError("The processor failed to read its server's answer."))
            raise

    async def pieces(self) -> AsyncGenerator[Piece | None, None]:
        """Give what is new; None as a sign of life.

        Raises:
            TinkerError: the server failed, or says nothing any more.
        """
        left, silent_s = len(self._completions), 0.0
        while left:
            piece = await self._next()
            if isinstance(piece, TinkerError):
                raise piece
            # It may think, write a call of a tool, or say that it lives: none is a piece.
            silent_s = 0.0 if piece is not None or self._is_heard else silent_s + KEEP_ALIVE_S
            self._is_heard = False
            if silent_s >= self._idle_timeout_s:
                raise EngineError(
                    f"The server behind this processor says nothing for {silent_s:g} s."
                )
            if piece is not None and piece.finish_reason is not None:
                left -= 1
            if not left:
                counted = max(one.prompt for one in self._completions) or self._estimate
                self.prompt_tokens = min(counted, self._context)
            yield piece

    async def _next(self) -> Piece | TinkerError | None:
        """Wait for what comes next; None after a while."""
        if not self._unread.empty():
            return self._unread.get_nowait()
        timer = self._timers.call_later(KEEP_ALIVE_S, self._sign)
        try:
            return await self._unread.get()
        finally:
            timer.cancel()

    def _sign(self) -> None:
        if self._unread.empty():
            self._unread.put_nowait(None)

    def cancel(self) -> None:
        """Close the streams. Harmless after the end."""
        for reader in self._readers:
            reader.cancel()


class OpenAIBackend:
    """Runs one model of a server.

    Args:
        config: where and what it is.
        clock: tells the time.
        on_fault: told of exceptions that are bugs rather than answers.
    """

    adapters: tuple[str, ...] = ()
    adapters_in_use: tuple[str, ...] = ()
    failure = ""

    def __init__(
        self,
        config: OpenAIBackendConfig,
        *,
        clock: Clock,
        on_fault: Callable[[BaseException], None],
    ) -> None:
        self._config = config
        self._timers = Timers(clock, on_error=on_fault)
        self._tasks = Tasks(on_error=on_fault)
        self._stack = AsyncExitStack()
        self._http: httpx.AsyncClient | None = None
        self.slots = config.slots
        self.model = ServedModel(
            name=config.name or config.model,
            max_context_length=config.context_length,
            revision="openai",
            backend="openai",
            adapters=False,
        )
        told = f"{config.url} {config.model}"
        self.fingerprint = f"openai-{hashlib.sha256(told.encode()).hexdigest()[:16]}"

    async def start(self) -> None:
        """Ask the server whether it has the model.

        Raises:
            ConfigurationError: nobody answers there, the key is refused, or there is no such model.
        """
        headers = (
            {"authorization": f"Bearer {self._config.api_key}"} if self._config.api_key else {}
        )
        self._http = await self._stack.enter_async_context(
            httpx.AsyncClient(
                base_url=self._config.url.rstrip("/") + "/",
                headers=headers,
                timeout=httpx.Timeout(10.0, read=None, pool=None),
                limits=httpx.Limits(max_connections=None),
                # A proxy of the environment reaches other machines, not this one.
                trust_env=httpx.URL(self._config.url).host not in _THIS_MACHINE,
            )
        )
        self._timers.start()
        self._stack.push_async_callback(self._timers.stop)
        self._stack.push_async_callback(self._tasks.stop)
        try:
            await self._check_model(self._http)
        except BaseException:
            await self.stop()
            raise

    async def _check_model(self, http: httpx.AsyncClient) -> None:
        try:
            reply = await http.get("models", timeout=10.0)
            names = [str(one["id"]) for one in reply.raise_for_status().json()["data"]]
        except (httpx.HTTPError, ValueError, TypeError, KeyError) as error:
            raise ConfigurationError(
                f"{self._config.url} does not list its models ({type(error).__name__}): start the "
                "server, and give its address up to /v1, with a key if it wants one"
            ) from None
        if self._config.model not in names and f"{self._config.model}:latest" not in names:
            raise ConfigurationError(
                f"{self._config.url} has no model {self._config.model!r}. It has: "
                f"{', '.join(names[:20]) or 'none'}"
            )

    async def stop(self) -> None:
        """Close every stream. Harmless twice, and before `start`."""
        await self._stack.aclose()

    async def load_adapter(self, content: str, folder: Path) -> None:
        """Refuse: such a server has its own ways of loading adapters.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            f"Adapter {content[:16]} cannot be loaded: {self.model.name} runs on a server of "
            f"another kind, which does not take {folder.name}."
        )

    async def count_tokens(self, request: CompletionRequest) -> int:
        """Estimate a prompt's tokens by its bytes.

        Raises:
            TinkerError: as `begin`.
        """
        self._check(request)
        return estimated_tokens(request, self._config.context_length)

    async def begin(self, job: Job) -> OpenAIRun:
        """Check a job and send it.

        Raises:
            APIStatusError: another model, or no room in its context.
            UnsupportedError: it cannot be done on such a server.
            EngineError: the server has stopped, or was not started.
        """
        request = job.request
        self._check(request)
        if job.resume or job.adapter:
            raise UnsupportedError(
                f"{self.model.name} runs on a server of another kind: a completion cannot be gone "
                "on with there, nor an adapter loaded."
            )
        if self._http is None or self._http.is_closed:
            raise EngineError("The processor has stopped.")
        context = self._config.context_length
        prompt = estimated_tokens(request, context)
        open_ended = is_open_ended(request, context)
        most = most_tokens(request, context, prompt, open_ended=open_ended)
        request = replace(request, max_tokens=most, as_context_allows=open_ended)
        has_tools = isinstance(request.prompt, ChatPrompt) and bool(request.prompt.tools)
        run = OpenAIRun(
            [
                ForeignCompletion(index, most, has_tools, is_open_ended=open_ended)
                for index in range(request.n)
            ],
            estimate=prompt,
            context=context,
            timers=self._timers,
            idle_timeout_s=self._config.idle_timeout_s,
        )
        http = self._http
        run.begin(self._tasks, lambda one: self._stream(http, request, one))
        return run

    def _check(self, request: CompletionRequest) -> None:
        check_model(request, self.model)
        check_supported(request)

    async def _stream(
        self, http: httpx.AsyncClient, request: CompletionRequest, completion: ForeignCompletion
    ) -> AsyncGenerator[Piece | None, None]:
        """Give the pieces of one completion; None for what came and is none."""
        path, body = body_of(request, self._config.model, completion.index)
        lines = EventLines()
        try:
            async with aclosing(await _sent(http, path, body)) as reply:
                if reply.status_code != HTTPStatus.OK:
                    raise await _refusal(reply)
                async for data in reply.aiter_bytes():
                    yield None
                    for event in lines.feed(data):
                        piece = completion.take(event)
                        if piece is not None:
                            yield piece
                    if completion.done:
                        break
        except httpx.HTTPError as error:
            raise EngineError(
                f"The server behind this processor is lost ({type(error).__name__})."
            ) from None
        yield completion.end()


async def _sent(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> httpx.Response:
    """Send a request; return its reply, to be read and closed.

    Servers close a connection that waits, many after five seconds, as httpx itself would: one that
    goes just as a request comes says nothing of the server, and others may have gone with it.

    Raises:
        httpx.HTTPError: the server was lost on a connection that was made for this.
    """
    is_new = False

    async def trace(event: str, _: Mapping[str, Any]) -> None:
        nonlocal is_new
        is_new = is_new or event.startswith("connection.")

    while True:
        request = http.build_request("POST", path, json=body, extensions={"trace": trace})
        try:
            return await http.send(request, stream=True)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            if is_new:
                raise


async def _refusal(reply: httpx.Response) -> TinkerError:
    """Make the error of a reply that is none of the expected."""
    text = b""
    async for data in reply.aiter_bytes():
        text += data
        if len(text) > ERROR_BYTES:
            break
    said = text[:ERROR_BYTES].decode(errors="replace")
    after = reply.headers.get("retry-after", "")  # a date is left to the caller's own back-off
    seconds = min(float(after), LONGEST_RETRY_S) if after.isdecimal() else RETRY_S
    return failure_of(reply.status_code, said, retry_after_s=seconds)
