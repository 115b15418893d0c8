"""The gateways that a client knows, and asking one of them.

Owns finding them, keeping links to two of them warm, the order in which they are tried, and when a
request goes to another: as long as nothing of its answer was used.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from tinkex._clock import Clock
from tinkex.errors import (
    APIStatusError,
    ConfigurationError,
    DamagedDataError,
    LinkClosedError,
    MeshError,
    PeerTimeoutError,
    RateLimitError,
    StorageError,
    TinkerError,
    status_error,
)
from tinkex.mesh.api.gateway import MAY_BE_DONE, SHARE_IS_USED, GatewayApi
from tinkex.mesh.dht.records import Record
from tinkex.mesh.identity import PeerId
from tinkex.mesh.positive import not_positive
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.peers import Peers
from tinkex.mesh.rpc.replies import Replies
from tinkex.mesh.rpc.service import Call
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.workers.discovery import Discovery

RETRY_MS = 1000.0
ONCE = frozenset(
    {
        GatewayApi.rpc_register,
        GatewayApi.rpc_refresh,
        GatewayApi.rpc_create_key,
        GatewayApi.rpc_change_password,
    }
)
"""Not to be repeated where an answer was lost: it may have been done."""
_OF_A_DISK = (StorageError, DamagedDataError)
"""A gateway that cannot write what it must serves nobody; another one may."""

Q = TypeVar("Q", bound=msgspec.Struct)
A = TypeVar("A")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaysConfig:
    """How a client treats gateways. Times are in seconds.

    Raises:
        ConfigurationError: naming every value that cannot be.
    """

    warm: int = 2
    """Gateways to which a link is kept."""
    look_s: float = 10.0
    """Between two looks for gateways."""
    avoid_s: float = 5.0
    """How long one that failed comes last."""
    attempts: int = 3
    """Gateways that one request is sent to."""
    answer_s: float = 30.0
    """How long an answer that is no stream is waited for."""
    stream_s: float = 3600.0
    """How long a stream may take."""
    idle_s: float = 120.0
    """How long nothing of a stream may come."""

    def __post_init__(self) -> None:
        if problems := not_positive(self):
            raise ConfigurationError(problems)


class Gateways:
    """Asks gateways.

    Args:
        peers: calls them.
        discovery: finds them.
        clock: tells the time.
        rng: orders those of which nothing is known.
        config: see there.
    """

    def __init__(
        self,
        peers: Peers,
        discovery: Discovery,
        *,
        clock: Clock,
        rng: random.Random,
        config: GatewaysConfig | None = None,
    ) -> None:
        self._peers = peers
        self._discovery = discovery
        self._clock = clock
        self._rng = rng
        self._config = config or GatewaysConfig()
        self._records: tuple[Record, ...] = ()
        self._avoided: dict[PeerId, float] = {}

    @property
    def known(self) -> int:
        """How many were found."""
        return len(self._records)

    async def run(self) -> None:
        """Keep links warm until cancelled."""
        while True:
            await self.look()
            await self._clock.sleep(self._config.look_s)

    async def look(self) -> None:
        """Look for gateways, and make links to the first of them."""
        warm = (await self._ordered())[: self._config.warm]
        await asyncio.gather(*(self._warm(contact) for contact in warm))

    async def ask(
        self, method: Callable[[Any, Q, Call], Awaitable[A]], request: Q, *, timeout_s: float = 0
    ) -> A:
        """Ask a gateway, or another when it cannot be reached.

        Args:
            method: of `GatewayApi`.
            request: its message.
            timeout_s: seconds for an answer; 0: the usual.

        Raises:
            TinkerError: what a gateway answered.
            APIStatusError: 503, none can be reached, or it may have been done.
        """
        problem: TinkerError | None = None
        for contact in await self.tried():
            try:
                return await self._peers.call(
                    contact, method, request, timeout_s=timeout_s or self._config.answer_s
                )
            except TinkerError as error:
                if not self.elsewhere(contact, error) or _code_of(error) == MAY_BE_DONE:
                    raise
                if isinstance(error, _OF_A_DISK):
                    raise  # an auth worker's, perhaps, that took a part of it
                if method in ONCE and isinstance(error, LinkClosedError | PeerTimeoutError):
                    raise status_error(
                        503,
                        "The gateway's answer was lost: it may have been done. Look before you try "
                        "again.",
                    ) from error
                problem = telling(problem, error)
        raise nobody(problem) from problem

    async def tried(self) -> list[Contact]:
        """Return those that a request is sent to, one after the other until one answers."""
        return (await self._ordered())[: self._config.attempts]

    def stream(
        self,
        contact: Contact,
        method: Callable[[Any, Q, Call], AsyncIterator[A]],
        request: Q,
    ) -> Replies[A]:
        """Ask one of them for a stream; see `Peers.ask`."""
        config = self._config
        return self._peers.ask(
            contact,
            method,
            request,
            timeout_s=config.stream_s,
            idle_timeout_s=config.idle_s,
        )

    def elsewhere(self, contact: Contact, error: TinkerError) -> bool:
        """Take note of a failure; whether another gateway may do better."""
        if isinstance(error, RateLimitError) and _code_of(error) == SHARE_IS_USED:
            return True  # nothing is wrong with this one
        failed = isinstance(error, (MeshError, *_OF_A_DISK)) or (
            isinstance(error, APIStatusError) and error.status_code == 503
        )
        if failed:
            self.avoid(contact.peer_id)
        return failed

    def avoid(self, peer: PeerId) -> None:
        """Try a gateway last for a while."""
        self._avoided[peer] = self._clock.monotonic() + self._config.avoid_s

    async def _ordered(self) -> list[Contact]:
        """Those that did not fail lately first, then by round trip; unknown ones shuffled."""
        found = await self._discovery.lookup(Role.GATEWAY.value)
        # Where nobody answers a lookup, those known before may still be there.
        self._records = found or self._records
        now = self._clock.monotonic()
        self._avoided = {peer: until for peer, until in self._avoided.items() if until > now}
        contacts = [record.contact for record in self._records]
        if len(contacts) == 1:
            return contacts
        self._rng.shuffle(contacts)
        return sorted(contacts, key=self._order)

    def _order(self, contact: Contact) -> tuple[bool, float]:
        rtt = self._peers.rtt(contact.peer_id)
        return contact.peer_id in self._avoided, float("inf") if rtt is None else rtt

    async def _warm(self, contact: Contact) -> None:
        try:
            await self._peers.ping(contact)
        except MeshError:
            self.avoid(contact.peer_id)


def _code_of(error: TinkerError) -> str | None:
    body = getattr(error, "body", None)
    return body.get("code") if isinstance(body, Mapping) else None


def telling(before: TinkerError | None, error: TinkerError) -> TinkerError:
    """Return which of two gateways' failures to tell: the shorter wait, then what one answered.

    That another one cannot be reached, too, does not help whoever has used up their share.
    """
    if isinstance(before, RateLimitError) and (
        not isinstance(error, RateLimitError)
        or (before.retry_after_ms or 0.0) <= (error.retry_after_ms or 0.0)
    ):
        return before
    if isinstance(before, APIStatusError) and not isinstance(error, APIStatusError):
        return before
    return error


def nobody(problem: TinkerError | None) -> APIStatusError:
    """Say that no gateway can be reached, or what the last one said."""
    if isinstance(problem, APIStatusError):
        return problem
    if isinstance(problem, _OF_A_DISK):
        return status_error(
            503,
            f"No gateway of the mesh that can be reached keeps its books ({problem}): whoever runs "
            "them is to look at their disks.",
            retry_after_ms=RETRY_MS,
        )
    why = "none is announced" if problem is None else str(problem)
    return status_error(
        503,
        f"No gateway of the mesh can be reached ({why}): `tinkex mesh status` shows whom this "
        "worker sees.",
        retry_after_ms=RETRY_MS,
    )
