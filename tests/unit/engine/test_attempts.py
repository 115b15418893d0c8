"""Computations that fail by themselves, and the memory that they held."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from tinkex.engine.attempts import attempt, computing, must
from tinkex.errors import EngineError, InputError


def fail_with(error):
    def work():
        raise error

    return work


def test_result_passes_through():
    assert attempt("adding", lambda: 1 + 1) == 2
    assert must("adding", lambda: 1 + 1) == 2


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("kernel\nlong trace"), "adding failed: kernel"),
        (MemoryError(), "adding failed: MemoryError; send less at once"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "send less at once"),
        (RuntimeError("std::bad_alloc"), "send less at once"),
    ],
)
def test_failure_of_the_computation_is_told(error, text):
    found = attempt("adding", fail_with(error))
    assert isinstance(found, EngineError)
    assert text in str(found)
    assert "trace" not in str(found)
    with pytest.raises(EngineError, match="adding failed"):
        must("adding", fail_with(error))


@pytest.mark.parametrize("error", [InputError("bad"), EngineError("full"), KeyError("bug")])
def test_refusals_and_bugs_pass_through(error):
    with pytest.raises(type(error)):
        attempt("adding", fail_with(error))


def test_allocation_that_is_absurd_is_no_memory():
    found = attempt("making", lambda: torch.empty(2**55))
    assert "send less at once" in str(found)


def test_error_keeps_nothing_of_what_the_computation_held():
    class Large:
        pass

    seen = []

    def work():
        held = Large()
        seen.append(weakref.ref(held))
        raise RuntimeError("no")

    gc.disable()
    try:
        error = attempt("adding", work)
        assert seen[0]() is None
    finally:
        gc.enable()
    assert error.__cause__ is None
    assert error.__context__ is None


def test_methods_say_what_failed():
    class Engine:
        @computing("sleeping")
        def sleep(self, hours):
            """Rest."""
            raise RuntimeError(f"{hours} hours are too long")

    with pytest.raises(EngineError, match="sleeping failed: 9 hours"):
        Engine().sleep(9)
    assert Engine.sleep.__doc__ == "Rest."
