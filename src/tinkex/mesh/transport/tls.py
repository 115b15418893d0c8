"""Links over TCP with TLS 1.3: both ends prove their Ed25519 key, and no authority is asked.

Owns listening, dialling and the connections in between. What is proven, and how: `tls_channel`.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
from collections.abc import Sequence

from tinkex._clock import Clock
from tinkex.errors import (
    ConfigurationError,
    LinkClosedError,
    MeshError,
    PeerUnreachableError,
)
from tinkex.mesh.deadline import within
from tinkex.mesh.identity import KeyPair, PeerId
from tinkex.mesh.tasks import Tasks
from tinkex.mesh.transport.addresses import (
    LOOPBACK,
    advertised,
    dialable,
    join_address,
    split_address,
)
from tinkex.mesh.transport.arrivals import Arrivals
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.transport.dialling import Place, dial_first
from tinkex.mesh.transport.tls_channel import CHALLENGE_BYTES, TlsChannel
from tinkex.mesh.transport.tls_keys import TlsKeys
from tinkex.mesh.transport.tls_link import TlsLink

SCHEME = "tls:"
GREETING_S = 5.0
"""How long who dials may take to say who they are."""
MAX_GREETING = 128
"""How many may be at it at once; more are turned away."""
LINGER_S = 0.5
"""How long what was sent before closing may take to leave."""


class TlsTransport:
    """Links over TLS 1.3.

    Args:
        key_pair: whose.
        bind: where to listen, `host:port`; port 0 lets the system choose.
        advertise: where others reach it, if not there: `host:port`, likeliest first.
        clock: measures how long dialling and greeting take.
    """

    def __init__(
        self,
        key_pair: KeyPair,
        *,
        bind: Sequence[str] = LOOPBACK,
        advertise: Sequence[str] = (),
        clock: Clock,
    ) -> None:
        self._peer_id = key_pair.peer_id
        self._keys = TlsKeys(key_pair)
        self._bind = tuple(bind)
        self._advertise = tuple(advertise)
        self._clock = clock
        self._contact = Contact(key_pair.peer_id)
        self._servers: list[asyncio.Server] = []
        self._links: set[TlsLink] = set()
        self._greeting = 0
        self._arrivals: Arrivals[TlsLink] = Arrivals()
        self._tasks = Tasks(on_error=_report)
        self._started = False
        self._stopped = False
        self._running = False

    @property
    def contact(self) -> Contact:
        """How others reach this peer; complete once it has started."""
        return self._contact

    async def start(self) -> None:
        """Bind and listen; see `Transport.start`."""
        if self._started:
            raise ConfigurationError("a transport starts once: make a new one")
        self._started = True
        # First, so that nothing is bound that cannot be reached.
        advertised(SCHEME, [split_address(text) for text in self._bind], self._advertise)
        try:
            for text in self._bind:
                await self._listen(text)
            bound = [socket.getsockname()[:2] for s in self._servers for socket in s.sockets]
            addresses = advertised(SCHEME, bound, self._advertise)
            self._check_running()
        except BaseException:
            self._close_servers()
            raise
        self._contact = Contact(self._peer_id, tuple(addresses))
        self._running = True

    async def stop(self) -> None:
        """Close every link; see `Transport.stop`."""
        self._started = self._stopped = True
        self._running = False
        self._arrivals.close()
        servers = self._servers
        self._close_servers()
        links = list(self._links)
        for link in links:
            await link.close()
        await asyncio.gather(*(link.lost for link in links))
        await self._tasks.stop()
        for server in servers:
            await server.wait_closed()

    async def dial(self, contact: Contact) -> TlsLink:
        """Make a new link; see `Transport.dial`."""
        if not self._running:
            raise LinkClosedError("the transport does not run")

        async def attempt(place: Place) -> TlsLink:
            return await self._attempt(contact.peer_id, place)

        return await dial_first(contact, dialable(contact, SCHEME), attempt, clock=self._clock)

    async def accept(self) -> TlsLink:
        """Wait for the next link; see `Transport.accept`."""
        return await self._arrivals.next()

    def _check_running(self) -> None:
        if self._stopped:
            raise LinkClosedError("the transport was stopped")

    async def _listen(self, text: str) -> None:
        host, port = split_address(text)
        try:
            server = await asyncio.get_running_loop().create_server(self._dialled, host, port)
        except OSError as error:
            if host == "::1" and error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                return  # this machine has no IPv6
            raise ConfigurationError(
                f"cannot listen at {text}: {error.strerror}; choose another address or port"
            ) from error
        self._servers.append(server)

    def _close_servers(self) -> None:
        for server in self._servers:
            server.close()
        self._servers = []

    async def _attempt(self, peer_id: PeerId, place: Place) -> TlsLink:
        link = self._new_link(TlsChannel(self._keys, expected=peer_id))
        await asyncio.get_running_loop().create_connection(lambda: link, *place)
        try:
            await asyncio.shield(link.greeted)
        except MeshError as error:
            raise PeerUnreachableError(f"{join_address(*place)}: {error}") from error
        except asyncio.CancelledError:
            link.abort("dialling was given up")
            raise
        return link

    def _dialled(self) -> TlsLink:
        challenge = secrets.token_bytes(CHALLENGE_BYTES)
        return self._new_link(TlsChannel(self._keys, challenge=challenge))

    def _new_link(self, channel: TlsChannel) -> TlsLink:
        return TlsLink(
            channel, on_made=self._made, on_linger=self._linger, on_lost=self._links.discard
        )

    def _made(self, link: TlsLink) -> None:
        self._links.add(link)
        if link.dialler and self._running:
            return
        if not self._running or self._greeting >= MAX_GREETING:
            link.abort("too many dial at once")
            return
        self._greeting += 1
        self._tasks.spawn(self._welcome(link), name="tls-welcome")

    async def _welcome(self, link: TlsLink) -> None:
        try:
            await within(self._clock, GREETING_S, _greeted(link))
        except (MeshError, TimeoutError):
            # Whoever it was, it is nobody; what it did not manage to be is in no log, as strangers
            # could fill that.
            link.abort("the peer did not say who it is")
        else:
            if not self._arrivals.add(link):
                link.abort("too many links wait to be accepted")
        finally:
            self._greeting -= 1

    def _linger(self, link: TlsLink) -> None:
        self._tasks.spawn(self._abort_later(link), name="tls-linger")

    async def _abort_later(self, link: TlsLink) -> None:
        await self._clock.sleep(LINGER_S)
        link.abort("the link was closed")


async def _greeted(link: TlsLink) -> None:
    await asyncio.shield(link.greeted)


def _report(error: BaseException) -> None:
    asyncio.get_running_loop().call_exception_handler(
        {"message": "a task of the TLS transport failed", "exception": error}
    )
