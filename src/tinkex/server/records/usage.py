"""Amounts of work: tokens, seconds of an engine, checkpoints, requests.

Owns what is counted and how amounts add up. Whose they are is `work`, where they are kept `store`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was used, by one request or by many."""

    forward_tokens: int = 0
    """Tokens of the data of `forward`: computed without a gradient."""
    forward_backward_tokens: int = 0
    """Tokens of the data of `forward_backward`."""
    prefilled_tokens: int = 0
    """Prompt tokens computed while sampling."""
    cached_tokens: int = 0
    """Prompt tokens taken from the prefix cache instead."""
    sampled_tokens: int = 0
    """Tokens sampled."""
    checkpoints: int = 0
    """Checkpoints written."""
    requests: int = 0
    """Requests that succeeded."""
    failed_requests: int = 0
    """Requests that failed or were cancelled."""
    training_s: float = 0.0
    """Seconds of an engine's time in training runs' requests."""
    sampling_s: float = 0.0
    """Seconds of an engine's time in samples. A step that several share is divided by tokens."""

    def __add__(self, other: Usage) -> Usage:
        """Add two amounts."""
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in FIELDS})

    @property
    def tokens(self) -> int:
        """All tokens that were computed; those from the prefix cache were not."""
        trained = self.forward_tokens + self.forward_backward_tokens
        return trained + self.prefilled_tokens + self.sampled_tokens


FIELDS = tuple(field.name for field in fields(Usage))
"""What is counted, in the order in which it is shown."""
