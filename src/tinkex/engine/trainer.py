"""forward_backward as a task of microbatches; its gradient is kept all or not at all.

Owns the order of work in one call: forward, head and loss, backward, and the reply. A task touches
nothing of its adapter until the last microbatch is done and everything is finite, so a bad input, a
failure or an abandoned task leaves no trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tinkex.engine.attention import PrefillAttention
from tinkex.engine.batching import PackedBatch, TrainingSequence, microbatches, pack
from tinkex.engine.lora import UNEMBED, LoraSegment
from tinkex.engine.loss_metrics import call_metrics
from tinkex.engine.losses import LossCall, LossInputs
from tinkex.errors import EngineError, InputError, TinkerError
from tinkex.types import ForwardBackwardOutput, TensorData

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tinkex._clock import Clock
    from tinkex.engine.adapters import Adapter
    from tinkex.engine.graph_loss import GraphResult
    from tinkex.engine.model_runner import ModelRunner


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """How a task is cut up."""

    microbatch_tokens: int
    row_multiple: int
    graph_seconds: float
    """That a user's own loss may take in one microbatch."""
    clock: Clock


class TrainingTask:
    """One forward or forward_backward call, run a microbatch at a time."""

    def __init__(
        self,
        runner: ModelRunner,
        adapter: Adapter,
        sequences: Sequence[TrainingSequence],
        call: LossCall,
        settings: TrainerSettings,
        *,
        forward_only: bool,
    ) -> None:
        self._runner = runner
        self._adapter = adapter
        # A load may replace the adapter's weights while the task runs; it then commits nowhere.
        self._weights = adapter.weights
        self._call = call
        self._row_multiple = settings.row_multiple
        self._forward_only = forward_only
        self._left = microbatches(sequences, settings.microbatch_tokens)[::-1]
        weights = adapter.weights
        self._gradient = None if forward_only else weights.over(torch.zeros_like(weights.flat))
        self._logprobs: dict[int, NDArray[np.float32]] = {}
        self._elementwise: dict[int, NDArray[np.float32]] = {}
        self._graph_results: dict[int, GraphResult] = {}
        self._clock = settings.clock
        self._graph_seconds = settings.graph_seconds
        self._sequences = tuple(sequences)
        self._failure: TinkerError | None = None

    @property
    def finished(self) -> bool:
        """Whether `result` has something to give."""
        return not self._left or self._failure is not None

    def run_microbatch(self) -> bool:
        """Run the next microbatch; commit the gradient after the last.

        Returns:
            Whether the task is finished.

        Raises:
            InputError: the loss is not finite on these inputs.
            EngineError: the computation failed.
        """
        if self._failure is not None:
            raise self._failure
        if not self._left:
            return True
        try:
            self._run(pack(self._left.pop(), self._runner.device))
            if not self._left:
                self._commit()
        except TinkerError as error:
            self._failure = error
            raise
        except (RuntimeError, MemoryError) as error:
            self._failure = EngineError(f"training computation failed: {_first_line(error)}")
            raise self._failure from error
        return not self._left

    def result(self) -> ForwardBackwardOutput:
        """Give the reply: log-probabilities and losses in the order and shapes of the data.

        Raises:
            TinkerError: the task failed.
            EngineError: the task is not finished.
        """
        if self._failure is not None:
            raise self._failure
        if self._left:
            raise EngineError("the training task has microbatches left to run")
        outputs = []
        for sequence in self._sequences:
            output = {"logprobs": TensorData.from_numpy(self._logprobs[sequence.index])}
            if sequence.index in self._elementwise:
                elementwise = self._elementwise[sequence.index]
                output["elementwise_loss"] = TensorData.from_numpy(elementwise)
            outputs.append(output)
        return ForwardBackwardOutput(
            loss_fn_output_type="ArrayRecord",
            loss_fn_outputs=outputs,
            metrics=call_metrics(
                self._call, self._sequences, self._logprobs, self._elementwise, self._graph_results
            ),
        )

    def _run(self, batch: PackedBatch) -> None:
        logprobs, elementwise = (
            self._forward(batch) if self._forward_only else self._forward_backward(batch)
        )
        self._keep(batch, logprobs, elementwise)

    @torch.no_grad()
    def _forward(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        hidden = self._hidden(batch)
        logprobs = self._runner.head.logprobs(hidden, batch.targets, self._weights)
        if self._call.loss.by_sequence:
            return logprobs, self._by_sequence(batch, logprobs)[0]
        inputs = LossInputs(logprobs, batch.fields, self._call.config)
        return logprobs, self._call.loss.compute(inputs).elementwise

    def _forward_backward(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            hidden = self._hidden(batch)
        if self._call.loss.by_sequence:
            return self._backward_by_sequence(batch, hidden)
        elementwise = torch.empty(batch.targets.shape, dtype=torch.float32, device=hidden.device)

        def gradient_of(rows: slice, logprobs: Tensor) -> Tensor:
            with torch.enable_grad():
                leaf = logprobs.detach().clone().requires_grad_()
                fields = {key: value[rows] for key, value in batch.fields.items()}
                losses = self._call.loss.compute(LossInputs(leaf, fields, self._call.config))
                (slope,) = torch.autograd.grad(losses.elementwise.sum(), leaf)
            elementwise[rows] = losses.elementwise.detach()
            return slope

        grads = self._runner.head.logprobs_and_gradients(
            hidden.detach(), batch.targets, self._weights, gradient_of
        )
        self._add_head_gradient(grads.a, grads.b)
        self._add_decoder_gradient(hidden, grads.hidden)
        return grads.logprobs, elementwise

    def _backward_by_sequence(self, batch: PackedBatch, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Take the loss's gradient on whole sequences before the head's, at one product more."""
        head = self._runner.head
        logprobs = head.logprobs(hidden.detach(), batch.targets, self._weights)
        elementwise, slopes = self._by_sequence(batch, logprobs)
        grads = head.logprobs_and_gradients(
            hidden.detach(), batch.targets, self._weights, lambda rows, _logprobs: slopes[rows]
        )
        self._add_head_gradient(grads.a, grads.b)
        self._add_decoder_gradient(hidden, grads.hidden)
        return logprobs, elementwise

    @torch.enable_grad()
    def _by_sequence(self, batch: PackedBatch, logprobs: Tensor) -> tuple[Tensor, Tensor]:
        """Compute a loss that sees one datum at a time, and its gradient by the logprobs.

        Returns:
            Losses and slopes, [N, K] both; of a user's own loss the losses are zero, for it gives
            one number for each datum (kept in `_graph_results`).
        """
        elementwise, slopes = torch.zeros_like(logprobs), torch.zeros_like(logprobs)
        deadline = self._clock.monotonic() + self._graph_seconds
        start = 0
        for sequence in batch.sequences:
            width = sequence.targets.shape[1]
            at = (slice(start, start + len(sequence.tokens)), slice(width))
            start += len(sequence.tokens)
            leaf = logprobs[at].detach().clone().requires_grad_()
            if self._call.graph is not None:
                loss = self._run_graph(sequence, leaf, deadline)
            else:
                fields = {key: value[at] for key, value in batch.fields.items()}
                losses = self._call.loss.compute(LossInputs(leaf, fields, self._call.config))
                elementwise[at] = losses.elementwise.detach()
                loss = losses.elementwise.sum()
            (slopes[at],) = torch.autograd.grad(loss, leaf)
        return elementwise, slopes

    def _run_graph(self, sequence: TrainingSequence, leaf: Tensor, deadline: float) -> Tensor:
        graph = self._call.graph
        assert graph is not None
        inputs = {
            key: torch.tensor(value, device=leaf.device)
            for key, value in sequence.graph_inputs.items()
        }
        try:
            found = graph.run(
                leaf.reshape(sequence.target_shape), inputs, clock=self._clock, deadline=deadline
            )
        except InputError as error:
            raise InputError(f"datum {sequence.index}: {error}") from None
        if not bool(found.loss.isfinite()):
            raise InputError(
                f"datum {sequence.index}: the loss {graph.name!r} is {float(found.loss.detach())}"
            )
        self._graph_results[sequence.index] = found.detached()
        return found.loss

    def _hidden(self, batch: PackedBatch) -> Tensor:
        """Run the decoder; filler rows form a sequence of their own at the end."""
        count = batch.ids.shape[0]
        extra = -count % self._row_multiple
        lengths = (*batch.lengths, extra) if extra else batch.lengths
        hidden = self._runner.hidden(
            F.pad(batch.ids, (0, extra)),
            torch.cat([batch.positions, torch.arange(extra, device=batch.positions.device)]),
            PrefillAttention(lengths),
            [LoraSegment(0, count + extra, self._weights)],
        )
        return hidden[:count]

    @torch.no_grad()
    def _add_head_gradient(self, a: Tensor | None, b: Tensor | None) -> None:
        if self._gradient is not None and a is not None and b is not None:
            pair = self._gradient.pairs[UNEMBED]
            pair.a.add_(a)
            pair.b.add_(b)

    def _add_decoder_gradient(self, hidden: Tensor, d_hidden: Tensor) -> None:
        if self._gradient is None or not hidden.requires_grad:
            return  # the adapter covers the unembedding alone
        sums, leaves = (
            [factor for name, p in w.pairs.items() if name != UNEMBED for factor in (p.a, p.b)]
            for w in (self._gradient, self._weights)
        )
        grads = torch.autograd.grad(hidden, leaves, d_hidden, materialize_grads=True)
        with torch.no_grad():
            for total, grad in zip(sums, grads, strict=True):
                total.add_(grad)

    def _keep(self, batch: PackedBatch, logprobs: Tensor, elementwise: Tensor) -> None:
        self._check_finite(batch, logprobs, elementwise)
        lengths = list(batch.lengths)
        wanted = [(self._logprobs, logprobs)]
        if self._call.graph is None:
            wanted.append((self._elementwise, elementwise))
        for kept, values in wanted:
            for sequence, rows in zip(
                batch.sequences, torch.split(values.cpu(), lengths), strict=True
            ):
                width = sequence.targets.shape[1]
                array = rows[:, :width].reshape(sequence.target_shape).numpy()
                kept[sequence.index] = np.ascontiguousarray(array)

    def _check_finite(self, batch: PackedBatch, logprobs: Tensor, elementwise: Tensor) -> None:
        """Refuse what is not finite: the weights' fault for logprobs, the caller's for the loss."""
        if not bool(logprobs.isfinite().all()):
            raise EngineError(
                "the model gave log-probabilities that are not finite; the adapter's weights may "
                "have diverged. Load an earlier checkpoint"
            )
        bad = ~elementwise.isfinite().all(dim=1)
        if not bool(bad.any()):
            return
        row = int(bad.nonzero()[0, 0])
        for sequence in batch.sequences:
            if row < len(sequence.tokens):
                raise InputError(
                    f"datum {sequence.index}: the loss {self._call.name} overflows at position "
                    f"{row}; check its weights, advantages and logprobs"
                )
            row -= len(sequence.tokens)

    def _commit(self) -> None:
        if self._gradient is None:
            return
        if not bool(self._gradient.flat.isfinite().all()):
            raise InputError(
                "the gradient is not finite and was discarded; lower the weights or advantages"
            )
        if self._adapter.weights is self._weights:
            self._adapter.accumulate(self._gradient.flat)
        self._gradient = None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]
