"""What a server writes down of the work done: usage in tokens and seconds, metrics of training."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from tinkex.types._model import Int, WireResponse, absent

AuditEventType = Literal["all", "checkpoints", "projects", "teams", "organizations"]
UsageGroup = Literal["hour", "day", "account", "key", "session", "source", "base_model"]
"""By what usage is summed; `source` is the training run or the sampling session."""


class UsageRow(WireResponse):
    """What was used by one group. Only the columns that were asked for are there."""

    hour: datetime | None = absent()
    """Start of the UTC hour in which the requests ended."""
    day: datetime | None = absent()
    """Start of the UTC day."""
    account: str | None = absent()
    key: str | None = absent()
    """Id of the API key, never the key."""
    session: str | None = absent()
    """Empty for samples without a session."""
    source: str | None = absent()
    """The training run or the sampling session; empty for samples without one."""
    base_model: str | None = absent()
    forward_tokens: Int
    """Tokens of the data of `forward`."""
    forward_backward_tokens: Int
    """Tokens of the data of `forward_backward`."""
    prefilled_tokens: Int
    """Prompt tokens computed."""
    cached_tokens: Int
    """Prompt tokens taken from the prefix cache."""
    sampled_tokens: Int
    checkpoints: Int
    """Checkpoints written."""
    requests: Int
    """Requests that succeeded."""
    failed_requests: Int
    training_s: float
    """Seconds of an engine's time in training runs' requests."""
    sampling_s: float
    """Seconds of an engine's time in samples."""


class UsageReport(WireResponse):
    """Usage between two moments, one row a group."""

    starting_on: datetime
    ending_before: datetime
    rows: list[UsageRow]


class TrainingMetrics(WireResponse):
    """What one `forward_backward`, `forward` or `optim_step` of a training run told."""

    step: Int
    """Which optimiser step it belongs to, or comes before, from 1."""
    operation: Literal["forward", "forward_backward", "optim_step"]
    time: datetime
    tokens: Int
    """Tokens of its data; 0 for an optim_step."""
    metrics: dict[str, float | None]
    """By the names that the call returned, such as `loss:sum`; None where a value is not finite."""


class TrainingMetricsResponse(WireResponse):
    """Metrics of a training run, oldest first."""

    training_run_id: str
    metrics: list[TrainingMetrics]
    next_cursor: Int | None = absent()
    """Where the next page starts; None when this was the last for now."""
