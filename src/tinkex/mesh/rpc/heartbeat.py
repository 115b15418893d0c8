"""Whether the peer at the other end of a link is alive, and how far away. No I/O.

Owns when a ping is due and when silence means loss. `now` is an argument, in monotonic seconds.
"""

from __future__ import annotations

from tinkex.mesh.rpc.config import RpcConfig

_SMOOTHING = 0.125
"""Of a new round trip in the average (RFC 6298, section 2)."""
_REMEMBERED_PINGS = 8


class Heartbeat:
    """The signs of life on one link.

    While it is busy, silence for `lost_after_s` is loss, and pings make sure that there is none;
    while idle, a ping that stays without any answer for so long. A client that is asked nothing may
    be silent for `client_lost_after_s`: its program may work on its event loop, and nobody waits.

    Args:
        config: the times.
        now: the time.
        client: whether the peer is a client.
    """

    def __init__(self, config: RpcConfig, now: float, *, client: bool = False) -> None:
        self._config = config
        self._patience_s = config.lost_after_s
        if client:
            self._patience_s = max(self._patience_s, config.client_lost_after_s)
        self.lost_after_s = self._patience_s
        """Seconds of silence that are loss just now."""
        self._pinged = now
        self._unanswered: float | None = None
        self._busy = False
        self._silent_since = now
        self._sent: dict[int, float] = {}
        self.rtt: float | None = None
        """Smoothed round trip in seconds; None before the first."""

    def heard(self, now: float) -> None:
        """Note that a frame came, whatever it holds."""
        self._silent_since = now
        self._unanswered = None

    def busy(self, busy: bool, now: float, *, asks: bool) -> None:
        """Say whether calls are open; silence before the first of them counts for nothing.

        Args:
            busy: whether there are any.
            now: the time.
            asks: whether this side waits for an answer; silence before counts for nothing either.
        """
        before, self.lost_after_s = self.lost_after_s, self._patience_s
        if asks:
            self.lost_after_s = self._config.lost_after_s
        if busy and (not self._busy or self.lost_after_s < before):
            self._silent_since = max(self._silent_since, now)
        self._busy = busy

    def pinged(self, nonce: int, now: float) -> None:
        """Note that a ping was sent."""
        self._pinged = now
        self._sent[nonce] = now
        if len(self._sent) > _REMEMBERED_PINGS:
            del self._sent[next(iter(self._sent))]
        if self._unanswered is None:
            self._unanswered = now

    def ponged(self, nonce: int, now: float) -> None:
        """Note the answer to a ping, which answers earlier ones too."""
        sent = self._sent.get(nonce)
        self._sent = {number: at for number, at in self._sent.items() if number > nonce}
        if sent is not None:
            new = max(0.0, now - sent)
            self.rtt = new if self.rtt is None else self.rtt + _SMOOTHING * (new - self.rtt)

    def excuse(self, now: float) -> None:
        """Begin to count anew: this process was held up, so the silence may be its own."""
        self._silent_since = now
        if self._unanswered is not None:
            self._unanswered = now

    def lost(self, now: float) -> bool:
        """Whether the silence has been too long."""
        return now >= self._lost_at()

    def ping_due(self, now: float) -> bool:
        """Whether it is time to ask for a sign of life."""
        return now >= self._ping_at()

    def due(self) -> float:
        """Return the moment at which one of the two may become true."""
        if self._busy:
            config = self._config
            return min(self._pinged + config.ping_s, self._silent_since + self.lost_after_s)
        return min(self._ping_at(), self._lost_at())

    def _ping_at(self) -> float:
        return self._pinged + (self._config.ping_s if self._busy else self._config.idle_ping_s)

    def _lost_at(self) -> float:
        if self._busy:
            return self._silent_since + self.lost_after_s
        if self._unanswered is not None:
            return self._unanswered + self.lost_after_s
        return float("inf")
