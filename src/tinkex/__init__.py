"""tinkex: the open, self-hosted home of the Tinker fine-tuning API.

    import tinkex as tinker

The layers, and who imports whom (checked by import-linter; ARCHITECTURE.md says why):

    errors _clock _backoff _redact  <-  types  <-  wire  <-  client
                                        types  <-  engine
                               types, wire, engine  <-  server
                                            everything  <-  cli

This module re-exports the public names of the client. They are loaded on first use, so importing
the package is fast and needs neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tinkex._version import __version__

if TYPE_CHECKING:
    from tinkex import auth, types
    from tinkex.client.admin import AdminClient
    from tinkex.client.circuit_breaker import CircuitBreakerPolicy
    from tinkex.client.events import Event
    from tinkex.client.future import APIFuture
    from tinkex.client.loss_handle import LossHandle, PerDatumLossFn
    from tinkex.client.options import ExperimentalWarning, RequestOptions, Timeout
    from tinkex.client.recovery import Recovery, RecoveryPolicy, run_with_recovery
    from tinkex.client.rest import RestClient
    from tinkex.client.sample_submission import RetryConfig
    from tinkex.client.sampling import BackcompatSamplingClientFuture, SamplingClient
    from tinkex.client.service import BackcompatTrainingClientFuture, ServiceClient
    from tinkex.client.statistics import ClientStatistics
    from tinkex.client.training import TrainingClient
    from tinkex.errors import (
        APIConnectionError,
        APIError,
        APIResponseValidationError,
        APIStatusError,
        APITimeoutError,
        AuthenticationError,
        BadRequestError,
        BillingError,
        ConflictError,
        InternalServerError,
        NotFoundError,
        PermissionDeniedError,
        RateLimitError,
        RequestFailedError,
        TinkerError,
        UnprocessableEntityError,
    )
    from tinkex.local import LocalServer
    from tinkex.types import (
        AdamOptimizerConfig,
        AdamParams,
        Checkpoint,
        CheckpointType,
        Datum,
        DimuonOptimizerConfig,
        DimuonParams,
        DmelChunk,
        EncodedTextChunk,
        ForwardBackwardOutput,
        LoraConfig,
        ModelID,
        ModelInput,
        ModelInputChunk,
        OptimParams,
        OptimStepRequest,
        OptimStepResponse,
        ParsedCheckpointTinkerPath,
        PromptProvenanceSpan,
        SampledProvenanceSpan,
        SampledSequence,
        SampleRequest,
        SampleResponse,
        SamplingParams,
        StopReason,
        TensorData,
        TensorDtype,
        TrainingRun,
    )

__title__ = "tinkex"

_HOMES = {
    "tinkex.client.admin": ("AdminClient",),
    "tinkex.client.options": ("ExperimentalWarning", "RequestOptions", "Timeout"),
    "tinkex.client.recovery": ("Recovery", "RecoveryPolicy", "run_with_recovery"),
    "tinkex.client.rest": ("RestClient",),
    "tinkex.client.circuit_breaker": ("CircuitBreakerPolicy",),
    "tinkex.client.events": ("Event",),
    "tinkex.client.future": ("APIFuture",),
    "tinkex.client.loss_handle": ("LossHandle", "PerDatumLossFn"),
    "tinkex.client.sample_submission": ("RetryConfig",),
    "tinkex.client.sampling": (
        "BackcompatSamplingClientFuture",
        "SamplingClient",
    ),
    "tinkex.client.service": ("BackcompatTrainingClientFuture", "ServiceClient"),
    "tinkex.client.statistics": ("ClientStatistics",),
    "tinkex.client.training": ("TrainingClient",),
    "tinkex.local": ("LocalServer",),
    "tinkex.errors": (
        "APIConnectionError",
        "APIError",
        "APIResponseValidationError",
        "APIStatusError",
        "APITimeoutError",
        "AuthenticationError",
        "BadRequestError",
        "BillingError",
        "ConflictError",
        "InternalServerError",
        "NotFoundError",
        "PermissionDeniedError",
        "RateLimitError",
        "RequestFailedError",
        "TinkerError",
        "UnprocessableEntityError",
    ),
    "tinkex.types": (
        "AdamOptimizerConfig",
        "AdamParams",
        "Checkpoint",
        "CheckpointType",
        "Datum",
        "DimuonOptimizerConfig",
        "DimuonParams",
        "DmelChunk",
        "EncodedTextChunk",
        "ForwardBackwardOutput",
        "LoraConfig",
        "ModelID",
        "ModelInput",
        "ModelInputChunk",
        "OptimParams",
        "OptimStepRequest",
        "OptimStepResponse",
        "ParsedCheckpointTinkerPath",
        "PromptProvenanceSpan",
        "SampleRequest",
        "SampleResponse",
        "SampledProvenanceSpan",
        "SampledSequence",
        "SamplingParams",
        "StopReason",
        "TensorData",
        "TensorDtype",
        "TrainingRun",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIFuture",
    "APIResponseValidationError",
    "APIStatusError",
    "APITimeoutError",
    "AdamOptimizerConfig",
    "AdamParams",
    "AdminClient",
    "AuthenticationError",
    "BackcompatSamplingClientFuture",
    "BackcompatTrainingClientFuture",
    "BadRequestError",
    "BillingError",
    "Checkpoint",
    "CheckpointType",
    "CircuitBreakerPolicy",
    "ClientStatistics",
    "ConflictError",
    "Datum",
    "DimuonOptimizerConfig",
    "DimuonParams",
    "DmelChunk",
    "EncodedTextChunk",
    "Event",
    "ExperimentalWarning",
    "ForwardBackwardOutput",
    "InternalServerError",
    "LocalServer",
    "LoraConfig",
    "LossHandle",
    "ModelID",
    "ModelInput",
    "ModelInputChunk",
    "NotFoundError",
    "OptimParams",
    "OptimStepRequest",
    "OptimStepResponse",
    "ParsedCheckpointTinkerPath",
    "PerDatumLossFn",
    "PermissionDeniedError",
    "PromptProvenanceSpan",
    "RateLimitError",
    "Recovery",
    "RecoveryPolicy",
    "RequestFailedError",
    "RequestOptions",
    "RestClient",
    "RetryConfig",
    "SampleRequest",
    "SampleResponse",
    "SampledProvenanceSpan",
    "SampledSequence",
    "SamplingClient",
    "SamplingParams",
    "ServiceClient",
    "StopReason",
    "TensorData",
    "TensorDtype",
    "Timeout",
    "TinkerError",
    "TrainingClient",
    "TrainingRun",
    "UnprocessableEntityError",
    "__title__",
    "__version__",
    "auth",
    "run_with_recovery",
    "types",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its home."""
    if name in {"auth", "types"}:
        return importlib.import_module(f"tinkex.{name}")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(
            f"tinkex has no {name!r}. If the official package has it, it is not here yet; "
            "the README lists what is."
        )
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
