"""What a worker takes from the machine that it runs on: time, chance, a way to others.

Owns the choice of each, in one place. A simulator gives others; no worker asks the operating system
past this for anything that could make two runs differ.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random, SystemRandom

from tinkex._clock import Clock, SystemClock
from tinkex.mesh.config import MeshConfig
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.transport.base import Transport

MakeTransport = Callable[[MeshConfig, KeyPair, tuple[str, ...], Clock], Transport]
"""From settings, a key pair, addresses to listen on and a clock: a transport, not started."""


def make_transport(
    config: MeshConfig, key_pair: KeyPair, bind: tuple[str, ...], clock: Clock
) -> Transport:
    """Make the transport that the settings name.

    Raises:
        MissingPackageError: its package is not installed.
    """
    if config.transport == "tls":
        from tinkex.mesh.transport.tls import TlsTransport  # noqa: PLC0415 - one of two is used

        return TlsTransport(key_pair, bind=bind, advertise=config.advertise, clock=clock)
    from tinkex.mesh.transport.iroh import IrohTransport  # noqa: PLC0415 - as above

    return IrohTransport(
        key_pair,
        bind=bind,
        advertise=config.advertise,
        relay_url=config.relay_url,
        clock=clock,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a worker takes from the machine that it runs on."""

    clock: Clock = field(default_factory=SystemClock)
    """Tells and waits for time."""
    rng: Random = field(default_factory=SystemRandom)
    """Draws jitter, candidates and seeds."""
    random: Callable[[int], bytes] = os.urandom
    """Gives so many random bytes: keys, ids, nonces."""
    transport: MakeTransport = make_transport
    """Makes links to others."""
    inline: bool = False
    """Whether what else threads would do is done in the caller's: for simulations."""
