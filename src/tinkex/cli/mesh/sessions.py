"""The session that `tinkex mesh login` keeps, and whom it is good for.

Owns its file and the place that it is bound to: the endpoint that gave it, and the network behind
that. Whoever gets a session's tokens acts as its user, so they are sent nowhere else.
"""

from __future__ import annotations

import base64
import fcntl
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinkex.cli import output
from tinkex.cli.mesh.places import SESSION_NAME, read_private, write_private

_LOCK_NAME = "session.lock"
_URL, _NETWORK = "url", "network_id"


@dataclass(frozen=True, slots=True)
class Place:
    """An endpoint, as a session is bound to it."""

    url: str
    """Without `/v1`."""
    network: str | None
    """Id of its network; None where no ready file of this machine's user says it: an endpoint's
    own word is not asked for, as one that collects tokens would give the right one."""


@dataclass(frozen=True, slots=True)
class KeptSession:
    """What lies in the file."""

    fields: dict[str, Any]
    """`mesh.api.auth.Session`, and where it is of."""

    def is_of(self, place: Place) -> bool:
        """Whether it was got at this place.

        One network's session is good at each of its endpoints on this machine, whatever their
        ports; of any other endpoint only the URL is known. Files of older versions say neither:
        their access token names its network.
        """
        url = self.fields.get(_URL)
        network = self.network or self._audience()
        if network is not None and place.network is not None and network != place.network:
            return False  # another network is at this URL by now
        if url == place.url:
            return True
        # Who gave it may have put any network into the token: it counts only in the older files.
        known = self.network if url is not None else network
        return known is not None and known == place.network

    @property
    def network(self) -> str | None:
        """Id of its network, where that was known when it was got."""
        return self.fields.get(_NETWORK)

    @property
    def source(self) -> str:
        """Say where it is of, for people."""
        return str(self.fields.get(_URL) or "an endpoint that its file does not name")

    def _audience(self) -> str | None:
        """Read which network the access token is for; its signature is for gateways to check."""
        try:
            _, payload, _ = str(self.fields["access_token"]).split(".")
            claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
            return str(claims["aud"])
        except (ValueError, KeyError, TypeError):
            return None


def read_session(folder: Path) -> KeptSession | None:
    """Read the session in a folder; None where nobody is logged in.

    Raises:
        ConfigurationError: the file is damaged.
    """
    fields = read_private(folder / SESSION_NAME)
    return None if fields is None else KeptSession(fields)


def write_session(folder: Path, fields: dict[str, Any], place: Place) -> None:
    """Keep a session for later commands, with the place that gave it."""
    kept = {**fields, _URL: place.url, _NETWORK: place.network}
    write_private(folder / SESSION_NAME, kept)


def check_room(folder: Path, kept: KeptSession) -> None:
    """Make sure that the disk would take another session, by writing this one once more.

    Raises:
        OSError: it does not.
    """
    write_private(folder / SESSION_NAME, kept.fields)


@contextmanager
def renewing(folder: Path) -> Iterator[None]:
    """Keep other commands from renewing the session meanwhile; ends with this process, however."""
    with (folder / _LOCK_NAME).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def not_cut_off() -> Iterator[None]:
    """Put Ctrl-C off until the block is done; a second one ends it at once.

    A refresh token works once: whoever uses it and misses the answer has lost the session.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    asked = False

    def note(_number: int, _frame: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)
        output.remark("\nYour session is being renewed; Ctrl-C again ends at once, and loses it.")

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


def delete_session(folder: Path) -> None:
    """Forget it. Harmless without one."""
    (folder / SESSION_NAME).unlink(missing_ok=True)
