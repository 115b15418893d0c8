"""What is inside an adapter's files: safetensors whose header is sound, and JSON objects.

Owns the checks before anything else reads such a file. Knows no model; whether the layers fit one
is the engine's to say.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from tinkex.errors import DamagedDataError

_LARGEST_HEADER = 16 * 2**20
_BYTES_OF = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of a number, by dtype: what adapters have."""


def check_contents(folder: Path) -> None:
    """Check every file of an adapter.

    Raises:
        DamagedDataError: one is not what its name says.
    """
    for name in ("adapter_config.json", "tinkex.json"):
        if not isinstance(_json((folder / name).read_bytes(), name), dict):
            raise DamagedDataError(f"the adapter's {name} is no JSON object")
    _check_safetensors(folder / "adapter_model.safetensors")


def _check_safetensors(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
            raise DamagedDataError("the adapter's weights are no safetensors file")
        header = _json(file.read(length), path.name)
    if not isinstance(header, dict):
        raise DamagedDataError("the adapter's weights have no safetensors header")
    header.pop("__metadata__", None)
    spans = sorted(_span(entry) for entry in header.values())
    at = 0
    for first, last in spans:
        if first != at:
            raise DamagedDataError("the tensors of the adapter's weights overlap, or leave a hole")
        at = last
    if not spans or at != size - 8 - length:
        raise DamagedDataError("the adapter's weights are longer or shorter than their header says")


def _span(entry: Any) -> tuple[int, int]:
    """Return where a tensor lies, if it is described as one."""
    try:
        dtype, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
        natural = all(type(one) is int and one >= 0 for one in (*shape, first, last))
        fits = natural and last - first == math.prod(shape) * _BYTES_OF[dtype]
    except (KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        raise DamagedDataError(
            "a tensor of the adapter's weights is not described as one of real numbers"
        )
    return first, last


def _json(data: bytes, name: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedDataError(f"the adapter's {name} has no readable JSON") from error
