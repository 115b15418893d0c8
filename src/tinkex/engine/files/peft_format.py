"""An adapter in PEFT's names and layout: tensors and `adapter_config.json`.

PEFT gives a parameter that holds all experts one LoRA ("target_parameters"): A [E * R, in] with the
experts one after the other, B [out, R * E] with the experts innermost. Ours has two maps in
`gate_up_proj`, of rank r each, and shares a factor among the experts; so R is 2 r there, A is
[gate; up], B is zero off its two blocks, and what is shared is repeated for each expert. The file
is larger than the adapter by that; reading it back gives the same bits.

Owns the form. Folders and sums are `checkpoint`'s; other tools' adapters are `merge`'s to read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tinkex.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tinkex.engine.lora.weights import LoraPair, LoraShape, LoraWeights
    from tinkex.types import LoraConfig

PREFIX = "base_model.model."
"""Before the name of every layer."""
WRAPPED = ".base_layer"
"""PEFT wraps a module once for each parameter that it targets there, and this names what is inside:
the outermost has the last parameter."""

_NAMES_OF_EXPERTS = frozenset({"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
_LAYER = re.compile(r"^(.*\.)?layers\.\d+\.")


def peft_config(base_model: str, lora: LoraConfig, weights: LoraWeights) -> dict[str, Any]:
    """Describe an adapter as PEFT's LoraConfig does."""
    alpha = weights.scale * weights.rank
    plain = _plain(weights).keys()
    ranks = {
        _LAYER.sub("", name): lora.rank * len(shapes)
        for name, shapes in _fused(weights.shapes).items()
    }
    # PEFT takes layers of these names for experts of older releases, and would leave them out; as
    # parameters they are what they are.
    dense = {name for name in plain if ranks and name.rsplit(".", 1)[-1] in _NAMES_OF_EXPERTS}
    patterns = {name: rank for name, rank in ranks.items() if rank != lora.rank}
    found: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": _number(alpha),
        "lora_dropout": 0.0,
        "target_modules": sorted({_target(name) for name in plain - dense}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
    }
    if ranks:
        parameters = {f"{_LAYER.sub('', name)}.weight" for name in dense}
        found["target_parameters"] = sorted(parameters | set(ranks))
        found["rank_pattern"] = patterns
        found["alpha_pattern"] = {k: _number(alpha * v / lora.rank) for k, v in patterns.items()}
    return found


def _target(name: str) -> str:
    """Name a layer's kind, or, in a model that has other towers with such layers, the layer."""
    inside = {"language_model", "text_model"} & set(name.split("."))
    return name if inside else name.rsplit(".", 1)[-1]


def peft_tensors(weights: LoraWeights) -> dict[str, Tensor]:
    """Lay an adapter's factors out as PEFT does."""
    named = plain_tensors(_plain(weights), PREFIX)
    for parameter, shapes in _fused(weights.shapes).items():
        named |= _fused_tensors(parameter, shapes, weights)
    return named


def plain_tensors(pairs: Mapping[str, LoraPair], prefix: str) -> dict[str, Tensor]:
    """Name each factor, as it lies in memory."""
    named = {}
    for name, pair in pairs.items():
        named[f"{prefix}{name}.lora_A.weight"] = pair.a.detach()
        named[f"{prefix}{name}.lora_B.weight"] = pair.b.detach()
    return named


@torch.no_grad()
def read_peft_tensors(tensors: Mapping[str, Tensor], weights: LoraWeights) -> None:
    """Copy what `peft_tensors` gave into an adapter's factors.

    Raises:
        EngineError: names or shapes differ, or experts that share a factor have different ones.
    """
    tensors = _renamed(tensors, weights.shapes)
    plain, fused = plain_tensors(_plain(weights), PREFIX), _fused(weights.shapes)
    wanted: dict[str, Sequence[int]] = {name: tensor.shape for name, tensor in plain.items()}
    for parameter, shapes in fused.items():
        experts, rank = _experts(shapes), weights.rank * len(shapes)
        out = sum(shape.rows_out for shape in shapes)
        a, b = _names(parameter)
        wanted |= {a: (experts * rank, shapes[0].rows_in), b: (out, rank * experts)}
    check_same(wanted, {name: tensor.shape for name, tensor in tensors.items()})
    for name, tensor in plain.items():
        tensor.copy_(tensors[name])
    for parameter, shapes in fused.items():
        a_name, b_name = _names(parameter)
        _split(tensors[a_name], tensors[b_name], shapes, weights)
        for name, tensor in _fused_tensors(parameter, shapes, weights).items():
            if not torch.equal(tensor.cpu(), tensors[name].to(tensor.dtype)):
                raise EngineError(
                    f"{name}: the experts share a factor here, or a part of it is zero; this "
                    "adapter has other values. Merge it into its base model instead"
                )


