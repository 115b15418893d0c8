"""The auth service: what gateways and guests call, handed to the parts that answer it."""

from __future__ import annotations

from tinkex.mesh.accounts.accounts import KeyTerms
from tinkex.mesh.accounts.state import Key
from tinkex.mesh.api import auth
from tinkex.mesh.rpc.service import Call
from tinkex.mesh.workers.authority.network import Membership
from tinkex.mesh.workers.authority.people import People
from tinkex.mesh.workers.authority.spending import Spending


class AuthService(auth.AuthApi):
    """Answers calls.

    Args:
        people: accounts, sessions and keys.
        membership: who is in the network.
        spending: leases and usage.
    """

    def __init__(self, people: People, membership: Membership, spending: Spending) -> None:
        self._people = people
        self._membership = membership
        self._spending = spending

    async def rpc_join(self, request: auth.Join, call: Call) -> auth.Joined:
        """Certify a peer that shows an unused invitation."""
        return await self._membership.join(request, call.peer)

    async def rpc_renew(self, request: auth.Renew, call: Call) -> auth.Joined:  # noqa: ARG002
        """Certify a member anew."""
        assert call.certificate is not None, "guests may not call this"
        return self._membership.renew(call.certificate)

    async def rpc_register(self, request: auth.Register, call: Call) -> auth.Registered:
        """Make an account."""
        account_id = await self._people.register(
            request.email, request.password, _source(request, call)
        )
        return auth.Registered(account_id)

    async def rpc_login(self, request: auth.Login, call: Call) -> auth.Session:
        """Begin a session."""
        return await self._people.log_in(request.email, request.password, _source(request, call))

    async def rpc_refresh(self, request: auth.Refresh, call: Call) -> auth.Session:  # noqa: ARG002
        """Continue a session; a refresh token used twice ends it."""
        return await self._people.refresh(request.refresh_token)

    async def rpc_logout(self, request: auth.Logout, call: Call) -> auth.Done:  # noqa: ARG002
        """End a session."""
        await self._people.log_out(request.access_token)
        return auth.Done()

    async def rpc_create_key(
        self,
        request: auth.CreateKey,
        call: Call,  # noqa: ARG002 - of the API
    ) -> auth.CreatedKey:
        """Make an API key."""
        terms = KeyTerms(
            name=request.name,
            scopes=request.scopes,
            expires_in_s=request.expires_in_s,
            token_cap=request.token_cap,
        )
        made = await self._people.create_key(request.access_token, terms)
        return auth.CreatedKey(made.key, _info(Key(made.created), request.name))

    async def rpc_list_keys(self, request: auth.ListKeys, call: Call) -> auth.Keys:  # noqa: ARG002
        """List an account's keys."""
        keys = self._people.keys(request.access_token)
        return auth.Keys(tuple(_info(key, name) for key, name in keys))

    async def rpc_revoke_key(self, request: auth.RevokeKey, call: Call) -> auth.Done:  # noqa: ARG002
        """End a key."""
        await self._people.revoke_key(request.access_token, request.key_id)
        return auth.Done()

    async def rpc_close_account(self, request: auth.CloseAccount, call: Call) -> auth.Done:
        """Erase an account."""
        await self._people.close_account(
            request.access_token, request.password, _source(request, call)
        )
        return auth.Done()

    async def rpc_change_password(self, request: auth.ChangePassword, call: Call) -> auth.Done:
        """Change an account's password."""
        await self._people.change_password(
            request.access_token, request.password, request.new_password, _source(request, call)
        )
        return auth.Done()

    async def rpc_usage(self, request: auth.UsageQuery, call: Call) -> auth.UsageReport:  # noqa: ARG002
        """Say what an account used."""
        return self._spending.report(request.credential, request.since, request.before)

    async def rpc_lease(self, request: auth.LeaseRequest, call: Call) -> auth.Lease:
        """Let a gateway spend some of an account's quota."""
        return await self._spending.lease(request, call.peer)

    async def rpc_settle(self, request: auth.SettleLease, call: Call) -> auth.Done:
        """Take back what a gateway did not use."""
        await self._spending.settle(request.lease_id, request.used_tokens, call.peer)
        return auth.Done()


def _source(request: auth.Attempt, call: Call) -> bytes:
    """Whom attempts are counted for: the client that the gateway names, else the gateway."""
    return request.source or call.peer.raw


def _info(key: Key, name: str) -> auth.KeyInfo:
    created = key.created
    return auth.KeyInfo(
        key_id=created.key_id,
        name=name,
        prefix=created.prefix,
        scopes=frozenset(created.scopes),
        created_at=created.at,
        expires_at=created.expires_at,
        token_cap=created.token_cap,
        revoked_at=key.revoked_at,
    )
