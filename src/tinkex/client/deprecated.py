"""The `*_async` twins that programs for older SDKs call. Deprecated: every call can be awaited.

Each is one line over the call itself. The twins of training calls give the future, as they always
did, so `future = await client.forward_backward_async(...)` works; the others give the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tinkex.client.future import APIFuture
    from tinkex.client.sampling import SamplingClient
    from tinkex.client.training import TrainingClient
    from tinkex.types import (
        ForwardBackwardOutput,
        GetInfoResponse,
        GetServerCapabilitiesResponse,
        LoadWeightsResponse,
        OptimStepResponse,
        SampleResponse,
        SaveWeightsForSamplerResponse,
        SaveWeightsResponse,
    )


class _Training(Protocol):
    """What the twins of a training client stand on."""

    forward: Any
    forward_backward: Any
    forward_backward_custom: Any
    optim_step: Any
    save_state: Any
    load_state: Any
    load_state_with_optimizer: Any
    save_weights_for_sampler: Any
    save_weights_and_get_sampling_client: Any
    create_sampling_client: Any
    get_info: Any


class TrainingTwins:
    """Twins of `TrainingClient`'s calls."""

    async def forward_async(
        self: _Training, *args: Any, **kwargs: Any
    ) -> APIFuture[ForwardBackwardOutput]:
        """Return the future of `forward`."""
        return self.forward(*args, **kwargs)  # type: ignore[no-any-return]  # typed at the call

    async def forward_backward_async(
        self: _Training, *args: Any, **kwargs: Any
    ) -> APIFuture[ForwardBackwardOutput]:
        """Return the future of `forward_backward`."""
        return self.forward_backward(*args, **kwargs)  # type: ignore[no-any-return]  # as above

    async def forward_backward_custom_async(
        self: _Training, *args: Any, **kwargs: Any
    ) -> APIFuture[ForwardBackwardOutput]:
        """Return the future of `forward_backward_custom`."""
        return self.forward_backward_custom(*args, **kwargs)  # type: ignore[no-any-return]  # as above

    async def optim_step_async(
        self: _Training, *args: Any, **kwargs: Any
    ) -> APIFuture[OptimStepResponse]:
        """Return the future of `optim_step`."""
        return self.optim_step(*args, **kwargs)  # type: ignore[no-any-return]  # as above

    async def save_state_async(
        self: _Training, *args: Any, **kwargs: Any
    ) -> APIFuture[SaveWeightsResponse]:
        """Return the future of `save_state`."""
        return self.save_state(*args, **kwargs)  # type: ignore[no-any-return]  # as above

    async def load_state_async(
        self: _Training, *args: Any, **kwargs: Any
    ) -> APIFuture[LoadWeightsResponse]:
        """Return the future of `load_state`."""
        return self.load_state(*args, **kwargs)  # type: ignore[no-any-return]  # as above

    async def load_state_with_optimizer_async(
        self: _Training, *args: Any, **kwargs: Any
    ) -> APIFuture[LoadWeightsResponse]:
        """Return the future of `load_state_with_optimizer`."""
        return self.load_state_with_optimizer(*args, **kwargs)  # type: ignore[no-any-return]  # as above

    async def save_weights_for_sampler_async(
        self: _Training, *args: Any, **kwargs: Any
    ) -> APIFuture[SaveWeightsForSamplerResponse]:
        """Return the future of `save_weights_for_sampler`."""
        return self.save_weights_for_sampler(*args, **kwargs)  # type: ignore[no-any-return]  # as above

    async def save_weights_and_get_sampling_client_async(
        self: _Training, *args: Any, **kwargs: Any
    ) -> SamplingClient:
        """Return the client of `save_weights_and_get_sampling_client`."""
        return await self.save_weights_and_get_sampling_client(*args, **kwargs)  # type: ignore[no-any-return]  # as above

    async def create_sampling_client_async(
        self: _Training, *args: Any, **kwargs: Any
    ) -> SamplingClient:
        """Return the client of `create_sampling_client`."""
        return await self.create_sampling_client(*args, **kwargs)  # type: ignore[no-any-return]  # as above

    async def get_info_async(self: _Training) -> GetInfoResponse:
        """Return what `get_info` returns."""
        return self.get_info()  # type: ignore[no-any-return]  # as above


class _Sampling(Protocol):
    """What the twins of a sampling client stand on."""

    sample: Any
    compute_logprobs: Any
    get_base_model: Any


class SamplingTwins:
    """Twins of `SamplingClient`'s calls."""

    async def sample_async(self: _Sampling, *args: Any, **kwargs: Any) -> SampleResponse:
        """Return the result of `sample`."""
        return await self.sample(*args, **kwargs)  # type: ignore[no-any-return]  # as above

    async def compute_logprobs_async(
        self: _Sampling, *args: Any, **kwargs: Any
    ) -> list[float | None]:
        """Return the result of `compute_logprobs`."""
        return await self.compute_logprobs(*args, **kwargs)  # type: ignore[no-any-return]  # as above

    async def get_base_model_async(self: _Sampling) -> str:
        """Return what `get_base_model` returns."""
        return self.get_base_model()  # type: ignore[no-any-return]  # as above


class _Service(Protocol):
    """What the twins of a service client stand on."""

    create_lora_training_client: Any
    create_training_client_from_state: Any
    create_training_client_from_state_with_optimizer: Any
    create_sampling_client: Any
    server_capabilities: Any


class ServiceTwins:
    """Twins of `ServiceClient`'s calls."""

    async def create_lora_training_client_async(
        self: _Service, *args: Any, **kwargs: Any
    ) -> TrainingClient:
        """Return the client of `create_lora_training_client`."""
        return await self.create_lora_training_client(*args, **kwargs)  # type: ignore[no-any-return]  # as above

    async def create_training_client_from_state_async(
        self: _Service, *args: Any, **kwargs: Any
    ) -> TrainingClient:
        """Return the client of `create_training_client_from_state`."""
        return await self.create_training_client_from_state(*args, **kwargs)  # type: ignore[no-any-return]  # as above

    async def create_training_client_from_state_with_optimizer_async(
        self: _Service, *args: Any, **kwargs: Any
    ) -> TrainingClient:
        """Return the client of `create_training_client_from_state_with_optimizer`."""
        return await self.create_training_client_from_state_with_optimizer(*args, **kwargs)  # type: ignore[no-any-return]  # as above

    async def create_sampling_client_async(
        self: _Service, *args: Any, **kwargs: Any
    ) -> SamplingClient:
        """Return the client of `create_sampling_client`."""
        return await self.create_sampling_client(*args, **kwargs)  # type: ignore[no-any-return]  # as above

    async def get_server_capabilities_async(self: _Service) -> GetServerCapabilitiesResponse:
        """Return what `get_server_capabilities` returns."""
        return await self.server_capabilities()  # type: ignore[no-any-return]  # as above
