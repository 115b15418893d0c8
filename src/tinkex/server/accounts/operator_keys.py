"""The keys that the operator gives a server: by setting, by file, or the one that it makes itself.

Owns reading and making them. Who is behind a key is `accounts`'.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from tinkex._files import write_new
from tinkex.errors import ConfigurationError
from tinkex.server.accounts.keys import new_key
from tinkex.server.config import key_problem

if TYPE_CHECKING:
    from pathlib import Path

    from tinkex.server.config import ServerConfig

KEY_FILE_NAME = "api_key"


def load_keys(config: ServerConfig) -> tuple[tuple[str, ...], Path | None]:
    """Return the keys to accept and the file they are in; make one key on the first start.

    Raises:
        ConfigurationError: for a key file that is missing, unreadable, empty or has a bad key.
    """
    if config.api_keys:
        return config.api_keys, None
    if config.api_key_file is not None:
        return _read_keys(config.api_key_file), config.api_key_file
    path = config.data_dir / KEY_FILE_NAME
    if not path.exists():
        _create_key(path)
    path.chmod(0o600)
    return _read_keys(path), path


def _read_keys(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError([f"API key file {path} cannot be read: {error}"]) from error
    keys: list[str] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        key = line.strip()
        if not key or key.startswith("#"):
            continue
        problem = key_problem(key)
        if problem is None:
            keys.append(key)
        else:
            problems.append(f"API key file {path}, line {number}: the key {problem}")
    if not keys and not problems:
        problems.append(f"API key file {path} has no key")
    if problems:
        raise ConfigurationError(problems)
    return tuple(keys)


def _create_key(path: Path) -> None:
    """Write a new key with mode 0600, whole or not at all; a key made meanwhile stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        write_new(path, f"{new_key()}\n".encode())
