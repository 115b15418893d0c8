"""Who calls, what was done in their name, and what it used."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from tinkex.types._model import Int, TextMap, WireRequest, WireResponse, absent


class AuthTokenResponse(WireResponse):
    """A token that stands for the key for a while."""

    jwt: str = Field(repr=False)


class OwnKeyResponse(WireResponse):
    """What the server knows of the key that asks."""

    key_id: int
    name: str
    note: str | None = absent()
    details: dict[str, Any] | None = absent()
    """`{"org_details": {"name"}, "user_details": {"email"}}`."""


class WhoamiResponse(WireResponse):
    """The caller, as the token's claims name them."""

    user_urn: str
    org_urn: str
    email: str | None = absent()
    """None for a caller that is no person."""


class AuditLogEntry(WireResponse):
    """Something that was done."""

    timestamp: datetime
    event: str
    """`<resource>_<action>`, such as `checkpoint_read`."""
    event_details: dict[str, Any] = Field(default_factory=dict)
    model_id: str | None = absent()
    """Older servers' place for what `event_details` holds; as the next two."""
    tinker_path: str | None = absent()
    purpose: str | None = absent()


class AuditLogResponse(WireResponse):
    """What was done, oldest first."""

    entries: list[AuditLogEntry]


class GetBillingUsageRequest(WireRequest):
    """Which hours: `starting_on` included, `ending_before` not, both whole UTC hours."""

    starting_on: datetime
    ending_before: datetime


class TrainingBillingEvent(WireResponse):
    """Tokens trained on."""

    type: Literal["training"] = "training"
    token_count: int
    forward_only: bool | None = absent()
    """Whether they were computed without a gradient; `tinkex serve` tells the two apart."""


class SamplingPrefillBillingEvent(WireResponse):
    """Prompt tokens read while sampling."""

    type: Literal["sampling_prefill"] = "sampling_prefill"
    cached: bool
    """Whether the prefix cache had them."""
    token_count: int


class SamplingSampleBillingEvent(WireResponse):
    """Tokens sampled."""

    type: Literal["sampling_sample"] = "sampling_sample"
    token_count: int


class CheckpointBillingEvent(WireResponse):
    """Checkpoints written."""

    type: Literal["checkpoint"] = "checkpoint"
    count: int


class StorageBillingEvent(WireResponse):
    """Checkpoints kept."""

    type: Literal["storage"] = "storage"
    free: bool = False
    gigabyte_hours: float


BillingEventInfo = Annotated[
    TrainingBillingEvent
    | SamplingPrefillBillingEvent
    | SamplingSampleBillingEvent
    | CheckpointBillingEvent
    | StorageBillingEvent,
    Field(discriminator="type"),
]


class BillingUsageEvent(WireResponse):
    """What one session used of one kind in one UTC hour."""

    bucket_start: datetime
    bucket_end: datetime
    base_model: str | None = absent()
    user_id: str | None = absent()
    user_name: str | None = absent()
    session_id: str | None = absent()
    project_id: str | None = absent()
    estimated_cost_usd: float | None = absent()
    effective_rate_usd_per_million_tokens: float | None = absent()
    effective_rate_usd_per_gigabyte_month: float | None = absent()
    event_info: BillingEventInfo


class BillingUsageSession(WireResponse):
    """What a session's user said of it."""

    user_metadata: TextMap | None = absent()


class BillingUsageResponse(WireResponse):
    """Usage by the hour, and the sessions it names."""

    data: list[BillingUsageEvent]
    sessions: dict[str, BillingUsageSession] = Field(default_factory=dict)
    cost_data_through: datetime | None = absent()


class GetCurrentCheckpointStorageUsageRequest(WireRequest):
    """Whose checkpoints: of one project, or all."""

    project_id: str | None = absent()


class CurrentCheckpointStorageUsageItem(WireResponse):
    """What the checkpoints of one project and owner take."""

    project_id: str | None = absent()
    org_user_urn: str | None = absent()
    user_email: str | None = absent()
    user_name: str | None = absent()
    checkpoint_count: Int
    size_bytes: Int
    size_gigabytes: float
    estimated_monthly_cost_usd: float | None = absent()


class CurrentCheckpointStorageUsageResponse(WireResponse):
    """What checkpoints take now."""

    effective_rate_usd_per_gigabyte_month: float | None = absent()
    data: list[CurrentCheckpointStorageUsageItem]
