"""Settings of the replication of feeds."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tinkex.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class ReplicationConfig:
    """How often peers are asked, and what a peer may ask of this one.

    Raises:
        ConfigurationError: values that cannot be; all of them at once.
    """

    poll_s: float = 2.0
    """Seconds between two questions to a source; what is new is pushed besides."""
    backoff_s: float = 0.5
    """Seconds to wait after a first failure; doubled with every one in a row."""
    backoff_max_s: float = 15.0
    """Seconds at which that doubling stops."""
    call_timeout_s: float = 5.0
    """Seconds for one short call."""
    stream_timeout_s: float = 120.0
    """Seconds for the entries of one chain."""
    follower_s: float = 30.0
    """Seconds after a peer's last question for which it is told what is new."""
    max_followers: int = 512
    """Peers that are told; the one that asked longest ago makes room."""
    batch_bytes: int = 32 << 10
    """Bytes of entries in one item of a stream, or in one push."""
    push_entries_per_s: float = 2000.0
    """Entries that one peer may push, in the long run."""
    push_bytes_per_s: float = 4e6
    """Bytes that one peer may push, in the long run."""
    push_burst_s: float = 4.0
    """Seconds of that rate which may come at once."""
    max_strikes: int = 8
    """Pushes that do not check, after which a peer's are refused for a while."""
    strike_s: float = 30.0
    """Seconds of that while."""
    keep_entries: int = 100_000
    """Entries of a log of its own (a gateway's usage, a sole auth worker's accounts) that a worker
    keeps at least; of a gateway's the newest stay whole. Older ones give way to a signed snapshot
    of what they came to."""
    prune_entries: int = 10_000
    """Entries beyond these, at least, for which it makes a snapshot."""
    prune_check_s: float = 600.0
    """Seconds between two looks whether there are so many."""

    def __post_init__(self) -> None:
        problems = [
            f"{each.name} must be more than 0, not {getattr(self, each.name)}"
            for each in fields(self)
            if not getattr(self, each.name) > 0
        ]
        if self.backoff_max_s < self.backoff_s:
            problems.append("backoff_max_s must be at least backoff_s")
        if self.follower_s <= self.poll_s:
            problems.append("follower_s must be more than poll_s: else followers are forgotten")
        if problems:
            raise ConfigurationError(problems)
