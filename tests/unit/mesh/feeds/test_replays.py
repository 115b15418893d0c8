"""Feeds: what was heard before and is heard again changes nothing."""

from mesh_attacks.feeds import (
    AUTHOR,
    Classes,
    LyingPeers,
    following,
    head,
    opening,
    snapshot,
    victim,
)

from tinkex.mesh.api.feeds import Entries
from tinkex.mesh.feeds.config import ReplicationConfig
from tinkex.mesh.feeds.pulling import Puller
from tinkex.mesh.roles import Role
from tinkex.mesh.transport.base import Contact
from tinkex.testing import VirtualClock


async def test_replayed_heads_take_nothing_back(tmp_path):
    first = opening()
    old, new = following(first), following(following(first))
    async with victim(tmp_path, Classes()) as held:
        await held.ingest([each.encoded() for each in (first, old, new)])
        puller = Puller(
            Contact(AUTHOR.key_pair.peer_id),
            LyingPeers([head(first), head(old)], []),
            held,
            Role.AUTH,
            clock=VirtualClock(),
            config=ReplicationConfig(),
            ingest=lambda _, chain, run: held.ingest(run),
            vault=None,
        )
        await puller.round()
        assert puller.behind == 0
        assert (await held.head(first.chain)).sequence == 2
        assert held.forks() == []


async def test_replayed_entries_and_snapshots_change_nothing(tmp_path):
    made = snapshot()
    async with victim(tmp_path, Classes()) as held:
        assert await held.adopt(made)
        assert not await held.adopt(made)
        first = opening()
        assert await held.ingest([first.encoded()]) == []


async def test_source_that_promises_entries_that_it_does_not_give_is_asked_ever_more_rarely(
    tmp_path,
):
    first = opening()
    async with victim(tmp_path, Classes()) as held:
        clock = VirtualClock()
        asked = []
        peers = LyingPeers([head(following(first))], [])

        async def stream(*args, **options):
            asked.append(clock.monotonic())
            yield Entries(())

        peers.stream = stream
        puller = Puller(
            Contact(AUTHOR.key_pair.peer_id),
            peers,
            held,
            Role.AUTH,
            clock=clock,
            config=ReplicationConfig(),
            ingest=lambda _, chain, run: held.ingest(run),
            vault=None,
        )
        for _ in range(60):
            await puller.round()
            clock.advance(1)
        assert puller.behind == 1
        assert 3 <= len(asked) <= 60
