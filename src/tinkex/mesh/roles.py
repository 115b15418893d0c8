"""What a peer may be in a network."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """A worker's role, as its certificate names it."""

    AUTH = "auth"
    GATEWAY = "gateway"
    PROCESSOR = "processor"
    CLIENT = "client"
    BOOTSTRAP = "bootstrap"


CERTIFIED = frozenset(Role)
"""Every role: a method that any member of the network may call."""
