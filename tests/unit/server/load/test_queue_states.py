"""Why accepted work waits, as clients are told."""

from types import SimpleNamespace

import pytest

from tinkex.server.futures import Operation
from tinkex.server.load.queue_states import queue_state


def rig(*, waiting=(), held=False, limit=None):
    """A server with one run "m": jobs or lanes that wait for memory, and whether 3 is missing."""
    jobs = SimpleNamespace(
        lane_waits=lambda name: name in waiting, sample_waits=lambda job_id: job_id in waiting
    )
    base = SimpleNamespace(jobs=jobs)
    run = SimpleNamespace(base=base, model_id="m", next_seq_id=3, holds=lambda _future: held)
    return SimpleNamespace(
        bases=[base],
        runs=SimpleNamespace(find=lambda _owner, name: run if name == "m" else None),
        gate=SimpleNamespace(limit_that_holds=lambda _key: limit),
    )


def future(operation=Operation.OPTIM_STEP, source_id="m"):
    source = SimpleNamespace(source_id=source_id, key_id="key-1")
    return SimpleNamespace(
        operation=operation,
        request_id="req-1",
        owner="someone",
        work=SimpleNamespace(source=source),
    )


@pytest.mark.parametrize("operation", [Operation.OPTIM_STEP, Operation.SAMPLE])
def test_work_in_its_turn_is_active_without_a_reason(operation):
    assert queue_state(rig(), future(operation)) == ("active", None)


def test_sample_without_memory_is_paused_for_capacity():
    state, why = queue_state(rig(waiting={"req-1"}), future(Operation.SAMPLE))
    assert state == "paused_capacity"
    assert "memory for adapters is in use" in why


def test_run_without_memory_is_paused_for_capacity_whatever_else_holds():
    state, why = queue_state(rig(waiting={"m"}, held=True, limit="6 requests a minute"), future())
    assert state == "paused_capacity"
    assert "this run goes on when" in why


def test_request_behind_one_that_was_refused_is_paused_for_the_limit():
    state, why = queue_state(rig(held=True, limit="6 requests a minute"), future())
    assert state == "paused_rate_limit"
    assert "seq_id 3" in why
    assert "6 requests a minute" in why


def test_request_behind_one_that_has_not_come_says_so():
    state, why = queue_state(rig(held=True), future())
    assert state == "active"
    assert "seq_id 3" in why


def test_work_of_a_run_that_is_gone_or_of_none_is_active():
    assert queue_state(rig(held=True), future(source_id="other")) == ("active", None)
    alone = future()
    alone.work = None
    assert queue_state(rig(held=True), alone) == ("active", None)
