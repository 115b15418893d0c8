"""Which base models the engine can drive, and where their linear layers are.

The engine runs transformers' own modelling code on packed tokens, so most decoder-only models work;
those of `TESTED` are compared with plain transformers in our tests. Any other is compared once, at
load, on a few tokens, packed and then decoded, and refused when the logits differ. Refused by name:
softcapping and masks of their own (in `attention`), layers that are neither full nor sliding
attention, attention that is not causal, final softcapping, models without a linear layer for an
adapter, and, when an adapter wants them, experts of a kind that `experts` does not know. Of a model
that also takes images the language model is driven.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tinkex.engine.attention import packed as attention
from tinkex.engine.attention.kv_cache import DecodeAttention, KVCache
from tinkex.engine.lora.experts import has_fused_experts
from tinkex.errors import ConfigurationError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tinkex.engine.lora.weights import LoraShape

TESTED = frozenset(
    {
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "gemma3_text",
        "phi",
        "phi3",
        "gpt_oss",
        "mixtral",
        "olmo2",
        "smollm3",
    }
)
"""Values of `model_type` whose logits our tests compare with plain transformers."""

_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
"""Values of a configuration's `layer_types`: others are masks or states that we do not have."""

_MODEL_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError)
_TOLERANCE = 1e-3
_HALF = (torch.bfloat16, torch.float16)
_PROBE_LENGTHS = (5, 3)
_PROBE_WINDOW = 2
"""Positions that a token sees in a layer with a sliding window while models are compared."""


def decoder_of(model: Any) -> Any:
    """Give the part of a causal LM that maps tokens to the last hidden states.

    Of a model that also takes images that is its language model; the rest is never run.
    """
    inner = getattr(model, model.base_model_prefix)
    return getattr(inner, "language_model", None) or getattr(inner, "text_model", inner)


