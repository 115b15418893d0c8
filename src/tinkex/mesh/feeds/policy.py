"""Which roles may write a feed, and which may hold and read it.

Owns the table of the mesh's feeds. A feed that is not in it is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tinkex.errors import UnsupportedError
from tinkex.mesh.roles import Role

ACCOUNTS_PRIVATE = "accounts-private"
ACCOUNTS_PUBLIC = "accounts-public"
NETWORK = "network"
USAGE = "usage"
ADAPTERS = "adapters"
PERMITS = "permits"
ERASURES = "erasures"
LEADERSHIP = "leadership"


@dataclass(frozen=True, slots=True)
class FeedRule:
    """Who may do what with one feed."""

    writers: frozenset[Role]
    """Roles whose entries count."""
    readers: frozenset[Role]
    """Roles that may be given entries, besides an author its own. Empty: it never leaves."""
    gather_s: float = 0.0
    """How long an entry may wait for others before readers are told of it, in seconds."""


_AUTH = frozenset({Role.AUTH})
_AUTH_AND_GATEWAYS = frozenset({Role.AUTH, Role.GATEWAY})
_GATEWAYS = frozenset({Role.GATEWAY})
_SERVING = frozenset({Role.GATEWAY, Role.PROCESSOR})

MESH_FEEDS: Mapping[str, FeedRule] = {
    ACCOUNTS_PRIVATE: FeedRule(_AUTH, _AUTH),
    ACCOUNTS_PUBLIC: FeedRule(_AUTH, _AUTH_AND_GATEWAYS),
    NETWORK: FeedRule(_AUTH, frozenset(Role)),
    # Nobody waits for it, and each telling costs an auth worker as much as a request a gateway.
    USAGE: FeedRule(_GATEWAYS, _AUTH, gather_s=0.1),
    ADAPTERS: FeedRule(_GATEWAYS, _AUTH_AND_GATEWAYS),  # auth workers, whom gateways follow, relay
    PERMITS: FeedRule(_SERVING, frozenset()),
    ERASURES: FeedRule(_AUTH, _AUTH),
    LEADERSHIP: FeedRule(_AUTH, _AUTH),
}
"""The feeds of a mesh: password hashes and personal fields stay among auth workers."""


class FeedPolicy:
    """Decides who may write and read; each decision is a method of its own.

    Args:
        rules: by feed name.
    """

    def __init__(self, rules: Mapping[str, FeedRule] = MESH_FEEDS) -> None:
        self._rules = dict(rules)

    def names(self) -> frozenset[str]:
        """Every feed that there is."""
        return frozenset(self._rules)

    def rule(self, feed: str) -> FeedRule:
        """The rule of a feed.

        Raises:
            UnsupportedError: there is no such feed.
        """
        try:
            return self._rules[feed]
        except KeyError:
            raise UnsupportedError(f"there is no feed {feed!r} in this mesh") from None

    def may_write(self, feed: str, role: Role) -> bool:
        """Whether entries count whose author has this role."""
        return role in self.rule(feed).writers

    def may_read(self, feed: str, role: Role | None) -> bool:
        """Whether a peer of this role may hold every author's entries; None: a guest, never."""
        return role in self.rule(feed).readers

    def may_have(self, feed: str, author: bytes, peer: bytes, role: Role | None) -> bool:
        """Whether a peer may be given one author's entries: a reader, or the author itself."""
        rule = self.rule(feed)
        if not rule.readers or role is None:
            return False
        return role in rule.readers or (author == peer and role in rule.writers)
