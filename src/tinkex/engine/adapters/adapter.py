"""One adapter being trained, and one frozen sampler.

Owns what belongs to each, and how it is taken apart into tensors and put together again. Which
exist and where they live is `adapters.pool`'s; the arithmetic is `lora`'s, the step `optimizers`'.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tinkex.engine.lora.weights import lora_weights
from tinkex.engine.training.optimizers import ADAMW, OptimizerState, find_optimizer
from tinkex.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tinkex.engine.lora.weights import LoraWeights
    from tinkex.types import LoraConfig, OptimParams


class Adapter:
    """One adapter in training: weights, accumulated gradient, optimiser state."""

    def __init__(self, lora: LoraConfig, weights: LoraWeights, optimizer_type: str = ADAMW) -> None:
        self.lora = lora
        self.weights = weights
        self.optimizer_type = optimizer_type
        """Name of its optimiser, fixed for its life."""
        self.optimizer: OptimizerState | None = None
        """None until the first step, or a load with optimiser."""
        self.gradient: Tensor | None = None
        """[P] float32 sum since the last step; None is zero."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes at most."""
        return adapter_bytes(self.weights.flat.numel(), self.optimizer_type)

    def tensors(self) -> dict[str, Tensor]:
        """Give everything that must survive a move, by name."""
        found = {_WEIGHTS: self.weights.flat.detach()}
        if self.gradient is not None:
            found[_GRADIENT] = self.gradient
        if self.optimizer is not None:
            for moment in find_optimizer(self.optimizer_type).moments:
                found[moment] = getattr(self.optimizer, moment)
        return found

    def plan(self) -> Callable[[Mapping[str, Tensor]], Adapter]:
        """Say how to make it again from its tensors; holds none itself."""
        lora, kind = self.lora, self.optimizer_type
        step = None if self.optimizer is None else self.optimizer.step
        layout = _layout(self.weights, trainable=True)

        def make(tensors: Mapping[str, Tensor]) -> Adapter:
            adapter = Adapter(lora, layout(tensors[_WEIGHTS]), kind)
            adapter.gradient = tensors.get(_GRADIENT)
            if step is not None:
                optimizer = find_optimizer(kind)
                moments = [tensors[moment] for moment in optimizer.moments]
                adapter.optimizer = optimizer.state(*moments, step)
            return adapter

        return make

    @torch.no_grad()
    def accumulate(self, gradient: Tensor) -> None:
        """Add a finished task's gradient [P]; takes the tensor over."""
        self.gradient = gradient if self.gradient is None else self.gradient.add_(gradient)

    def state_to_save(self) -> OptimizerState:
        """Give the optimiser's state; a fresh one before the first step."""
        return self.optimizer or find_optimizer(self.optimizer_type).new_state(self.weights.flat)

    def step(self, params: OptimParams) -> dict[str, float]:
        """Apply the accumulated gradient and drop it.

        Without any gradient the step is taken with zeros: momentum and weight decay still act.

        Raises:
            InputError: hyperparameters of another optimiser or out of range (the gradient is kept),
                or a step that would not be finite (the gradient is dropped).
            RuntimeError, MemoryError: the computation failed; everything is as before.
        """
        optimizer = find_optimizer(self.optimizer_type)
        if not isinstance(params, optimizer.params):
            raise InputError(
                f"this run was made with the optimizer {self.optimizer_type!r}, so optim_step "
                f"takes {optimizer.params.__name__}, not {type(params).__name__}"
            )
        optimizer.check(params)
        flat = self.weights.flat
        gradient = torch.zeros_like(flat) if self.gradient is None else self.gradient
        state = self.state_to_save()
        try:
            metrics = optimizer.step(self.weights, gradient, state, params)
        except InputError:
            self.gradient = None  # another attempt would fail alike
            raise
        self.gradient, self.optimizer = None, state
        return metrics


class Sampler:
    """Frozen weights to sample from."""

    def __init__(self, weights: LoraWeights) -> None:
        self.weights = weights

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.weights.flat.nbytes

    def tensors(self) -> dict[str, Tensor]:
        """Give everything that must survive a move, by name."""
        return {_WEIGHTS: self.weights.flat.detach()}

    def plan(self) -> Callable[[Mapping[str, Tensor]], Sampler]:
        """Say how to make it again from its tensors; holds none itself."""
        layout = _layout(self.weights, trainable=False)
        return lambda tensors: Sampler(layout(tensors[_WEIGHTS]))


def adapter_bytes(parameters: int, optimizer_type: str) -> int:
    """Give the bytes of an adapter in training: weights, gradient and the optimiser's moments.

    All are counted from the start, though gradient and moments come with the first use, so that an
    adapter that found room keeps it.
    """
    return 4 * parameters * (2 + len(find_optimizer(optimizer_type).moments))


_WEIGHTS, _GRADIENT = "weights", "gradient"


def _layout(weights: LoraWeights, *, trainable: bool) -> Callable[[Tensor], LoraWeights]:
    return partial(
        lora_weights,
        shapes=weights.shapes,
        rank=weights.rank,
        scale=weights.scale,
        trainable=trainable,
    )
