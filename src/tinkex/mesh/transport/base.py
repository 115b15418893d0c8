"""What `rpc` needs from a transport: links to peers whose public key is proven.

Owns the two protocols. A link carries whole frames in order, both ways; many calls share it, so a
frame that nobody reads yet is the business of `rpc`, whose credits bound what is on its way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tinkex.mesh.identity import PeerId

MAX_FRAME_BYTES = 1 << 20
"""A longer frame ends its link: nothing that we send is near it."""


@dataclass(frozen=True, slots=True)
class Contact:
    """A peer, and where it was last heard of."""

    peer_id: PeerId
    addresses: tuple[str, ...] = ()
    """In the transport's own form, `iroh:127.0.0.1:4433`, `tls:[::1]:4433` or `memory:x`; likeliest
    first. Those of other transports are passed over."""


class Link(Protocol):
    """An encrypted connection to one peer. Both ends know the other's public key for certain."""

    @property
    def remote(self) -> PeerId:
        """Who is at the other end."""

    @property
    def closed(self) -> bool:
        """Whether nothing goes through any more."""

    async def send(self, frame: bytes) -> None:
        """Send one frame, whole and in order; waits while much is on its way.

        Raises:
            LinkClosedError: the link is closed, or was lost.
            InputError: the frame is longer than `MAX_FRAME_BYTES`, or empty.
        """

    def send_now(self, frame: bytes) -> bool:
        """Send one frame if that needs no waiting; whether it was sent.

        Raises:
            LinkClosedError: the link is closed, or was lost.
            InputError: the frame is longer than `MAX_FRAME_BYTES`, or empty.
        """

    async def receive(self) -> bytes:
        """Wait for the next frame.

        Raises:
            LinkClosedError: the link was closed or lost, or the peer sent what is no frame.
        """

    def receive_now(self) -> bytes | None:
        """Take the next frame, or None if it is still to come.

        Raises:
            LinkClosedError: the link was closed or lost, or the peer sent what is no frame.
        """

    def listen(self, callback: Callable[[], None]) -> None:
        """Have `callback` called, in this context, whenever `receive_now` has something.

        That is a frame, or the end. It may be called for nothing, and is to take what is there:
        nothing is said again of a frame that was left. Who has this called uses `receive` no more.
        """

    async def close(self) -> None:
        """End the link at once; what waits at both ends gets a LinkClosedError. Harmless twice.

        The other end may still read what was sent before, if it arrives soon.
        """


class Transport(Protocol):
    """Makes links, both ways, under one key pair."""

    @property
    def contact(self) -> Contact:
        """How others reach this peer; complete once it has started."""

    async def start(self) -> None:
        """Bind and listen. Once: a transport that was stopped, or could not start, is done with.

        Raises:
            ConfigurationError: the address cannot be bound, or it is no first start.
            LinkClosedError: it was stopped meanwhile.
        """

    async def stop(self) -> None:
        """Close every link, and what waits in `accept`. Harmless twice, and before `start`."""

    async def dial(self, contact: Contact) -> Link:
        """Make a new link to a peer, which has accepted it when this returns.

        Raises:
            PeerUnreachableError: nobody answers at its addresses, or somebody else does.
            LinkClosedError: this transport does not run, or is stopped meanwhile.
        """

    async def accept(self) -> Link:
        """Wait for the next link that somebody made to this peer.

        Raises:
            LinkClosedError: the transport has stopped.
        """
