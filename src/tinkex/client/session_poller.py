"""Completions of one sampling session in batches: one question for all requests under way.

Owns which request of a sampling client is done. One long poll (`retrieve_futures`) stands for the
polls of every request; a result itself is then fetched with one `retrieve_future`, and the server
is told that it may forget it. Used where the server's client config offers it.

A task runs while anybody waits, and ends when nobody does.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from tinkex.client.poller import Trouble, judge_error
from tinkex.client.supervision import supervised
from tinkex.errors import APIConnectionError, APIResponseValidationError, CertificateError
from tinkex.types import (
    FuturesRetrieveRequest,
    FuturesRetrieveResponse,
    SamplingSessionFuturesTarget,
)
from tinkex.wire import endpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tinkex.client.poller import PendingResult, Poller
    from tinkex.client.sender import Sender
    from tinkex.client.transport import HttpRequest

T = TypeVar("T")

_LOG = logging.getLogger("tinkex.client")

_GATHER_SECONDS = 0.01
"""Between two polls that both told of completions: what ends together is told together."""


class SessionPoller:
    """Asks for the completions of one sampling client.

    Args:
        sender: sends the questions.
        poller: fetches the results; its policy has the intervals.
        spawn: runs background work on the client's loop.
        sampling_session_id: whose completions.
        clone: which of the clients that share the sampling session; 0 is the first.
    """

    def __init__(
        self,
        sender: Sender,
        poller: Poller,
        spawn: Callable[..., None],
        *,
        sampling_session_id: str,
        clone: int,
    ) -> None:
        self._sender = sender
        self._poller = poller
        self._spawn = spawn
        self._target = SamplingSessionFuturesTarget(
            sampling_session_id=sampling_session_id, cloned_sampler_id=clone
        )
        self._cursor = 0
        self._calls = 0
        self._waiting: dict[str, asyncio.Future[int]] = {}
        self._early: dict[str, int] = {}
        self._retrieved: set[str] = set()
        self._running = False

    @contextmanager
    def call(self) -> Iterator[None]:
        """Hold this around a request, from before it is sent: its completion may come first."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            if self._calls == 0:
                self._early.clear()

    async def fetch(self, pending: PendingResult[T]) -> T:
        """Wait until a request is done, and return its result.

        Raises:
            TinkerError: as of `Poller.fetch`; or the completions cannot be asked for.
        """
        size = await self._completion(pending.request_id)
        result = await self._poller.fetch(pending, payload_size=size)
        self._retrieved.add(pending.request_id)
        self._run()
        return result

    async def _completion(self, request_id: str) -> int:
        """Wait until a request is done; return the bytes of its result, 0 if unknown."""
        early = self._early.pop(request_id, None)
        if early is not None:
            return early
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = done
        self._run()
        try:
            return await done
        finally:
            self._waiting.pop(request_id, None)

    # --- the task -------------------------------------------------------------------------------

    def _run(self) -> None:
        if not self._running:
            self._running = True
            self._spawn(self._supervised)

    async def _supervised(self) -> None:
        try:
            await supervised(
                "poller of sampling results",
                self._poll_while_needed,
                self._sender.clock,
                self._sender.emit,
            )
        except Exception as error:  # noqa: BLE001 - whoever waits is told, whatever it is
            self._fail(error)
        finally:
            self._running = False

    async def _poll_while_needed(self) -> None:
        troubles = self._poller.troubles()
        while self._waiting or self._retrieved:
            began = self._sender.clock.monotonic()
            answer = await self._ask()
            if isinstance(answer, FuturesRetrieveResponse):
                troubles.answered()
                await self._note(answer, began)
                continue
            delay = troubles.delay(answer)
            self._sender.emit("future.poll", error=str(answer.error), delay=delay)
            if delay is None:
                self._fail(answer.error)
                return
            if troubles.first:
                _LOG.warning("Waiting for sampling results: %s", answer.error)
            await self._sender.clock.sleep(delay)

    async def _ask(self) -> FuturesRetrieveResponse | Trouble:
        """Ask once. Results that were fetched are named, so that the server may forget them."""
        retrieved, self._retrieved = self._retrieved, set()
        only_telling = not self._waiting
        policy = self._poller.policy
        request = self._sender.request(
            endpoints.RETRIEVE_FUTURES,
            FuturesRetrieveRequest(
                target=self._target,
                prev_cursor=self._cursor,
                timeout=0.0 if only_telling else None,
                retrieved_request_ids=sorted(retrieved),
            ),
            timeout=policy.telling_timeout if only_telling else policy.timeout,
        )
        answer = await self._sent(request)
        if isinstance(answer, Trouble) and self._waiting:
            # told again with the next question; when there is none, the server forgets by itself
            self._retrieved |= retrieved
        return answer

    async def _sent(self, request: HttpRequest) -> FuturesRetrieveResponse | Trouble:
        try:
            reply = await self._sender.send(request)
        except CertificateError as error:
            return Trouble("final", error)
        except APIConnectionError as error:
            return Trouble("transient", error)
        if reply.status >= 300:
            return judge_error(reply, "")
        try:
            return FuturesRetrieveResponse.model_validate_json(reply.body)
        except ValidationError:
            return Trouble(
                "bad",
                APIResponseValidationError(
                    "The answer to retrieve_futures cannot be understood. Does the base URL lead "
                    "to a Tinker server?",
                    status_code=reply.status,
                    response=lambda: reply.response,
                ),
            )

    async def _note(self, answer: FuturesRetrieveResponse, began: float) -> None:
        self._cursor = answer.cursor
        for completion in answer.completions:
            size = getattr(completion, "response_payload_uncompressed_size", None) or 0
            # Out at once, not when it runs: until then nothing more may be left to ask for.
            waiter = self._waiting.pop(completion.request_id, None)
            if waiter is None:
                self._early[completion.request_id] = size
            elif not waiter.done():
                waiter.set_result(size)
        if self._calls == 0:
            self._early.clear()
        floor = _GATHER_SECONDS if answer.completions else self._poller.policy.floor
        early = began + floor - self._sender.clock.monotonic()
        if self._waiting and early > 0:
            await self._sender.clock.sleep(early)

    def _fail(self, error: Exception) -> None:
        """End the waiting of everybody."""
        self._retrieved.clear()
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(error)
