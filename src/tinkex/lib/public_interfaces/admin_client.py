"""`AdminClient` under its official module name."""

from tinkex.client.admin import AdminClient

__all__ = ["AdminClient"]
