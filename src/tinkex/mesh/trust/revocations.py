"""Peers that were shut out before their certificate expired.

Owns the set of them. It is a fold of the auth log ("accounts-public"), which reaches every gateway;
whoever checks a certificate asks here too.
"""

from __future__ import annotations

from collections.abc import Iterator

from tinkex.mesh.identity import PeerId


class Revocations:
    """The peers that are shut out, for good: to come back, a peer joins under a new key."""

    def __init__(self) -> None:
        self._peers: dict[PeerId, float] = {}

    def revoke(self, peer: PeerId, at: float) -> None:
        """Shut a peer out; `at` is in unix seconds, and the first one stays."""
        self._peers.setdefault(peer, at)

    def is_revoked(self, peer: PeerId) -> bool:
        """Whether a peer is shut out."""
        return peer in self._peers

    def revoked_at(self, peer: PeerId) -> float | None:
        """When a peer was shut out, in unix seconds; None: it was not."""
        return self._peers.get(peer)

    def __iter__(self) -> Iterator[tuple[PeerId, float]]:
        """Go through the peers, and when each was shut out."""
        return iter(self._peers.items())

    def __len__(self) -> int:
        return len(self._peers)
