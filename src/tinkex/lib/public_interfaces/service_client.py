"""`ServiceClient` under its official module name, with what its arguments take."""

from tinkex.client.loss_handle import LossHandle
from tinkex.client.sample_submission import RetryConfig
from tinkex.client.service import ServiceClient

__all__ = ["LossHandle", "RetryConfig", "ServiceClient"]
