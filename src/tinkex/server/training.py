"""Training steps: forward_backward, optim_step, and letting a run go.

Owns what each of these means to the engine. How they come in is `submissions`, how a run is made is
`creation`, how it is saved is `saving`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tinkex.server.futures import Operation
from tinkex.server.provenance import (
    STABLE_REINFORCE,
    named_sequences,
    with_recorded_logprobs,
)
from tinkex.server.runs import Answer, TrainingRun
from tinkex.types import OptimStepResponse, UnloadModelResponse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tinkex.server.decoding import ForwardBackwardCall
    from tinkex.server.futures import Future
    from tinkex.server.services import Services
    from tinkex.types import Datum, OptimStepRequest


class Training:
    """Runs the training steps of runs."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def forward_backward(self, owner: str, call: ForwardBackwardCall) -> Future:
        """Run a batch forward, and backward unless it is forward only."""

        def perform_on(run: TrainingRun) -> Callable[[], Awaitable[Answer]]:
            async def perform() -> Answer:
                if call.problem is not None:
                    raise call.problem
                fill_in = self._recorded_logprobs(run, call)
                graph = self._s.custom_losses.find(run, call.loss_fn, call.loss_fn_config)
                output = await run.train(
                    lambda engine: engine.begin_forward_backward(
                        run.model_id,
                        fill_in(call.data),
                        call.loss_fn,
                        call.loss_fn_config,
                        forward_only=call.forward_only,
                        graph=graph,
                    )
                )
                return Answer(output, call.result_bytes)

            return perform

        return self._s.submissions.submit(
            owner,
            Operation.FORWARD_BACKWARD,
            call.model_id,
            call.seq_id,
            call.digest,
            perform_on,
            request_bytes=call.request_bytes,
        )

    def _recorded_logprobs(
        self, run: TrainingRun, call: ForwardBackwardCall
    ) -> Callable[[Sequence[Datum]], Sequence[Datum]]:
        """Look up what was recorded for a call; give what fills it in.

        Filling in is for the engine's thread, in the run's lane: it takes a tenth of a second for
        a full request, and to wait for it here would let the run's next request go first.
        """
        if call.loss_fn != STABLE_REINFORCE:
            return lambda data: data
        find = partial(self._s.recordings.find, run.session_id)
        found = {name: find(name) for name in named_sequences(call.data)}
        return lambda data: with_recorded_logprobs(data, found.get)

    def optim_step(self, owner: str, request: OptimStepRequest, digest: bytes) -> Future:
        """Apply the gradients."""
        params = request.optim_params

        def perform_on(run: TrainingRun) -> Callable[[], Awaitable[Answer]]:
            async def perform() -> Answer:
                metrics = await run.call(lambda engine: engine.optim_step(run.model_id, params))
                return Answer(OptimStepResponse(metrics=metrics))

            return perform

        return self._s.submissions.submit(
            owner, Operation.OPTIM_STEP, request.model_id, request.seq_id, digest, perform_on
        )

    def unload(self, owner: str, model_id: str) -> Future:
        """Free a run after its earlier requests; its checkpoints remain."""

        def perform_on(run: TrainingRun) -> Callable[[], Awaitable[Answer]]:
            async def perform() -> Answer:
                self._s.end_run(run, self._s.runs.missing(model_id))
                return Answer(UnloadModelResponse(model_id=model_id))

            return perform

        return self._s.submissions.submit(
            owner, Operation.UNLOAD_MODEL, model_id, None, b"", perform_on, alone=True
        )