def check_same(wanted: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]]) -> None:
    """Check that two sets of tensors have the same names and shapes.

    Raises:
        EngineError: naming one that differs.
    """
    differing = sorted(wanted.keys() ^ found.keys()) or [
        name for name, shape in wanted.items() if tuple(shape) != tuple(found[name])
    ]
    if differing:
        raise EngineError(f"it does not fit this base model: {differing[0]} differs")


def _plain(weights: LoraWeights) -> dict[str, LoraPair]:
    """Give the factors of layers without experts, by their modules' names in the causal LM."""
    return {s.own_name or s.name: weights.pairs[s.name] for s in weights.shapes if not s.fused}


def _renamed(tensors: Mapping[str, Tensor], shapes: tuple[LoraShape, ...]) -> Mapping[str, Tensor]:
    """Give tensors their modules' names, which older files have not where our name is another."""
    for shape in shapes:
        if shape.own_name:
            old, new = f"{PREFIX}{shape.name}.lora_", f"{PREFIX}{shape.own_name}.lora_"
            tensors = {
                new + k.removeprefix(old) if k.startswith(old) else k: t for k, t in tensors.items()
            }
    return tensors


def _fused(shapes: tuple[LoraShape, ...]) -> dict[str, list[LoraShape]]:
    """Collect the maps of each fused parameter, in their order."""
    found: dict[str, list[LoraShape]] = {}
    for shape in shapes:
        if shape.fused is not None:
            found.setdefault(shape.fused.parameter, []).append(shape)
    return found


def _experts(shapes: Sequence[LoraShape]) -> int:
    return max(shapes[0].a_experts, shapes[0].b_experts)


def _names(parameter: str) -> tuple[str, str]:
    """Give the names of A and B of a fused parameter: the last of a module is outermost."""
    module, _, leaf = parameter.rpartition(".")
    wrapper = module + WRAPPED if leaf == "gate_up_proj" else module
    return f"{PREFIX}{wrapper}.lora_A.weight", f"{PREFIX}{wrapper}.lora_B.weight"


def _fused_tensors(
    parameter: str, shapes: Sequence[LoraShape], weights: LoraWeights
) -> dict[str, Tensor]:
    """Make the one LoRA that equals those of `shapes`: A [E, R, in], B [E, out, R], laid out."""
    experts, rank = _experts(shapes), weights.rank
    out = sum(shape.rows_out for shape in shapes)
    a_parts = []
    b = weights.flat.detach().new_zeros(experts, out, rank * len(shapes))
    for number, shape in enumerate(shapes):
        pair = weights.pairs[shape.name]
        a_parts.append(pair.a.detach().expand(experts, rank, shape.rows_in))
        b[:, _rows(shape), number * rank : (number + 1) * rank] = pair.b.detach()
    a_name, b_name = _names(parameter)
    a = torch.cat(a_parts, dim=1)
    return {a_name: a.flatten(0, 1), b_name: b.permute(1, 2, 0).flatten(1)}


def _split(a: Tensor, b: Tensor, shapes: Sequence[LoraShape], weights: LoraWeights) -> None:
    """Undo `_fused_tensors`; where experts share a factor, the first one's is taken."""
    experts, rank = _experts(shapes), weights.rank
    a = a.view(experts, -1, a.shape[1])
    b = b.view(b.shape[0], -1, experts).permute(2, 0, 1)
    for number, shape in enumerate(shapes):
        pair, at = weights.pairs[shape.name], slice(number * rank, (number + 1) * rank)
        own_a, own_b = a[:, at], b[:, _rows(shape), at]
        pair.a.copy_(own_a if shape.a_experts else own_a[0])
        pair.b.copy_(own_b if shape.b_experts else own_b[0])


def _rows(shape: LoraShape) -> slice:
    """Rows of the fused parameter's output that are this map's."""
    assert shape.fused is not None
    start, step = shape.fused.start, shape.fused.step
    return slice(start, start + step * shape.rows_out, step)


def _number(value: float) -> float:
    """Write whole numbers as PEFT's users do."""
    return int(value) if float(value).is_integer() else value
