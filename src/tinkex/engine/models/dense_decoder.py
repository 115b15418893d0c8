"""The decoder of dense Llama-like models, written out: the hot path beside transformers' modules.

Llama, Mistral, Qwen2 and Qwen3: RMS norm before each block, rotary positions, a gated MLP. The same
arithmetic as transformers' modules, with the layers that read the same input (q, k, v; gate, up) as
one product, so that a decode step makes half of the calls and a training batch fewer passes
(benchmarks/engine.py; docs/log.md has the figures). `models.support` finds the general path right
against plain transformers; the tests compare this one with it.

Owns the order of work in a layer and the matrices that it takes from the modules. Attention and
LoRA are those of the general path. Works for training, prefill and decode alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tinkex.engine.lora.weights import LoraGroup, LoraShape
from tinkex.engine.models.rms_norm import RmsNorm
from tinkex.engine.models.rotary import Rotation
from tinkex.engine.models.support import context_length

if TYPE_CHECKING:
    from tinkex.engine.attention.packed import PackedAttention
    from tinkex.engine.lora.linear import LoraRouting
    from tinkex.engine.matrices.frozen import FrozenMatrix
    from tinkex.engine.matrices.layout import WeightLayout

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Values of `model_type` whose layers are built as this module computes them."""

ROUNDING = 3
"""Raise it with every change of the bits: the mesh goes on with a sample on another processor only
where both round alike (`Engine.numerics`)."""

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


def fits(model: Any) -> bool:
    """Whether a causal LM is one of `FAMILIES`, with their activation and positions."""
    config = model.config
    if config.model_type not in FAMILIES or config.hidden_act != "silu":
        return False
    head_dim = int(model.model.layers[0].self_attn.head_dim)
    rotated = 2 * int(model.model.rotary_emb.inv_freq.numel())
    return rotated == head_dim


@dataclass(frozen=True, slots=True)
class _Product:
    """A frozen matrix and the layers whose rows it has."""

    matrix: FrozenMatrix
    group: LoraGroup


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's weights."""

    norm: RmsNorm
    qkv: _Product
    head_norm: RmsNorm | None
    """Of [query heads + key heads, head_dim] in Qwen3."""
    out: _Product
    mlp_norm: RmsNorm
    gate_up: _Product
    down: _Product
    scaling: float
    window: int


class DenseDecoder:
    """The decoder of one model; takes the weights of its layers over.

    Args:
        model: A causal LM that `fits`.
        layout: The form of the frozen matrices.
        routing: Which adapter each row uses.
    """

    def __init__(self, model: Any, layout: WeightLayout, routing: LoraRouting) -> None:
        config = model.config
        self._embedding: Tensor = model.model.embed_tokens.weight
        self._rotation = Rotation(model.model.rotary_emb, context_length(config))
        self._routing = routing
        self._eps = float(config.rms_norm_eps)
        self._query_heads = int(config.num_attention_heads)
        self._key_heads = int(config.num_key_value_heads)
        self.shapes: dict[str, LoraShape] = {}
        """The linear layers by name, in the order of transformers' modules."""
        self._layers = [
            self._take(f"model.layers.{number}", layer, layout)
            for number, layer in enumerate(model.model.layers)
        ]
        self._norm = self._norm_of(model.model.norm.weight, layout)

    def _take(self, name: str, layer: Any, layout: WeightLayout) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        shapes = {}
        for block, part, leaves in (("self_attn", attention, _ATTENTION), ("mlp", mlp, _MLP)):
            for leaf in leaves:
                linear = getattr(part, leaf)
                whole = f"{name}.{block}.{leaf}"
                shapes[leaf] = LoraShape(whole, linear.in_features, linear.out_features)
                self.shapes[whole] = shapes[leaf]

        def product(part: Any, *leaves: str) -> _Product:
            linears = [getattr(part, leaf) for leaf in leaves]
            weight = torch.cat([one.weight.detach() for one in linears])
            biases = [one.bias.detach() for one in linears if one.bias is not None]
            for leaf in leaves:
                delattr(part, leaf)
            matrix = layout.matrix(weight, torch.cat(biases) if biases else None)
            return _Product(matrix, LoraGroup.of(*(shapes[leaf] for leaf in leaves)))

        return _Layer(
            norm=self._norm_of(layer.input_layernorm.weight, layout),
            qkv=product(attention, "q_proj", "k_proj", "v_proj"),
            head_norm=self._head_norm(attention, layout),
            out=product(attention, "o_proj"),
            mlp_norm=self._norm_of(layer.post_attention_layernorm.weight, layout),
            gate_up=product(mlp, "gate_proj", "up_proj"),
            down=product(mlp, "down_proj"),
            scaling=float(attention.scaling),
            window=int(self._window(attention) or 0),
        )

    def _norm_of(self, weight: Tensor, layout: WeightLayout) -> RmsNorm:
        weight = weight.detach()
        return RmsNorm(weight.float() if layout.multiplies_float32 else weight, self._eps)

    def _head_norm(self, attention: Any, layout: WeightLayout) -> RmsNorm | None:
        if not hasattr(attention, "q_norm"):
            return None
        query, key = attention.q_norm.weight.detach(), attention.k_norm.weight.detach()
        both = torch.stack([query] * self._query_heads + [key] * self._key_heads)
        return self._norm_of(both, layout)

    @staticmethod
    def _window(attention: Any) -> int | None:
        """Give the positions that a layer's tokens see: Mistral keeps it in its settings alone."""
        window = getattr(attention, "sliding_window", None)
        if window is None and attention.config.model_type == "mistral":
            window = attention.config.sliding_window
        return window

    def __call__(self, ids: Tensor, positions: Tensor, attention: PackedAttention) -> Tensor:
        """Run the decoder on packed tokens.

        Args:
            ids: [N] int64.
            positions: [N] int64, each token's place in its own sequence.
            attention: How tokens attend.

        Returns:
            Last hidden states [N, C], after the final norm.
        """
        x = F.embedding(ids, self._embedding)
        angles = self._rotation.at(positions, x)
        product = self._routing.product
        for number, layer in enumerate(self._layers):
            y = self._attend(number, layer, layer.norm(x), angles, attention)
            x = product(y, layer.out.matrix, layer.out.group, to=x)
            both = product(layer.mlp_norm(x), layer.gate_up.matrix, layer.gate_up.group)
            gate, up = both.chunk(2, dim=-1)
            x = product(F.silu(gate) * up, layer.down.matrix, layer.down.group, to=x)
        return self._norm(x)

    def _attend(
        self,
        number: int,
        layer: _Layer,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        attention: PackedAttention,
    ) -> Tensor:
        """Compute one layer's attention before its last product: [N, C] -> [N, heads x dim]."""
        rotated = self._query_heads + self._key_heads
        heads = rotated + self._key_heads
        qkv = self._routing.product(x, layer.qkv.matrix, layer.qkv.group)
        qkv = qkv.view(x.shape[0], heads, -1)
        qk = qkv[:, :rotated]
        if layer.head_norm is not None:
            qk = layer.head_norm(qk)
        qk = self._rotation.rotate(qk, *angles)
        found = attention.attend(
            number,
            qk[:, : self._query_heads],
            qk[:, self._query_heads :],
            qkv[:, rotated:],
            scaling=layer.scaling,
            window=layer.window,
        )
        return found.reshape(x.shape[0], -1)
