"""Checkpoints: saving, loading and describing weights."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from tinkex.errors import UnsupportedError
from tinkex.types._model import Bool, Int, WireRequest, WireResponse, absent
from tinkex.types.sampling import SamplingClientKind
from tinkex.types.training import AdamOptimizerConfig, OptimizerConfig


class SaveWeightsRequest(WireRequest):
    """Save an adapter with its optimiser."""

    model_id: str
    path: str | None = absent()
    """The checkpoint's name."""
    seq_id: Int | None = absent()
    ttl_seconds: Int | None = absent()
    overwrite: Bool = False
    user_metadata: dict[str, str] | None = absent()
    type: Literal["save_weights"] = "save_weights"


class SaveWeightsResponse(WireResponse):
    """Where the checkpoint is."""

    path: str
    type: Literal["save_weights"] | None = absent()

    def get_console_url(self) -> str:
        """Refuse: a checkpoint's page is a page of the hosted service.

        Raises:
            UnsupportedError: always.
        """
        raise _no_page("get_console_url")


class LoadWeightsRequest(WireRequest):
    """Load a checkpoint into a training run, or into a new one (session_id and model_seq_id)."""

    model_id: str | None = absent()
    seq_id: Int | None = absent()
    session_id: str | None = absent()
    model_seq_id: Int | None = absent()
    base_model: str | None = absent()
    user_metadata: dict[str, Any] | None = absent()
    path: str
    optimizer: Bool
    """Whether the optimiser's state is loaded too."""
    optimizer_config: OptimizerConfig | None = absent()
    weights_access_token: str | None = absent()
    type: Literal["load_weights"] = "load_weights"


class LoadWeightsResponse(WireResponse):
    """What was loaded, and the run it was loaded into."""

    path: str | None = absent()
    model_id: str | None = absent()
    type: Literal["load_weights"] | None = absent()


class SaveWeightsForSamplerRequest(WireRequest):
    """Save weights to sample from: under a name, or only for a sampling session."""

    model_id: str
    path: str | None = absent()
    sampling_session_seq_id: Int | None = absent()
    kind: SamplingClientKind = "snapshot"
    seq_id: Int | None = absent()
    ttl_seconds: Int | None = absent()
    user_metadata: dict[str, str] | None = absent()
    type: Literal["save_weights_for_sampler"] = "save_weights_for_sampler"


class SaveWeightsForSamplerResponseInternal(WireResponse):
    """What the server answers: a path for named weights, else a sampling session."""

    path: str | None = absent()
    sampling_session_id: str | None = absent()
    type: Literal["save_weights_for_sampler"] | None = absent()


class SaveWeightsForSamplerResponse(WireResponse):
    """Where named sampler weights are."""

    path: str
    type: Literal["save_weights_for_sampler"] | None = absent()

    def get_console_url(self) -> str:
        """Refuse: a checkpoint's page is a page of the hosted service.

        Raises:
            UnsupportedError: always.
        """
        raise _no_page("get_console_url")

    def get_playground_url(self) -> str:
        """Refuse: the playground is a page of the hosted service.

        Raises:
            UnsupportedError: always.
        """
        raise _no_page("get_playground_url")


class SaveWeightsExternalRequest(WireRequest):
    """Export an adapter in the format that other tools read."""

    model_id: str
    path: str
    """The checkpoint's name."""
    seq_id: Int | None = absent()
    ttl_seconds: Int | None = absent()
    age_encryption_recipients: list[str] | None = absent()
    type: Literal["save_weights_external"] = "save_weights_external"


class SaveWeightsExternalResponseInternal(WireResponse):
    """What the server answers."""

    path: str | None = absent()
    size_bytes: int | None = absent()
    type: Literal["save_weights_external"] | None = absent()


class SaveWeightsExternalResponse(WireResponse):
    """Where the export is."""

    path: str
    type: Literal["save_weights_external"] | None = absent()


class ExternalWeightsUrlsResponse(WireResponse):
    """Where to fetch each file of an export, and until when."""

    urls: dict[str, str]
    """By the file's path within the checkpoint."""
    expires: datetime


class CheckpointArchiveUrlResponse(WireResponse):
    """Where to fetch a checkpoint as one archive, and until when."""

    url: str
    expires: datetime


class SetTtlRequest(WireRequest):
    """Say when a checkpoint may be deleted, in seconds from now; null keeps it."""

    ttl_seconds: Int | None


class CopyWeightsRequest(WireRequest):
    """Copy a checkpoint into a project, or into a slot of a session."""

    session_id: str | None = absent()
    model_seq_id: Int | None = absent()
    destination_project_id: str | None = absent()
    source_path: str
    ttl_seconds: Int | None = absent()
    weights_access_token: str | None = Field(default=None, exclude=True)
    """Travels as a header, never in the body."""


class CopyWeightsResponse(WireResponse):
    """Where the copy is."""

    tinker_path: str


class WeightsInfoRequest(WireRequest):
    """Ask what a checkpoint holds."""

    tinker_path: str


class WeightsInfoResponse(WireResponse):
    """What a checkpoint holds."""

    base_model: str
    optimizer_config: OptimizerConfig = AdamOptimizerConfig()
    is_lora: bool
    lora_rank: int | None = absent()
    train_unembed: bool | None = absent()
    train_mlp: bool | None = absent()
    train_attn: bool | None = absent()


def _no_page(method: str) -> UnsupportedError:
    return UnsupportedError(
        f"{method}: the pages of the hosted service know nothing of this server. "
        "`tinkex checkpoint info PATH` shows a checkpoint, `tinkex sample` tries it."
    )
