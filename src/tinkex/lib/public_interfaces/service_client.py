"""`ServiceClient` under its official module name."""

from tinkex.client.service import ServiceClient

__all__ = ["ServiceClient"]
