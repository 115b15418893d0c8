"""A small network's keys and certificates, and stores over them, for tests of feeds."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass

import msgspec

from tinkex.mesh.feeds.entry import Entry
from tinkex.mesh.feeds.store import FeedStore
from tinkex.mesh.identity import KeyPair, PeerId
from tinkex.mesh.roles import Role
from tinkex.mesh.trust.certificates import Chain, make_certificate, make_grant
from tinkex.testing import VirtualClock

START = VirtualClock().now()
YEAR_S = 365 * 86400.0


class KeyValues(ABC):
    """The state of a view: bytes by name, as the entries so far left them."""

    def __init__(self, data: bytes | None = None) -> None:
        self.values: dict[str, bytes] = {}
        if data is not None:
            self.values = msgspec.msgpack.decode(data, type=dict[str, bytes])

    @abstractmethod
    def fold(self, entry: Entry) -> None:
        """Let an entry change `values`. It must depend on the two alone."""

    def dump(self) -> bytes:
        """The values, in the order of their names."""
        return msgspec.msgpack.encode(self.values, order="sorted")


def key(number: int) -> KeyPair:
    """A key pair that is the same in each run."""
    return KeyPair(number.to_bytes(32, "big"))


ROOT = key(1_000_000)


@dataclass
class TestMember:
    """What a feed needs of a worker's credentials."""

    __test__ = False

    key_pair: KeyPair
    network: PeerId
    roots: frozenset
    certificate: bytes | None


def certificate(
    peer: PeerId, role: Role, *, root: KeyPair = ROOT, start: float = START, lasts: float = YEAR_S
) -> bytes:
    """A role certificate: an auth worker's by the root, any other's by an auth worker."""
    invitation = key(2_000_000)
    grant = make_grant(
        root,
        network=root.peer_id,
        key=invitation.peer_id,
        role=role,
        join_before=start + lasts,
        certificate_s=lasts,
    )
    signer, issuer = root, None
    if role is not Role.AUTH:
        signer = key(3_000_000)
        chain = certificate(signer.peer_id, Role.AUTH, root=root, start=start, lasts=lasts)
        issuer = msgspec.msgpack.decode(chain, type=Chain)
    return make_certificate(
        signer, grant=grant, peer=peer, not_before=start, expires_at=start + lasts, issuer=issuer
    )


def member(number: int = 1, role: Role = Role.AUTH, **options) -> TestMember:
    """A certified worker."""
    pair = key(number)
    return TestMember(
        pair, ROOT.peer_id, frozenset({ROOT.peer_id}), certificate(pair.peer_id, role, **options)
    )


def store(folder, who=None, *, clock=None, inline=True, **options) -> FeedStore:
    """A store that is not open yet."""
    return FeedStore(
        folder / "feeds.db",
        who or member(),
        clock=clock or VirtualClock(),
        inline=inline,
        **options,
    )


async def all_entries(held: FeedStore, feed: str, **options):
    """Every entry of a feed, in order."""
    return [entry async for entry in held.entries(feed, **options)]


async def payloads(held: FeedStore, feed: str, **options):
    """What every entry of a feed says, in order."""
    return [entry.payload for entry in await all_entries(held, feed, **options)]


async def copy_all(source: FeedStore, target: FeedStore, feed: str) -> None:
    """Give `target` all that `source` holds of a feed, as a peer would."""
    for head, _ in await source.heads(feed):
        run = await source.run(head.chain, after=-1, limit=100_000)
        await target.ingest([entry.encoded() for entry in run])


async def settle() -> None:
    """Let the callbacks run that are due."""
    await asyncio.sleep(0)  # noqa: TID251 - lets callbacks run, waits for nothing
    await asyncio.sleep(0)  # noqa: TID251 - lets callbacks run, waits for nothing
