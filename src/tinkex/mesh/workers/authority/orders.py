"""Carrying out what the holder of the root key says, while the auth worker runs.

Owns looking for it and the order of what follows: every member is told at once, in this worker's
own "network" feed, for the root signed it; the accounts' log has it once a leader writes.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from tinkex._clock import Clock
from tinkex.errors import NoQuorumError, TinkerError
from tinkex.mesh.identity import PeerId
from tinkex.mesh.trust.certificates import RoleCertificate
from tinkex.mesh.trust.network import NetworkInfo, check_network
from tinkex.mesh.workers.authority.network import Membership, Place
from tinkex.mesh.workers.root_word import RootWord, latest_certificate

_LOG = logging.getLogger("tinkex.mesh.auth")
LOOK_S = 1.0
"""Between two looks."""


class RootOrders:
    """Looks, every second, for what the root key's holder said.

    Args:
        peer: this auth worker.
        read: gives the latest word; None where there is none.
        place: this worker's place, as it is now.
        adopt: takes a later certificate of its own.
        network: the network as it is known now.
        membership: tells the others.
        clock: tells the time.
    """

    def __init__(
        self,
        peer: PeerId,
        read: Callable[[], RootWord | None],
        place: Callable[[], Place],
        adopt: Callable[[bytes], None],
        *,
        network: Callable[[], NetworkInfo],
        membership: Membership,
        clock: Clock,
    ) -> None:
        self._peer = peer
        self._read = read
        self._place = place
        self._adopt = adopt
        self._network = network
        self._membership = membership
        self._clock = clock
        self._complained_of: RootWord | None = None
        """What could not be carried out when it was last tried: once is enough in the log."""
        membership.of_auth_workers = self.certificate_of

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self._clock.sleep(LOOK_S)
            try:
                await self.look()
            except TinkerError as error:
                _LOG.error("the root's word was not carried out: %s", error)

    def certificate_of(self, peer: PeerId) -> RoleCertificate | None:
        """Find what the root signed last for an auth worker; None where nothing holds."""
        word = self._read()
        if word is None:
            return None
        return latest_certificate(
            word.certificates, peer, network=self._network(), now=self._clock.now()
        )

    async def look(self) -> None:
        """Carry out what was said since, if anything.

        Raises:
            TinkerError: it cannot be carried out.
        """
        word = self._read()
        if word is not None:
            try:
                await self._heed(word)
            except TinkerError:
                # Tried again: a disk that is full has room later, and a stolen key is to be out.
                if self._is_new_trouble(word):
                    raise
        await self._write_down()

    def _is_new_trouble(self, word: RootWord) -> bool:
        before, self._complained_of = self._complained_of, word
        return word != before

    async def _heed(self, word: RootWord) -> None:
        known = self._network()
        said = check_network(word.network, network=known.id)
        if said.sequence > known.sequence:
            if len(known.members) == 1 < len(said.members):
                if self._is_new_trouble(word):
                    _LOG.warning(
                        "the root names more auth workers than this one: start it again, so that "
                        "it asks them before it writes"
                    )
                return
            await self._membership.tell(word.network)
        own = self.certificate_of(self._peer)
        if own is not None and own.expires_at > self._place().expires_at:
            self._adopt(own.encoded)

    async def _write_down(self) -> None:
        """Have the accounts' log know the description too, where this worker may write."""
        encoded = self._membership.undescribed
        if encoded is not None:
            with contextlib.suppress(NoQuorumError):  # the leader does, or this one once it leads
                await self._membership.describe(encoded)
