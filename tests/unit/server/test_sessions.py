"""Sessions: alive while heard from, ended once, private."""

import pytest

from tinkex.errors import APIStatusError
from tinkex.server.sessions import SessionEnd, SessionRegistry

ALICE, BOB = "key-alice", "key-bob"


@pytest.fixture
def ended():
    return []


@pytest.fixture
def registry(clock, timers, ended):
    return SessionRegistry(
        clock,
        timers,
        ttl_s=150,
        max_sessions=3,
        on_end=lambda session, how: ended.append((session.session_id, how)),
    )


async def test_session_id_carries_128_random_bits(registry):
    ids = {registry.create(ALICE, key_id="k").session_id for _ in range(3)}
    assert len(ids) == 3
    assert all(len(bytes.fromhex(session_id.removeprefix("sess-"))) == 16 for session_id in ids)


async def test_silent_session_ends_after_its_time(registry, ended, advance):
    session = registry.create(ALICE, key_id="k")
    await advance(149)
    assert ended == []
    await advance(2)
    assert ended == [(session.session_id, SessionEnd.EXPIRED)]
    assert len(registry) == 0


async def test_heartbeats_keep_a_session_alive(registry, ended, advance):
    session = registry.create(ALICE, key_id="k")
    for _ in range(100):
        await advance(10)
        registry.heartbeat(ALICE, session.session_id)
    assert ended == []
    await advance(151)
    assert len(ended) == 1


async def test_server_that_was_stopped_itself_hears_its_clients_before_it_ends_them(
    registry, ended, advance
):
    """A process that was paused, or whose machine was: the signs of life wait to be read."""
    heard = registry.create(ALICE, key_id="k")
    silent = registry.create(ALICE, key_id="k")
    await advance(600)
    assert ended == []
    await advance(100)
    registry.heartbeat(ALICE, heard.session_id)
    await advance(51)
    assert ended == [(silent.session_id, SessionEnd.EXPIRED)]


async def test_any_request_counts_as_a_sign_of_life(registry, ended, advance):
    session = registry.create(ALICE, key_id="k")
    await advance(100)
    registry.touch_id(session.session_id)
    await advance(100)
    assert ended == []


async def test_finished_session_ends_once(registry, ended, advance):
    session = registry.create(ALICE, key_id="k")
    registry.finish(ALICE, session.session_id, reason="success", detail="done")
    with pytest.raises(APIStatusError) as caught:
        registry.finish(ALICE, session.session_id, reason="success", detail=None)
    assert caught.value.status_code == 404
    await advance(1000)
    assert ended == [(session.session_id, SessionEnd.FINISHED)]


async def test_heartbeat_of_an_ended_session_is_gone(registry):
    session = registry.create(ALICE, key_id="k")
    registry.finish(ALICE, session.session_id, reason="success", detail=None)
    for session_id in (session.session_id, "sess-unknown"):
        with pytest.raises(APIStatusError) as caught:
            registry.heartbeat(ALICE, session_id)
        assert caught.value.status_code == 410


async def test_anothers_session_looks_like_none(registry):
    session = registry.create(ALICE, key_id="k")
    for call in (registry.get, registry.heartbeat):
        with pytest.raises(APIStatusError):
            call(BOB, session.session_id)
    with pytest.raises(APIStatusError):
        registry.finish(BOB, session.session_id, reason="success", detail=None)
    assert registry.get(ALICE, session.session_id) is session


async def test_anothers_request_does_not_keep_a_session_alive(registry, ended, advance):
    session = registry.create(ALICE, key_id="k")
    await advance(100)
    with pytest.raises(APIStatusError):
        registry.get(BOB, session.session_id)
    await advance(60)
    assert len(ended) == 1


async def test_too_many_sessions_are_refused_for_now(registry):
    for _ in range(3):
        registry.create(ALICE, key_id="k")
    with pytest.raises(APIStatusError) as caught:
        registry.create(BOB, key_id="k")
    assert caught.value.status_code == 429
