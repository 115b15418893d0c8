"""The file of API keys that `auth login` keeps, in the form that the official SDK shares.

    {"version": 1, "default": ID, "keys": {ID: {"type": "manual", "key", "name", ...}}}

Owns writing it: whole or not at all, for its owner's eyes alone. `credentials.py` reads the default
key from it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinkex._files import write_whole
from tinkex.client.credentials import credentials_path
from tinkex.errors import CredentialError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class StoredKey:
    """One entry of the file."""

    key_id: str
    key: str
    name: str
    was_generated: bool = False
    """Whether the key was made for this machine: it is then deleted on the server at logout."""
    details: dict[str, Any] | None = None

    def __repr__(self) -> str:
        """Leave the key out."""
        return f"StoredKey({self.key_id!r}, name={self.name!r})"


class CredentialStore:
    """The keys of one user.

    Args:
        path: the file; None is the usual place.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or credentials_path()

    def default(self) -> StoredKey | None:
        """Return the key that clients use; None when there is none.

        Raises:
            CredentialError: the file is there and is no credentials file.
        """
        content = self._read()
        key_id = str(content.get("default"))
        entry = content["keys"].get(key_id)
        if entry is None:
            return None
        return StoredKey(
            key_id=key_id,
            key=entry["key"],
            name=entry.get("name", key_id),
            was_generated=entry.get("type") == "generated",
            details=entry.get("details"),
        )

    def put(self, stored: StoredKey) -> None:
        """Store a key and make it the default."""
        content = self._read()
        entry = {"type": "manual", "key": stored.key, "name": stored.name}
        content["keys"][stored.key_id] = (
            entry if stored.details is None else {**entry, "details": stored.details}
        )
        content["default"] = stored.key_id
        self._write(content)

    def remove(self, key_id: str) -> None:
        """Forget a key; the default too, if it is that one."""
        content = self._read()
        content["keys"].pop(key_id, None)
        if content.get("default") == key_id:
            content.pop("default")
        self._write(content)

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {"version": 1, "keys": {}}
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from None
        if (
            not isinstance(content, dict)
            or content.get("version") != 1
            or not isinstance(content.get("keys"), dict)
            or not all(
                isinstance(entry, dict) and "key" in entry for entry in content["keys"].values()
            )
        ):
            raise self._unreadable(ValueError())
        return content

    def _unreadable(self, error: Exception) -> CredentialError:
        return CredentialError(
            f"The credentials file {self._path} cannot be read ({type(error).__name__}). "
            "Mend or delete it."
        )

    def _write(self, content: dict[str, Any]) -> None:
        folder = self._path.parent
        if not folder.is_dir():
            folder.mkdir(parents=True)
            folder.chmod(0o700)
        write_whole(self._path, json.dumps(content, indent=2).encode())
