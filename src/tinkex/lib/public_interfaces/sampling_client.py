"""`SamplingClient` under its official module name, with what its arguments take."""

from tinkex.client.sample_submission import RetryConfig
from tinkex.client.sampling import SamplingClient

__all__ = ["RetryConfig", "SamplingClient"]
