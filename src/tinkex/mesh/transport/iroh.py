"""Links over iroh: QUIC with TLS 1.3, where a peer's public key is its address.

Owns the endpoint: what it binds, dialling, accepting. Iroh proves both sides' keys by itself, and
finds ways through routers where a relay is configured; none is unless somebody says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinkex._clock import Clock
from tinkex.errors import (
    ConfigurationError,
    LinkClosedError,
    MissingPackageError,
    PeerProtocolError,
    PeerUnreachableError,
)
from tinkex.mesh.deadline import within
from tinkex.mesh.identity import KeyPair
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
from tinkex.mesh.transport.dialling import DIAL_S
from tinkex.mesh.transport.iroh_link import IrohLink, describe
from tinkex.mesh.transport.iroh_streams import streams_of

if TYPE_CHECKING:
    from types import ModuleType

    from iroh.iroh_ffi import BiStream, Connection, Endpoint, EndpointAddr, Incoming

SCHEME = "iroh:"
RELAY_SCHEME = "iroh-relay:"
"""Before the URL of the relay that a peer is at, among its addresses."""
GREETING_S = 5.0
"""How long who dials may take from its first packet to its first byte."""
MAX_GREETING = 128
"""How many may be at it at once; more are turned away."""
STALE_S = 1.0
"""After how long without an answer the open links to a peer are taken for those of its past."""
_CLOSE_S = 0.5
_PROTOCOL = b"tinkex-mesh/1"
_HELLO = b"\x01"
_RECEIVE_WINDOW_BYTES = 1 << 21


class IrohTransport:
    """Links over iroh.

    Args:
        key_pair: whose.
        bind: where to listen, `host:port`; port 0 lets the system choose. Iroh listens on every
            address of a family that is not named, so loopback is added for that.
        advertise: where others reach it, if not there: `host:port`, likeliest first.
        relay_url: a relay for when there is no direct way; None: no relay is ever spoken to.
        clock: measures how long dialling and greeting take.

    Raises:
        MissingPackageError: iroh is not installed.
    """

    def __init__(
        self,
        key_pair: KeyPair,
        *,
        bind: Sequence[str] = LOOPBACK,
        advertise: Sequence[str] = (),
        relay_url: str | None = None,
        clock: Clock,
    ) -> None:
        self._iroh = _import_iroh()
        self._streams = streams_of(self._iroh)
        self._key_pair = key_pair
        self._bind = tuple(bind)
        self._advertise = tuple(advertise)
        self._relay_url = relay_url
        self._clock = clock
        self._contact = Contact(key_pair.peer_id)
        self._endpoint: Endpoint | None = None
        self._links: set[IrohLink] = set()
        self._greeting = 0
        self._arrivals: Arrivals[IrohLink] = Arrivals()
        self._tasks = Tasks(on_error=_report)
        self._started = False
        self._stopped = False

    @property
    def contact(self) -> Contact:
        """How others reach this peer; complete once it has started."""
        return self._contact

    async def start(self) -> None:
        """Bind and listen; see `Transport.start`."""
        if self._started:
            raise ConfigurationError("a transport starts once: make a new one")
        self._started = True
        wanted = [place for place in map(split_address, self._bind) if _exists(place[0])]
        self._advertised(wanted)  # so that nothing is bound that cannot be reached
        endpoint = await self._open(wanted + _other_loopbacks(wanted))
        try:
            self._check_running()
            hosts = {host for host, _ in wanted}
            bound = [p for p in map(split_address, endpoint.bound_sockets()) if p[0] in hosts]
            self._contact = Contact(self._key_pair.peer_id, tuple(self._advertised(bound)))
        except BaseException:
            await endpoint.close()
            raise
        self._endpoint = endpoint
        self._tasks.spawn(self._accept_all(endpoint), name="iroh-accept")

    async def stop(self) -> None:
        """Close every link; see `Transport.stop`."""
        self._started = self._stopped = True
        self._arrivals.close()
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is None:
            return
        links = list(self._links)
        for link in links:
            await link.close()
        await asyncio.gather(*(link.gone() for link in links))
        with contextlib.suppress(TimeoutError):
            # It would wait three seconds for peers that never answered a dial. Those that were
            # linked have been told by now, and have acknowledged it.
            await within(self._clock, _CLOSE_S, endpoint.close())
        await self._tasks.stop()

    async def dial(self, contact: Contact) -> IrohLink:
        """Make a new link; see `Transport.dial`."""
        endpoint = self._endpoint
        if endpoint is None:
            raise LinkClosedError("the transport does not run")
        old = [link for link in self._links if link.remote == contact.peer_id]
        for link in old:
            # A connection that ends slowly, since its peer is gone, would lead the new one astray.
            if link.closed:
                link.abort("the link was closed")
        try:
            return await within(self._clock, DIAL_S, self._dial(endpoint, contact, old))
        except TimeoutError as error:
            raise PeerUnreachableError(
                f"{contact.peer_id.short} cannot be reached: no answer in {DIAL_S:g} seconds"
            ) from error
        except (self._iroh.IrohError, PeerProtocolError) as error:
            raise PeerUnreachableError(
                f"{contact.peer_id.short} cannot be reached: {describe(error)}"
            ) from error

    async def accept(self) -> IrohLink:
        """Wait for the next link; see `Transport.accept`."""
        return await self._arrivals.next()

    def _check_running(self) -> None:
        if self._stopped:
            raise LinkClosedError("the transport was stopped")

    def _advertised(self, bound: list[tuple[str, int]]) -> list[str]:
        relays = [] if self._relay_url is None else [RELAY_SCHEME + self._relay_url]
        return advertised(SCHEME, bound, self._advertise, elsewhere=bool(relays)) + relays

    async def _open(self, places: list[tuple[str, int]]) -> Endpoint:
        iroh = self._iroh
        builder = iroh.EndpointBuilder()
        builder.apply_minimal()
        relay = iroh.RelayMode.disabled()
        if self._relay_url is not None:
            relay = iroh.RelayMode.custom_from_urls([self._relay_url])
        builder.relay_mode(relay)
        builder.secret_key(self._key_pair.seed)
        builder.alpns([_PROTOCOL])
        wanted = [join_address(*place) for place in places]
        try:
            for address in wanted:
                builder.bind_addr(address)
            endpoint: Endpoint = await builder.bind()
        except iroh.IrohError as error:
            raise ConfigurationError(
                f"cannot listen at {', '.join(wanted)}: {describe(error)}; choose other addresses"
            ) from error
        bound = {split_address(text)[0] for text in endpoint.bound_sockets()}
        if unwanted := bound - {host for host, _ in places}:
            await endpoint.close()
            raise ConfigurationError(f"iroh listens at {unwanted}, which nobody asked for")
        return endpoint

    async def _accept_all(self, endpoint: Endpoint) -> None:
        while (incoming := await endpoint.accept_next()) is not None:
            if self._greeting >= MAX_GREETING:
                await incoming.refuse()
                continue
            self._greeting += 1
            self._tasks.spawn(self._welcome(incoming), name="iroh-welcome")

    async def _welcome(self, incoming: Incoming) -> None:
        try:
            await within(self._clock, GREETING_S, self._greet(incoming))
        except (TimeoutError, LinkClosedError, PeerProtocolError, self._iroh.IrohError):
            return  # whoever it was, it is nobody; strangers could fill a log with this
        finally:
            self._greeting -= 1

    async def _greet(self, incoming: Incoming) -> None:
        connection = await self._accepted(incoming)
        try:
            stream = await connection.accept_bi()
            await _hear_hello(stream)
            await stream.send().write_all(_HELLO)
        except BaseException:
            connection.close(1, b"greeting")
            raise
        link = self._keep(connection, stream)
        if not self._arrivals.add(link):
            link.abort("too many links wait to be accepted")

    async def _accepted(self, incoming: Incoming) -> Connection:
        """Do iroh's handshake; where it is no longer waited for, close what comes of it.

        It is not cancelled itself: in the moment at which it ends, iroh would keep the connection
        open, and nobody could close it. A peer that says nothing iroh gives up in half a minute.
        """
        made: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

        async def shake_hands() -> None:
            try:
                connection = await (await incoming.accept()).connect()
            except self._iroh.IrohError as error:
                if not made.done():
                    made.set_exception(error)
                return
            if made.done():
                connection.close(1, b"greeting")
            else:
                made.set_result(connection)

        self._tasks.spawn(shake_hands(), name="iroh-handshake")
        try:
            return await made
        except asyncio.CancelledError:
            if made.done() and not made.cancelled() and made.exception() is None:
                made.result().close(1, b"greeting")
            raise

    def _address_of(self, contact: Contact) -> EndpointAddr:
        """A contact as iroh wants it.

        Raises:
            PeerUnreachableError: the contact has no address of this transport.
        """
        places = [p for p in dialable(contact, SCHEME) if _family(p[0])]
        relays = [a for a in contact.addresses if a.startswith(RELAY_SCHEME)]
        if not places and not relays:
            raise PeerUnreachableError(f"no address of {contact.peer_id.short} is known here")
        address: EndpointAddr = self._iroh.EndpointAddr(
            self._iroh.EndpointId.from_bytes(contact.peer_id.raw),
            relays[0].removeprefix(RELAY_SCHEME) if relays else None,
            [join_address(*place) for place in places],
        )
        return address

    async def _dial(self, endpoint: Endpoint, contact: Contact, old: list[IrohLink]) -> IrohLink:
        connection = await self._connect(endpoint, self._address_of(contact), old)
        try:
            stream = await connection.open_bi()
            # The other side sees a stream only when something has come through it.
            await stream.send().write_all(_HELLO)
            await _hear_hello(stream)
        except BaseException:
            connection.close(1, b"greeting")
            raise
        return self._keep(connection, stream)

    async def _connect(
        self, endpoint: Endpoint, address: EndpointAddr, old: list[IrohLink]
    ) -> Connection:
        """Connect; where that takes long, without the ways that lead to the peer's open links.

        Iroh sends a peer's packets where its open connections are: if the peer has started again
        at another port, to nobody, until they are closed.
        """
        if any(not link.closed for link in old):
            try:
                return await within(self._clock, STALE_S, endpoint.connect(address, _PROTOCOL))
            except TimeoutError:
                for link in old:
                    link.abort("the peer no longer answers there")
        return await endpoint.connect(address, _PROTOCOL)

    def _keep(self, connection: Connection, stream: BiStream) -> IrohLink:
        if self._stopped:
            connection.close(0, b"")
        self._check_running()
        connection.set_receive_window(_RECEIVE_WINDOW_BYTES)
        connection.set_max_concurrent_bi_streams(1)
        connection.set_max_concurrent_uni_streams(0)
        link = IrohLink(
            connection,
            stream,
            streams=self._streams,
            failure=self._iroh.IrohError,
            tasks=self._tasks,
            clock=self._clock,
            on_gone=self._links.discard,
        )
        self._links.add(link)
        return link


def _import_iroh() -> ModuleType:
    try:
        from iroh import iroh_ffi  # noqa: PLC0415 - 70 ms and 20 MB, for those who use it
    except (ImportError, OSError) as error:
        raise MissingPackageError(
            "iroh is not installed, or not made for this machine: pip install 'tinkex[mesh]', or "
            "let the mesh use its other transport, tls"
        ) from error
    return iroh_ffi


async def _hear_hello(stream: BiStream) -> None:
    if await stream.recv().read_exact(len(_HELLO)) != _HELLO:
        raise PeerProtocolError("the peer does not greet as it should")


def _family(host: str) -> int:
    """4 or 6; 0 where `host` is a name."""
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return 0


def _other_loopbacks(wanted: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Loopback of each family that is not wanted, where this machine has it.

    Raises:
        ConfigurationError: what is wanted is no IP address, or two of one family.
    """
    families = [_family(host) for host, _ in wanted]
    if 0 in families:
        raise ConfigurationError("iroh listens at IP addresses only, not at names")
    if len(set(families)) < len(families):
        raise ConfigurationError(
            "iroh listens at one address of IPv4 and one of IPv6: give one of each, or 0.0.0.0 "
            "and [::] for all, with the addresses to advertise"
        )
    loopbacks = [host for host in ("127.0.0.1", "::1") if _family(host) not in families]
    return [(host, 0) for host in loopbacks if _exists(host)]


def _exists(host: str) -> bool:
    """False for IPv6's loopback on a machine without IPv6."""
    if host != "::1":
        return True
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


def _report(error: BaseException) -> None:
    asyncio.get_running_loop().call_exception_handler(
        {"message": "a task of the iroh transport failed", "exception": error}
    )
