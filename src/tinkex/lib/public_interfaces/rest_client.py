"""`RestClient` under its official module name."""

from tinkex.client.rest import RestClient

__all__ = ["RestClient"]
