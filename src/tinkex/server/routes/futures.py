"""Futures: wait for a result, fetch it, give it up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.routing import Route

from tinkex.errors import InputError
from tinkex.server.durable.points import RESULT_READY, RESULT_SENT
from tinkex.server.futures import Operation, Waiter
from tinkex.server.http.bodies import OFF_LOOP_BYTES
from tinkex.server.load.queue_states import queue_state
from tinkex.server.openapi.describe import described
from tinkex.server.openapi.results import FUTURE_REPLIES
from tinkex.server.routes.messages import json_reply, message_reply, owner_of, read_json
from tinkex.types import (
    CancelFutureRequest,
    FutureFailed,
    FutureFinished,
    FutureRetrieveRequest,
    FuturesRetrieveRequest,
    FuturesRetrieveResponse,
    RequestFailedResponse,
    TryAgainResponse,
)
from tinkex.wire.headers import ACCEPT, PROTOBUF
from tinkex.wire.json import forward_backward_output_to_json, sample_response_to_json
from tinkex.wire.proto import encode_forward_backward_output, encode_sample_response

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.requests import Request

    from tinkex.server.futures import Future
    from tinkex.server.sampling.completions import Completed
    from tinkex.server.services import Services

BULK_ENCODERS: Mapping[Operation, tuple[Callable[[Any], bytes], Callable[[Any], Any]]] = {
    Operation.FORWARD_BACKWARD: (encode_forward_backward_output, forward_backward_output_to_json),
    Operation.SAMPLE: (encode_sample_response, sample_response_to_json),
}
"""Results that are protobuf for new SDKs and JSON for old ones."""


class FutureRoutes:
    """Routes about futures."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[Route]:
        """List the routes."""
        return [
            Route("/retrieve_future", self.retrieve, methods=["POST"]),
            Route("/retrieve_futures", self.completions, methods=["POST"]),
            Route("/cancel_future", self.cancel, methods=["POST"]),
        ]

    @described(response=FUTURE_REPLIES)
    async def retrieve(self, request: Request) -> Response:
        """Reply with a result as soon as it is there, or after a while that it is not.

        A failure of the work is a 200 with a key `error`: any other status would be retried.
        """
        message, _ = await read_json(request, FutureRetrieveRequest)
        future = self._s.futures.get(owner_of(request), message.request_id)
        if future.work is not None:
            self._s.sessions.touch_id(future.work.source.session_id)
        if not future.done and not self._s.stopping:
            await self._wait(request, future)
        if not future.done:
            state, why = queue_state(self._s, future)
            return message_reply(
                TryAgainResponse(
                    request_id=future.request_id, queue_state=state, queue_state_reason=why
                )
            )
        # What is told is kept first: after a crash it must not be another answer.
        if future.ended is not None and not future.ended.done():
            await self._until_kept(request, future.ended)
            if not future.ended.done():
                return message_reply(_disk_refuses(future))
        self._s.reach(RESULT_READY)
        reply = await self._reply(future, request.headers.get(ACCEPT, ""))
        reply.background = BackgroundTask(self._sent, future)
        return reply

    async def _sent(self, future: Future) -> None:
        """Note that a result was sent."""
        future.mark_delivered()
        self._s.reach(RESULT_SENT)

    async def _until_kept(self, request: Request, ended: asyncio.Future[None]) -> None:
        """Wait until an end is on disk, the end of the long poll, or the client hanging up."""
        waiter = Waiter()
        timer = self._s.timers.call_later(self._s.config.long_poll_s, waiter.wake)
        ended.add_done_callback(lambda _: waiter.wake())
        try:
            await _until(waiter, request)
        finally:
            timer.cancel()

    async def completions(self, request: Request) -> Response:
        """List what was done for a client of a sampling session, as soon as there is something."""
        message, _ = await read_json(request, FuturesRetrieveRequest)
        owner, target = owner_of(request), message.target
        session = self._s.sampling_sessions.find(owner, target.sampling_session_id)
        for request_id in message.retrieved_request_ids:
            self._s.futures.forget_delivered(owner, request_id)
        log = self._s.sampling_sessions.log(session, target.cloned_sampler_id or 0)
        seconds = self._s.config.long_poll_s
        if message.timeout is not None:
            seconds = min(seconds, max(0.0, message.timeout))
        if not log.since(message.prev_cursor) and seconds > 0 and not self._s.stopping:
            with log.waiter(self._s.timers, seconds) as waiter:
                await _until(waiter, request)
        done = log.since(message.prev_cursor)
        completions = [_completion(one) for one in done]
        return message_reply(FuturesRetrieveResponse(completions=completions, cursor=log.cursor))

    async def cancel(self, request: Request) -> Response:
        """Stop a sample that nobody wants any more; work on a training run goes on."""
        message, _ = await read_json(request, CancelFutureRequest)
        future = self._s.futures.get(owner_of(request), message.request_id)
        if future.operation is Operation.SAMPLE:
            future.cancel(InputError("This sample was cancelled by its client."))
        return json_reply({})

    async def _wait(self, request: Request, future: Future) -> None:
        """Wait for the result, the end of the long poll, or the client hanging up."""
        with self._s.futures.waiter(future, self._s.config.long_poll_s) as waiter:
            await _until(waiter, request)

    async def _reply(self, future: Future, accept: str) -> Response:
        if future.error is not None:
            return message_reply(
                RequestFailedResponse(error=str(future.error), category=future.error.category)
            )
        try:
            if future.result_bytes > OFF_LOOP_BYTES:
                return await asyncio.to_thread(_encode, future, accept)
            return _encode(future, accept)
        except Exception as error:  # noqa: BLE001 - clients repeat a 5xx here at once and for ever
            self._s.fault(error)
            text = f"The result cannot be sent ({type(error).__name__}); the server's log says why."
            return message_reply(RequestFailedResponse(error=text, category="server"))


async def _until(waiter: Waiter, request: Request) -> None:
    """Wait until the waiter is woken, or the client hangs up."""
    hung_up = asyncio.ensure_future(request.receive())
    hung_up.add_done_callback(lambda _: waiter.wake())
    try:
        await waiter
    finally:
        hung_up.cancel()


def _disk_refuses(future: Future) -> TryAgainResponse:
    """Say that there is an answer, which a crash would change."""
    return TryAgainResponse(
        request_id=future.request_id,
        queue_state="paused_capacity",
        queue_state_reason="The server's disk is full: the result is there, and kept in memory.",
    )


def _completion(one: Completed) -> FutureFinished | FutureFailed:
    if one.failed:
        return FutureFailed(request_id=one.request_id)
    return FutureFinished(
        request_id=one.request_id, response_payload_uncompressed_size=one.result_bytes
    )


def _encode(future: Future, accept: str) -> Response:
    """Write a result in the dialect that the client reads.

    SDKs from 0.24 on read samples and batches as protobuf only, older ones read both.
    """
    encoders = BULK_ENCODERS.get(future.operation)
    if encoders is None:
        return message_reply(future.result)
    to_protobuf, to_json = encoders
    if PROTOBUF in accept:
        return Response(to_protobuf(future.result), media_type=PROTOBUF)
    return json_reply(to_json(future.result))
