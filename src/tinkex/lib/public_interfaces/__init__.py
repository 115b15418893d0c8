"""The clients under the name that programs for the official package import them by."""

from tinkex.client.admin import AdminClient
from tinkex.client.future import APIFuture
from tinkex.client.loss_handle import LossHandle, PerDatumLossFn
from tinkex.client.rest import RestClient
from tinkex.client.sampling import BackcompatSamplingClientFuture, SamplingClient
from tinkex.client.service import BackcompatTrainingClientFuture, ServiceClient
from tinkex.client.training import TrainingClient
from tinkex.lib.public_interfaces.api_future import AwaitableConcurrentFuture

__all__ = [
    "APIFuture",
    "AdminClient",
    "AwaitableConcurrentFuture",
    "BackcompatSamplingClientFuture",
    "BackcompatTrainingClientFuture",
    "LossHandle",
    "PerDatumLossFn",
    "RestClient",
    "SamplingClient",
    "ServiceClient",
    "TrainingClient",
]
