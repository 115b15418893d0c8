"""The state of a key-value view: bytes by name, as the entries so far left them.

Owns the form on disk and in snapshots, which is the same in every store. A subclass says what an
entry does to the values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import msgspec

from tinkex.mesh.feeds.entry import Entry


class KeyValues(ABC):
    """Base of key-value states; the subclass itself is a view's `restore`.

    Args:
        data: what `dump` gave; None: empty.

    Raises:
        ValueError: it is something else.
    """

    def __init__(self, data: bytes | None = None) -> None:
        self.values: dict[str, bytes] = {}
        if data is not None:
            self.values = msgspec.msgpack.decode(data, type=dict[str, bytes])

    @abstractmethod
    def fold(self, entry: Entry) -> None:
        """Let an entry change `values`. It must depend on the two alone."""

    def dump(self) -> bytes:
        """The values, in the order of their names."""
        return msgspec.msgpack.encode(self.values, order="sorted")
