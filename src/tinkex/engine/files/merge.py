"""An adapter merged into its base model: W' = W + (alpha / r) B A, and a folder like any model's.

Owns the arithmetic and the folder. It reads PEFT's files as they are, ours or another tool's. The
product is added in float32 and rounded once, to the base model's dtype.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils import cached_file

from tinkex.engine.files.checkpoint import CONFIG, WEIGHTS
from tinkex.engine.files.peft_format import PREFIX, WRAPPED
from tinkex.engine.models.loader import load_base_model
from tinkex.engine.models.tokenizer import may_have_tokenizer
from tinkex.errors import ConfigurationError, EngineError, InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

_FACTORS = {".lora_A.weight": "a", ".lora_B.weight": "b"}
_PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
_UNSUPPORTED = (
    "use_dora",
    "use_rslora",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "velora_config",
)
"""Settings of PEFT under which an adapter is more than W + scale B A of its own base's layers."""
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base as it is. Others (pissa, olora, corda, ...)
subtract the first B A from it, and PEFT does that again whenever it loads such an adapter."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What was merged."""

    folder: Path
    layers: int
    """Layers that the adapter changed."""
    untied: bool
    """Whether the unembedding was given weights of its own, as the adapter changes it alone."""


def merge_adapter(
    adapter: Path,
    output: Path,
    *,
    base_model: str | None = None,
    dtype: str = "float32",
    trust_remote_code: bool = False,
) -> Merged:
    """Merge an adapter into its base model and save the whole as safetensors.

    Args:
        adapter: folder in PEFT's format.
        output: folder to make; it appears whole or not at all.
        base_model: folder or hub id of the base; else what the adapter's configuration names.
        dtype: of the saved weights.
        trust_remote_code: let the base model's repository run its own code here.

    Raises:
        InputError: the folder is no LoRA adapter, does not fit the base, or `output` is there.
        ConfigurationError: the base model, or its tokenizer, cannot be loaded.
        EngineError: the disk refused.
    """
    if output.exists():
        raise InputError(f"{output} is there already; choose another folder.")
    config, factors, copies = _read(adapter)
    base = load_base_model(
        base_model or str(config.get("base_model_name_or_path")),
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    model = base.model
    tokenizer = _tokenizer(base.tokenizer_id, trust_remote_code=trust_remote_code)
    _check_copies(model, copies)
    untied = _untie(model, factors)
    for name, (a, b) in factors.items():
        _merge_one(model, name, a.float(), b.float(), config)
    try:
        _save(model, tokenizer, base.tokenizer_id, output)
    except (OSError, SafetensorError) as error:
        raise EngineError(f"cannot write {output}: {error}") from error
    return Merged(output, len(factors), untied)


def _tokenizer(source: str, *, trust_remote_code: bool) -> Any | None:
    """Load the base model's tokenizer; None where it has none."""
    if not may_have_tokenizer(source):
        return None
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        if "trust_remote_code" in str(error):
            reason = "it needs code from its own repository; allow it with --trust-remote-code"
        raise ConfigurationError(f"cannot load the tokenizer of {source!r}: {reason}") from error


def _save(model: Any, tokenizer: Any | None, source: str, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        model.save_pretrained(beside, safe_serialization=True)
        if tokenizer is not None:
            tokenizer.save_pretrained(beside)
        _copy_processor(source, beside)
        beside.chmod(0o755)
        beside.rename(output)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _copy_processor(source: str, folder: Path) -> None:
    """Copy how a base model that takes images prepares them, unread."""
    for name in _PROCESSOR_FILES:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        if found is not None:
            shutil.copyfile(found, folder / name)


def _read(
    adapter: Path,
) -> tuple[dict[str, Any], dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Read an adapter: its configuration, (A, B) by layer, and weights that are the base's own."""
    try:
        config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(adapter / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{adapter} is no adapter in PEFT's format ({CONFIG} and {WEIGHTS}): {error}"
        ) from error
    if config.get("peft_type") != "LORA" or not config.get("r") or "lora_alpha" not in config:
        raise InputError(f"{adapter} is no LoRA adapter.")
    used = [name for name in _UNSUPPORTED if config.get(name)]
    if used or config.get("bias", "none") != "none":
        raise InputError(
            f"{adapter} uses {', '.join(used) or 'bias'}, which cannot be merged here."
        )
    start = config.get("init_lora_weights")
    if (start.lower() if isinstance(start, str) else start) not in _PLAIN_STARTS:
        raise InputError(
            f"{adapter} was begun with init_lora_weights={start!r}, which changes the base model "
            "too, so it cannot be merged here: let PEFT merge it (merge_and_unload), or have PEFT "
            "save it as an ordinary adapter (path_initial_model_for_weight_conversion)."
        )
    # PEFT saves the base's embeddings along with an adapter of them
    copies = {
        name: tensors.pop(name)
        for name in list(tensors)
        if name.endswith((".base_layer.weight", ".embed_tokens.weight", ".lm_head.weight"))
    }
    return config, _pairs(adapter, tensors), copies


def _pairs(adapter: Path, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        suffix = next((s for s in _FACTORS if name.endswith(s)), None)
        if suffix is None or not name.startswith(PREFIX):
            raise InputError(f"{adapter}: {name} is no factor of a LoRA layer.")
        layer = name.removeprefix(PREFIX).removesuffix(suffix)
        found.setdefault(layer, {})[_FACTORS[suffix]] = tensor
    halves = sorted(layer for layer, factors in found.items() if len(factors) != 2)
    if halves or not found:
        raise InputError(f"{adapter} is damaged: {halves[0] if halves else 'it'} lacks a factor.")
    return {layer: (factors["a"], factors["b"]) for layer, factors in found.items()}


def _check_copies(model: Any, copies: Mapping[str, Tensor]) -> None:
    for name, tensor in copies.items():
        layer = name.removeprefix(PREFIX).removesuffix(".weight").removesuffix(".base_layer")
        weight = model.get_submodule(layer).weight if _has(model, layer) else torch.empty(0)
        if weight.shape != tensor.shape or not torch.equal(weight.float().cpu(), tensor.float()):
            raise InputError(
                f"The adapter brings a {layer} that is not the base model's: it was trained on "
                "another base, or the embeddings were resized. That cannot be merged here."
            )


def _untie(model: Any, factors: Mapping[str, object]) -> bool:
    """Give the unembedding weights of its own, if it shares the embedding's and is changed."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    changed = any(model.get_submodule(name) is head for name in factors if _has(model, name))
    if not changed or head.weight is not embedding.weight:
        return False
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    return True


def _has(model: Any, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


@torch.no_grad()
def _merge_one(model: Any, name: str, a: Tensor, b: Tensor, config: Mapping[str, Any]) -> None:
    """Add one LoRA, of a linear layer or of a parameter, to the model's weights."""
    parameter, transposed = _target(model, name, config)
    weight: Tensor | None = model.get_parameter(parameter) if parameter else None
    if weight is not None and weight.ndim == 3 and not a.shape[0] % len(weight):  # experts
        a = a.view(len(weight), -1, a.shape[1])
        b = b.view(b.shape[0], -1, len(weight)).permute(2, 0, 1)
    change = _scale(config, (parameter or name).removesuffix(".weight")) * (b @ a)
    change = change.mT if transposed else change
    if weight is None or weight.shape != change.shape:
        raise InputError(
            f"The adapter does not fit this base model: {name} is "
            f"{'not there' if weight is None else tuple(weight.shape)}, the adapter's change is "
            f"{tuple(change.shape)}. Name the base that it was trained on."
        )
    weight.copy_((weight.float() + change.to(weight.device)).to(weight.dtype))


def _target(model: Any, name: str, config: Mapping[str, Any]) -> tuple[str | None, bool]:
    """Find the parameter that a LoRA is of, and whether it lies as [in, out].

    PEFT wraps a module once for each of its parameters that are targets; how many wrappers are
    around says which it is, the last parameter being outermost.
    """
    module_name = name
    while module_name.endswith(WRAPPED):
        module_name = module_name.removesuffix(WRAPPED)
    if not _has(model, module_name):
        return None, False
    module = model.get_submodule(module_name)
    inside = (len(name) - len(module_name)) // len(WRAPPED)
    own = [f"{module_name}.{leaf}" for leaf, _ in module.named_parameters(recurse=False)]
    targets = [f".{target}" for target in config.get("target_parameters") or ()]
    wrapped = [one for one in own if any(f".{one}".endswith(target) for target in targets)]
    if wrapped:
        found = wrapped[::-1][inside] if inside < len(wrapped) else None
        return found, bool(getattr(module, "is_transposed", False))
    weight = f"{module_name}.weight"
    return (weight if weight in own and not inside else None), False


def _scale(config: Mapping[str, Any], name: str) -> float:
    """Compute alpha / r as PEFT does: the first pattern that fits the name wins."""
    values = []
    for patterns, default in (("alpha_pattern", "lora_alpha"), ("rank_pattern", "r")):
        found = (config.get(patterns) or {}).items()
        fitting = (v for k, v in found if re.match(rf"(.*\.)?({k})$", name))
        values.append(float(next(fitting, config[default])))
    return values[0] / values[1]
