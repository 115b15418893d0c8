"""Losses that clients upload, by session: read once, then named by `forward_backward`.

Owns which exist and how many may. What a graph may do is `engine.graph_loss`'s matter.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tinkex.engine.training.graph_loss import GraphLoss
from tinkex.errors import InputError
from tinkex.server.durable.entries import JSON, Entry
from tinkex.server.futures import Operation
from tinkex.server.refusal import bad_request
from tinkex.server.runs.runs import Answer, RunRequest
from tinkex.server.runs.submissions import written
from tinkex.types import CreateCustomLossResponse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tinkex.server.futures import Future
    from tinkex.server.runs.runs import TrainingRun
    from tinkex.server.services import Services
    from tinkex.server.sessions import Session
    from tinkex.types import CreateCustomLossRequest

MAX_LOSSES = 64
"""Of one session."""
CUSTOM = "custom"
_KEY = "loss_id"


class CustomLosses:
    """Reads losses, and finds them again."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def create(self, owner: str, request: CreateCustomLossRequest, digest: bytes) -> Future:
        """Read a loss; what is wrong with it comes through the future.

        Raises:
            Refusal: for an unknown session, a custom_loss_seq_id used for another loss, or too many
                losses.
        """
        session = self._s.sessions.get(owner, request.session_id)
        number = request.custom_loss_seq_id
        earlier = session.loss_requests.get(number)
        if earlier is not None:
            if earlier[0] != digest:
                raise bad_request(
                    f"custom_loss_seq_id {number} was used before, for a different loss. Give each "
                    "loss a number of its own."
                )
            return self._s.submissions.again(owner, Operation.CREATE_CUSTOM_LOSS, earlier[1])
        if len(session.loss_requests) >= MAX_LOSSES:
            raise bad_request(
                f"A session holds at most {MAX_LOSSES} custom losses. Make a loss once and use its "
                "handle again."
            )
        future = self._s.futures.open(owner, Operation.CREATE_CUSTOM_LOSS)
        session.loss_requests[number] = (digest, future.request_id)
        entry = Entry(
            request_id=future.request_id,
            owner=owner,
            session_id=session.session_id,
            target=session.session_id,
            operation=Operation.CREATE_CUSTOM_LOSS,
            seq_id=None,
            digest=digest,
            dialect=JSON,
            body=written(request),
            lasting=True,
        )
        future.accepted = self._s.journal.accept(entry)

        def begin(accepted: asyncio.Future[None]) -> None:
            if accepted.cancelled() or accepted.exception() is not None:
                session.loss_requests.pop(number, None)
                self._s.futures.discard(future)
            else:
                self.read(session, request, future)

        future.accepted.add_done_callback(begin)
        return future

    def read(
        self, session: Session, request: CreateCustomLossRequest, future: Future | None
    ) -> None:
        """Read a loss that is accepted."""

        async def perform() -> Answer:
            # in a thread: torch loads its shape rules on first use, which takes seconds
            graph = await asyncio.to_thread(GraphLoss, request.name, request.inputs, request.graph)
            loss_id = f"{session.session_id}:loss:{request.custom_loss_seq_id}"
            session.losses[loss_id] = graph
            return Answer(CreateCustomLossResponse(loss_id=loss_id))

        self._s.carry_out(RunRequest(future, perform), ended=lambda: None)

    def find(
        self, run: TrainingRun, loss_fn: str, config: Mapping[str, float | str] | None
    ) -> GraphLoss | None:
        """Find the loss that a call names; None for one of the built-in losses.

        Raises:
            InputError: there is no such loss in the run's session, or it is not named rightly.
        """
        if loss_fn != CUSTOM:
            return None
        given = dict(config or {})
        loss_id = given.pop(_KEY, None)
        if not isinstance(loss_id, str) or given:
            raise InputError(
                f"The loss {CUSTOM!r} takes one setting, {_KEY!r}, which create_custom_loss gives."
            )
        session: Session | None = self._s.sessions.find(run.session_id)
        graph = None if session is None else session.losses.get(loss_id)
        if graph is None:
            raise InputError(
                f"There is no loss {loss_id!r} in this session: make it with create_custom_loss of "
                "the same ServiceClient."
            )
        return graph


def _read(request: CreateCustomLossRequest) -> GraphLoss:
    graph = GraphLoss(request.name, request.inputs, request.graph)
    graph.warm_up()
    return graph
