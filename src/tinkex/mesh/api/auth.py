"""What the auth workers do: accounts, sessions, keys, quota leases, usage.

Everything but joining and renewing comes through a gateway; what a client may see of it,
`api.gateway` has again with the same messages. Errors are `tinkex.errors`' own:
AuthenticationError, RateLimitError with `retry_after_ms`, BillingError for a quota that is used up,
NoQuorumError.
"""

from __future__ import annotations

from abc import abstractmethod

from tinkex.mesh.accounts.scopes import DEFAULT_SCOPES
from tinkex.mesh.api.completion import Confidential
from tinkex.mesh.roles import CERTIFIED, Role
from tinkex.mesh.rpc.service import Call, Service, callable_by


class Message(Confidential, frozen=True, forbid_unknown_fields=True):
    """Base of every message here: most hold secrets."""


class Attempt(Message, frozen=True, kw_only=True):
    """Base of what guesses passwords, or registers: it is counted, by client."""

    source: bytes = b""
    """The client's peer id: set by the gateway, whatever the client said."""


class Register(Attempt, frozen=True):
    """Make an account."""

    email: str
    password: str


class Registered(Message, frozen=True):
    """An account was made."""

    account_id: str


class Login(Attempt, frozen=True):
    """Begin a session."""

    email: str
    password: str


class Session(Message, frozen=True):
    """What a session is proven with."""

    access_token: str
    """A JWT."""
    access_expires_at: float
    """Unix seconds."""
    refresh_token: str
    """For one use."""
    refresh_expires_at: float
    """Unix seconds: when the session ends."""


class Refresh(Message, frozen=True):
    """Continue a session: the refresh token is used up, and a new one given."""

    refresh_token: str


class Logout(Message, frozen=True):
    """End the session that an access token belongs to."""

    access_token: str


class Done(Message, frozen=True):
    """It is done."""


class CreateKey(Message, frozen=True):
    """Make an API key."""

    access_token: str
    name: str
    scopes: frozenset[str] = DEFAULT_SCOPES
    expires_in_s: float | None = None
    token_cap: int | None = None
    """Tokens it may use in all; None: as many as the account may."""


class CreatedKey(Message, frozen=True):
    """A key: shown now, and never again."""

    key: str
    info: KeyInfo


class KeyInfo(Message, frozen=True):
    """What is known of a key. Times are unix seconds; None: never."""

    key_id: str
    name: str
    prefix: str
    """Its first characters, by which a person tells keys apart."""
    scopes: frozenset[str]
    created_at: float
    expires_at: float | None
    token_cap: int | None
    """Tokens it may use in all; None: as many as the account may."""
    revoked_at: float | None


class ListKeys(Message, frozen=True):
    """List an account's keys."""

    access_token: str


class Keys(Message, frozen=True):
    """An account's keys, newest first: of those that have ended, the latest thousand."""

    keys: tuple[KeyInfo, ...]


class RevokeKey(Message, frozen=True):
    """End a key, for good."""

    access_token: str
    key_id: str


class CloseAccount(Attempt, frozen=True):
    """Erase an account: its personal data cannot be read any more."""

    access_token: str
    password: str


class ChangePassword(Attempt, frozen=True):
    """Change an account's password; every other session of it ends."""

    access_token: str
    password: str
    """The one that it has."""
    new_password: str


class UsageQuery(Message, frozen=True):
    """Ask what an account used; `credential` is an access token or an API key of it."""

    credential: str
    since: float = 0.0
    """Only requests that were settled then or later, in unix seconds."""
    before: float | None = None
    """Only requests that were settled by then, in unix seconds: for the page before another."""


class UsageEntry(Message, frozen=True):
    """One settled request, as the gateway that served it signed it in its log."""

    request_id: str
    gateway: bytes
    """Its peer id."""
    epoch: bytes
    sequence: int
    """Where it is in that gateway's log."""
    at: float
    """When it was settled, in unix seconds of the gateway's clock."""
    key_id: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    state: str
    """`settled`, `countersigned` by the client, or `from_reservation` after a crash."""


class UsageMonth(Message, frozen=True):
    """What was used in a month, of requests that no gateway lists one by one any more."""

    month: str
    """As in `2026-11`; in UTC."""
    requests: int
    prompt_tokens: int
    completion_tokens: int


