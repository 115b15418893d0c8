"""Who is in the network: joining, staying, and being shut out.

Owns an auth worker's side of these, and telling the others of a new description of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

import msgspec

from tinkex._clock import Clock
from tinkex.errors import TrustError
from tinkex.mesh.accounts.accounts import Decision
from tinkex.mesh.accounts.events import (
    AuthEvent,
    NetworkChanged,
    PeerJoined,
    PeerRevoked,
    SigningKeyRevoked,
    encode_events,
    network_form,
    public_form,
)
from tinkex.mesh.accounts.state import AccountsState
from tinkex.mesh.api.auth import Join, Joined
from tinkex.mesh.identity import KeyPair, PeerId
from tinkex.mesh.quota import GatewayLost
from tinkex.mesh.roles import Role
from tinkex.mesh.trust.certificates import (
    Chain,
    Grant,
    RoleCertificate,
    Signed,
    make_certificate,
    renew_certificate,
)
from tinkex.mesh.trust.invitations import check_join
from tinkex.mesh.trust.network import NetworkInfo, check_network
from tinkex.mesh.workers.authority.log import AuthLog, Journal


class Place(Protocol):
    """An auth worker's place in its network."""

    @property
    def network(self) -> NetworkInfo:
        """The network as it is on this worker's disk."""

    @property
    def network_encoded(self) -> bytes:
        """The same, as it was signed."""

    @property
    def certificate(self) -> bytes:
        """The worker's own."""

    @property
    def expires_at(self) -> float:
        """When it ends, in unix seconds."""


