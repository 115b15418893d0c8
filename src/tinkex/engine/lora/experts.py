"""A layer of experts whose weights transformers holds fused, with LoRA on each expert.

Owns the modules: which are recognised, the frozen matrices of each expert, and the names that an
adapter has for the three linear maps of an expert (`gate_proj`, `up_proj`, `down_proj` under the
experts' module). The router stays transformers' own, frozen. The arithmetic is `expert_products`'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinkex.engine.lora.expert_plan import plan_experts
from tinkex.engine.lora.expert_products import Down, ExpertAdapter, ExpertBatch, GateUp
from tinkex.engine.lora.weights import FusedPart, LoraShape

if TYPE_CHECKING:
    from tinkex.engine.lora.linear import LoraRouting
    from tinkex.engine.matrices.frozen import FrozenMatrix
    from tinkex.engine.matrices.layout import WeightLayout

GATE, UP, DOWN = "gate_proj", "up_proj", "down_proj"


def expert_modules(model: Any) -> dict[str, nn.Module]:
    """Find the layers of fused experts that we can drive, by qualified name in the causal LM."""
    return {name: module for name, module in model.named_modules() if has_fused_experts(module)}


def has_fused_experts(module: nn.Module) -> bool:
    """Whether a module holds experts as transformers' `use_experts_implementation` describes them.

    Experts without a gate, or with a norm of their own, are none that we know.
    """
    return bool(
        getattr(module, "has_gate", False)
        and not getattr(module, "has_post_expert_norm", False)
        and getattr(getattr(module, "gate_up_proj", None), "ndim", 0) == 3
        and getattr(getattr(module, "down_proj", None), "ndim", 0) == 3
    )


def expert_shapes(name: str, module: Any) -> tuple[LoraShape, LoraShape, LoraShape]:
    """Say what an adapter has for a layer of experts: gate, up, down.

    Args:
        name: Qualified name of the experts' module.
        module: It, before its weights are taken.
    """
    experts, *sides = module.down_proj.shape
    inner, outer = sides if module.is_transposed else sides[::-1]
    both, down = f"{name}.gate_up_proj", FusedPart(f"{name}.down_proj", 0, 1)
    gate = FusedPart(both, 0, 1 if module.is_concatenated else 2)
    up = FusedPart(both, inner, 1) if module.is_concatenated else FusedPart(both, 1, 2)
    return (
        LoraShape(f"{name}.{GATE}", outer, inner, b_experts=experts, fused=gate),
        LoraShape(f"{name}.{UP}", outer, inner, b_experts=experts, fused=up),
        LoraShape(f"{name}.{DOWN}", inner, outer, a_experts=experts, fused=down),
    )


class LoraExperts(nn.Module):
    """The experts of one layer; takes the place of transformers' module of them.

    Args:
        module: transformers' module; its weights are taken from it.
        name: Its qualified name.
        routing: Which adapter each row uses.
        layout: The form of the frozen matrices.
    """

    def __init__(self, module: Any, name: str, routing: LoraRouting, layout: WeightLayout) -> None:
        super().__init__()
        self._names = tuple(f"{name}.{leaf}" for leaf in (GATE, UP, DOWN))
        self._routing = routing
        self._interleaved = not module.is_concatenated
        self.gate_up = _matrices(module, "gate_up_proj", layout)
        self.down = _matrices(module, "down_proj", layout)
        # The activation stays with its owner, which is kept out of the tree of modules.
        self._activation = module._apply_gate  # noqa: SLF001 - transformers' only name for it

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Apply to each row its experts.

        Args:
            x: [N, C] the batch's rows in order.
            chosen: [N, k] int64, the router's choice.
            weights: [N, k] of them in the sum.

        Returns:
            [N, C].
        """
        gate, _, down = self._names
        routing = self._routing
        count = len(x)
        live = count if routing.live is None else routing.live  # filler would wake experts up
        x, chosen, weights = x[:live], chosen[:live], weights[:live]
        segments = [s for s in routing.segments if gate in s.weights.pairs]
        places = [(s.start, min(s.end, live)) for s in segments]
        batch = ExpertBatch(
            plan_experts(chosen, places, len(self.down), routing.row_multiple),
            tuple(
                ExpertAdapter(*place, s.weights.rank, s.weights.scale)
                for place, s in zip(places, segments, strict=True)
            ),
            1 if torch.is_grad_enabled() else routing.row_multiple,
            self._interleaved,
        )
        pairs = [s.weights.pairs for s in segments]
        first = [f for one in pairs for n in self._names[:2] for f in (one[n].a, one[n].b)]
        second = [f for one in pairs for f in (one[down].a, one[down].b)]
        gate_up = GateUp.apply(x, batch, self.gate_up, *first)  # type: ignore[no-untyped-call]
        hidden = self._activation(gate_up)
        out: Tensor = Down.apply(hidden, weights, batch, self.down, *second)  # type: ignore[no-untyped-call]
        return F.pad(out, (0, 0, 0, count - live)) if live < count else out


def _matrices(module: Any, name: str, layout: WeightLayout) -> tuple[FrozenMatrix, ...]:
    """Take a module's fused weights [E, ...] from it, as one matrix for each expert."""
    weights = getattr(module, name).detach()
    biases = getattr(module, f"{name}_bias").detach() if module.has_bias else [None] * len(weights)
    found = tuple(
        layout.matrix(weight.t() if module.is_transposed else weight, bias)
        for weight, bias in zip(weights, biases, strict=True)
    )
    delattr(module, name)
    return found