class UsageReport(Message, frozen=True):
    """What an account used, and what is left."""

    account_id: str
    quota_tokens: int | None
    """Tokens granted in all; None: no limit."""
    used_tokens: int
    """Of requests that were settled."""
    reserved_tokens: int
    """That may yet be spent: requests in progress, and what gateways were lent."""
    entries: tuple[UsageEntry, ...]
    """In order; where there are more than fit, the latest."""
    listed_since: float = 0.0
    """From this unix second on `entries` has every request; the page before ends there."""
    earlier: tuple[UsageMonth, ...] = ()


class LeaseRequest(Message, frozen=True):
    """A gateway asks to spend some of an account's quota."""

    account_id: str
    key_id: str
    tokens: int
    """The least it needs; the lease may be of more, for the requests after."""
    now: float
    """By the gateway's clock, in unix seconds: by that clock the lease ends."""


class Lease(Message, frozen=True):
    """Tokens that one gateway may spend until the lease ends."""

    lease_id: str
    tokens: int
    expires_at: float
    """Unix seconds, by the gateway's clock."""


class SettleLease(Message, frozen=True):
    """Give back what was not used."""

    lease_id: str
    used_tokens: int


class Join(Message, frozen=True):
    """A stranger with an invitation asks for a role certificate."""

    invitation: bytes
    """The root-signed grant."""
    proof: bytes
    """The invitation's secret key signed the stranger's peer id."""


class Joined(Message, frozen=True):
    """The stranger is a member."""

    certificate: bytes
    network: bytes
    """The network's description, root-signed."""


class Renew(Message, frozen=True):
    """A member asks for a certificate that lasts longer, of the same role and for the same key."""


class AuthApi(Service):
    """Implemented by the auth worker."""

    service = "auth"
    offered_by = frozenset({Role.AUTH})

    @callable_by((), guests=True)
    @abstractmethod
    async def rpc_join(self, request: Join, call: Call) -> Joined:
        """Certify a peer that shows an unused invitation."""

    @callable_by(CERTIFIED)
    @abstractmethod
    async def rpc_renew(self, request: Renew, call: Call) -> Joined:
        """Certify a member anew, before its certificate ends."""

    @callable_by({Role.GATEWAY})
    @abstractmethod
    async def rpc_register(self, request: Register, call: Call) -> Registered:
        """Make an account."""

    @callable_by({Role.GATEWAY})
    @abstractmethod
    async def rpc_login(self, request: Login, call: Call) -> Session:
        """Begin a session."""

    @callable_by({Role.GATEWAY})
    @abstractmethod
    async def rpc_refresh(self, request: Refresh, call: Call) -> Session:
        """Continue a session; a refresh token used twice ends it."""

    @callable_by({Role.GATEWAY})
    @abstractmethod
    async def rpc_logout(self, request: Logout, call: Call) -> Done:
        """End a session."""

    @callable_by({Role.GATEWAY})
    @abstractmethod
    async def rpc_create_key(self, request: CreateKey, call: Call) -> CreatedKey:
        """Make an API key."""

    @callable_by({Role.GATEWAY})
    @abstractmethod
    async def rpc_list_keys(self, request: ListKeys, call: Call) -> Keys:
        """List an account's keys."""

    @callable_by({Role.GATEWAY})
    @abstractmethod
    async def rpc_revoke_key(self, request: RevokeKey, call: Call) -> Done:
        """End a key."""

    @callable_by({Role.GATEWAY})
    @abstractmethod
    async def rpc_close_account(self, request: CloseAccount, call: Call) -> Done:
        """Erase an account."""

    @callable_by({Role.GATEWAY})
    @abstractmethod
    async def rpc_change_password(self, request: ChangePassword, call: Call) -> Done:
        """Change an account's password."""

    @callable_by({Role.GATEWAY})
    @abstractmethod
    async def rpc_usage(self, request: UsageQuery, call: Call) -> UsageReport:
        """Say what an account used."""

    @callable_by({Role.GATEWAY})
    @abstractmethod
    async def rpc_lease(self, request: LeaseRequest, call: Call) -> Lease:
        """Let a gateway spend some of an account's quota."""

    @callable_by({Role.GATEWAY})
    @abstractmethod
    async def rpc_settle(self, request: SettleLease, call: Call) -> Done:
        """Take back what a gateway did not use."""
