"""`SamplingClient` under its official module name."""

from tinkex.client.sampling import SamplingClient

__all__ = ["SamplingClient"]
