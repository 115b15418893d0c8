"""Which HTTP request the running code serves.

Owns one context variable: what is begun for a request remembers by it which one it was, for log
lines and traces, without every function in between handing it on.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class RequestContext:
    """One HTTP request."""

    request_id: str
    """The id that its reply carries in `x-request-id`."""
    span: Any = None
    """Its OpenTelemetry span; None where nothing is recorded."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """The request's own state, which fills as it passes the middleware."""

    @property
    def key_id(self) -> str | None:
        """The key that it came with; None before that is known, or without one."""
        caller = self.state.get("caller")
        return None if caller is None else str(caller.key_id)

    @property
    def counted(self) -> bool:
        """Whether it was counted as one of the key's requests already."""
        return bool(self.state.get("counted"))


current_request: ContextVar[RequestContext | None] = ContextVar("current_request", default=None)
"""None outside of any request: a timer, the server's start."""
