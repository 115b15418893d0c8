"""`RetryConfig` under its official module name, the only one it has there."""

from tinkex.client.sample_submission import RetryConfig

__all__ = ["RetryConfig"]
