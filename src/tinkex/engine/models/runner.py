"""Packed batches -> hidden states and logits.

Through transformers' modelling code, whose linear layers are swapped for `LoraLinear`, or, where
the model is one of the families that it knows, through `DenseDecoder`. Owns the model's modules,
and sets the routing for each forward. Knows no sequence, job or loss.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from tinkex.engine.lora.experts import LoraExperts, expert_modules, expert_shapes
from tinkex.engine.lora.linear import LoraLinear, LoraRouting
from tinkex.engine.lora.stack import AdapterStack, StackedRows, slots_are_neutral
from tinkex.engine.lora.weights import UNEMBED, LoraGroup, LoraSegment, LoraShape, LoraWeights
from tinkex.engine.matrices.layout import choose_layout, settle
from tinkex.engine.matrices.matrix import can_pack
from tinkex.engine.matrices.products import Products
from tinkex.engine.models.dense_decoder import ROUNDING, DenseDecoder, fits
from tinkex.engine.models.head import Head
from tinkex.engine.models.support import (
    adapter_shapes,
    decoder_of,
    linear_modules,
    unknown_experts,
)
from tinkex.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor, nn

    from tinkex.engine.attention.packed import PackedAttention
    from tinkex.engine.config import EngineConfig
    from tinkex.engine.models.loader import BaseModel
    from tinkex.types import LoraConfig


class ModelRunner:
    """One base model with room for adapters on every linear layer."""

    def __init__(self, base: BaseModel, config: EngineConfig) -> None:
        model = base.model
        self.device: torch.device = model.device
        self._decoder = decoder_of(model)
        self.layout = choose_layout(config, model)
        """The form of the frozen matrices."""
        full = self.layout.multiplies_float32 or model.dtype == torch.float32
        full = full and self.device.type == "cpu"
        products = Products(onednn=full and can_pack())
        self._routing = LoraRouting(products, config.row_multiple)
        self._stack = AdapterStack(self.device, products, share=slots_are_neutral())
        if not linear_modules(model):
            raise EngineError("an engine already drives this model; load it again")
        self._row_multiple = config.row_multiple
        self._unknown = unknown_experts(model)
        self._dense: DenseDecoder | None = None
        if config.dense_path and fits(model):
            self._dense = DenseDecoder(model, self.layout, self._routing)
            self._linears = self._dense.shapes
        else:
            self._linears = self._take_modules(model)
        unembed = model.get_output_embeddings()
        rows_out, rows_in = unembed.weight.shape
        self._unembed = LoraShape(UNEMBED, rows_in, rows_out, own_name=_other_name(model, unembed))
        self.head = Head(
            self.layout.matrix(unembed.weight.detach(), _bias(unembed)),
            products,
            chunk_elements=config.head_chunk_elements,
            row_multiple=config.row_multiple,
        )
        settle(model, self.layout)

    @property
    def decoder_name(self) -> str:
        """Whose code computes the layers; part of what the bits depend on."""
        return "transformers" if self._dense is None else f"dense {ROUNDING}"

    def _take_modules(self, model: Any) -> dict[str, LoraShape]:
        """Swap the layers of any model for ours; the rest of its code stays transformers'."""
        shapes: dict[str, LoraShape] = {}
        linears = linear_modules(model)
        while linears:  # taken out one by one, so that each float copy goes before the next comes
            name = next(iter(linears))
            linear = linears.pop(name)
            shape = LoraShape(name, linear.in_features, linear.out_features)
            shapes[name] = shape
            parent, _, leaf = name.rpartition(".")
            matrix = self.layout.matrix(linear.weight.detach(), _bias(linear))
            layer = LoraLinear(matrix, LoraGroup.of(shape), self._routing)
            setattr(model.get_submodule(parent), leaf, layer)
        for name, fused in expert_modules(model).items():
            shapes |= {shape.name: shape for shape in expert_shapes(name, fused)}
            parent, _, leaf = name.rpartition(".")
            experts = LoraExperts(fused, name, self._routing, self.layout)
            setattr(model.get_submodule(parent), leaf, experts)
        return shapes

    def shapes(self, lora: LoraConfig) -> tuple[LoraShape, ...]:
        """Choose the layers that an adapter of this configuration covers.

        Raises:
            InputError: none, or of a kind that the model does not have.
        """
        return adapter_shapes(
            self._linears,
            self._unembed,
            attn=lora.train_attn,
            mlp=lora.train_mlp,
            with_unembed=lora.train_unembed,
            unknown=self._unknown,
        )

    def filler(self, count: int, weights: Iterable[LoraWeights | None]) -> int:
        """Give the rows that a batch of so many is to be filled up with (`row_multiple`).

        Args:
            count: Rows that count.
            weights: Adapters that they use; None is the base model.
        """
        # All but the matrices computes row by row there.
        steady = self._dense is not None and self.head.matrix.steady_from == 1
        plain = steady and all(one is None for one in weights)
        return 0 if plain else -count % self._row_multiple

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor,
        attention: PackedAttention,
        rows: Sequence[LoraSegment] | StackedRows,
        *,
        anchor: Tensor | None = None,
        live: int | None = None,
    ) -> Tensor:
        """Run the decoder on packed tokens.

        Args:
            ids: [N] int64.
            positions: [N] int64, each token's place in its own sequence.
            attention: How tokens attend.
            rows: Which rows belong to which adapter.
            anchor: For training's form of the products, the leaf that their graph hangs on.
            live: Rows that count, when those after them are filler: experts leave filler out.

        Returns:
            Last hidden states [N, C], after the final norm.
        """
        with self._routed(rows, anchor, live):
            if self._dense is not None:
                return self._dense(ids, positions, attention)
            out = self._decoder(
                input_ids=ids[None],
                position_ids=positions[None],
                use_cache=False,
                packed_attention=attention,
            )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def stacked(self, weights: Sequence[LoraWeights | None], count: int) -> StackedRows:
        """Place the adapters of a decode step: one for each of its rows, None the base model.

        Args:
            weights: By row.
            count: Rows of the batch, filler included.
        """
        return self._stack.rows(weights, count)

    def adapter_place(self, weights: LoraWeights | None) -> tuple[int, int]:
        """Say where an adapter lies: a decode step is fastest with its rows in this order."""
        return self._stack.place_of(weights)

    @contextmanager
    def _routed(
        self,
        rows: Sequence[LoraSegment] | StackedRows,
        anchor: Tensor | None,
        live: int | None,
    ) -> Iterator[None]:
        routing = self._routing
        if routing.entered:
            raise EngineError("the engine was entered twice; one thread must own it")
        routing.enter(rows if isinstance(rows, StackedRows) else tuple(rows), anchor, live)
        try:
            yield
        finally:
            routing.leave()


def _other_name(model: Any, unembed: nn.Module) -> str:
    """Give the name that a model has for its unembedding, if that is not ours."""
    name = next(name for name, module in model.named_modules() if module is unembed)
    return "" if name == UNEMBED else name


def _bias(linear: nn.Linear) -> Tensor | None:
    return None if getattr(linear, "bias", None) is None else linear.bias.detach()
