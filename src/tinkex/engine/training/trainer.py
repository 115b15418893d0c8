# ruff: noqa: SLF001 - the functions below work on several tasks of this module's class
"""forward_backward as a task of microbatches; its gradient is kept all or not at all.

Owns the order of work in one call: forward, head and loss, backward, and the reply. A task touches
nothing of its adapter until the last microbatch is done and everything is finite, so a bad input, a
failure or an abandoned task leaves no trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tinkex.engine.attempts import attempt
from tinkex.engine.attention.packed import PrefillAttention
from tinkex.engine.lora.stack import is_finite
from tinkex.engine.lora.weights import LoraSegment
from tinkex.engine.models.head import HeadPart, in_range
from tinkex.engine.training.batching import PackedBatch, TrainingSequence, microbatches, pack
from tinkex.engine.training.loss_metrics import call_metrics
from tinkex.engine.training.losses import LossCall, LossInputs
from tinkex.errors import EngineError, InputError, TinkerError
from tinkex.types import ForwardBackwardOutput, TensorData

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from tinkex._clock import Clock
    from tinkex.engine.adapters.adapter import Adapter
    from tinkex.engine.lora.weights import LoraWeights
    from tinkex.engine.models.runner import ModelRunner
    from tinkex.engine.training.graph_loss import GraphResult


_COMPUTATION = "training computation"


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
        self._gradient: LoraWeights | None = None
        self._logprobs: dict[int, NDArray[np.float32]] = {}
        self._elementwise: dict[int, NDArray[np.float32]] = {}
        self._graph_results: dict[int, GraphResult] = {}
        self._clock = settings.clock
        self._graph_seconds = settings.graph_seconds
        self._sequences = tuple(sequences)
        self._failure: TinkerError | None = None

    @property
    def weights(self) -> LoraWeights:
        """The weights that it reads: its adapter's when it began."""
        return self._weights

    @property
    def finished(self) -> bool:
        """Whether `result` has something to give."""
        return not self._left or self._failure is not None

    @property
    def next_tokens(self) -> int:
        """Tokens of the next microbatch; 0 when there is none."""
        return sum(len(s.tokens) for s in self._left[-1]) if self._left else 0

    @property
    def joins(self) -> bool:
        """Whether its next microbatch may share a forward with those of other runs."""
        return not self.finished and not self._forward_only

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
        if not self._forward_only:
            run_together([self])
        else:
            self._guarded(lambda: self._run_forward(pack(self._left.pop(), self._runner.device)))
        if self._failure is not None:
            raise self._failure
        return not self._left

    def _guarded(self, work: Callable[[], None]) -> None:
        """Run `work`; whatever goes wrong in it ends this task, and this one alone."""
        failure: TinkerError | None
        try:
            failure = attempt(_COMPUTATION, work)
        except TinkerError as error:
            failure = error.with_traceback(None)  # its frames hold the microbatch's tensors
        if failure is not None:
            self._fail(failure)

    def _fail(self, failure: TinkerError) -> None:
        self._failure = failure
        self._gradient = None

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

    @torch.no_grad()
    def _run_forward(self, batch: PackedBatch) -> None:
        (part,) = _laid_out([self], [batch])
        hidden = _hidden(self._runner, [part], torch.zeros(()))[
            part.start : part.start + part.count
        ]
        logprobs = self._runner.head.logprobs(hidden, batch.targets, self._weights)
        if self._call.loss.by_sequence:
            elementwise = self._by_sequence(batch, logprobs)[0]
        else:
            inputs = LossInputs(logprobs, batch.fields, self._call.config)
            elementwise = self._call.loss.compute(inputs).elementwise
        self._keep(batch, logprobs, elementwise)

    def _head_part(self, part: _Part, hidden: Tensor) -> tuple[HeadPart, Tensor]:
        """Say what the head is to compute for this task's rows of `hidden`.

        Returns:
            The part, and the losses [n, K], which are there once the head has run.
        """
        batch = part.batch
        elementwise = torch.empty(batch.targets.shape, dtype=torch.float32, device=hidden.device)
        if self._call.loss.by_sequence:  # the whole sequences first, at one product more
            rows = hidden[part.start : part.start + part.count]
            found = self._runner.head.logprobs(rows, batch.targets, self._weights)
            elementwise, slopes = self._by_sequence(batch, found)

        def gradient_of(rows: slice, logprobs: Tensor) -> Tensor:
            if self._call.loss.by_sequence:
                return slopes[rows]
            with torch.enable_grad():
                leaf = logprobs.detach().clone().requires_grad_()
                fields = {key: value[rows] for key, value in batch.fields.items()}
                losses = self._call.loss.compute(LossInputs(leaf, fields, self._call.config))
                (slope,) = torch.autograd.grad(losses.elementwise.sum(), leaf)
            elementwise[rows] = losses.elementwise.detach()
            return slope

        head = HeadPart(part.start, batch.targets, self._weights, part.gradient, gradient_of)
        return head, elementwise

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

    @torch.no_grad()
    def _add_gradient(self, gradient: LoraWeights) -> None:
        """Add a microbatch's; takes the buffer over."""
        if self._gradient is None:
            self._gradient = gradient
        else:
            self._gradient.flat.add_(gradient.flat)

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
        if not is_finite(self._gradient.flat):
            raise InputError(
                "the gradient is not finite and was discarded; lower the weights or advantages"
            )
        if self._adapter.weights is self._weights:
            self._adapter.accumulate(self._gradient.flat)
        self._gradient = None


