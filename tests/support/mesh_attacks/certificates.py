"""Attacks on role certificates: chains that the network's root does not stand behind."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from mesh_attacks.registry import Defence, Suite, nothing, refused

from tinkex.errors import TrustError
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import Role
from tinkex.mesh.trust.certificates import (
    CertificateBody,
    CertificateRules,
    Chain,
    make_certificate,
    make_grant,
)

NOW, DAY = 1_700_000_000.0, 86_400.0
ROOT, AUTH, PEER, INVITED, OTHER = (KeyPair(bytes([number]) * 32) for number in range(1, 6))


@dataclass(frozen=True)
class Classes:
    """What an attack meets."""

    rules: type = CertificateRules


def is_refused(classes, encoded, *, now=NOW + 1):
    rules = classes.rules(ROOT.peer_id, frozenset({ROOT.peer_id}))
    return refused(TrustError, rules.check, encoded, now=now)


def grant(role=Role.GATEWAY, *, root=ROOT, network=ROOT, key=INVITED):
    return make_grant(
        root,
        network=network.peer_id,
        key=key.peer_id,
        role=role,
        join_before=NOW + DAY,
        certificate_s=2 * DAY,
    )


def certificate(of_grant, *, signer=AUTH, peer=PEER, issuer="auth", lasts=DAY):
    return make_certificate(
        signer,
        grant=of_grant,
        peer=peer.peer_id,
        not_before=NOW,
        expires_at=NOW + lasts,
        issuer=chain(auth()) if issuer == "auth" else issuer,
    )


def auth():
    return certificate(grant(Role.AUTH), signer=ROOT, peer=AUTH, issuer=None, lasts=2 * DAY)


def chain(encoded):
    return msgspec.msgpack.decode(encoded, type=Chain)


def of_another_network(classes):
    """A root may have to do with two networks, and a member of one is a stranger in the other."""
    return is_refused(classes, certificate(grant(network=OTHER)))


def under_another_root(classes):
    """A stolen auth worker grants itself what it wants."""
    return is_refused(classes, certificate(grant(root=OTHER)))


def certified_by_itself(classes):
    return is_refused(classes, certificate(grant(), signer=PEER))


def auth_worker_that_makes_another(classes):
    return is_refused(classes, certificate(grant(Role.AUTH)))


def gateway_of_the_roots(classes):
    """Root and auth worker must both sign for a member."""
    return is_refused(classes, certificate(grant(), signer=ROOT, issuer=None))


def forged_certificate(classes):
    made = chain(certificate(grant()))
    forged = msgspec.structs.replace(made.certificate, signature=bytes(64))
    return is_refused(
        classes, msgspec.msgpack.encode(msgspec.structs.replace(made, certificate=forged))
    )


def grant_of_somebody_else(classes):
    """A client shows its certificate with a gateway's grant."""
    made = chain(certificate(grant(Role.CLIENT)))
    shown = msgspec.structs.replace(made, grant=grant(Role.GATEWAY, key=OTHER))
    return is_refused(classes, msgspec.msgpack.encode(shown))


def expired_certificate(classes):
    return is_refused(classes, certificate(grant()), now=NOW + DAY + 61)


def certificate_of_the_future(classes):
    return is_refused(classes, certificate(grant()), now=NOW - 61)


def certificate_without_end(classes):
    return is_refused(classes, certificate(grant(), lasts=3 * DAY))


def unchecked(_self, signed):
    return msgspec.msgpack.decode(signed.body, type=CertificateBody)


SUITE = Suite(
    "certificates",
    Classes(),
    (
        Defence("rules", "check_network", nothing, (of_another_network,)),
        Defence("rules", "check_root", nothing, (under_another_root,)),
        Defence(
            "rules",
            "check_signer",
            nothing,
            (certified_by_itself, auth_worker_that_makes_another, gateway_of_the_roots),
        ),
        Defence("rules", "check_signature", unchecked, (forged_certificate,)),
        Defence("rules", "check_invitation", nothing, (grant_of_somebody_else,)),
        Defence("rules", "check_time", nothing, (expired_certificate, certificate_of_the_future)),
        Defence("rules", "check_length", nothing, (certificate_without_end,)),
    ),
)
