"""Base models from a folder, a hub id, or the package itself.

Owns what is accepted: safetensors only, no code from the model's repository unless asked for. What
the engine can drive is checked in `support`; how the modules are used is `models.runner`'s.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Mxfp4Config,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_files

from tinkex.engine.matrices.layout import loads_as_stored
from tinkex.engine.models.support import TESTED, check_supported, context_length
from tinkex.engine.models.tokenizer import TextDecoder, load_decoder
from tinkex.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tinkex.engine.config import EngineConfig

SPROUT = "tinkex/sprout"
"""The base model that ships with the package."""

_ASSETS = Path(__file__).parent.parent / "assets"
_DEFAULT_CONTEXT = 2048
_HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}
"""Narrow dtypes by their names in safetensors."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")
_LOAD_ERRORS = (
    OSError,
    ValueError,
    ImportError,
    LookupError,
    TypeError,
    RuntimeError,
    EOFError,
    SafetensorError,
    StrictDataclassError,
    UnpicklingError,
)
"""What transformers raises of a model that it cannot read, by what is wrong with it."""


@dataclass(frozen=True)
class BaseModel:
    """A loaded base model and what the rest needs to know of it."""

    name: str
    """What clients call it."""
    model: Any
    """The transformers module, frozen, in evaluation mode."""
    tokenizer_id: str
    """Folder or hub id where its tokenizer lies."""
    vocab_size: int
    """Rows of the unembedding; token ids are below it."""
    hidden_size: int
    """Width of the residual stream."""
    max_context_length: int
    architecture: str
    """Class name of the transformers model."""
    eos_token_ids: tuple[int, ...]
    """Tokens that end a sequence when a request names no stop."""
    parameter_count: int
    """Parameters, tied ones counted once."""
    trust_remote_code: bool = False
    """Whether its tokenizer, too, may run code of its repository."""

    @cached_property
    def tokenizer(self) -> TextDecoder | None:
        """The tokenizer, loaded on first use; None where the model has none."""
        return load_decoder(self.tokenizer_id, trust_remote_code=self.trust_remote_code)


def load_base_model(
    source: str,
    *,
    name: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    as_stored: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> BaseModel:
    """Load a causal language model.

    Args:
        source: A folder in Hugging Face's layout, a hub id, or `tinkex/sprout`.
        name: What clients call it; `source` when absent.
        device: Torch device.
        dtype: Of the weights; `auto` is that of the files, which are then not copied, for models
            whose constants are float32 all the same, and float32 where the files have several.
        as_stored: Take `auto` for `dtype` where the engine lays the weights out anew
            (`layout.loads_as_stored`), which saves a copy of all of them. Not of a family that is
            compared with transformers here (`support.TESTED`), which is done in `dtype`.
        trust_remote_code: Let the model's repository run its own code here.
        allow_pickle: Take pickled weights where there is no safetensors file.

    Raises:
        ConfigurationError: nothing there, weights as pickle only, weights that are damaged or not
            all there, code of its own, or an architecture that the engine cannot drive.
    """
    location = str(_ASSETS / "sprout") if source == SPROUT else source
    _check_folder(source, location, allow_pickle=allow_pickle)
    transformers_logging.disable_progress_bar()

    def load(weights: torch.dtype) -> Any:
        expansion = _dequantized(source, config)
        model, report = _auto_class(config).from_pretrained(
            location,
            config=config,
            dtype=weights,
            use_safetensors=None if allow_pickle else True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by their names
            **expansion,
        )
        _check_complete(source, report)
        if expansion:  # or `save_pretrained` gives what was expanded the names of what was stored
            model._weight_conversions = None  # noqa: SLF001 - transformers has no other way
        return model

    try:
        config = AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code)
        if as_stored and config.model_type in TESTED:
            dtype = "auto"
        wanted = _stored_dtype(location) if dtype == "auto" else getattr(torch, dtype)
        model = load(wanted)
        if dtype == "auto" and wanted != torch.float32 and _has_short_buffers(model):
            model = load(torch.float32)
    except ConfigurationError:
        raise
    except _LOAD_ERRORS as error:
        raise ConfigurationError(_explain(source, error)) from error
    return wrap_model(
        model.to(device),
        name=name or source,
        tokenizer_id=location,
        trust_remote_code=trust_remote_code,
    )


