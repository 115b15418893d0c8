"""What every member knows of its network: the latest description, and who was shut out.

Owns that view, a fold of the feed "network", which auth workers write. A description is believed
because the root signed it, whoever passed it on.
"""

from __future__ import annotations

from collections.abc import Iterator

from tinkex.mesh.accounts.events import NetworkChanged, NetworkEvent, PeerRevoked
from tinkex.mesh.identity import PeerId
from tinkex.mesh.trust.network import NetworkInfo, check_network
from tinkex.mesh.trust.revocations import Revocations


class NetworkKnowledge:
    """The fold of "network".

    Args:
        info: the network as this worker knew it before.
        encoded: the same, as it was signed.
        revocations: told of peers that are shut out.
    """

    def __init__(self, info: NetworkInfo, encoded: bytes, revocations: Revocations) -> None:
        self.info = info
        self.encoded = encoded
        self.revocations = revocations
        self._told: dict[bytes, None] = {}

    def apply(self, event: NetworkEvent) -> None:
        """Fold one event; one that came before changes nothing, and their order does not matter.

        Raises:
            TrustError: a description that does not hold, or not after the one that is known.
        """
        if isinstance(event, PeerRevoked):
            self.revocations.revoke(PeerId(event.peer), event.at)
            return
        info = check_network(event.network, network=self.info.id)
        if info.sequence >= self.info.sequence:
            self.info = check_network(event.network, network=self.info.id, known=self.info)
            self.encoded = event.network
            for peer in self.info.shut_out:
                self.revocations.revoke(PeerId(peer), event.at)
        self._told[event.network] = None

    def knows(self, event: NetworkEvent) -> bool:
        """Whether an event is in the feed already."""
        if isinstance(event, PeerRevoked):
            return self.revocations.is_revoked(PeerId(event.peer))
        return event.network in self._told

    def events(self) -> Iterator[NetworkEvent]:
        """Give events that come to this view."""
        for peer, at in self.revocations:
            yield PeerRevoked(at=at, peer=peer.raw)
        for encoded in self._told:
            yield NetworkChanged(at=0.0, network=encoded)
