"""Exports that only their recipients can read, in the age format (age-encryption.org/v1).

Owns checking recipients and encrypting a folder: each file becomes `<name>.age`, in the binary
form, for all recipients at once. Recipients are age's own public keys (`age1...`) and SSH public
keys (`ssh-ed25519`, `ssh-rsa`). No identity ever comes here: what is encrypted, this server cannot
read again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinkex._files import flush
from tinkex.errors import EngineError, InputError
from tinkex.server.files.records import file_names

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SUFFIX = ".age"
MAX_RECIPIENTS = 64
MAX_RECIPIENT_LENGTH = 4096
_FIELD = "age_encryption_recipients"


class Recipients:
    """Whom an export is encrypted to.

    Args:
        texts: their public keys, as age and OpenSSH write them.

    Raises:
        InputError: naming each that is none.
        EngineError: the package that encrypts is not installed.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        if not texts:
            raise InputError(
                f"{_FIELD} is empty: name at least one recipient, or leave it out for an export "
                "that is not encrypted."
            )
        if len(texts) > MAX_RECIPIENTS:
            raise InputError(
                f"{_FIELD} has {len(texts)} entries: {MAX_RECIPIENTS} at most are taken."
            )
        read = [_read(text) for text in texts]
        problems = [
            f"{_FIELD}[{index}] {problem}" for index, (_, problem) in enumerate(read) if problem
        ]
        if problems:
            raise InputError(
                f"{'; '.join(problems)}. A recipient is a public key: age1... as age-keygen prints "
                "it, or a line ssh-ed25519 ... or ssh-rsa ... of OpenSSH."
            )
        self._keys = [key for key, _ in read]

    def encrypt_folder(self, folder: Path) -> None:
        """Put an encrypted file in the place of each file of a folder. Blocks.

        Raises:
            OSError: the disk refused.
        """
        for name in file_names(folder):
            plain = folder / name
            hidden = plain.with_name(plain.name + SUFFIX)
            # Streams of Python's, as the library would tell a full disk as an error of its own.
            with plain.open("rb") as source, hidden.open("xb") as target:
                _pyrage().encrypt_io(source, target, self._keys)
            flush(hidden)
            plain.unlink()
        flush(folder)


def is_encrypted(name: str) -> bool:
    """Whether a file of an export is encrypted, by its name."""
    return name.endswith(SUFFIX)


def _read(text: str) -> tuple[Any, str]:
    """Read one recipient: (the key, what is wrong with it)."""
    pyrage = _pyrage()
    text = text.strip()
    if text.upper().startswith("AGE-SECRET-KEY-"):
        return None, "is a secret key, which belongs to its owner alone: give the public one"
    if len(text) > MAX_RECIPIENT_LENGTH:
        return None, f"is longer than {MAX_RECIPIENT_LENGTH} characters"
    kind = pyrage.x25519 if text.startswith("age1") else pyrage.ssh
    try:
        return kind.Recipient.from_str(text), ""
    except pyrage.RecipientError as error:
        return None, f"({text[:40]!r}) cannot be read ({error})"


def _pyrage() -> Any:
    # Loaded only here: few exports are encrypted, and a start need not wait for it.
    try:
        import pyrage  # noqa: PLC0415
    except ImportError as error:
        raise EngineError(
            f"{_FIELD} needs the package pyrage on the server: pip install 'tinkex[server]', or "
            "leave it out and encrypt the files after the download."
        ) from error
    return pyrage
