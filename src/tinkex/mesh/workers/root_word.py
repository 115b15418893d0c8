"""What the holder of the root key last said, left in the folder of an auth worker.

Owns that file. It is written by the commands that open the root key, and read by the auth worker:
while it runs, every second; else when it starts. All in it is signed by the root, so reading it
needs no trust in who wrote it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from tinkex._files import read_whole, write_whole
from tinkex.errors import ConfigurationError, TrustError
from tinkex.mesh.identity import PeerId
from tinkex.mesh.trust.certificates import RoleCertificate, check_certificate
from tinkex.mesh.trust.network import NetworkInfo, check_network
from tinkex.mesh.workers.folder import Membership, WorkerFolder

WORD_NAME = "root-word"


class RootWord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A description of the network, and certificates of auth workers."""

    network: bytes
    """As the root signed it."""
    certificates: tuple[bytes, ...] = ()
    """Chains, of any auth workers of the network."""


def write_word(folder: Path, word: RootWord) -> None:
    """Leave a word in an auth worker's folder, in place of the one before."""
    write_whole(folder / WORD_NAME, msgspec.msgpack.encode(word))


def read_word(folder: Path) -> RootWord | None:
    """Read it; None where nothing was said.

    Raises:
        ConfigurationError: the file is damaged.
    """
    content = read_whole(folder / WORD_NAME)
    if content is None:
        return None
    try:
        return msgspec.msgpack.decode(content, type=RootWord)
    except ValueError as error:
        raise ConfigurationError(
            f"{folder / WORD_NAME} is damaged: delete it, then repeat the command that opened the "
            "root key last"
        ) from error


def latest_certificate(
    candidates: tuple[bytes, ...], peer: PeerId, *, network: NetworkInfo, now: float
) -> RoleCertificate | None:
    """Return the one of a peer's certificates that holds longest; None where none holds."""
    found: RoleCertificate | None = None
    for encoded in candidates:
        try:
            certificate = check_certificate(
                encoded, network=network.id, roots=network.trusted, now=now
            )
        except TrustError:
            continue
        if certificate.peer == peer and (
            found is None or certificate.expires_at > found.expires_at
        ):
            found = certificate
    return found


def take_word(folder: WorkerFolder, *, now: float) -> Membership | None:
    """Bring a folder's membership up to what the root said since, and return it.

    Raises:
        ConfigurationError: a file is damaged.
        TrustError: the certificate has expired, or does not hold, and the root gave no other.
    """
    word = read_word(folder.path)
    if word is None:
        return folder.membership(now=now)
    held = folder.kept()
    if held is None:
        return None
    network_id, encoded, certificate = held
    network = check_network(encoded, network=network_id)
    said = check_network(word.network, network=network_id)
    if said.sequence > network.sequence:
        network = check_network(word.network, network=network_id, known=network)
        encoded = word.network
    best = latest_certificate(
        (certificate, *word.certificates), folder.key_pair.peer_id, network=network, now=now
    )
    if best is not None:
        certificate = best.encoded
    return folder.keep_membership(encoded, certificate, network_id=network_id, now=now)
