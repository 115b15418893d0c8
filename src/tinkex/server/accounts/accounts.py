"""What a server has of accounts, put together.

Owns which part gets which, and that the operator's keys are entered before anybody is let in.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tinkex.server.accounts.authenticator import Authenticator
from tinkex.server.accounts.directory import Directory
from tinkex.server.accounts.logins import Logins
from tinkex.server.accounts.spending import Spending
from tinkex.server.accounts.store import AccountStore
from tinkex.server.accounts.tokens import KEYS_NAME, TokenIssuer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tinkex._clock import Clock
    from tinkex.server.accounts.keys import GivenKey
    from tinkex.server.accounts.spending import UsageOfKeys
    from tinkex.server.config import ServerConfig


class Accounts:
    """The accounts of one server.

    Args:
        config: the settings.
        database: the server's database.
        clock: tells time.
        usage: knows what each key has used.
    """

    def __init__(
        self,
        config: ServerConfig,
        database: Path,
        *,
        clock: Clock,
        usage: UsageOfKeys,
    ) -> None:
        self.store = AccountStore(database)
        self.tokens = TokenIssuer(
            config.data_dir / KEYS_NAME, clock=clock, lifetime_s=config.token_ttl_s
        )
        self.directory = Directory(self.store, clock)
        self.authenticator = Authenticator(self.store, self.tokens, clock)
        self.spending = Spending(self.store, usage)
        self.logins = Logins(self.directory, self.tokens, clock)

    async def open(self, given: Sequence[GivenKey]) -> None:
        """Open the store, and make the operator's keys those that are given."""
        await asyncio.to_thread(self._enter, given)

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def _enter(self, given: Sequence[GivenKey]) -> None:
        self.store.open()
        self.directory.enter_given(given)
