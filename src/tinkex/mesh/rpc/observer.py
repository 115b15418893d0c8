"""What others may watch of remote calls: counts, durations, errors, bytes; no contents."""

from __future__ import annotations

from typing import Protocol

import msgspec

from tinkex.mesh.identity import PeerId


class CallReport(msgspec.Struct, frozen=True):
    """One call that ended."""

    peer: PeerId
    method: str
    """`service.method`; `unknown` where a peer asked for what is not offered here."""
    incoming: bool
    """Whether the peer made it."""
    error: str | None
    """The error's class; `Cancelled`; None if it succeeded."""
    seconds: float
    items: int
    """Replies: 1 of a call without a stream that succeeded."""
    request_bytes: int
    reply_bytes: int


class Observer(Protocol):
    """Told of what ended; it must return at once, and what it raises is reported and forgotten."""

    def call_ended(self, report: CallReport) -> None:
        """Count a call."""

    def link_opened(self, peer: PeerId) -> None:
        """Count a link."""

    def link_ended(self, peer: PeerId, reason: str, lost: bool) -> None:
        """Count a link's end; `lost` tells an accident from an orderly end."""
