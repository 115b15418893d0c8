"""Where the API key comes from, and how it stays out of logs.

Order: the argument, the environment (`TINKEX_API_KEY`, then `TINKER_API_KEY`), the command in
`TINKEX_CREDENTIAL_CMD` or `TINKER_CREDENTIAL_CMD`, the default key in the credentials file that
`auth login` writes. Chosen once per client; a key of the wrong form is refused before any request.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tinkex.client.shared_attempt import SharedAttempt
from tinkex.errors import CredentialError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tinkex._clock import Clock

_PREFIXES = ("tml-", "eyJ")
_COMMAND_SECONDS = 30.0
_COMMAND_KEY_LIFE_SECONDS = 60.0


class Credentials(Protocol):
    """Gives the key that the next request carries."""

    @property
    def account(self) -> str:
        """A secret that stays the same while the account does: clients that share it share limits.

        Never shown; only its hash is kept.
        """
        ...

    @property
    def portable(self) -> str | None:
        """The key that another process can be given; None when it must find one by itself."""
        ...

    async def key(self) -> str:
        """Return the key; raises `CredentialError` when there is none."""
        ...

    def refused(self, key: str) -> bool:
        """Note that the server refused `key`; True when another one may work."""
        ...


class StaticKey:
    """A key that does not change."""

    def __init__(self, key: str) -> None:
        self._key = check_key(key)

    @property
    def account(self) -> str:
        """The key."""
        return self._key

    @property
    def portable(self) -> str | None:
        """The key."""
        return self._key

    async def key(self) -> str:
        """Return the key."""
        return self._key

    def refused(self, key: str) -> bool:  # noqa: ARG002 - there is no other
        """Return False: there is no other key."""
        return False

    def __repr__(self) -> str:
        return f"StaticKey({self._key[:4]}...)"


class CommandKey:
    """A key that a command prints; kept for a minute, and asked for again once refused.

    Concurrent requests share one run of the command.
    """

    def __init__(self, command: str, clock: Clock) -> None:
        self._command = command
        self._clock = clock
        self._running = SharedAttempt()
        self._key: str | None = None
        self._fetched_at = 0.0

    @property
    def account(self) -> str:
        """The command line: its keys change, the account behind them does not."""
        return self._command

    @property
    def portable(self) -> str | None:
        """None: the key soon ends, and the other process can run the command."""
        return None

    async def key(self) -> str:
        """Return the kept key, or run the command."""
        async with self._running.turn():
            age = self._clock.monotonic() - self._fetched_at
            if self._key is None or age > _COMMAND_KEY_LIFE_SECONDS:
                self._key = check_key(await _run(self._command))
                self._fetched_at = self._clock.monotonic()
            return self._key

    def refused(self, key: str) -> bool:
        """Forget the key, so that the next request runs the command."""
        if key == self._key:
            self._key = None
        return True

    def __repr__(self) -> str:
        return "CommandKey(...)"


def check_key(key: str) -> str:
    """Return `key` without surrounding space, if it has the form of a key.

    Raises:
        CredentialError: it has not. The message does not repeat it: it may be a real secret.
    """
    if not isinstance(key, str):
        raise CredentialError(f"The API key must be text, not {type(key).__name__}.")
    key = key.strip()
    if not key.startswith(_PREFIXES):
        raise CredentialError(
            "The API key must start with 'tml-' (a key) or 'eyJ' (a token). `tinkex serve` shows "
            "the key of a server of yours when it starts, and keeps it in <data-dir>/api_key."
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise CredentialError("The API key has characters that no key has. Copy it again.")
    return key


def resolve_credentials(
    api_key: str | None, environment: Mapping[str, str], clock: Clock
) -> Credentials:
    """Find the key of a client.

    Raises:
        CredentialError: there is none, it has the wrong form, or the file cannot be read.
    """
    given = api_key or environment.get("TINKEX_API_KEY") or environment.get("TINKER_API_KEY")
    if given:
        return StaticKey(given)
    command = environment.get("TINKEX_CREDENTIAL_CMD") or environment.get("TINKER_CREDENTIAL_CMD")
    if command:
        return CommandKey(command, clock)
    stored = read_stored_key(credentials_path(environment))
    if stored is None:
        raise CredentialError(
            "No API key. Pass api_key=..., set TINKEX_API_KEY (or TINKER_API_KEY), or keep it with "
            "`tinkex auth login`. `tinkex serve` shows the key of its server when it starts."
        )
    return StaticKey(stored)


def configured_credentials(clock: Clock) -> Credentials:
    """Find the key that a client of this process would use when it is given none.

    Raises:
        CredentialError: there is none, or it has the wrong form.
    """
    return resolve_credentials(None, os.environ, clock)


def credentials_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the credentials file, which the official SDK shares."""
    home = environment.get("HOME")
    return (Path(home) if home else Path.home()) / ".tinker" / "credentials.json"


def read_stored_key(path: Path) -> str | None:
    """Return the default key of a credentials file; None when there is no file or no default.

    Raises:
        CredentialError: the file is there and is not a credentials file.
    """
    try:
        content = json.loads(path.read_bytes())
        default = content.get("default")
        return None if default is None else str(content["keys"][default]["key"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CredentialError(
            f"The credentials file {path} cannot be read ({type(error).__name__}). "
            "Mend or delete it, or pass api_key=..."
        ) from None


async def _run(command: str) -> str:
    """Run the credential command and return what it prints."""
    process = await asyncio.create_subprocess_shell(
        command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(_COMMAND_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise CredentialError(
            f"The credential command printed no key within {_COMMAND_SECONDS:g} s."
        ) from None
    if process.returncode != 0:
        raise CredentialError(f"The credential command failed with exit code {process.returncode}.")
    return output.decode(errors="replace")
