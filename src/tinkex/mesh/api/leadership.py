"""What auth workers ask one another to agree on the one of them that writes accounts."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated

import msgspec
from msgspec import Meta

from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.service import Call, Service, callable_by

Number = Annotated[int, Meta(ge=0, le=2**53)]


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of every message here."""


class HeldUpTo(Message, frozen=True):
    """A chain, and the number up to which somebody holds it."""

    author: bytes
    feed: str
    epoch: bytes
    sequence: Number


class AskVote(Message, frozen=True):
    """A member wants to lead."""

    term: Number
    last_term: Number
    """The newest term whose record it holds."""
    held: Annotated[tuple[HeldUpTo, ...], Meta(max_length=10_000)]
    """What it holds of the feed that is led."""


class Vote(Message, frozen=True):
    """A member's answer."""

    term: Number
    """The newest term that the voter knows of."""
    ballot: bytes | None
    """The voter's signed entry that says so; None: it does not vote for the asker."""
    behind: bool = False
    """The asker lacks entries that the voter holds: it may ask again once it has them."""


class Hold(Message, frozen=True):
    """The leader is there, and asks whether these are held; none: whether it still leads."""

    term: Number
    held: Annotated[tuple[HeldUpTo, ...], Meta(max_length=64)]


class Held(Message, frozen=True):
    """A member's answer."""

    term: Number
    ok: bool
    """All of it is on the member's disk, and it knows no newer term."""


class LeadershipApi(Service):
    """Offered by auth workers to auth workers."""

    service = "leadership"
    offered_by = frozenset({Role.AUTH})

    @callable_by({Role.AUTH})
    @abstractmethod
    async def rpc_vote(self, request: AskVote, call: Call) -> Vote:
        """Vote for a member, or not: for one in each term."""

    @callable_by({Role.AUTH})
    @abstractmethod
    async def rpc_hold(self, request: Hold, call: Call) -> Held:
        """Say whether what the leader wrote is held here; get it where it is not."""
