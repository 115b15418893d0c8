"""Links within one process, for tests: who is at the other end is certain, nothing is encrypted.

Owns a network of such transports and its links. A simulated network is one whose links are slower
and break: see `tinkex.testing.network`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from typing import Protocol

from tinkex.errors import ConfigurationError, LinkClosedError, PeerUnreachableError
from tinkex.mesh.identity import KeyPair, PeerId
from tinkex.mesh.transport.arrivals import Arrivals
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.transport.frames import check_length
from tinkex.mesh.transport.queue import FrameQueue

SCHEME = "memory:"


class Pipe(Protocol):
    """One direction of a link."""

    async def put(self, frame: bytes) -> None:
        """Send a frame; waits while much is on its way.

        Raises:
            LinkClosedError: `end` or `stop` was called.
        """

    def offer(self, frame: bytes) -> bool:
        """Send a frame if that needs no waiting; whether it was sent.

        Raises:
            LinkClosedError: `end` or `stop` was called.
        """

    async def get(self) -> bytes:
        """Wait for a frame.

        Raises:
            LinkClosedError: the end has arrived, and all before it was read; or `refuse` was
                called.
        """

    def poll(self) -> bytes | None:
        """Take a frame, if one has arrived.

        Raises:
            LinkClosedError: as `get`.
        """

    def listen(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when a frame has arrived that no `get` waits for, or the end."""

    def end(self, reason: str) -> None:
        """Tell the receiver that nothing follows, and let nothing in any more."""

    def stop(self, reason: str) -> None:
        """Let nothing in any more, and tell nobody."""

    def refuse(self, reason: str) -> None:
        """Want nothing more, at the receiver's end."""

    def when_ended(self, callback: Callable[[str], None]) -> None:
        """Have the receiver told, with the reason, when the end arrives or it refuses."""


class MemoryPipe(FrameQueue):
    """A pipe in which nothing takes time."""

    def __init__(self) -> None:
        super().__init__()
        self._callback: Callable[[str], None] | None = None

    def end(self, reason: str) -> None:
        """Say that nothing follows; see `Pipe.end`."""
        self._close(reason, discard=False)

    def stop(self, reason: str) -> None:
        """Let nothing in any more; see `Pipe.stop`."""
        self.close(reason)

    def refuse(self, reason: str) -> None:
        """Want nothing more; see `Pipe.refuse`."""
        self._close(reason, discard=True)

    def when_ended(self, callback: Callable[[str], None]) -> None:
        """Have the receiver told; see `Pipe.when_ended`."""
        self._callback = callback

    def _close(self, reason: str, *, discard: bool) -> None:
        self.close(reason, discard=discard)
        callback, self._callback = self._callback, None
        if callback is not None:
            callback(reason)


