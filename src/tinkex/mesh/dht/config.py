"""The DHT's numbers, and why they are what they are."""

from __future__ import annotations

from dataclasses import dataclass, field

from tinkex.errors import ConfigurationError
from tinkex.mesh.dht.records import MAX_TTL_S, MIN_TTL_S


@dataclass(frozen=True, slots=True)
class StorageLimits:
    """What a node takes in for others, at most."""

    records: int = 8192
    """In all: 8 MB at their longest."""
    per_topic: int = 256
    """So that an answer fits in a frame."""
    per_publisher: int = 64
    """Topics that one peer may announce."""
    puts_per_s: float = 8.0
    """By one peer, in the long run: 64 records renewed every 15 s are half of it."""
    put_burst: int = 128
    """By one peer at once."""


@dataclass(frozen=True, slots=True)
class DhtConfig:
    """How a node of the DHT behaves.

    Raises:
        ConfigurationError: a number is out of its range.
    """

    k: int = 16
    """Contacts in a bucket, holders of a record."""
    alpha: int = 3
    """Requests on their way for one lookup, besides the slow ones."""
    quorum: int = 3
    """A lookup ends when so many of the nearest nodes gave records: one that hides some, or has not
    got the latest, is made up for by the others."""
    witnesses: int = 2
    """Besides the quorum, so many of the other near nodes are asked, chosen at random."""
    hedge_s: float = 0.15
    """A request without an answer after it is slow: another one is sent beside it."""
    patience_s: float = 0.5
    """A lookup that waits for slow requests alone waits for each so long."""
    request_timeout_s: float = 1.0
    """A request without an answer after it has failed, and its node with it."""
    ttl_s: float = 45.0
    """Of what this node announces; renewed at a third of it."""
    cache_s: float = 2.0
    """A lookup's answer is given again so long."""
    empty_cache_s: float = 0.5
    """The same, when nobody was found."""
    holders_s: float = 60.0
    """Renewals go to the nodes that took the record before; the nearest are looked up anew after
    so long, or when many of those are gone. A network of fewer than `k` nodes is looked through at
    each renewal."""
    refresh_s: float = 3600.0
    """A bucket in which no lookup went for so long is looked up."""
    probe_s: float = 20.0
    """One contact that was lost is tried again this often."""
    limits: StorageLimits = field(default_factory=StorageLimits)

    def __post_init__(self) -> None:
        wrong = [
            text
            for holds, text in (
                (8 <= self.k <= 20, f"k must be 8 to 20, not {self.k}"),
                (1 <= self.alpha <= self.k, f"alpha must be 1 to k, not {self.alpha}"),
                (1 <= self.quorum <= self.k, f"quorum must be 1 to k, not {self.quorum}"),
                (0 <= self.witnesses <= self.k, f"witnesses: 0 to k, not {self.witnesses}"),
                (
                    MIN_TTL_S <= self.ttl_s <= MAX_TTL_S,
                    f"ttl_s must be {MIN_TTL_S:.0f} to {MAX_TTL_S:.0f}, not {self.ttl_s}",
                ),
                (
                    0 < self.hedge_s <= self.request_timeout_s,
                    "hedge_s must be above 0, and at most request_timeout_s",
                ),
            )
            if not holds
        ]
        if wrong:
            raise ConfigurationError("; ".join(wrong))
