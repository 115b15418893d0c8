"""Passwords and passphrases: of the environment, of the terminal, or through a pipe.

Never of an argument: every user of the machine sees the arguments of a process.
"""

from __future__ import annotations

import os
import sys

from tinkex.cli.asking import hidden
from tinkex.errors import CredentialError

PASSWORD_VARIABLE = "TINKEX_MESH_PASSWORD"  # noqa: S105 - a name
NEW_PASSWORD_VARIABLE = "TINKEX_MESH_NEW_PASSWORD"  # noqa: S105 - a name
PASSPHRASE_VARIABLE = "TINKEX_MESH_PASSPHRASE"  # noqa: S105 - a name
NEW_PASSPHRASE_VARIABLE = "TINKEX_MESH_NEW_PASSPHRASE"  # noqa: S105 - a name


def ask_secret(what: str, variable: str, *, twice: bool = False) -> str:
    """Return a secret; asked for at the terminal, `twice` where a slip would be costly.

    Raises:
        CredentialError: it is empty.
    """
    given = os.environ.get(variable)
    if not given:
        if sys.stdin.isatty():
            given = hidden(what, twice=twice)
        else:
            given = sys.stdin.readline().rstrip("\r\n")
    if not given:
        raise CredentialError(f"no {what.lower()} was given: type it, pipe it, or set {variable}")
    return str(given)
