"""`APIFuture` under its official module name."""

from tinkex.client.future import APIFuture

__all__ = ["APIFuture"]
