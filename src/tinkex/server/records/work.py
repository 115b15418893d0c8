"""One accepted request as it is carried out: whose it is, when, and what it takes.

Owns what is noted while the work goes on. The engine's thread adds the seconds, the event loop
reads them when the request has ended. What is kept of it is an `Entry`.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from tinkex.server.records.usage import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a request came from: what it uses is counted on all of these."""

    owner: str
    """The account's id."""
    key_id: str
    """The key that began the session, or sent the request where there is none."""
    session_id: str = ""
    """Empty for a sample without a session."""
    source_id: str = ""
    """The training run, or the sampling session; empty for a sample without one."""
    base_model: str = ""
    """The base model, as the client named it."""


@dataclass(slots=True, eq=False)
class Work:
    """A request under way."""

    source: Source
    accepted_at: float
    """Unix seconds."""
    accepted: float
    """Monotonic seconds; the others of this scale are counted from it."""
    began: float | None = None
    """Monotonic seconds when an engine first worked on it; None before."""
    engine_s: float = 0.0
    """Seconds of an engine's time so far."""
    usage: Usage = field(default_factory=Usage)
    """What a success uses, besides the seconds; set before the request ends."""
    streamed_tokens: int = 0
    """Tokens that were handed out before the end: they count even if that is a failure."""
    prompt_tokens: int = 0
    """Length of a sample's prompt."""
    metrics: dict[str, float] | None = None
    """What a training step told; None for anything else."""

    def used(self, *, failed: bool) -> Usage:
        """Say what it used, besides the seconds, now that it has ended.

        A stream that broke off used what it handed out, and its prompt; any other failure nothing.
        """
        if not failed:
            return self.usage
        if not self.streamed_tokens:
            return Usage()
        return Usage(prefilled_tokens=self.prompt_tokens, sampled_tokens=self.streamed_tokens)

    def spend(self, seconds: float, began: float) -> None:
        """Add engine time that was spent since `began`, in monotonic seconds."""
        if self.began is None:
            self.began = began
        self.engine_s += seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A request that has ended."""

    request_id: str
    source: Source
    operation: str
    accepted_at: float
    """Unix seconds, as the next two."""
    began_at: float | None
    """When an engine first worked on it; None if none did."""
    finished_at: float
    engine_s: float
    error: str | None
    """Why it failed; None for a success."""
    usage: Usage
    metrics: dict[str, Any] | None
    """What a training step told."""
    again: bool = False
    """Whether an earlier process carried it out too, and most likely wrote it down."""


current_work: ContextVar[Work | None] = ContextVar("current_work", default=None)
"""The request that the running task carries out: what it hands to an engine is counted on it."""
