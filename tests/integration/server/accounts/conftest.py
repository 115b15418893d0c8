"""Accounts and keys made through the API."""

import pytest


@pytest.fixture
def make_key(api):
    """Make a key, of a new account if none is given: (the key, what is known of it)."""

    async def make(account_id=None, *, role="member", **terms):
        if account_id is None:
            account = await api.ok("/accounts", {"name": "Ada", "role": role})
            account_id = account["account_id"]
        made = await api.ok(f"/accounts/{account_id}/keys", {"name": "laptop", **terms})
        return made.pop("key"), made

    return make
