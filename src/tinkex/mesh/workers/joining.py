"""Joining a network: an invitation becomes a role certificate.

Owns the guest's side. The auth worker's side is `workers.auth`'s.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import msgspec

from tinkex._clock import Clock
from tinkex.errors import InputError, MeshError, PeerUnreachableError, TrustError
from tinkex.mesh.api.auth import AuthApi, Join, Joined
from tinkex.mesh.dht.joining import auth_contacts
from tinkex.mesh.identity import PeerId
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.credentials import Credentials
from tinkex.mesh.rpc.peers import Peers
from tinkex.mesh.transport.base import Contact, Transport
from tinkex.mesh.trust.invitations import Invitation, read_invitation
from tinkex.mesh.workers.folder import Membership, WorkerFolder

ANSWER_S = 15.0


async def join(
    folder: WorkerFolder,
    text: str,
    *,
    role: Role,
    transport: Callable[[], Transport],
    clock: Clock,
    random: Callable[[int], bytes] = secrets.token_bytes,
) -> Membership:
    """Use an invitation, and keep what came of it in the worker's folder.

    Used again by the same worker, it gives the same membership again.

    Args:
        folder: of the worker that joins.
        text: the invitation.
        role: what the worker is to be.
        transport: makes one for the time of joining.
        clock: tells time.
        random: so many random bytes.

    Raises:
        InputError: the text is no invitation, or for another role.
        TrustError: it has expired, was used by another peer, or does not hold.
        PeerUnreachableError: none of its contacts answers.
    """
    invitation = read_invitation(text, now=clock.now())
    if invitation.role is not role:
        raise InputError(
            f"the invitation is for the role {invitation.role}, and this worker is to be "
            f"{role}: run `tinkex mesh {invitation.role}`, or ask for another invitation"
        )
    contacts = tuple(Contact(PeerId(one.peer), one.addresses) for one in invitation.contacts)
    network, certificate = invitation.network_encoded, invitation.certificate
    if certificate is None:
        network, certificate = await _ask(folder, invitation, contacts, transport(), clock, random)
    membership = folder.keep_membership(
        network, certificate, network_id=invitation.network.id, now=clock.now()
    )
    folder.keep_contacts(contacts)
    return membership


async def _ask(
    folder: WorkerFolder,
    invitation: Invitation,
    contacts: tuple[Contact, ...],
    transport: Transport,
    clock: Clock,
    random: Callable[[int], bytes],
) -> tuple[bytes, bytes]:
    """Show the invitation to one contact after the other: (the network, the certificate)."""
    guest = Credentials(folder.key_pair, invitation.network.id, invitation.network.trusted)
    request = Join(
        invitation=msgspec.msgpack.encode(invitation.grant),
        proof=invitation.prove(folder.key_pair.peer_id),
    )
    peers = Peers(transport, guest, clock=clock, random=random)
    await peers.start()
    failures: list[str] = []
    try:
        joined = await _first_answer(peers, contacts, request, failures)
        if joined is None:
            # The auth workers may have moved since the invitation was written.
            found = await auth_contacts(peers, contacts, clock=clock)
            moved = tuple(contact for contact in found if contact not in contacts)
            joined = await _first_answer(peers, moved, request, failures)
    finally:
        await peers.stop()
    if joined is not None:
        return joined.network, joined.certificate
    told = "; ".join(failures) or "it names none"
    raise PeerUnreachableError(
        f"no auth worker of the network {invitation.network.name!r} could be asked ({told}): see "
        "whether one runs and can be reached from here, then try again"
    )


async def _first_answer(
    peers: Peers, contacts: tuple[Contact, ...], request: Join, failures: list[str]
) -> Joined | None:
    for contact in contacts:
        try:
            return await peers.call(contact, AuthApi.rpc_join, request, timeout_s=ANSWER_S)
        except TrustError:
            raise
        except MeshError as error:
            failures.append(f"{contact.peer_id.short}: {error}")
    return None
