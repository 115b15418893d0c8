"""Which weights a base model has: equal revisions, equal weights.

Owns the hash. It covers the shape of every parameter, and some thousand of its numbers: whoever
trains or converts a model changes those, and reading all of a large one would take a minute.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tinkex.engine.models.loader import BaseModel

_SAMPLED = 4096


@torch.no_grad()
def weights_revision(base: BaseModel) -> str:
    """Hash a model's parameters, before an engine takes them over: 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, parameter in base.model.named_parameters():
        flat = parameter.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // _SAMPLED)].to("cpu", torch.float32)
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} ".encode())
        digest.update(some.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
