"""Which device and number format `auto` stands for on this machine, and how much memory it has."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tinkex.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

DTYPES = ("float32", "bfloat16", "float16")


def resolve_device(device: str) -> str:
    """Return a torch device: the given one, or for `auto` the fastest at hand.

    Raises:
        ConfigurationError: for a device that this machine, or this build of torch, does not have.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"device {device!r} cannot be used here: {error}") from error
    return device


def resolve_dtype(dtype: str, device: str) -> str:
    """Return a number format's name: the given one, or for `auto` what suits the device.

    On a CPU float32 is exact and hardly slower; elsewhere bfloat16 halves memory and time.

    Raises:
        ConfigurationError: for a format that is not supported.
    """
    if dtype == "auto":
        return "float32" if device == "cpu" else "bfloat16"
    if dtype not in DTYPES:
        raise ConfigurationError(f"dtype {dtype!r} is none of auto, {', '.join(DTYPES)}")
    return dtype


_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Where a container's bound on memory is, by version of cgroups."""


def memory_bytes(
    device: torch.device, cgroup_limits: Sequence[Path] = _CGROUP_LIMITS
) -> int | None:
    """Give the size of a device's memory, or what a container may have of it.

    Args:
        device: a CPU is the machine's own memory.
        cgroup_limits: files that may say what this process's container may have.

    Returns:
        Bytes; None where the system does not say.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        least = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    for path in cgroup_limits:
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            least = min(least, int(path.read_text()))
    return least
