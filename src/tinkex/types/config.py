"""What a server tells its clients: limits, flags, models."""

from __future__ import annotations

from tinkex.types._model import WireRequest, WireResponse, absent


class ClientConfigRequest(WireRequest):
    """Ask for the configuration."""

    sdk_version: str


class ClientDynamicConfigRequest(WireRequest):
    """Ask for the flags that may change."""

    sdk_version: str


class ClientConfigResponse(WireResponse):
    """Limits and flags a client follows; each has the official default."""

    pjwt_auth_enabled: bool = False
    credential_default_source: str = "api_key"
    sample_dispatch_bytes_semaphore_size: int = 10 * 2**20
    inflight_response_bytes_semaphore_size: int = 50 * 2**20
    parallel_fwdbwd_chunks: bool = True
    proto_compress_fwdbwd: bool = False
    fwdbwd_max_chunk_len: int = 1024
    fwdbwd_max_chunk_bytes_count: int = 5_000_000
    fwdbwd_dispatch_bytes_semaphore_size: int = 50_000_000
    billing_exception_max_pause_duration_sec: int = 3600
    sample_no_retries: bool = False
    sample_enable_stuck_detection: bool = True
    sample_max_concurrent_requests: int = 2000
    use_pyqwest_transport: bool = True
    sample_use_retrieve_futures: bool = False
    custom_loss_server_side: bool = False
    sample_join_sampling_session: bool = False


class ClientDynamicConfigResponse(WireResponse):
    """Flags that may change while a client lives."""

    refresh_interval_sec: int = 300
    sample_cancel_enabled: bool = False
    sample_cancel_max_batch_size: int = 64


class SupportedModel(WireResponse):
    """A base model of the server."""

    model_name: str | None = absent()
    max_context_length: int | None = absent()
    hidden_size: int | None = absent()
    """Width of the model; `tinkex serve` says it, other servers may not."""
    trainable: bool | None = absent()
    sampleable: bool | None = absent()


class GetServerCapabilitiesResponse(WireResponse):
    """The base models of the server."""

    supported_models: list[SupportedModel]


class HealthResponse(WireResponse):
    """The server lives."""

    status: str
