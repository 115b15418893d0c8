"""Asking the auth workers: found by their announcements, tried one after the other.

Owns whom to ask and when to ask another. Their answers and errors pass whole; what is in a request
(passwords, tokens) is kept nowhere and told nobody else.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from tinkex._clock import Clock
from tinkex.errors import (
    APIStatusError,
    LinkClosedError,
    MeshError,
    NoQuorumError,
    PeerTimeoutError,
    PeerUnreachableError,
    status_error,
)
from tinkex.mesh.api.auth import AuthApi
from tinkex.mesh.api.gateway import MAY_BE_DONE
from tinkex.mesh.dht.records import Record
from tinkex.mesh.identity import PeerId
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.peers import Peers
from tinkex.mesh.rpc.service import Call
from tinkex.mesh.workers.discovery import Discovery

TIMEOUT_S = 10.0
RETRY_MS = 1000.0
ONCE = frozenset(
    {
        AuthApi.rpc_register,
        AuthApi.rpc_refresh,
        AuthApi.rpc_create_key,
        AuthApi.rpc_change_password,
    }
)
"""Not to be repeated where an answer was lost: it may have been done."""

Q = TypeVar("Q", bound=msgspec.Struct)
A = TypeVar("A", bound=msgspec.Struct)
AuthMethod = Callable[[Any, Q, Call], Coroutine[Any, Any, A]]


class AuthCalls:
    """Asks auth workers.

    Args:
        peers: calls them.
        discovery: finds them.
        clock: tells the time.
    """

    def __init__(self, peers: Peers, discovery: Discovery, *, clock: Clock) -> None:
        self._peers = peers
        self._discovery = discovery
        self._clock = clock
        self._last: PeerId | None = None

    async def ask(self, method: AuthMethod[Q, A], request: Q, *, deadline: float) -> A:
        """Ask one after the other until one answers.

        Args:
            method: of `AuthApi`.
            request: its message.
            deadline: monotonic seconds after which nobody waits.

        Raises:
            TinkerError: what an auth worker answered.
            APIStatusError: 503, none can be reached, or one may have done it (`MAY_BE_DONE`).
        """
        problem: MeshError | None = None
        for record in await self._workers():
            left = deadline - self._clock.monotonic()
            if left <= 0:
                break
            try:
                answer = await self._peers.call(
                    record.contact, method, request, timeout_s=min(left, TIMEOUT_S)
                )
            except (PeerUnreachableError, NoQuorumError) as error:
                if method in ONCE and error.category == "unknown":
                    raise _may_be_done("Too few auth workers hold it to know yet") from error
                problem = error
            except (LinkClosedError, PeerTimeoutError) as error:
                if method in ONCE:
                    raise _may_be_done("The answer of the auth worker was lost") from error
                problem = error
            else:
                self._last = record.contact.peer_id
                return answer
        raise status_error(
            503,
            "No auth worker can be reached, or too few of them: try again later.",
            retry_after_ms=RETRY_MS,
        ) from problem

    async def _workers(self) -> list[Record]:
        """The one that answered last, then the others."""
        found = await self._discovery.lookup(Role.AUTH.value)
        return sorted(found, key=lambda record: record.contact.peer_id != self._last)


def _may_be_done(why: str) -> APIStatusError:
    return status_error(
        503,
        f"{why}: it may have been done. Look before you try again.",
        body={"code": MAY_BE_DONE},
    )
