"""Memory that really runs out, in a process of its own: who asked too much fails, none else."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
import short_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS and /proc")


@pytest.fixture
def process():
    """One for each test: what an earlier one left in the heap would be room for the next."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["short_memory"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        yield pool


both_ways = pytest.mark.parametrize(
    "through_jobs", [True, pytest.param(False, marks=pytest.mark.soak)]
)
"""Through the server's jobs, and the engine by itself."""
SMALL = {"a": 1, "c": 2, "d": 1}


@both_ways
def test_batch_too_large_for_memory_fails_alone(process, through_jobs):
    sizes = {"a": 1, "b": 300, "c": 2, "d": 1}
    found = process.submit(short_memory.joint_training, sizes, 150, through_jobs).result(300)
    error, untouched, right = found.pop("b")
    assert error.startswith("server: training computation failed")
    assert "send less at once" in error
    assert untouched
    assert right
    assert found == dict.fromkeys("acd", (None, False, True))


@both_ways
def test_batches_too_large_together_are_run_one_by_one(process, through_jobs):
    sizes = dict.fromkeys("abcd", 40)  # 110 MiB each
    found = process.submit(short_memory.joint_training, sizes, 260, through_jobs).result(300)
    assert found == dict.fromkeys("abcd", (None, False, True))


@both_ways
def test_sample_too_large_for_memory_fails_alone(process, through_jobs):
    samples = {"s": 2, "big": 1000, "t": 3, "u": 1}
    found = process.submit(short_memory.joint_sampling, samples, 150, through_jobs).result(300)
    error = found.pop("big")
    assert error.startswith("server: sampling computation failed")
    assert "send less at once" in error
    assert found == dict.fromkeys("stu", True)


@both_ways
def test_samples_too_large_together_are_computed_in_parts(process, through_jobs):
    # 23 MiB each, 440 together; libraries keep what the first attempt had them take.
    samples = {f"job {n}": 20 for n in range(40)}
    found = process.submit(short_memory.joint_sampling, samples, 300, through_jobs).result(300)
    assert found == dict.fromkeys(samples, True)
