"""The whole state of an adapter in training, on disk and back, bit for bit.

    state.safetensors   weights, gradient not yet applied, the optimiser's moments: flat buffers
    state.json          manifest: format, adapter, optimiser, layers, sha256, numerics

Owns the files' form and their integrity. Unlike a checkpoint this is for the same server only, and
the gradient is part of it: a run that is restored goes on as if nothing had been.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinkex.engine.adapters.adapter import Adapter
from tinkex.engine.files.tensor_files import DamagedFileError, load_tensors, save_tensors, sync
from tinkex.engine.lora.weights import lora_weights
from tinkex.engine.training.optimizers import find_optimizer
from tinkex.errors import DamagedDataError, EngineError
from tinkex.types import LoraConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch
    from torch import Tensor

    from tinkex.engine.lora.weights import LoraShape

FORMAT_VERSION = 1
TENSORS = "state.safetensors"
MANIFEST = "state.json"


@dataclass(frozen=True, slots=True)
class RunState:
    """A copy of an adapter's state; nothing of it changes with the adapter."""

    tensors: Mapping[str, Tensor]
    """By name, flat float32 buffers [P] on the CPU."""
    description: Mapping[str, Any]
    """What the tensors are, for the manifest."""


def copy_state(adapter: Adapter, *, base_model: str, numerics: Mapping[str, str]) -> RunState:
    """Copy the state of an adapter. Quick: nothing is written yet."""
    weights, optimizer = adapter.weights, adapter.optimizer
    return RunState(
        {name: _copied(tensor) for name, tensor in adapter.tensors().items()},
        {
            "format_version": FORMAT_VERSION,
            "base_model": base_model,
            "lora_config": adapter.lora.model_dump(),
            "scale": weights.scale,
            "optimizer": adapter.optimizer_type,
            "step": None if optimizer is None else optimizer.step,
            "layers": _layers(weights.shapes, weights.rank),
            "numerics": dict(numerics),
        },
    )


def write_state(directory: Path, state: RunState) -> None:
    """Write a state so that `directory` is there whole or not at all, and lasts.

    Safe in any thread.

    Raises:
        OSError: the disk refused; nothing is left.
    """
    directory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = directory.with_name(f".{directory.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(mode=0o700)
        sha256 = save_tensors(beside / TENSORS, state.tensors)
        _write_private(beside / MANIFEST, json.dumps({**state.description, "sha256": sha256}))
        for name in (TENSORS, MANIFEST):
            sync(beside / name)
        sync(beside)
        shutil.rmtree(directory, ignore_errors=True)
        beside.rename(directory)
        sync(directory.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def read_lora(directory: Path, base_model: str) -> tuple[LoraConfig, str]:
    """Read which adapter a state is of: (its configuration, its optimiser's name).

    Raises:
        DamagedDataError: the state is damaged or not there.
        EngineError: it is of another base model.
    """
    found = _manifest(directory, base_model)
    return LoraConfig(**found["lora_config"]), found["optimizer"]


def read_state(
    directory: Path, shapes: tuple[LoraShape, ...], *, base_model: str, device: torch.device
) -> Adapter:
    """Make the adapter of a state again.

    Args:
        directory: where it lies.
        shapes: of the layers that such an adapter covers on the present base model.
        base_model: its name.
        device: where the adapter is to be.

    Raises:
        DamagedDataError: the state is damaged or not there.
        EngineError: it does not fit the base model.
    """
    found = _manifest(directory, base_model)
    lora = LoraConfig(**found["lora_config"])
    if found["layers"] != _layers(shapes, lora.rank):
        raise EngineError(
            f"state {directory.name} covers other layers than base {base_model!r} has"
        )
    try:
        read = load_tensors(directory / TENSORS, found["sha256"])
    except (DamagedFileError, OSError) as error:
        raise DamagedDataError(f"state {directory.name} is damaged: {error}") from error
    # Copied: what comes from a file may be ill-aligned, which would change the bits of products.
    tensors = {name: tensor.to(device, copy=True) for name, tensor in read.items()}
    weights = lora_weights(tensors["weights"], shapes, lora.rank, found["scale"], trainable=True)
    adapter = Adapter(lora, weights, found["optimizer"])
    adapter.gradient = tensors.get("gradient")
    if found["step"] is not None:
        optimizer = find_optimizer(adapter.optimizer_type)
        moments = [tensors[moment] for moment in optimizer.moments]
        adapter.optimizer = optimizer.state(*moments, found["step"])
    return adapter


def _manifest(directory: Path, base_model: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        version, trained_on = found["format_version"], found["base_model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedDataError(f"state {directory.name} is damaged or missing: {error}") from error
    if version != FORMAT_VERSION:
        raise EngineError(f"state {directory.name} has format {version}, not {FORMAT_VERSION}")
    if trained_on != base_model:
        raise EngineError(f"state {directory.name} is of base {trained_on!r}, not {base_model!r}")
    return found


def _layers(shapes: tuple[LoraShape, ...], rank: int) -> list[list[Any]]:
    return [[one.name, *(list(sizes) for sizes in one.factor_shapes(rank))] for one in shapes]


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text + "\n")
