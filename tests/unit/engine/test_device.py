"""What `auto` stands for."""

from __future__ import annotations

import pytest
import torch

from tinkex.engine.device import memory_bytes, resolve_device, resolve_dtype
from tinkex.errors import ConfigurationError


def test_auto_device_is_the_fastest_at_hand():
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == "cpu"


def test_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigurationError, match="cannot be used here"):
        resolve_device("no_such_device")


@pytest.mark.parametrize(
    ("dtype", "device", "found"),
    [("auto", "cpu", "float32"), ("auto", "cuda", "bfloat16"), ("float16", "cuda", "float16")],
)
def test_auto_dtype_suits_the_device(dtype, device, found):
    assert resolve_dtype(dtype, device) == found


def test_unknown_dtype_is_refused():
    with pytest.raises(ConfigurationError, match="int4"):
        resolve_dtype("int4", "cpu")


def test_memory_is_the_machines_or_what_a_container_may_have(tmp_path):
    cpu = torch.device("cpu")
    machine = memory_bytes(cpu, ())
    assert machine > 2**28
    limit = tmp_path / "memory.max"
    for text, expected in (("max\n", machine), ("1048576\n", 2**20), (f"{2**62}\n", machine)):
        limit.write_text(text)
        assert memory_bytes(cpu, (tmp_path / "none", limit)) == expected
