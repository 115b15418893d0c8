"""A training client's batches: cut into chunks, sent in order, their results put together.

Owns the way of `forward`, `forward_backward` and custom losses to the server. Whose turn it is, is
`sequencer.py`'s matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import zstandard

from tinkex.client import custom_loss, operations
from tinkex.client.chunking import Chunk, ChunkLimits, split_data
from tinkex.client.loop import in_thread
from tinkex.client.metrics import combine_outputs
from tinkex.client.sequencer import PART_IS_THERE, may_be_held
from tinkex.types import (
    Datum,
    ForwardBackwardInput,
    ForwardBackwardOutput,
    ForwardBackwardRequest,
    ModelID,
)
from tinkex.wire import endpoints
from tinkex.wire import headers as names
from tinkex.wire.proto import encode_forward_backward_request

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from tinkex.client.connection import Connection, ServerWishes
    from tinkex.client.poller import PendingResult, QueueWatch
    from tinkex.client.sequencer import Sequencer, Turn


@dataclass(frozen=True, slots=True)
class Batch:
    """One pass over some data."""

    data: list[Datum]
    loss_fn: str
    config: Mapping[str, float | str] | None
    forward_only: bool
    """Whether the gradients stay as they are."""
    method: str
    """Name of the public method, for the server's statistics."""


class Batches:
    """Sends the batches of one training client.

    Args:
        connection: to the server.
        sequencer: the client's queue; told when what is behind a batch must not be sent.
        model_id: of the training run.
        watch: hears why requests wait.
    """

    def __init__(
        self, connection: Connection, sequencer: Sequencer, model_id: ModelID, watch: QueueWatch
    ) -> None:
        self._connection = connection
        self._sequencer = sequencer
        self._model_id = model_id
        self._watch = watch

    async def run(self, turn: Turn, batch: Batch) -> ForwardBackwardOutput:
        """Send a batch in its turn, and wait for what it comes to after it."""
        async with turn:
            pending = await self._send(turn, batch)
        return await self._combined(pending)

    async def run_custom(
        self,
        turn: Turn,
        data: list[Datum],
        forward_data: list[Datum],
        loss_fn: custom_loss.CustomLossFn,
    ) -> ForwardBackwardOutput:
        """Forward, the caller's loss, backward; nothing of this client comes between."""

        def linear(data: list[Datum], *, forward_only: bool) -> Batch:
            return Batch(data, "cross_entropy", None, forward_only, "forward_backward_custom")

        events = self._connection.sender.events
        observed = getattr(loss_fn, "observed", None)  # a loss whose terms are to be followed
        if observed is not None:
            loss_fn = observed(events.operation)
        async with turn:
            try:
                forward = await self._send(turn, linear(forward_data, forward_only=True))
                output = await self._combined(forward)
                with events.operation("custom_loss", data=len(data)) as found:
                    with self._sequencer.computing():
                        loss = await in_thread(custom_loss.evaluate, loss_fn, data, output)
                    found["loss"] = loss.value
            except Exception as error:
                # an optim_step queued behind would step without this call's gradient
                self._sequencer.skip_until_seen(error, turn)
                raise
            backward = await self._send(turn, linear(loss.backward_data, forward_only=False))
        return custom_loss.finish(await self._combined(backward), loss)

    async def _send(self, turn: Turn, batch: Batch) -> list[PendingResult[ForwardBackwardOutput]]:
        """Send a batch in chunks of the server's size, in order.

        When one is refused, what builds on this call, an optim_step above all, is not sent: it
        would step on the gradient of the chunks before, or on none (momentum acts all the same).
        """
        server = await self._connection.server()
        limits = ChunkLimits(
            server.config.fwdbwd_max_chunk_len, server.config.fwdbwd_max_chunk_bytes_count
        )
        pending: list[PendingResult[ForwardBackwardOutput]] = []
        for chunk in split_data(batch.data, limits):
            try:
                pending.append(await turn.send(self._poster(server, chunk, batch)))
            except Exception as error:
                if not batch.forward_only:
                    is_partial = bool(pending) or may_be_held(error)
                    if is_partial:
                        error.add_note(PART_IS_THERE)
                    self._sequencer.skip_until_seen(error, turn, is_partial=is_partial)
                raise
        return pending

    def _poster(
        self, server: ServerWishes, chunk: Chunk, batch: Batch
    ) -> Callable[[int], Coroutine[Any, Any, PendingResult[ForwardBackwardOutput]]]:
        """Make what sends a chunk under the sequence number that it is given."""

        async def post(number: int) -> PendingResult[ForwardBackwardOutput]:
            request = ForwardBackwardRequest(
                ForwardBackwardInput(chunk.data, batch.loss_fn, batch.config),
                self._model_id,
                number,
                batch.forward_only,
            )
            body = encode_forward_backward_request(request)
            headers = {}
            if server.config.proto_compress_fwdbwd:
                body, headers = zstandard.compress(body), {names.CONTENT_ENCODING: "zstd"}
            return await operations.submit(
                self._connection,
                endpoints.FORWARD_BACKWARD,
                body,
                operations.forward_backward_result,
                request_type="Forward" if batch.forward_only else "ForwardBackward",
                sdk_method=f"TrainingClient.{batch.method}",
                headers=headers,
                watch=self._watch,
                permit=lambda: server.training_bytes.hold(chunk.estimated_bytes),
            )

        return post

    async def _combined(
        self, pending: Sequence[PendingResult[ForwardBackwardOutput]]
    ) -> ForwardBackwardOutput:
        fetches = [operations.fetch(self._connection, one) for one in pending]
        return combine_outputs(await operations.gather(fetches))
