"""The mesh's discovery in one process's memory, for unit tests of workers.

Records are not signed here and nobody forges any; who may announce what is checked as in the mesh.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinkex.errors import InputError, TrustError
from tinkex.mesh.dht.records import MAX_TOPIC_CHARACTERS, Offer, Record, may_announce

if TYPE_CHECKING:
    from tinkex._clock import Clock
    from tinkex.mesh.transport.base import Contact
    from tinkex.mesh.trust.certificates import RoleCertificate


class MemoryDiscovery:
    """What all workers of a test announce. Announcements last until they are withdrawn or dropped.

    Args:
        clock: dates the records.

    Attributes:
        reachable: while False, announcements fail quietly and lookups find nobody.
    """

    def __init__(self, *, clock: Clock) -> None:
        self.reachable = True
        self._clock = clock
        self._records: dict[str, dict[Contact, Record]] = {}
        self._sequence = 0

    def member(self, contact: Contact, certificate: RoleCertificate) -> MemberDiscovery:
        """Give the view of one worker: a `Discovery`."""
        return MemberDiscovery(self, contact, certificate)

    def drop(self, contact: Contact) -> None:
        """Forget all that a worker announced, as when its records expired after a crash."""
        for records in self._records.values():
            records.pop(contact, None)

    def put(
        self, topic: str, offer: Offer, contact: Contact, certificate: RoleCertificate
    ) -> Record:
        """Hold a record, and give it."""
        self._sequence += 1
        record = Record(
            topic=topic,
            contact=contact,
            certificate=certificate,
            models=offer.models,
            adapters=tuple(content[:16] for content in offer.adapters),
            load=offer.load,
            free_slots=offer.free_slots,
            sequence=self._sequence,
            expires_at=self._clock.now() + 45.0,
            ttl_s=45.0,
            withdrawn=False,
            encoded=b"",
        )
        if self.reachable:
            self._records.setdefault(topic, {})[contact] = record
        return record

    def remove(self, topic: str, contact: Contact) -> None:
        """Forget a record."""
        self._records.get(topic, {}).pop(contact, None)

    def found(self, topic: str) -> tuple[Record, ...]:
        """Give what is held of a topic."""
        return tuple(self._records.get(topic, {}).values()) if self.reachable else ()


class MemberDiscovery:
    """One worker's `Discovery` on a `MemoryDiscovery`."""

    def __init__(
        self, board: MemoryDiscovery, contact: Contact, certificate: RoleCertificate
    ) -> None:
        self._board = board
        self._contact = contact
        self._certificate = certificate

    async def announce(self, topic: str, offer: Offer) -> None:
        """Make it known that this worker serves `topic`.

        Raises:
            TrustError: its role may not.
            InputError: the topic is too long.
        """
        _check_length(topic)
        if not may_announce(self._certificate.role, topic):
            raise TrustError(f"a {self._certificate.role} may not announce {topic!r}")
        self._board.put(topic, offer, self._contact, self._certificate)

    async def withdraw(self, topic: str) -> None:
        """Take an announcement back."""
        self._board.remove(topic, self._contact)

    async def lookup(self, topic: str) -> tuple[Record, ...]:
        """Give who announces `topic`.

        Raises:
            InputError: the topic is none that could be announced.
        """
        _check_length(topic)
        return self._board.found(topic)


def _check_length(topic: str) -> None:
    if not 1 <= len(topic) <= MAX_TOPIC_CHARACTERS:
        raise InputError(f"a topic has 1 to {MAX_TOPIC_CHARACTERS} characters")
