"""`TrainingClient` under its official module name."""

from tinkex.client.training import TrainingClient

__all__ = ["TrainingClient"]
