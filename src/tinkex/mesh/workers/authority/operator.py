"""What who runs an auth worker asks of it: which accounts there are, and what each may use.

Owns the answers. Who may ask is `workers.operator_page`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from tinkex.errors import InputError, NotFoundError
from tinkex.mesh.accounts.addresses import normalised
from tinkex.mesh.accounts.state import Account
from tinkex.mesh.workers.authority.books import AuthBook
from tinkex.mesh.workers.authority.spending import Spending


class AccountReport(msgspec.Struct, frozen=True, kw_only=True):
    """One account, for who runs the network; nothing of what it asked models."""

    account_id: str
    email: str
    """Empty where it cannot be read here yet."""
    opened_at: float
    """Unix seconds."""
    quota_tokens: int | None
    """Tokens granted in all; None: no limit."""
    used_tokens: int
    reserved_tokens: int
    keys: int
    """API keys that were not revoked."""

    def __repr__(self) -> str:
        """Leave the address out."""
        return f"AccountReport({self.account_id})"


class Operator:
    """Serves who runs the network.

    Args:
        book: accounts and leases as they are now.
        spending: sets quotas.
    """

    def __init__(self, book: Callable[[], AuthBook], spending: Spending) -> None:
        self._book = book
        self._spending = spending

    def accounts(self, wanted: str = "") -> list[AccountReport]:
        """List the accounts that are open, oldest first.

        Args:
            wanted: an id or an address; nothing: all.

        Raises:
            NotFoundError: there is no such account.
        """
        found = [self._found(wanted)] if wanted else list(self._open())
        return [self._report(account) for account in sorted(found, key=lambda one: one.opened_at)]

    async def set_quota(self, wanted: str, quota_tokens: int | None) -> AccountReport:
        """Say what an account may use in all, from now on and with what it used before.

        Args:
            wanted: its id or its address.
            quota_tokens: None: no limit.

        Raises:
            InputError: the number is negative.
            NotFoundError: there is no such account.
            NoQuorumError: this auth worker may not write now.
        """
        account_id = self._found(wanted).account_id
        await self._spending.set_quota(account_id, quota_tokens)
        return self._report(self._found(account_id))

    def _open(self) -> Iterator[Account]:
        accounts = self._book().state.accounts
        return (account for account in accounts.values() if not account.closed)

    def _found(self, wanted: str) -> Account:
        state = self._book().state
        account = state.open_account(wanted)
        if account is None and "@" in wanted:
            try:
                account = state.with_email(normalised(wanted))
            except InputError:
                account = None
        if account is None:
            raise NotFoundError(f"there is no account {wanted!r}: `tinkex mesh accounts` lists all")
        return account

    def _report(self, account: Account) -> AccountReport:
        spent = self._book().ledger.spending(account.account_id)
        return AccountReport(
            account_id=account.account_id,
            email=account.email,
            opened_at=account.opened_at,
            quota_tokens=account.quota_tokens,
            used_tokens=spent.used,
            reserved_tokens=spent.reserved,
            keys=sum(key.revoked_at is None for key in account.keys.values()),
        )