def load_for_engine(
    source: str,
    config: EngineConfig,
    *,
    name: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> BaseModel:
    """Load a causal language model for an engine of these settings, with few copies of weights.

    See `load_base_model`.
    """
    return load_base_model(
        source,
        name=name,
        device=config.device,
        # to be rounded as they are, without a float32 copy of all in between
        dtype=config.dtype if config.weight_dtype is None else "auto",
        as_stored=loads_as_stored(config),
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )


def wrap_model(
    model: Any, *, name: str, tokenizer_id: str = "", trust_remote_code: bool = False
) -> BaseModel:
    """Freeze a transformers causal LM and check that the engine can drive it.

    Args:
        model: the transformers module.
        name: what clients call it.
        tokenizer_id: folder or hub id where its tokenizer lies.
        trust_remote_code: whether that may run code of its repository.

    Raises:
        ConfigurationError: the engine cannot.
    """
    model.eval().requires_grad_(requires_grad=False)
    check_supported(model)
    vocab_size, hidden_size = model.get_output_embeddings().weight.shape
    return BaseModel(
        name=name,
        model=model,
        tokenizer_id=tokenizer_id,
        vocab_size=int(vocab_size),
        hidden_size=int(hidden_size),
        max_context_length=context_length(model.config) or _DEFAULT_CONTEXT,
        architecture=type(model).__name__,
        eos_token_ids=_eos_token_ids(model),
        parameter_count=sum(p.numel() for p in model.parameters()),
        trust_remote_code=trust_remote_code,
    )


def _stored_dtype(location: str) -> torch.dtype:
    """Give the dtype in which a model's files hold all of its weights; float32 where there is none.

    Looked up in the files: config.json may name another, to which transformers would round them.
    """

    def find(*names: str) -> list[str]:
        found = cached_files(location, [*names], _raise_exceptions_for_missing_entries=False)
        return found or []

    paths = find(SAFE_WEIGHTS_NAME)
    if not paths and (index := find(SAFE_WEIGHTS_INDEX_NAME)):
        shards = json.loads(Path(index[0]).read_text(encoding="utf-8"))["weight_map"].values()
        paths = find(*sorted({*shards}))  # of a hub, several at once
    found = set()
    for path in paths:  # none where they are pickled
        with safe_open(path, "pt") as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - no dict
    floating = {kind for kind in found if kind.startswith(("F", "BF"))}
    only = floating.pop() if len(floating) == 1 else ""
    return _HALVES.get(only, torch.float32)


def _has_short_buffers(model: Any) -> bool:
    """Whether constants that a model computes for itself took the dtype of its files."""
    return any(b.is_floating_point() and b.dtype != torch.float32 for b in model.buffers())


def _check_folder(source: str, location: str, *, allow_pickle: bool) -> None:
    """Refuse a local folder without safetensors by saying what it has instead."""
    folder = Path(location)
    if not folder.is_dir():
        if source.startswith(("/", ".", "~")):  # no hub id begins like this
            raise ConfigurationError(f"there is no folder {source}")
        return
    if not (folder / "config.json").is_file():
        raise ConfigurationError(f"{source} has no config.json; give a Hugging Face model folder")
    if (folder / "adapter_config.json").is_file():
        raise ConfigurationError(
            f"{source} holds an adapter (adapter_config.json) beside a model. Merge it into the "
            "model (`tinkex checkpoint merge`), or move its files elsewhere to serve the model "
            "without it"
        )
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
    if not pickles:
        raise ConfigurationError(f"{source} has no weights (*.safetensors)")
    if not allow_pickle:
        raise ConfigurationError(_pickle_refusal(source, ", ".join(pickles)))


def _check_complete(source: str, report: Mapping[str, Any]) -> None:
    """Refuse weights that the files lack: transformers fills those with random numbers."""
    missing = sorted(report["missing_keys"])
    if missing:
        raise ConfigurationError(
            f"{source} lacks {len(missing)} of the weights that its config.json asks for, "
            f"{missing[0]} among them: the files are not whole, or of another kind of model"
        )
    for name, stored, wanted in sorted(report["mismatched_keys"]):
        raise ConfigurationError(
            f"{source} has {name} of shape {list(stored)} where its config.json asks for "
            f"{list(wanted)}: the two are not of the same model"
        )


def _pickle_refusal(source: str, found: str) -> str:
    return (
        f"{source} has no *.safetensors file, only {found}. Pickled weights can run code and are "
        "refused: save the model again with save_pretrained, which writes safetensors, or start "
        f"with --allow-pickle {source}"
    )


def _auto_class(config: Any) -> Any:
    """Choose transformers' loader; models that also take images have one of their own."""
    kind = type(config)
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def _dequantized(source: str, config: Any) -> dict[str, Any]:
    """Choose how weights that are stored quantised are read: MXFP4 is expanded, exactly."""
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return {}
    method = stored.get("quant_method") if isinstance(stored, dict) else stored.quant_method
    if method != "mxfp4":
        raise ConfigurationError(
            f"{source} holds weights quantised by {method}, which tinkex does not train on; take "
            "the release that is not quantised (weight_dtype int8 quantises it here, on a CPU)"
        )
    return {"quantization_config": Mxfp4Config(dequantize=True)}


def _explain(source: str, error: Exception) -> str:
    text = str(error)
    if "trust_remote_code" in text:
        return (
            f"{source} needs code from its own repository, which is refused unless a flag names "
            f"the model: --trust-remote-code {source}"
        )
    if "use_safetensors" in text:
        return _pickle_refusal(source, "other formats")
    if isinstance(error, KeyError) and " " not in text:
        text = f"its config.json names {text}, which transformers does not know"
    reason = " ".join(line.strip() for line in text.splitlines() if line.strip())
    if isinstance(error, OSError) and not Path(source).is_dir():
        reason = f"there is no such folder here, and as an id of the Hugging Face Hub: {reason}"
    return f"cannot load the base model {source!r}: {reason[:500] or type(error).__name__}"


def _eos_token_ids(model: Any) -> tuple[int, ...]:
    """Collect the end tokens of the generation settings, else of the model's settings."""
    config = model.config
    for settings in (getattr(model, "generation_config", None), config, config.get_text_config()):
        ids = getattr(settings, "eos_token_id", None)
        if isinstance(ids, int):
            return (ids,)
        if ids:
            return tuple(int(i) for i in ids)
    return ()
