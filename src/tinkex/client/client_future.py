"""The future that a factory of clients returns.

Programs written for older SDKs use what the factories return as the client itself; this future lets
them, by waiting for the client when one of its attributes is asked for.
"""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

from tinkex.client.future import APIFuture

T = TypeVar("T")


class ClientFuture(APIFuture[T]):
    """A client that is being made: `.result()` or `await` gives it.

    Asking for one of the client's own attributes blocks until it is made; that is deprecated.
    """

    def __getattr__(self, name: str) -> Any:
        """Give the client's attribute."""
        if name.startswith("_"):
            raise AttributeError(name)
        warnings.warn(
            f"Using the future of a client as the client ({name}) is deprecated: "
            "call .result() on it, or await it, first.",
            FutureWarning,
            stacklevel=2,
        )
        return getattr(self.result(), name)
