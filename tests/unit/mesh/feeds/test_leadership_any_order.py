"""Crashes, deaths and returns of auth workers in any order: what was committed counts."""

import random

import pytest
from mesh_leadership import Party

from tinkex.errors import NoQuorumError


async def live(folder, seed, steps):
    rng = random.Random(seed)
    async with Party(folder) as party:
        await party.begin()
        committed, tried = [], 0
        for _ in range(steps):
            action = rng.choice(["commit", "commit", "commit", "crash", "revive", "time"])
            if action == "commit" and party.nodes:
                node = rng.choice(party.leaders() or party.nodes)
                tried += 1
                text = f"{seed}.{tried}"
                leadership = party.leaderships[node.peer_id]
                error = await party.while_time_passes(
                    caught_or_none(leadership.commit(text.encode()))
                )
                if error is None:
                    committed.append(text)
                else:
                    assert isinstance(error, NoQuorumError), error
            elif action == "crash" and party.nodes:
                await party.stop(rng.choice(party.nodes))
            elif action == "revive":
                await revive_one(party, rng)
            else:
                await party.pass_time(rng.random() * 6)
            assert len(party.leaders()) <= 1, seed
        while await revive_one(party, rng):
            pass
        _, leadership = await party.elected(seconds=40)
        await party.while_time_passes(leadership.commit(b"last"))
        committed.append("last")
        await party.pass_time(6)
        histories = [await party.history(node) for node in party.nodes]
        assert histories[0] == histories[1] == histories[2], seed
        assert [text for text in histories[0] if text in committed] == committed, seed
        assert all(node.store.forks() == [] for node in party.nodes)


async def caught_or_none(awaitable):
    try:
        await awaitable
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return error
    return None


async def revive_one(party, rng):
    alive = {node.peer_id for node in party.nodes}
    dead = [peer_id for peer_id in party.members if peer_id not in alive]
    if not dead:
        return False
    await party.revive(rng.choice(dead))
    return True


async def test_committed_entries_count_after_crashes_in_any_order(tmp_path):
    seed = random.SystemRandom().randrange(1 << 32)
    await live(tmp_path, seed, steps=20)


@pytest.mark.parametrize("seed", [33, 52, 98])
async def test_who_returns_counts_what_a_leader_wrote_whose_term_it_hears_of_later(tmp_path, seed):
    await live(tmp_path, seed, steps=40)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(250))
async def test_committed_entries_count_after_crashes_in_any_order_long(tmp_path, seed):
    await live(tmp_path, seed, steps=40)
