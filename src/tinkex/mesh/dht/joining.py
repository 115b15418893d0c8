"""What a guest may ask of the DHT: where auth workers are, so that one of them takes it in."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tinkex._clock import Clock
from tinkex.errors import TinkerError, TrustError
from tinkex.mesh.dht.api import DhtApi, FindAuth
from tinkex.mesh.dht.records import Record, RecordChecker, merged
from tinkex.mesh.dht.service import AUTH_TOPIC
from tinkex.mesh.rpc.peers import Peers
from tinkex.mesh.transport.base import Contact

_TIMEOUT_S = 5.0


async def auth_contacts(
    peers: Peers, known: Sequence[Contact], *, clock: Clock
) -> tuple[Contact, ...]:
    """Ask members of the network where auth workers are now.

    What they tell is believed as far as its signatures hold, so `known` may name anybody.

    Args:
        peers: of a guest, or of a member.
        known: whom to ask; any member but a client can tell.
        clock: tells whether records have expired.
    """
    own = peers.credentials
    checker = RecordChecker(network=own.network, roots=lambda: own.roots, is_revoked=own.is_revoked)

    async def ask(contact: Contact) -> list[Record]:
        try:
            reply = await peers.call(
                contact, DhtApi.rpc_find_auth, FindAuth(), timeout_s=_TIMEOUT_S
            )
        except TinkerError:
            return []
        return _believed(checker, reply.records, clock.now())

    found = await asyncio.gather(*(ask(contact) for contact in known))
    return tuple(record.contact for record in merged([r for records in found for r in records]))


def _believed(checker: RecordChecker, records: Sequence[bytes], now: float) -> list[Record]:
    believed = []
    for encoded in records:
        try:
            believed.append(checker.check(encoded, now=now, topic=AUTH_TOPIC))
        except TrustError:
            continue
    return believed
