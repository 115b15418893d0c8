"""Which form the frozen matrices take: torch's own, packed for oneDNN, float16 or int8.

Owns the choice, by the settings, the device, the memory and the weights, and what is refused; the
forms themselves are `matrix`'s, `half`'s and `quantized`'s.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tinkex.engine.matrices.half import HalfMatrix, can_multiply_half, fits_half
from tinkex.engine.matrices.int8_product import can_multiply_int8
from tinkex.engine.matrices.matrix import Matrix, can_pack, room_to_pack
from tinkex.engine.matrices.quantized import QuantizedMatrix
from tinkex.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor

    from tinkex.engine.config import EngineConfig
    from tinkex.engine.matrices.frozen import FrozenMatrix


class WeightLayout(Enum):
    """How a matrix is kept, and so how its products are formed."""

    PLAIN = "torch"
    PACKED = "onednn packed"
    HALF = "float16, exact"
    """Every weight lies in float16 unchanged, and products are float32's."""
    INT8 = "int8, exact"
    INT8_BLOCKS = "int8, float32 blocks"
    """Where the processor or torch has no exact product in int8."""

    @property
    def multiplies_float32(self) -> bool:
        """Whether products are float32's, whatever the dtype that weights were loaded in."""
        return self.quantized or self is WeightLayout.HALF

    @property
    def quantized(self) -> bool:
        """Whether weights are rounded to int8."""
        return self in {WeightLayout.INT8, WeightLayout.INT8_BLOCKS}

    def matrix(self, weight: Tensor, bias: Tensor | None = None) -> FrozenMatrix:
        """Lay W [out, in] out; W itself is kept only when plain."""
        if self.quantized:
            return QuantizedMatrix(weight, bias, exact=self is WeightLayout.INT8)
        if self is WeightLayout.HALF:
            return HalfMatrix(weight, bias)
        return Matrix(weight, bias, packed=self is WeightLayout.PACKED)


def loads_as_stored(config: EngineConfig) -> bool:
    """Whether weights may be loaded in the dtype of their files: they are laid out anew from it."""
    if config.device != "cpu" or config.dtype != "float32":
        return False
    return config.weight_dtype is not None or (config.pack_weights is None and can_multiply_half())


def choose_layout(config: EngineConfig, model: Any) -> WeightLayout:
    """Choose the layout for a model that lies on its device.

    For int8 and float16 the model's own dtype may be any: its weights are taken as they were loaded
    (`settle`). For float32 in another form it is made float32 here.

    Raises:
        ConfigurationError: int8 for a model that lies on another device than a CPU.
    """
    on_cpu = model.device.type == "cpu"
    if config.weight_dtype == "int8":
        if not on_cpu:
            raise ConfigurationError(
                f"weight_dtype int8 works on a CPU only, and the model lies on {model.device}; "
                "leave it out, and use dtype bfloat16 to halve the memory"
            )
        return WeightLayout.INT8 if can_multiply_int8() else WeightLayout.INT8_BLOCKS
    if not on_cpu or config.dtype != "float32":
        return WeightLayout.PLAIN
    wanted = config.pack_weights
    if wanted is None and can_multiply_half() and _fits(model):
        return WeightLayout.HALF
    model.float()
    if wanted is None:
        wanted = room_to_pack(sum(p.numel() * p.element_size() for p in model.parameters()))
    return WeightLayout.PACKED if wanted and can_pack() else WeightLayout.PLAIN


def _fits(model: Any) -> bool:
    return all(fits_half(weight) for weight in model.parameters() if weight.dim() > 1)


def settle(model: Any, layout: WeightLayout) -> None:
    """Bring what is left of a model's own weights into their last form, once all else is laid out.

    Weights of a safetensors file lie in one mapping of the file, which stays as long as any of them
    does; so the few that are left are copied, and with int8 they become float32. An unembedding of
    the model's own goes: the head has it.
    """
    if layout is WeightLayout.PLAIN:
        return
    unembed = model.get_output_embeddings()
    if unembed.weight is not model.get_input_embeddings().weight:
        shape = torch.empty_like(unembed.weight, device="meta")
        unembed.weight = nn.Parameter(shape, requires_grad=False)
    for parameter in model.parameters():
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.to(torch.float32, copy=True)
    model.float()
