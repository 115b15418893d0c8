"""Training runs and their checkpoints, as lists show them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from tinkex.types._model import TextMap, WireResponse, absent

CheckpointType = Literal["training", "sampler", "external"]


class Cursor(WireResponse):
    """Which part of a list this is."""

    offset: int
    limit: int
    total_count: int


class Checkpoint(WireResponse):
    """A checkpoint of a training run."""

    checkpoint_id: str
    checkpoint_type: CheckpointType
    time: datetime
    tinker_path: str
    size_bytes: int | None = absent()
    public: bool = False
    user_metadata: dict[str, str] | None = absent()
    expires_at: datetime | None = absent()


class TrainingRun(WireResponse):
    """A training run."""

    training_run_id: str
    base_model: str
    model_owner: str
    is_lora: bool
    corrupted: bool = False
    lora_rank: int | None = absent()
    last_request_time: datetime
    last_checkpoint: Checkpoint | None = absent()
    last_sampler_checkpoint: Checkpoint | None = absent()
    user_metadata: TextMap | None = absent()


class TrainingRunsResponse(WireResponse):
    """A page of training runs."""

    training_runs: list[TrainingRun]
    cursor: Cursor


class CheckpointsListResponse(WireResponse):
    """A page of checkpoints."""

    checkpoints: list[Checkpoint]
    cursor: Cursor | None = absent()