class MemoryLink:
    """One end of a link.

    Args:
        remote: who is at the other end.
        outbound: what this end sends into.
        inbound: what it reads from.
    """

    def __init__(self, remote: PeerId, outbound: Pipe, inbound: Pipe) -> None:
        self._remote = remote
        self._outbound = outbound
        self._inbound = inbound
        self._closed = False
        self._on_closed: list[Callable[[], object]] = []
        inbound.when_ended(self._ended)

    @property
    def remote(self) -> PeerId:
        """Who is at the other end."""
        return self._remote

    @property
    def closed(self) -> bool:
        """Whether nothing goes through any more."""
        return self._closed

    def when_closed(self, callback: Callable[[], object]) -> None:
        """Have `callback` called once, when this end is closed, or learns that the other was."""
        self._on_closed.append(callback)

    async def send(self, frame: bytes) -> None:
        """Send one frame; see `Link.send`."""
        check_length(frame)
        await self._outbound.put(frame)

    def send_now(self, frame: bytes) -> bool:
        """Send one frame if that needs no waiting; see `Link.send_now`."""
        check_length(frame)
        return self._outbound.offer(frame)

    async def receive(self) -> bytes:
        """Wait for the next frame; see `Link.receive`."""
        return await self._inbound.get()

    def receive_now(self) -> bytes | None:
        """Take the next frame if it is here; see `Link.receive_now`."""
        return self._inbound.poll()

    def listen(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when something is here; see `Link.listen`.

        In a turn of its own: it is not to run within the other end's `send`.
        """
        loop, context = asyncio.get_running_loop(), copy_context()

        def soon() -> None:
            loop.call_soon(callback, context=context)

        self._inbound.listen(soon)

    async def close(self) -> None:
        """End the link; the other end may still read what has arrived there."""
        self.lose("the link was closed", told="the peer closed the link")

    def lose(self, reason: str, *, told: str | None) -> None:
        """End this end of the link.

        Args:
            reason: why, for who waits here.
            told: why, for the other end; None: it hears of it in no way.
        """
        if told is not None:
            self._outbound.end(told)
        self._inbound.refuse(reason)

    def _ended(self, reason: str) -> None:
        self._closed = True
        self._outbound.stop(reason)
        callbacks, self._on_closed = self._on_closed, []
        for callback in callbacks:
            callback()


class MemoryNetwork:
    """Transports that reach one another by `memory:NAME`."""

    def __init__(self) -> None:
        self._listening: dict[str, MemoryTransport] = {}

    def transport(self, key_pair: KeyPair, *, address: str | None = None) -> MemoryTransport:
        """Make a transport; not started.

        Args:
            key_pair: whose.
            address: `memory:NAME`; by default named after its peer id, so that a peer that starts
                again is where it was.
        """
        return MemoryTransport(self, key_pair, address or f"{SCHEME}{key_pair.peer_id}")

    def listen(self, address: str, transport: MemoryTransport) -> None:
        """Let a transport be found.

        Raises:
            ConfigurationError: another one is there.
        """
        if self._listening.setdefault(address, transport) is not transport:
            raise ConfigurationError(f"another peer listens at {address}: choose another address")

    def unlisten(self, address: str) -> None:
        """Let it be found no more."""
        del self._listening[address]

    def listening(self) -> list[MemoryTransport]:
        """Who can be found, in the order of their starts."""
        return list(self._listening.values())

    async def connect(self, dialler: PeerId, contact: Contact) -> MemoryLink:
        """Make a link and hand its other end to who listens there.

        Raises:
            PeerUnreachableError: nobody answers there, somebody else does, or does not accept.
        """
        addresses = [a for a in contact.addresses if a.startswith(SCHEME)]
        found = [self._listening[a] for a in addresses if a in self._listening]
        where = f"{', '.join(addresses) or 'no address'}, where {contact.peer_id.short} should be"
        if not found:
            raise PeerUnreachableError(f"nobody answers at {where}")
        expected = [t for t in found if t.contact.peer_id == contact.peer_id]
        if not expected:
            raise PeerUnreachableError(f"somebody else answers at {where}")
        there, back = self.make_pipes(dialler, contact.peer_id)
        near = MemoryLink(contact.peer_id, there, back)
        if not expected[0].arrived(MemoryLink(dialler, back, there)):
            raise PeerUnreachableError(f"too many wait already at {where}")
        return near

    def make_pipes(self, dialler: PeerId, listener: PeerId) -> tuple[Pipe, Pipe]:
        """Make both directions of a link: from the dialler, and to it."""
        del dialler, listener  # to a simulated network they matter
        return MemoryPipe(), MemoryPipe()


class MemoryTransport:
    """One peer's place in a `MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, key_pair: KeyPair, address: str) -> None:
        self._contact = Contact(key_pair.peer_id, (address,))
        self._network = network
        self._started = False
        self._stopped = False
        self._links: dict[MemoryLink, None] = {}  # in order, for simulations
        self._arrivals: Arrivals[MemoryLink] = Arrivals()

    @property
    def contact(self) -> Contact:
        """How others reach this peer."""
        return self._contact

    async def start(self) -> None:
        """Listen; see `Transport.start`."""
        if self._started or self._stopped:
            raise ConfigurationError("a transport starts once: make a new one")
        self._network.listen(self._contact.addresses[0], self)
        self._started = True

    async def stop(self) -> None:
        """Close every link; see `Transport.stop`."""
        self.vanish("the transport was stopped", told="the peer closed the link")

    def vanish(self, reason: str, *, told: str | None) -> None:
        """End at once.

        Args:
            reason: why, for who waits here.
            told: why, for the other ends of its links; None: they hear of it in no way.
        """
        if self._started and not self._stopped:
            self._network.unlisten(self._contact.addresses[0])
        self._stopped = True
        self._arrivals.close()
        for link in list(self._links):
            link.lose(reason, told=told)

    async def dial(self, contact: Contact) -> MemoryLink:
        """Make a new link; see `Transport.dial`."""
        if not self._started or self._stopped:
            raise LinkClosedError("the transport does not run")
        link = await self._network.connect(self._contact.peer_id, contact)
        self._keep(link)
        return link

    async def accept(self) -> MemoryLink:
        """Wait for the next link; see `Transport.accept`."""
        return await self._arrivals.next()

    def arrived(self, link: MemoryLink) -> bool:
        """Take the far end of a link that another transport made; False if there is no room."""
        if not self._arrivals.add(link):
            return False
        self._keep(link)
        return True

    def _keep(self, link: MemoryLink) -> None:
        self._links[link] = None
        link.when_closed(lambda: self._links.pop(link, None))
