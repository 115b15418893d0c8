"""Which pushes are looked at: each peer has a rate, and one that pushes what does not check waits.

Sans-IO. A push costs a signature check for each entry, so nobody may push without end.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinkex.errors import RateLimitError
from tinkex.mesh.feeds.config import ReplicationConfig
from tinkex.mesh.identity import PeerId

_MAX_PEERS = 4096


@dataclass(slots=True)
class _Account:
    entries: float
    size: float
    at: float
    strikes: int = 0
    refused_until: float = 0.0


class PushAdmission:
    """Counts what each peer pushes.

    Args:
        config: the rates.
    """

    def __init__(self, config: ReplicationConfig) -> None:
        self._config = config
        self._accounts: dict[PeerId, _Account] = {}

    def admit(self, peer: PeerId, entries: int, size: int, now: float) -> None:
        """Take a push from a peer's budget.

        Args:
            peer: who pushes.
            entries: how many.
            size: their bytes.
            now: monotonic seconds.

        Raises:
            RateLimitError: the budget is used up, or the peer was struck off for a while.
        """
        account = self._account(peer, now)
        self.check_strikes(account, now)
        self.check_rate(account, entries, size)
        account.entries -= entries
        account.size -= size

    def strike(self, peer: PeerId, now: float) -> None:
        """Remember that what a peer pushed did not check."""
        account = self._account(peer, now)
        account.strikes += 1
        if account.strikes >= self._config.max_strikes:
            account.strikes = 0
            account.refused_until = now + self._config.strike_s

    def check_strikes(self, account: _Account, now: float) -> None:
        """Refuse a peer whose pushes did not check."""
        if now < account.refused_until:
            raise RateLimitError(
                "too much of what you pushed does not check: push nothing for a while",
                retry_after_ms=(account.refused_until - now) * 1000,
            )

    def check_rate(self, account: _Account, entries: int, size: int) -> None:
        """Refuse a push that is beyond the peer's budget."""
        config = self._config
        missing = max(
            (entries - account.entries) / config.push_entries_per_s,
            (size - account.size) / config.push_bytes_per_s,
        )
        if missing > 0:
            raise RateLimitError(
                "you push more than one peer may: wait, or let yourself be asked",
                retry_after_ms=missing * 1000,
            )

    def _account(self, peer: PeerId, now: float) -> _Account:
        config = self._config
        most_entries = config.push_entries_per_s * config.push_burst_s
        most_bytes = config.push_bytes_per_s * config.push_burst_s
        account = self._accounts.get(peer)
        if account is None:
            if len(self._accounts) >= _MAX_PEERS:
                oldest = min(self._accounts, key=lambda known: self._accounts[known].at)
                del self._accounts[oldest]
            account = self._accounts[peer] = _Account(most_entries, most_bytes, now)
        passed = now - account.at
        account.entries = min(most_entries, account.entries + passed * config.push_entries_per_s)
        account.size = min(most_bytes, account.size + passed * config.push_bytes_per_s)
        account.at = now
        return account
