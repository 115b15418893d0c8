"""`LossHandle` under its official module name."""

from tinkex.client.loss_handle import LossHandle, PerDatumLossFn

__all__ = ["LossHandle", "PerDatumLossFn"]