@dataclass(frozen=True, slots=True)
class _Part:
    """One task's rows in a joint forward: its own, and filler up to a fixed multiple."""

    task: TrainingTask
    batch: PackedBatch
    start: int
    count: int
    extra: int
    gradient: LoraWeights | None
    """Of this microbatch; None in a forward only."""


def run_together(tasks: Sequence[TrainingTask]) -> None:
    """Run the next microbatch of each task, all in one forward and one backward.

    Small batches of many runs cost little more than one large batch. No task's bits depend on the
    others: products give each row the same bits in any company, attention stays within a
    sequence, and the gradient of an adapter is formed from its own rows alone. A task that fails
    keeps its failure (`run_microbatch` raises it); when the computation itself fails, each task
    is run again alone.

    Args:
        tasks: of one engine and of different adapters, none finished or forward only.
    """
    kept = attempt(_COMPUTATION, lambda: _joint_backward(_packed(tasks)))
    if isinstance(kept, EngineError) and len(tasks) > 1:
        for task in tasks:
            if task._failure is None:
                run_together([task])
            else:
                task._left.pop()
        return
    for place, task in enumerate(tasks):
        task._left.pop()
        if isinstance(kept, EngineError):
            task._fail(kept)
        elif (work := kept[place]) is not None:
            task._guarded(work)


def _packed(tasks: Sequence[TrainingTask]) -> list[_Part]:
    return _laid_out(tasks, [pack(task._left[-1], task._runner.device) for task in tasks])


def _joint_backward(parts: Sequence[_Part]) -> list[Callable[[], None] | None]:
    """Compute everything, and give what is left to be done for each task: to keep its results."""
    runner = parts[0].task._runner
    anchor = torch.zeros((), device=runner.device, requires_grad=True)
    with torch.enable_grad():
        hidden = _hidden(runner, parts, anchor)
    found: list[tuple[HeadPart, Tensor] | None] = []
    for part in parts:
        try:
            found.append(part.task._head_part(part, hidden.detach()))
        except TinkerError as error:
            part.task._fail(error.with_traceback(None))
            found.append(None)
    slopes = runner.head.backward(hidden.detach(), [one[0] for one in found if one is not None])
    if hidden.requires_grad:  # not when the adapters cover the unembedding alone
        factors = [1.0] * len(parts)
        if slopes.dtype != hidden.dtype:
            factors = [in_range(slopes[one.start : one.start + one.count]) for one in parts]
        _scale(slopes, parts, factors)
        _decoder_backward(hidden, slopes.to(hidden.dtype), anchor, parts)
        _scale(None, parts, [1 / factor for factor in factors])
    return [
        None if one is None else partial(_finish, part, *one)
        for part, one in zip(parts, found, strict=True)
    ]


def _scale(slopes: Tensor | None, parts: Sequence[_Part], factors: Sequence[float]) -> None:
    """Multiply each run's slopes, and what its gradient has already, by its power of two."""
    for part, factor in zip(parts, factors, strict=True):
        if factor != 1:
            assert part.gradient is not None
            part.gradient.flat.mul_(factor)
            if slopes is not None:
                slopes[part.start : part.start + part.count].mul_(factor)


def _decoder_backward(
    hidden: Tensor, slopes: Tensor, anchor: Tensor, parts: Sequence[_Part]
) -> None:
    """Run the decoder's backward, which adds to each run's buffer.

    Layers of experts hand their factors' gradients to autograd; they are added here.
    """
    leaves, sums = [anchor], []
    for part in parts:
        assert part.gradient is not None
        for name in (s.name for s in part.task._weights.shapes if s.fused is not None):
            pair, total = part.task._weights.pairs[name], part.gradient.pairs[name]
            leaves += [pair.a, pair.b]
            sums += [total.a, total.b]
    found = torch.autograd.grad(hidden, leaves, slopes, allow_unused=True)
    for into, gradient in zip(sums, found[1:], strict=True):
        if gradient is not None:
            into.add_(gradient)


def _finish(part: _Part, head: HeadPart, elementwise: Tensor) -> None:
    task = part.task
    if head.failure is not None:
        raise head.failure
    assert part.gradient is not None
    task._keep(part.batch, head.logprobs, elementwise)
    task._add_gradient(part.gradient)
    if not task._left:
        task._commit()


def _laid_out(tasks: Sequence[TrainingTask], batches: Sequence[PackedBatch]) -> list[_Part]:
    parts = []
    start = 0
    for task, batch in zip(tasks, batches, strict=True):
        count = batch.ids.shape[0]
        extra = -count % task._row_multiple
        gradient = None
        if not task._forward_only:
            gradient = task._weights.over(torch.zeros_like(task._weights.flat))
        parts.append(_Part(task, batch, start, count, extra, gradient))
        start += count + extra
    return parts


def _hidden(runner: ModelRunner, parts: Sequence[_Part], anchor: Tensor) -> Tensor:
    """Run the decoder; the filler rows of each task form a sequence of their own."""
    ids, positions, segments = [], [], []
    lengths: list[int] = []
    for part in parts:
        batch = part.batch
        ids.append(F.pad(batch.ids, (0, part.extra)))
        filler = torch.arange(part.extra, device=batch.positions.device)
        positions += [batch.positions, filler]
        lengths += [*batch.lengths, part.extra] if part.extra else batch.lengths
        end = part.start + part.count + part.extra
        segments.append(LoraSegment(part.start, end, part.task._weights, part.gradient))
    return runner.hidden(
        torch.cat(ids), torch.cat(positions), PrefillAttention(lengths), segments, anchor=anchor
    )
