"""Who this peer is to others, and whom it believes.

Owns what both sides say and check when a link begins, and later whether a member still is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tinkex.errors import PeerProtocolError, TrustError
from tinkex.mesh.identity import KeyPair, PeerId
from tinkex.mesh.rpc.errors import error_of
from tinkex.mesh.rpc.messages import VERSION, Hello, Refused, decode_greeting
from tinkex.mesh.rpc.session import Limits
from tinkex.mesh.trust.certificates import CLOCK_SKEW_S, RoleCertificate, check_certificate


def _nobody(_: PeerId) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a peer shows and believes.

    Args:
        key_pair: its own.
        network: the network's id.
        roots: the keys that may sign for the network.
        certificate: its role certificate's chain; None: a guest, who may only join.
        is_revoked: whether a peer was thrown out; asked at every greeting and call.
    """

    key_pair: KeyPair
    network: PeerId
    roots: frozenset[PeerId]
    certificate: bytes | None = field(default=None, repr=False)
    is_revoked: Callable[[PeerId], bool] = _nobody

    def hello(self, instance: bytes, given: Limits) -> Hello:
        """Make the greeting that grants the other side `given`."""
        return Hello(
            VERSION,
            self.network.raw,
            self.certificate,
            instance,
            given.calls,
            given.request_bytes,
        )

    def check_hello(self, frame: bytes, remote: PeerId, *, dialled: bool, now: float) -> RemotePeer:
        """Check the other side's greeting; `dialled`: this side made the link.

        Args:
            frame: its first frame.
            remote: its id, proven by the transport.
            dialled: whether this side made the link; who is dialled must be a member.
            now: seconds since the epoch.

        Raises:
            PeerProtocolError: it is no greeting, or of another version.
            TrustError: the peer is of another network, or no member of this one.
            TinkerError: the peer refused this side's greeting; the error is the peer's.
        """
        hello = decode_greeting(frame)
        if isinstance(hello, Refused):
            if not dialled:
                raise PeerProtocolError("the peer refuses a greeting before it got one")
            raise error_of(hello.error)
        self._check_network(hello.network, remote)
        self._check_not_revoked(remote)
        certificate = self._check_chain(hello.certificate, remote, dialled=dialled, now=now)
        return RemotePeer(
            remote,
            certificate,
            hello.instance,
            Limits(hello.max_calls, hello.max_request_bytes),
            dialled=dialled,
        )

    def _check_network(self, network: bytes, remote: PeerId) -> None:
        if network != self.network.raw:
            raise TrustError(
                f"{remote.short} belongs to the network {network.hex()[:10]}, this peer to "
                f"{self.network.short}: use the invitation or contacts of one network"
            )

    def _check_not_revoked(self, remote: PeerId) -> None:
        if self.is_revoked(remote):
            raise TrustError(f"{remote.short} was thrown out of the network")

    def _check_chain(
        self, chain: bytes | None, remote: PeerId, *, dialled: bool, now: float
    ) -> RoleCertificate | None:
        if chain is None:
            if dialled:
                raise TrustError(f"{remote.short} has no role certificate: it has not joined yet")
            return None
        certificate = check_certificate(chain, network=self.network, roots=self.roots, now=now)
        self._check_owner(certificate, remote)
        self._check_issuer(certificate)
        return certificate

    def _check_owner(self, certificate: RoleCertificate, remote: PeerId) -> None:
        if certificate.peer != remote:
            raise TrustError(f"{remote.short} shows the role certificate of another peer")

    def _check_issuer(self, certificate: RoleCertificate) -> None:
        # Which of its certificates were made before its key was stolen, nobody can tell: it is the
        # thief who dates them.
        if self.is_revoked(certificate.issuer):
            raise TrustError(
                f"{certificate.peer.short} was certified by an auth worker that was thrown out of "
                "the network: it has to join again"
            )

    def check_still(self, peer: RemotePeer, now: float) -> None:
        """Check that a peer whose greeting was taken is still what it was.

        Raises:
            TrustError: its certificate ran out, or it, or who certified it, was thrown out.
        """
        self._check_not_revoked(peer.peer_id)
        if peer.certificate is None:
            return
        self._check_issuer(peer.certificate)
        if now >= peer.certificate.expires_at + CLOCK_SKEW_S:
            raise TrustError(
                f"the role certificate of {peer.peer_id.short} has expired: renew it by joining "
                "again"
            )


@dataclass(frozen=True, slots=True)
class RemotePeer:
    """Who is at the other end of a link whose greetings were taken."""

    peer_id: PeerId
    certificate: RoleCertificate | None
    instance: bytes
    """New with each start of that peer."""
    granted: Limits
    """What this side may have open there."""
    dialled: bool
    """Whether this side made the link."""
