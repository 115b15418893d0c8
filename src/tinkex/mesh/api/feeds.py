"""What workers ask one another about feeds: what is held, and the entries, as they were signed.

Entries, heads, snapshots and proofs of forks travel as bytes that prove themselves: who passes them
on need not be believed. Which role may have which feed, `feeds.policy` says; a method refuses by
PermissionDeniedError what the caller may not have.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from msgspec import Meta

from tinkex.mesh.roles import CERTIFIED, Role
from tinkex.mesh.rpc.service import Call, Service, callable_by

MAX_HEADS = 1000
"""In one answer."""
MAX_PUSHED = 512
"""Entries in one push."""
MAX_KEYS = 500
"""In one answer."""


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of every message here."""


class HeadsRequest(Message, frozen=True):
    """Ask what has come since the last time."""

    feeds: Annotated[tuple[str, ...], Meta(max_length=64)]
    """The feeds that the caller wants."""
    instance: bytes
    """The answer's `instance` of the last time; empty at first."""
    after: int
    """The answer's `arrival` of the last time; 0 at first."""


class HeldSnapshot(Message, frozen=True):
    """A snapshot that the peer holds."""

    author: bytes
    feed: str
    time: int
    """Microseconds; a newer one covers more."""


class HeldChain(Message, frozen=True):
    """One epoch of an author's feed, and the last entry that the peer holds of it."""

    header: bytes
    """As signed."""
    signature: bytes
    base: int
    """The number of the last entry that was pruned; -1: none."""


class Heads(Message, frozen=True):
    """What the peer holds that came since then, and what else there is to ask for."""

    instance: bytes
    """New with each opening of the peer's store: numbers of arrival are of this instance."""
    arrival: int
    """Everything up to this number of arrival is in this answer or one before."""
    more: bool
    """Whether there is more to ask for at once."""
    chains: Annotated[tuple[HeldChain, ...], Meta(max_length=MAX_HEADS)]
    snapshots: Annotated[tuple[HeldSnapshot, ...], Meta(max_length=MAX_HEADS)]
    forks: bytes
    """A digest of the proofs of forks that the peer holds."""


class EntriesRequest(Message, frozen=True):
    """Ask for a chain's entries that come after a number."""

    author: bytes
    feed: str
    epoch: bytes
    after: int


class Entries(Message, frozen=True):
    """Entries of one chain, in order."""

    entries: tuple[bytes, ...]


class SnapshotRequest(Message, frozen=True):
    """Ask for the snapshot of an author's feed."""

    author: bytes
    feed: str


class SnapshotPart(Message, frozen=True):
    """A part of an encoded snapshot."""

    data: bytes


class ForksRequest(Message, frozen=True):
    """Ask for the proofs of forks."""


class Forks(Message, frozen=True):
    """Every proof that the peer holds."""

    proofs: Annotated[tuple[bytes, ...], Meta(max_length=1000)]


class Key(Message, frozen=True):
    """A person's key."""

    person: str
    key_id: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"Key({self.key_id.hex()})"


class Push(Message, frozen=True):
    """Tell a peer what is new, at once."""

    entries: Annotated[tuple[bytes, ...], Meta(max_length=MAX_PUSHED)]
    """New entries, those of one chain in order."""
    forks: Annotated[tuple[bytes, ...], Meta(max_length=16)] = ()
    """New proofs."""
    keys: Annotated[tuple[Key, ...], Meta(max_length=MAX_KEYS)] = ()
    """New keys of persons, whose fields are in the entries; among auth workers alone."""
    ask: bool = False
    """The pusher holds more than this: ask it."""


class Pushed(Message, frozen=True):
    """What became of a push."""

    stored: int
    """Entries that were new."""


class KeysRequest(Message, frozen=True):
    """Ask for persons' keys that came after a number."""

    instance: bytes
    after: int


class Keys(Message, frozen=True):
    """Persons' keys."""

    instance: bytes
    arrival: int
    more: bool
    keys: Annotated[tuple[Key, ...], Meta(max_length=MAX_KEYS)]

    def __repr__(self) -> str:
        return f"Keys({len(self.keys)})"


class FeedApi(Service):
    """Offered by every worker that holds feeds."""

    service = "feeds"

    @callable_by(CERTIFIED)
    @abstractmethod
    async def rpc_heads(self, request: HeadsRequest, call: Call) -> Heads:
        """Say what is held; the caller is told of what comes for a while."""

    @callable_by(CERTIFIED)
    @abstractmethod
    def rpc_entries(self, request: EntriesRequest, call: Call) -> AsyncIterator[Entries]:
        """Give a chain's entries."""

    @callable_by(CERTIFIED)
    @abstractmethod
    def rpc_snapshot(self, request: SnapshotRequest, call: Call) -> AsyncIterator[SnapshotPart]:
        """Give a snapshot."""

    @callable_by(CERTIFIED)
    @abstractmethod
    async def rpc_forks(self, request: ForksRequest, call: Call) -> Forks:
        """Give the proofs of forks."""

    @callable_by(CERTIFIED)
    @abstractmethod
    async def rpc_push(self, request: Push, call: Call) -> Pushed:
        """Take in what a peer says is new."""

    @callable_by({Role.AUTH})
    @abstractmethod
    async def rpc_keys(self, request: KeysRequest, call: Call) -> Keys:
        """Give persons' keys, to auth workers alone."""
