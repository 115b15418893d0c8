"""What a network is: its name, its root keys, and which peers are its auth workers.

Owns the network's description, signed by the root, and the rotation of the root: each new key is
signed by the one before, back to the first, whose public key is the network's id for ever. Where
the secret key lies is `rootkey`'s.

A peer keeps the description that it believed last. A later one must carry on its chain: whoever
steals a key that was rotated away can sign no other future for a peer that has seen the rotation.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from tinkex.errors import InputError, TrustError
from tinkex.mesh.identity import KeyPair, PeerId
from tinkex.mesh.trust.certificates import Signed

NETWORK = "network"
ROTATION = "root-rotation"
MAX_NAME_LENGTH = 64
MAX_ENCODED_BYTES = 64 * 1024


class RotationBody(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An old root's word that a new one follows it."""

    network: bytes
    new_root: bytes
    at: float


class NetworkInfo(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A network as its root describes it."""

    name: str
    network: bytes
    """Its id: the public key of its first root."""
    roots: tuple[bytes, ...]
    """Whose signatures hold now: the newest root, and older ones for as long as they are kept."""
    rotations: tuple[Signed, ...]
    """From the first root to the newest."""
    members: tuple[bytes, ...]
    """The auth workers, by peer id: a majority of them is needed to write."""
    sequence: int
    """Counts descriptions; a higher one replaces a lower."""
    shut_out: tuple[bytes, ...] = ()
    """Peers that the root shut out."""

    @property
    def id(self) -> PeerId:
        """The network's id."""
        return PeerId(self.network)

    @property
    def trusted(self) -> frozenset[PeerId]:
        """The roots, as certificates are checked with."""
        return frozenset(PeerId(root) for root in self.roots)


def found_network(root: KeyPair, name: str, *, members: Collection[PeerId]) -> bytes:
    """Describe a new network, whose id is the root's public key.

    Raises:
        InputError: the name is empty, too long, or not printable.
    """
    if not (0 < len(name) <= MAX_NAME_LENGTH and name.isprintable() and name == name.strip()):
        raise InputError(f"a network's name has 1 to {MAX_NAME_LENGTH} printable characters")
    network = root.peer_id.raw
    return _sign(root, NetworkInfo(name, network, (network,), (), _sorted(members), 1))


def change_members(root: KeyPair, encoded: bytes, members: Collection[PeerId]) -> bytes:
    """Describe the network with other auth workers.

    Raises:
        TrustError: the key is not the network's newest root.
    """
    info = _known(root, encoded)
    return _sign(
        root,
        msgspec.structs.replace(info, members=_sorted(members), sequence=info.sequence + 1),
    )


def shut_out_peer(root: KeyPair, encoded: bytes, peer: PeerId) -> bytes:
    """Describe the network without a peer, for good; it is no auth worker any more, either.

    Raises:
        TrustError: the key is not the network's newest root.
    """
    info = _known(root, encoded)
    return _sign(
        root,
        msgspec.structs.replace(
            info,
            members=tuple(member for member in info.members if member != peer.raw),
            shut_out=tuple(sorted({*info.shut_out, peer.raw})),
            sequence=info.sequence + 1,
        ),
    )


def rotate_root(
    root: KeyPair, new: KeyPair, encoded: bytes, *, now: float, keep_old: bool
) -> bytes:
    """Describe the network with a new root.

    Args:
        root: the newest root, which hands over.
        new: its successor.
        encoded: the description that holds now.
        now: unix seconds.
        keep_old: whether what the old roots signed still holds, as in a routine rotation; not
            where one was stolen: every peer then needs a new invitation.

    Raises:
        TrustError: `root` is not the network's newest.
    """
    info = _known(root, encoded)
    body = msgspec.msgpack.encode(RotationBody(info.network, new.peer_id.raw, now))
    rotation = Signed(body, root.peer_id.raw, root.sign(ROTATION, body))
    changed = msgspec.structs.replace(
        info,
        roots=(new.peer_id.raw, *(info.roots if keep_old else ())),
        rotations=(*info.rotations, rotation),
        sequence=info.sequence + 1,
    )
    return _sign(new, changed)


def check_network(
    encoded: bytes, *, network: PeerId, known: NetworkInfo | None = None
) -> NetworkInfo:
    """Check a description down to the network's id.

    Args:
        encoded: as it was signed.
        network: the id that was pinned.
        known: what was believed before; the answer is never older, and carries on its chain.

    Raises:
        TrustError: it does not hold.
    """
    signed, info = _read(encoded)
    if info.network != network.raw:
        raise TrustError("this describes another network")
    chain = _chain(info)
    if signed.signer != chain[-1]:
        raise TrustError("the network's description is not signed by its newest root")
    if not PeerId(signed.signer).signed(NETWORK, signed.body, signed.signature):
        raise TrustError("the signature of the network's description does not hold")
    if chain[-1] not in info.roots or not set(info.roots) <= set(chain):
        raise TrustError("the network's description trusts a root that no rotation leads to")
    if known is not None:
        _check_follows(info, known)
    return info


def network_of(encoded: bytes) -> PeerId:
    """Read which network a description is of; to be pinned only where the bytes are one's own.

    Raises:
        TrustError: it cannot be read.
    """
    return _read(encoded)[1].id


def _check_follows(info: NetworkInfo, known: NetworkInfo) -> None:
    if info.sequence < known.sequence:
        raise TrustError("the network's description is older than the one that is known")
    if info.rotations[: len(known.rotations)] != known.rotations:
        raise TrustError(
            "the network's description has other root keys than were known: one that was replaced "
            "may be stolen; ask who runs the network"
        )
    if info.sequence == known.sequence and info != known:
        raise TrustError("the network's root signed two descriptions with one number")


def _chain(info: NetworkInfo) -> list[bytes]:
    """Follow the rotations: the roots, oldest first."""
    chain = [info.network]
    for rotation in info.rotations:
        try:
            body = msgspec.msgpack.decode(rotation.body, type=RotationBody)
            held = PeerId(chain[-1]).signed(ROTATION, rotation.body, rotation.signature)
        except ValueError as error:
            raise TrustError(f"a rotation of the root key cannot be read ({error})") from error
        if not held or rotation.signer != chain[-1] or body.network != info.network:
            raise TrustError("a rotation of the root key is not signed by the root before it")
        if body.new_root in chain:
            raise TrustError("a rotation of the root key leads back to an older one")
        chain.append(body.new_root)
    return chain


def _read(encoded: bytes) -> tuple[Signed, NetworkInfo]:
    if len(encoded) > MAX_ENCODED_BYTES:
        raise TrustError("the network's description is too long")
    try:
        signed = msgspec.msgpack.decode(encoded, type=Signed)
        info = msgspec.msgpack.decode(signed.body, type=NetworkInfo)
        for raw in (signed.signer, info.network, *info.roots, *info.members, *info.shut_out):
            PeerId(raw)
    except (ValueError, RecursionError) as error:
        raise TrustError(f"this is no description of a network ({error})") from error
    return signed, info


def _known(root: KeyPair, encoded: bytes) -> NetworkInfo:
    info = check_network(encoded, network=network_of(encoded))
    if _chain(info)[-1] != root.peer_id.raw:
        raise TrustError("this is not the network's newest root key")
    return info


def _sign(root: KeyPair, info: NetworkInfo) -> bytes:
    body = msgspec.msgpack.encode(info)
    return msgspec.msgpack.encode(Signed(body, root.peer_id.raw, root.sign(NETWORK, body)))


def _sorted(members: Collection[PeerId]) -> tuple[bytes, ...]:
    return tuple(sorted(member.raw for member in set(members)))
