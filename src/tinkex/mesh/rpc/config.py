"""Settings of remote calls."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tinkex.errors import ConfigurationError
from tinkex.mesh.rpc.messages import MAX_WINDOW

_MAY_BE_ZERO = ("coalesce_s", "unhurried_s")


@dataclass(frozen=True, slots=True)
class RpcConfig:
    """How links live, and what bounds them.

    Raises:
        ConfigurationError: values that cannot be; all of them at once.
    """

    ping_s: float = 0.4
    """Seconds between pings while calls are open on a link."""
    idle_ping_s: float = 5.0
    """Seconds between pings while none is."""
    lost_after_s: float = 1.2
    """Seconds of silence after which a link is lost; without open calls, after a ping."""
    client_lost_after_s: float = 5.0
    """Seconds of silence after which a link to a client is lost that is asked nothing, if that is
    more: its program may be busy."""
    dial_timeout_s: float = 5.0
    """Seconds in which a link must be made, greeting included."""
    greeting_timeout_s: float = 3.0
    """Seconds in which who dials this peer must have sent its greeting."""
    redial_initial_s: float = 0.05
    """Seconds that a peer is left alone after a failed dial; doubled with every one in a row."""
    redial_maximum_s: float = 1.0
    """Seconds at which that doubling stops."""
    idle_close_s: float = 60.0
    """Seconds without a call after which a link is closed."""
    coalesce_s: float = 0.005
    """Seconds that an item may wait for others, after an item was sent; the first never waits."""
    coalesce_after: int = 8
    """Items of a stream that go at once before others wait; each `coalesce_s` gives one back, so
    that only streams of more than 200 items a second are sent in lumps."""
    unhurried_s: float = 0.05
    """Seconds that an unhurried item, as a stream's beginning is, may wait for the next."""
    coalesce_bytes: int = 16 << 10
    """Bytes of waiting items of a stream that are sent at once."""
    window_bytes: int = 64 << 10
    """Bytes of a stream on their way, or not yet read: what a slow reader costs its peer."""
    max_links: int = 256
    """Links to members of the network; the one idle for longest makes room."""
    max_guest_links: int = 32
    """Links of guests, who have no role certificate."""
    max_dials: int = 32
    """Links that are being made at once."""
    max_greetings: int = 64
    """Accepted links whose greeting is awaited at once; more are closed."""
    max_calls: int = 1024
    """Calls that one member may have open here at once."""
    max_request_bytes: int = 8 << 20
    """Bytes of the requests of those calls together."""
    guest_max_calls: int = 4
    """Calls that one guest may have open here at once."""
    guest_max_request_bytes: int = 64 << 10
    """Bytes of the requests of those calls together."""

    def __post_init__(self) -> None:
        problems = [
            f"{field.name} must be more than 0, not {getattr(self, field.name)}"
            for field in fields(self)
            if field.name not in _MAY_BE_ZERO and not getattr(self, field.name) > 0
        ]
        problems += [
            f"{name} must be at least 0, not {getattr(self, name)}"
            for name in _MAY_BE_ZERO
            if not getattr(self, name) >= 0
        ]
        if self.lost_after_s < 2 * self.ping_s:
            problems.append(
                "lost_after_s must be at least twice ping_s: one late answer is no loss"
            )
        if not 1024 <= self.window_bytes <= MAX_WINDOW:
            problems.append(f"window_bytes must be from 1024 to {MAX_WINDOW}")
        if problems:
            raise ConfigurationError(problems)
