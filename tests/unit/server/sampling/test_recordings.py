"""Recorded sequences: kept a day after their last use, a session's own, bounded for each owner."""

import numpy as np
import pytest

from tinkex.server.sampling.recordings import OVERHEAD_BYTES, Recordings
from tinkex.types import ModelInput, SampledSequence, SampleResponse

DAY = 86_400.0
ONE = 2 * OVERHEAD_BYTES + 3 * 4 + 2 * 8
"""Bytes of one request of a prompt of 3 tokens with a sample of 2."""


def response(*names):
    return SampleResponse(
        [
            SampledSequence(
                stop_reason="length",
                sequence_id=name,
                tokens_np=np.array([7, 8], np.int32),
                logprobs_np=np.array([-0.5, -1.5], np.float32),
            )
            for name in names
        ]
    )


@pytest.fixture
def recordings(clock, timers):
    return Recordings(clock, timers, ttl_s=DAY, max_bytes=3 * ONE)


def add(recordings, *names, owner="alice", session="s1"):
    recordings.add(
        f"req-{names}", owner, session, ModelInput.from_ints([1, 2, 3]), response(*names)
    )


async def test_what_was_sampled_is_found_by_its_id(recordings):
    add(recordings, "a", "b")
    found = recordings.find("s1", "b")
    assert found.prompt.tolist() == [1, 2, 3]
    assert found.tokens.tolist() == [7, 8]
    assert found.logprobs.tolist() == [-0.5, -1.5]
    assert recordings.find("s1", "c") is None


async def test_another_session_finds_nothing(recordings):
    add(recordings, "a")
    assert recordings.find("s2", "a") is None


async def test_recording_is_freed_a_day_after_its_last_use(recordings, advance):
    add(recordings, "used")
    add(recordings, "unused")
    await advance(DAY - 1)
    assert recordings.find("s1", "used") is not None
    await advance(2)
    assert len(recordings) == 1
    assert recordings.find("s1", "unused") is None
    await advance(DAY - 3)
    assert len(recordings) == 1
    await advance(2)
    assert len(recordings) == 0
    assert recordings.used_bytes("alice") == 0


async def test_full_owner_loses_what_was_used_least_recently_and_nobody_else_anything(recordings):
    add(recordings, "x", owner="bob", session="s9")
    for name in ("a", "b", "c"):
        add(recordings, name)
    assert recordings.used_bytes("alice") == 3 * ONE
    recordings.find("s1", "a")
    add(recordings, "d")
    assert recordings.find("s1", "b") is None
    assert all(recordings.find("s1", name) for name in ("a", "c", "d"))
    assert recordings.find("s9", "x") is not None


async def test_request_larger_than_the_room_is_not_kept(recordings):
    add(recordings, *(f"n{i}" for i in range(9)))
    assert len(recordings) == 0
    assert recordings.used_bytes("alice") == 0


async def test_end_of_a_session_forgets_its_sequences_alone(recordings, advance):
    add(recordings, "a")
    add(recordings, "b", session="s2")
    recordings.end_session("s1")
    assert recordings.find("s1", "a") is None
    assert recordings.find("s2", "b") is not None
    assert recordings.used_bytes("alice") == ONE


async def test_recording_keeps_no_array_of_the_reply(recordings):
    reply = response("a")
    recordings.add("req-1", "alice", "s1", ModelInput.from_ints([1]), reply)
    reply.sequences[0].logprobs_np[0] = 99.0
    assert recordings.find("s1", "a").logprobs.tolist() == [-0.5, -1.5]


class Keeper:
    """Keeps what it is told, as the journal does."""

    def __init__(self):
        self.rows = {}

    def record(self, request_id, *, session_id, owner, write):
        self.rows[request_id] = (owner, session_id, write())

    def drop_recording(self, request_id):
        self.rows.pop(request_id, None)


async def test_another_process_takes_recordings_back_bit_for_bit(recordings, clock, timers):
    recordings.keeper = Keeper()
    add(recordings, "a", "b")
    again = Recordings(clock, timers, ttl_s=DAY, max_bytes=3 * ONE)
    for request_id, row in recordings.keeper.rows.items():
        again.restore(request_id, *row)
    for name in ("a", "b"):
        was, found = recordings.find("s1", name), again.find("s1", name)
        for part in ("prompt", "tokens", "logprobs"):
            assert getattr(found, part).tobytes() == getattr(was, part).tobytes()
            assert getattr(found, part).dtype == getattr(was, part).dtype
    assert again.used_bytes("alice") == recordings.used_bytes("alice")


async def test_what_is_dropped_for_room_is_erased_too(recordings):
    recordings.keeper = Keeper()
    for name in ("a", "b", "c", "d"):
        add(recordings, name)
    assert len(recordings.keeper.rows) == len(recordings) == 3
    recordings.end_session("s1")
    assert recordings.keeper.rows == {}


async def test_bytes_that_are_no_recording_are_refused(recordings):
    with pytest.raises(ValueError, match=r".+"):
        recordings.restore("req-1", "alice", "s1", b"no archive")