def context_length(config: Any) -> int:
    """Give the positions that a model's configuration allows, or 0 where it does not say.

    "longrope" changes the frequencies of all positions once a sequence, or another in its batch,
    is longer than the original context; and keys in the cache keep the old ones. Such a model is
    driven within its original context, where its frequencies stand.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(one for one in rope.values() if isinstance(one, dict))]
    limits = [int(getattr(text, "max_position_embeddings", 0) or 0)]
    limits += [
        int(one["original_max_position_embeddings"])
        for one in kinds
        if one.get("rope_type") == "longrope"
    ]
    return min(limits)


def check_supported(model: Any) -> None:
    """Switch a model to packed attention and make sure that it is computed rightly.

    Raises:
        ConfigurationError: it is not.
    """
    config = model.config.get_text_config()
    if getattr(config, "is_encoder_decoder", False) or not hasattr(model, model.base_model_prefix):
        raise ConfigurationError(
            f"{type(model).__name__} is not a decoder-only causal language model"
        )
    if getattr(config, "final_logit_softcapping", None):
        raise ConfigurationError(
            f"{type(model).__name__} caps its logits, which tinkex does not have"
        )
    strange = sorted({*(getattr(config, "layer_types", None) or ())} - _LAYER_TYPES)
    if strange:
        raise ConfigurationError(
            f"{type(model).__name__} has layers of type {', '.join(strange)}; tinkex has "
            f"{', '.join(sorted(_LAYER_TYPES))}"
        )
    # "all" is Gemma 4's; its "vision" is of images alone
    both_ways = getattr(config, "use_bidirectional_attention", None) in {True, "all"}
    if both_ways or not getattr(config, "is_causal", True):
        raise ConfigurationError(
            f"{type(model).__name__} is configured for attention in both directions, as models of "
            "embeddings are; tinkex drives causal language models"
        )
    taken = getattr(model.config, "_attn_implementation", None) == attention.IMPLEMENTATION
    if not taken and not linear_modules(model):  # of one that is driven already, `runner` tells
        raise ConfigurationError(
            f"{type(model).__name__} has no linear layers that tinkex knows, so no adapter could "
            f"be trained on it; known to work: {', '.join(sorted(TESTED))}"
        )
    if model.config.model_type in TESTED:
        _switch(model)
        return
    with _short_windows(model):
        _compare(model)


def _switch(model: Any) -> None:
    attention.register()
    model.set_attn_implementation(attention.IMPLEMENTATION)


def _compare(model: Any) -> None:
    """Switch a model to packed attention, and refuse it if its logits are then others.

    In half precision a rounding may send a token to another expert, and all that follows it is
    different; so who differs there is compared once more in float32.
    """
    own = model.config.get_text_config()._attn_implementation  # noqa: SLF001 - its only name
    differs = _difference(model)
    if differs and model.dtype in _HALF:
        model.set_attn_implementation(own)
        with _in_float32(model):
            differs = _difference(model)
    if differs:
        raise ConfigurationError(
            f"{type(model).__name__} gives other logits on {differs} tokens than in transformers, "
            f"so tinkex cannot drive it; known to work: {', '.join(sorted(TESTED))}"
        )


def _difference(model: Any) -> str:
    """Switch a model to packed attention, and say on which tokens its logits are then others."""
    try:
        before = _plain_logits(model)
    except _MODEL_ERRORS as error:
        raise ConfigurationError(
            f"{type(model).__name__} fails in transformers, on a few tokens: {error}"
        ) from error
    _switch(model)
    try:
        found = {"packed": _packed_logits(model), "cached": _cached_logits(model)}
    except _MODEL_ERRORS as error:
        raise ConfigurationError(
            f"{type(model).__name__} fails on packed tokens, so tinkex cannot drive it: {error}"
        ) from error
    for kind, after in found.items():
        if not torch.allclose(before, after, rtol=_TOLERANCE, atol=_tolerance(before)):
            return kind
    return ""


@contextmanager
def _in_float32(model: Any) -> Iterator[None]:
    """Have a model compute in float32, for which each module's weights are wide while it runs.

    All at once they might not fit into the memory; back in their own dtype they are as before.
    """
    narrow: dict[nn.Parameter, Tensor] = {}

    def widen(module: nn.Module, _inputs: object) -> None:
        for parameter in module.parameters(recurse=False):
            if parameter.dtype in _HALF:
                narrow[parameter] = parameter.data
                parameter.data = parameter.data.float()

    def restore(module: nn.Module, _inputs: object, _output: object) -> None:
        for parameter in module.parameters(recurse=False):
            if parameter in narrow:
                parameter.data = narrow.pop(parameter)

    modules = list(model.modules())
    hooks = [module.register_forward_pre_hook(widen) for module in modules]
    hooks += [module.register_forward_hook(restore) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, data in narrow.items():  # of modules whose forward failed
            parameter.data = data


@contextmanager
def _short_windows(model: Any) -> Iterator[None]:
    """Make sliding windows shorter than the tokens on which models are compared.

    Some families window their mask alone, which is not built here, and do not tell the attention
    function. Windows that no sequence outgrows stay as they are.
    """
    limit = context_length(model.config)
    holders = [model.config.get_text_config(), *model.modules()]
    holders += [module.config for module in model.modules() if hasattr(module, "config")]
    found = {id(one): (one, getattr(one, "sliding_window", None)) for one in holders}
    windows = [
        (one, window)
        for one, window in found.values()
        if isinstance(window, int) and window > _PROBE_WINDOW and not 0 < limit <= window
    ]
    for one, _ in windows:
        one.sliding_window = _PROBE_WINDOW
    try:
        yield
    finally:
        for one, window in windows:
            one.sliding_window = window


def linear_modules(model: Any) -> dict[str, nn.Linear]:
    """Find the linear layers of attention and MLP, by qualified name in the causal LM."""
    ours = set(decoder_of(model).modules())
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module in ours
        and ".layers." in f".{name}"
        and not _is_router(name)
    }


def unknown_experts(model: Any) -> tuple[str, ...]:
    """Name parameters that look like fused experts, of a kind that `experts` does not know."""
    return tuple(
        f"{name}.{leaf}"
        for name, module in model.named_modules()
        if not has_fused_experts(module)
        for leaf, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and ".layers." in f".{name}" and "experts" in name
    )


def adapter_shapes(
    linears: dict[str, LoraShape],
    unembed: LoraShape,
    *,
    attn: bool,
    mlp: bool,
    with_unembed: bool,
    unknown: tuple[str, ...] = (),
) -> tuple[LoraShape, ...]:
    """Choose the layers that an adapter covers.

    Args:
        linears: The layers there are, by name.
        unembed: The unembedding.
        attn: Whether to cover attention.
        mlp: Whether to cover MLPs and experts.
        with_unembed: Whether to cover the unembedding.
        unknown: What `unknown_experts` gave.

    Raises:
        InputError: nothing was chosen, or the model has no such layer, or not one that we know.
    """
    if not (attn or mlp or with_unembed):
        raise InputError(
            "train_attn, train_mlp and train_unembed are all false; set at least one of them"
        )
    if mlp and unknown:
        raise InputError(
            f"train_mlp: {unknown[0]} holds experts in a form that tinkex has no LoRA for; set "
            "train_mlp=False"
        )
    groups = {True: [], False: []}  # type: dict[bool, list[LoraShape]]
    for name, shape in linears.items():
        groups[_is_attention(name)].append(shape)
    for wanted, is_attention, flag in ((attn, True, "train_attn"), (mlp, False, "train_mlp")):
        if wanted and not groups[is_attention]:
            raise InputError(
                f"{flag}: this base model has no linear layers of that kind that tinkex knows; "
                f"set {flag}=False"
            )
    chosen = [shape for name, shape in linears.items() if (attn if _is_attention(name) else mlp)]
    return (*chosen, unembed) if with_unembed else tuple(chosen)


def _is_attention(name: str) -> bool:
    return any("attn" in part or "attention" in part for part in name.split("."))


def _is_router(name: str) -> bool:
    return not {"gate", "router", "shared_expert_gate"}.isdisjoint(name.split("."))


def _probe_ids(model: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = int(model.get_output_embeddings().weight.shape[0])
    return [
        torch.randint(size, (1, n), generator=generator).to(model.device) for n in _PROBE_LENGTHS
    ]


def _tolerance(logits: Tensor) -> float:
    relative = _TOLERANCE if logits.dtype == torch.float32 else 0.05
    return relative * float(logits.abs().max())


@torch.no_grad()
def _plain_logits(model: Any) -> Tensor:
    return torch.cat([model(ids, use_cache=False).logits[0] for ids in _probe_ids(model)])


@torch.no_grad()
def _packed_logits(model: Any) -> Tensor:
    lengths = _PROBE_LENGTHS
    positions = torch.cat([torch.arange(n) for n in lengths]).to(model.device)
    hidden = decoder_of(model)(
        input_ids=torch.cat(_probe_ids(model), dim=1),
        position_ids=positions[None],
        use_cache=False,
        packed_attention=attention.PrefillAttention(lengths),
    ).last_hidden_state[0]
    logits: Tensor = model.get_output_embeddings()(hidden)
    return logits


@torch.no_grad()
def _cached_logits(model: Any) -> Tensor:
    """Decode the probe's sequences token by token, together as long as they last."""
    cache, ids = KVCache(), _probe_ids(model)
    rows = [cache.allocate(n) for n in _PROBE_LENGTHS]
    found: list[list[Tensor]] = [[] for _ in rows]
    for step in range(max(_PROBE_LENGTHS)):
        running = [i for i, n in enumerate(_PROBE_LENGTHS) if step < n]
        hidden = decoder_of(model)(
            input_ids=torch.stack([ids[i][0, step] for i in running])[None],
            position_ids=torch.full((1, len(running)), step, device=model.device),
            use_cache=False,
            packed_attention=DecodeAttention([rows[i] for i in running], model.device),
        ).last_hidden_state[0]
        for i, logits in zip(running, model.get_output_embeddings()(hidden), strict=True):
            found[i].append(logits)
    return torch.stack([logits for of_row in found for logits in of_row])
