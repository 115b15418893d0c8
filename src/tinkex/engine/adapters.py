"""Adapters being trained and frozen samplers, by name.

Owns which exist and how many may; the arithmetic is `lora`'s, the step `optimizers`'. A removed
adapter lives on for whoever still holds it (a running task, a running sample), so removal is safe
at any time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from tinkex.engine.optimizers import ADAMW, OptimizerState, find_optimizer
from tinkex.errors import EngineError, InputError

if TYPE_CHECKING:
    from collections.abc import Collection

    from tinkex.engine.lora import LoraWeights
    from tinkex.types import LoraConfig, OptimParams

T = TypeVar("T")


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

    @torch.no_grad()
    def accumulate(self, gradient: Tensor) -> None:
        """Add a finished task's gradient [P]; takes the tensor over."""
        self.gradient = gradient if self.gradient is None else self.gradient.add_(gradient)

    def state_to_save(self) -> OptimizerState:
        """Give the optimiser's state; a fresh one before the first step."""
        return self.optimizer or find_optimizer(self.optimizer_type).new_state(self.weights.flat)

    def step(self, params: OptimParams) -> dict[str, float]:
        """Apply the accumulated gradient and drop it, even when the step is refused.

        Without any gradient the step is taken with zeros: momentum and weight decay still act.

        Raises:
            InputError: hyperparameters of another optimiser or out of range (the gradient is kept),
                or a step that would not be finite (the gradient is dropped).
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
        self.gradient = None
        metrics = optimizer.step(self.weights, gradient, state, params)
        self.optimizer = state
        return metrics


@dataclass(slots=True)
class AdapterPool:
    """Everything by name, within bounds."""

    max_adapters: int
    max_samplers: int
    _adapters: dict[str, Adapter]
    _samplers: dict[str, LoraWeights]

    @classmethod
    def empty(cls, max_adapters: int, max_samplers: int) -> AdapterPool:
        """Make a pool that holds nothing."""
        return cls(max_adapters, max_samplers, {}, {})

    def adapter(self, adapter_id: str) -> Adapter:
        """Find an adapter.

        Raises:
            InputError: there is none of this name.
        """
        return _find(self._adapters, adapter_id, "adapter", "create it first")

    def sampler(self, sampler_id: str) -> LoraWeights:
        """Find a sampler's weights.

        Raises:
            InputError: there is none of this name.
        """
        return _find(self._samplers, sampler_id, "sampler", "save weights for sampling first")

    def check_room(self, adapter_id: str) -> None:
        """Make sure that `put_adapter` will find room, before the work of making one.

        Raises:
            EngineError: the pool is full.
        """
        _check_room(self._adapters, adapter_id, self.max_adapters, "adapters in training")

    def put_adapter(self, adapter_id: str, adapter: Adapter) -> None:
        """Add or replace an adapter.

        Raises:
            EngineError: the pool is full.
        """
        self.check_room(adapter_id)
        self._adapters[adapter_id] = adapter

    def put_sampler(self, sampler_id: str, weights: LoraWeights) -> None:
        """Add or replace a sampler.

        Raises:
            EngineError: the pool is full.
        """
        _check_room(self._samplers, sampler_id, self.max_samplers, "samplers")
        self._samplers[sampler_id] = weights

    def remove_adapter(self, adapter_id: str) -> None:
        """Forget an adapter, if there."""
        self._adapters.pop(adapter_id, None)

    def remove_sampler(self, sampler_id: str) -> None:
        """Forget a sampler, if there."""
        self._samplers.pop(sampler_id, None)

    def has_adapter(self, adapter_id: str) -> bool:
        """Say whether an adapter of this name exists."""
        return adapter_id in self._adapters


def _find(held: dict[str, T], name: str, kind: str, advice: str) -> T:
    try:
        return held[name]
    except KeyError:
        raise InputError(f"unknown {kind} {name!r}; {advice}") from None


def _check_room(held: Collection[str], name: str, limit: int, what: str) -> None:
    if name not in held and len(held) >= limit:
        raise EngineError(f"this server holds at most {limit} {what}; close one and try again")
