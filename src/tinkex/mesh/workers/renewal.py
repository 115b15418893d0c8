"""Getting a new role certificate before the one that a worker has ends.

Owns when and whom to ask. An auth worker signs it, under the invitation that the worker joined by;
an auth worker's own is signed by the root alone, and the others may have it already.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from random import Random
from typing import Protocol

from tinkex._clock import Clock
from tinkex.errors import TinkerError
from tinkex.mesh.api.auth import AuthApi, Renew
from tinkex.mesh.identity import PeerId
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.peers import Peers
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.workers.discovery import Discovery

_LOG = logging.getLogger("tinkex.mesh.member")
DUE_AT = 2 / 3
"""Share of a certificate's life after which a new one is asked for."""
SPREAD = 0.05
"""Share of it by which workers that joined together ask apart."""
LOOK_S = 60.0
"""The clock is looked at so often: it may be set, or the machine sleep."""
ANSWER_S = 15.0
_RETRY_SHARE = 1 / 30
_RETRY_S = (1.0, 3600.0)


class Held(Protocol):
    """A worker's place in its network."""

    @property
    def role(self) -> Role:
        """The worker's."""

    @property
    def not_before(self) -> float:
        """Since when its certificate holds, in unix seconds."""

    @property
    def expires_at(self) -> float:
        """Until when."""


class Renewal:
    """Keeps one worker certified.

    Args:
        peers: calls auth workers.
        discovery: finds them.
        held: gives the worker's place, as it is now.
        adopt: takes a new certificate, or raises TrustError.
        clock: tells and waits for time.
        rng: spreads workers.
    """

    def __init__(
        self,
        peers: Peers,
        discovery: Discovery,
        *,
        held: Callable[[], Held],
        adopt: Callable[[bytes], None],
        clock: Clock,
        rng: Random,
    ) -> None:
        self._peers = peers
        self._discovery = discovery
        self._held = held
        self._adopt = adopt
        self._clock = clock
        self._spread = rng.random() * SPREAD
        self.renewed = 0
        """Certificates that it got."""
        self.failed = 0
        """Times that it was due and no auth worker gave one."""

    @property
    def due_at(self) -> float:
        """When the next certificate is asked for, in unix seconds."""
        held = self._held()
        life = held.expires_at - held.not_before
        return held.not_before + life * (DUE_AT - self._spread)

    async def run(self) -> None:
        """Renew in time until cancelled."""
        while True:
            left = self.due_at - self._clock.now()
            if left > 0:
                await self._clock.sleep(min(left, LOOK_S))
            elif not await self.renew():
                await self._clock.sleep(self._pause())

    async def renew(self) -> bool:
        """Ask one auth worker after the other; whether one gave a certificate that lasts longer."""
        problems: list[str] = []
        for contact in await self._auth_workers():
            try:
                given = await self._peers.call(
                    contact, AuthApi.rpc_renew, Renew(), timeout_s=ANSWER_S
                )
                before = self._held().expires_at
                self._adopt(given.certificate)
            except TinkerError as error:
                problems.append(f"{contact.peer_id.short}: {error}")
                continue
            if self._held().expires_at > before:
                self.renewed += 1
                return True
            problems.append(f"{contact.peer_id.short}: its own certificate ends no later")
        self.failed += 1
        self._tell(problems)
        return False

    async def _auth_workers(self) -> list[Contact]:
        try:
            found = await self._discovery.lookup(Role.AUTH.value)
        except TinkerError:
            return []
        own: PeerId = self._peers.peer_id
        return [record.contact for record in found if record.contact.peer_id != own]

    def _pause(self) -> float:
        held = self._held()
        least, most = _RETRY_S
        return min(max((held.expires_at - held.not_before) * _RETRY_SHARE, least), most)

    def _tell(self, problems: list[str]) -> None:
        hours = (self._held().expires_at - self._clock.now()) / 3600
        what = (
            "run `tinkex mesh renew` where the root key is"
            if self._held().role is Role.AUTH
            else "; ".join(problems) or "no auth worker is announced"
        )
        _LOG.warning(
            "this worker's certificate ends in %.1f hours, and is not renewed: %s", hours, what
        )