class Membership:
    """Lets peers in, keeps them in, and shuts them out.

    Args:
        log: carries decisions out.
        journal: what every member reads; the root's own word needs no majority to be told.
        key_pair: signs certificates.
        place: this auth worker's own place, as it is now.
        network: the network as it is known now: (checked, as it was signed).
        state: who joined before.
        clock: tells the time.
    """

    def __init__(
        self,
        log: AuthLog,
        journal: Journal,
        key_pair: KeyPair,
        place: Callable[[], Place],
        *,
        network: Callable[[], tuple[NetworkInfo, bytes]],
        state: Callable[[], AccountsState],
        clock: Clock,
    ) -> None:
        self._log = log
        self._journal = journal
        self._key_pair = key_pair
        self._place = place
        self._network = network
        self._state = state
        self._clock = clock
        self.of_auth_workers: Callable[[PeerId], RoleCertificate | None] = lambda _: None
        """Finds the certificate that the root signed last for an auth worker."""

    async def join(self, request: Join, peer: PeerId) -> Joined:
        """Certify a peer that shows an unused invitation; one that asks again stays the same.

        One whose certificate an auth worker signed that was shut out since gets another.

        Raises:
            TrustError: the invitation does not hold, has expired, or was used by another.
        """
        info, encoded = self._network()
        try:
            grant = msgspec.msgpack.decode(request.invitation, type=Signed)
        except ValueError as error:
            raise TrustError("the invitation cannot be read") from error
        checked = check_join(grant, request.proof, peer, network=info)

        async def decide(now: float) -> Decision[bytes]:
            state = self._state()
            self.check_not_shut_out(peer)
            used = state.joined.get(checked.key)
            if used is not None and used.peer == peer.raw and not self._is_void(used.certificate):
                return Decision((), used.certificate)
            if used is not None and used.peer != peer.raw:
                raise TrustError("the invitation was used by another peer: ask for another one")
            if used is None and now >= checked.join_before:
                raise TrustError("the invitation has expired: ask for another one")
            certificate = self._certified(grant, checked, peer, now)
            joined = PeerJoined(
                at=now, grant_key=checked.key, peer=peer.raw, certificate=certificate
            )
            return Decision((joined,), certificate)

        return Joined(certificate=await self._log.carry(decide), network=encoded)

    def renew(self, held: RoleCertificate) -> Joined:
        """Certify a member anew, under the invitation that it joined by; needs no majority.

        An auth worker gets what the root signed for it: nobody else certifies one.

        Args:
            held: the member's certificate, as its link was made with.

        Raises:
            TrustError: it was shut out, or no invitation of it is known here.
        """
        now, (_, encoded) = self._clock.now(), self._network()
        self.check_not_shut_out(held.peer)
        if held.role is Role.AUTH:
            return Joined(certificate=self._of_auth_worker(held).encoded, network=encoded)
        self.check_joined(held)
        place = self._place()
        certificate = renew_certificate(
            self._key_pair, held, now=now, until=place.expires_at, issuer=_chain(place)
        )
        return Joined(certificate=certificate, network=encoded)

    def check_not_shut_out(self, peer: PeerId) -> None:
        """Refuse a peer that was shut out, by the log or by the root's own word.

        Raises:
            TrustError: it was.
        """
        if peer.raw in self._state().revoked_peers or peer.raw in self._network()[0].shut_out:
            raise TrustError("this peer was shut out: join with a new key and invitation")

    def check_joined(self, held: RoleCertificate) -> None:
        """Refuse a certificate whose invitation the log does not have as that peer's.

        Who stole an auth worker's key can sign one for an invitation that was used; it ends.

        Raises:
            TrustError: it is not.
        """
        joined = self._state().joined.get(held.grant_key)
        if joined is None or joined.peer != held.peer.raw:
            raise TrustError(
                "no invitation that this peer used is known here: ask another auth worker, or join "
                "with a new invitation"
            )

    def _of_auth_worker(self, held: RoleCertificate) -> RoleCertificate:
        found = self.of_auth_workers(held.peer)
        if found is None or found.expires_at <= held.expires_at:
            raise TrustError(
                "the root has signed no later certificate for this auth worker: run `tinkex mesh "
                "renew` where the root key is"
            )
        return found

    def _certified(self, grant: Signed, checked: Grant, peer: PeerId, now: float) -> bytes:
        place = self._place()
        return make_certificate(
            self._key_pair,
            grant=grant,
            peer=peer,
            not_before=now,
            # Nobody believes it longer than its signer.
            expires_at=min(now + checked.certificate_s, place.expires_at),
            issuer=_chain(place),
        )

    async def revoke(self, peer: PeerId) -> None:
        """Shut a peer out for good; harmless twice.

        Of a gateway's leases counts from now on what its entries say, and no access token holds
        that an auth worker's key signed.
        """

        async def decide(now: float) -> Decision[None]:
            return Decision(self._revoked({peer.raw}, now), None)

        await self._log.carry(decide)

    async def tell(self, encoded: bytes) -> None:
        """Tell every member of a new description at once: the root signed it, and nobody decides.

        Raises:
            TrustError: it does not hold, or does not follow on the one that is known.
        """
        known, _ = self._network()
        check_network(encoded, network=known.id, known=known)
        changed = NetworkChanged(at=self._clock.now(), network=encoded)
        await self._journal.append(encode_events([changed]))

    @property
    def undescribed(self) -> bytes | None:
        """The description that is known, where the accounts' log has an older one or none."""
        known, encoded = self._network()
        announced = self._state().network
        if announced is None:
            return encoded
        if announced.network == encoded:
            return None
        before = check_network(announced.network, network=known.id)
        return encoded if known.sequence > before.sequence else None

    async def describe(self, encoded: bytes) -> None:
        """Make a new description of the network known to all; an older one changes nothing.

        Raises:
            TrustError: it does not hold, or does not follow on the one that is known.
        """
        known, _ = self._network()
        announced = self._state().network
        info = check_network(encoded, network=known.id)
        if info.sequence < known.sequence or (announced and announced.network == encoded):
            return
        check_network(encoded, network=known.id, known=known)

        async def decide(now: float) -> Decision[None]:
            changed = NetworkChanged(at=now, network=encoded)
            return Decision((changed, *self._revoked({*info.shut_out}, now)), None)

        await self._log.carry(decide)
        before = check_network(announced.network, network=known.id) if announced else info
        if not before.trusted <= info.trusted:
            # What was written under an old root's certificates reaches no new member: once more.
            held = tuple(self._state().dump())
            await self._log.tell([*public_form(held)], [*network_form(held)])

    def _is_void(self, certificate: bytes) -> bool:
        """Whether a certificate in the log was signed by an auth worker that was shut out."""
        signer = msgspec.msgpack.decode(certificate, type=Chain).certificate.signer
        return signer in self._state().revoked_peers

    def _revoked(self, peers: Collection[bytes], now: float) -> tuple[AuthEvent, ...]:
        state = self._state()
        new = sorted(peer for peer in peers if peer not in state.revoked_peers)
        kids = [key.kid for key in state.signing_keys.values() if key.author in peers]
        return (
            *(PeerRevoked(at=now, peer=peer) for peer in new),
            *(GatewayLost(gateway=peer, at=now) for peer in new),
            *(
                SigningKeyRevoked(at=now, kid=kid)
                for kid in kids
                if kid not in state.revoked_signing_keys
            ),
        )


def _chain(place: Place) -> Chain:
    return msgspec.msgpack.decode(place.certificate, type=Chain)
