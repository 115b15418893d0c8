"""Which link goes to which peer: made when needed, shared by all calls, closed when not.

Owns dialling, accepting and both greetings; one dial at a time to a peer, and pauses after failed
ones; which of two links stays when both sides dial at once; how many links there are.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from tinkex.errors import (
    InputError,
    LinkClosedError,
    MeshError,
    PeerUnreachableError,
    TinkerError,
)
from tinkex.mesh.identity import PeerId
from tinkex.mesh.rpc.channel import Channel
from tinkex.mesh.rpc.credentials import RemotePeer
from tinkex.mesh.rpc.deadline import Deadline
from tinkex.mesh.rpc.errors import wire_error
from tinkex.mesh.rpc.messages import VERSION, Refused, encode_greeting
from tinkex.mesh.rpc.session import Limits
from tinkex.mesh.rpc.surroundings import Surroundings
from tinkex.mesh.transport.base import Contact, Link, Transport

_REMEMBERED_FAILURES = 1024
_MAX_DIALS_OF_A_CALL = 3
_MAX_ADDRESSES = 8
_MAX_LINKS_OF_A_PEER = 3
"""One, one that it replaces, and one that both dialled at once."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """The last of some dials in a row that failed."""

    count: int
    until: float
    """Monotonic seconds before which there is no other."""
    error: TinkerError
    contact: Contact


class _Dial:
    """A dial in progress."""

    __slots__ = ("contact", "done", "task")

    task: asyncio.Task[None]

    def __init__(self, contact: Contact, done: asyncio.Future[None]) -> None:
        self.contact = contact
        self.done = done
        """Done when there is a link; an exception when there is none."""


class Links:
    """The links of one peer.

    Args:
        transport: makes them.
        instance: random bytes, new with each start of this peer.
        around: what all links share.
        on_lost: told of peers whose link was lost.
    """

    def __init__(
        self,
        transport: Transport,
        instance: bytes,
        around: Surroundings,
        on_lost: Callable[[PeerId], None],
    ) -> None:
        self._transport = transport
        self._instance = instance
        self._around = around
        self._on_lost = on_lost
        self._current: dict[PeerId, Channel] = {}
        self._all: dict[Channel, None] = {}  # in order, so that a simulation repeats
        self._dials: dict[PeerId, _Dial] = {}
        self._dialling = asyncio.Semaphore(around.config.max_dials)
        self._failures: OrderedDict[PeerId, _Failure] = OrderedDict()
        self._greetings = 0

    @property
    def all(self) -> tuple[Channel, ...]:
        """Every link that has not ended, those that take no calls any more too."""
        return tuple(self._all)

    def get(self, peer_id: PeerId) -> Channel | None:
        """Return the link to a peer, if there is one."""
        channel = self._current.get(peer_id)
        return channel if channel is not None and channel.takes_calls else None

    async def to(self, contact: Contact) -> Channel:
        """Return the link to a peer; dial it where there is none.

        Raises:
            PeerUnreachableError: nobody answers there.
            TrustError: who answers is no member of this network, or takes this peer for none.
            PeerProtocolError: who answers speaks something else.
        """
        if contact.peer_id == self._me:
            raise InputError("a peer does not call itself")
        for _ in range(_MAX_DIALS_OF_A_CALL):
            if (channel := self.get(contact.peer_id)) is not None:
                return channel
            # Who stops waiting does not stop the dial: others wait too, or will.
            await asyncio.shield(self._dial_in_progress(contact).done)
        if (channel := self.get(contact.peer_id)) is not None:
            return channel
        error = PeerUnreachableError(
            f"{contact.peer_id.short} closes its links as soon as they are made: try another peer"
        )
        self._note_failure(contact, error)
        raise error

    def stop(self) -> None:
        """Fail whoever waits for a dial that never began; after the tasks were stopped."""
        for dial in self._dials.values():
            if not dial.done.done():
                dial.done.set_exception(LinkClosedError("this peer has stopped"))
                dial.done.exception()
        self._dials.clear()

    @property
    def _me(self) -> PeerId:
        return self._around.credentials.key_pair.peer_id

    # --- dialling -------------------------------------------------------------

    def _dial_in_progress(self, contact: Contact) -> _Dial:
        """Return the dial to a peer; begin one, or begin anew where addresses come to be known.

        Without that, who knows where a peer has moved would wait for a dial to where it was.
        """
        dial = self._dials.get(contact.peer_id)
        if dial is None:
            self._check_pause(contact)
            return self._begin_dial(contact)
        if set(contact.addresses) <= set(dial.contact.addresses):
            return dial
        known = dict.fromkeys(contact.addresses + dial.contact.addresses)
        dial.task.cancel()
        both = Contact(contact.peer_id, tuple(known)[:_MAX_ADDRESSES])
        return self._begin_dial(both, after=dial)

    def _begin_dial(self, contact: Contact, after: _Dial | None = None) -> _Dial:
        # Whoever waits for the dial before waits for this one.
        done = asyncio.get_running_loop().create_future() if after is None else after.done
        dial = _Dial(contact, done)
        self._dials[contact.peer_id] = dial
        dial.task = self._around.tasks.spawn(
            self._dial(dial, after), name=f"dial {contact.peer_id.short}"
        )
        return dial

    async def _dial(self, dial: _Dial, after: _Dial | None) -> None:
        contact = dial.contact
        error: TinkerError = PeerUnreachableError(f"{contact.peer_id.short}: the dial was stopped")
        try:
            if after is not None:
                await asyncio.wait((after.task,))
            await self._dialled(contact)
            self._failures.pop(contact.peer_id, None)
        except TinkerError as failure:
            error = failure
            self._note_failure(contact, failure)
        else:
            dial.done.set_result(None)
        finally:
            if self._dials.get(contact.peer_id) is dial:
                del self._dials[contact.peer_id]
                if not dial.done.done():
                    dial.done.set_exception(error)
                    dial.done.exception()  # it may be that nobody waits any more

    async def _dialled(self, contact: Contact) -> None:
        def late() -> PeerUnreachableError:
            return PeerUnreachableError(
                f"{contact.peer_id.short} did not answer within {limit} s at "
                f"{', '.join(contact.addresses) or 'no address'}"
            )

        limit = self._around.config.dial_timeout_s
        async with Deadline(self._around.timers, limit, late), self._dialling:
            # Two connections to one peer confuse some transports: the old one goes first.
            await self._gone(contact.peer_id)
            self._make_room(guest=False)
            link = await self._transport.dial(contact)
            try:
                peer = await self._greet(link)
            except BaseException:
                await link.close()
                raise
            self._adopt(link, peer)

    async def _gone(self, peer_id: PeerId) -> None:
        """Wait until links to a peer that were ended are closed."""
        for channel in self._of(peer_id):
            if channel.ending:
                await channel.ended.wait()

    async def _greet(self, link: Link) -> RemotePeer:
        around = self._around
        hello = around.credentials.hello(self._instance, self._given(guest=False))
        try:
            await link.send(encode_greeting(hello))
            frame = await link.receive()
        except LinkClosedError as error:
            raise PeerUnreachableError(
                f"{link.remote.short} closed the link instead of greeting ({error})"
            ) from error
        return around.credentials.check_hello(
            frame, link.remote, dialled=True, now=around.clock.now()
        )

    def _check_pause(self, contact: Contact) -> None:
        failure = self._failures.get(contact.peer_id)
        if failure is None or failure.contact != contact:
            return
        left = failure.until - self._around.clock.monotonic()
        if left > 0:
            kind = type(failure.error) if isinstance(failure.error, MeshError) else MeshError
            raise kind(str(failure.error), retry_after_ms=left * 1000)

    def _note_failure(self, contact: Contact, error: TinkerError) -> None:
        config = self._around.config
        before = self._failures.pop(contact.peer_id, None)
        count = 0 if before is None else before.count + 1
        pause = min(config.redial_initial_s * 2.0 ** min(count, 60), config.redial_maximum_s)
        until = self._around.clock.monotonic() + pause
        self._failures[contact.peer_id] = _Failure(count, until, error, contact)
        if len(self._failures) > _REMEMBERED_FAILURES:
            self._failures.popitem(last=False)

    # --- accepting ------------------------------------------------------------

    async def accept(self) -> None:
        """Take in the links that others make, until the transport stops."""
        around = self._around
        while True:
            try:
                link = await self._transport.accept()
            except LinkClosedError:
                return
            name = f"greet {link.remote.short}"
            if self._greetings >= around.config.max_greetings:
                around.tasks.spawn(link.close(), name=name)
            else:
                self._greetings += 1
                around.tasks.spawn(self._welcome(link), name=name)

    async def _welcome(self, link: Link) -> None:
        try:
            peer = await self._welcomed(link)
        except BaseException:
            await link.close()
            raise
        finally:
            self._greetings -= 1
        if peer is None:
            await link.close()
        else:
            self._adopt(link, peer)

    async def _welcomed(self, link: Link) -> RemotePeer | None:
        """Greet who made a link; None, and a reason sent, if it may not stay."""
        around = self._around
        try:
            async with self._greeting_deadline():
                frame = await link.receive()
            peer = around.credentials.check_hello(
                frame, link.remote, dialled=False, now=around.clock.now()
            )
            if around.stopping:
                raise PeerUnreachableError(f"{self._me.short} is stopping", retry_after_ms=1000.0)
            self._make_room(guest=peer.certificate is None)
            given = self._given(guest=peer.certificate is None)
            async with self._greeting_deadline():
                hello = around.credentials.hello(self._instance, given)
                await link.send(encode_greeting(hello))
        except LinkClosedError:
            return None
        except TinkerError as error:
            await self._refuse(link, error)
            return None
        return peer

    async def _refuse(self, link: Link, error: TinkerError) -> None:
        """Say why, and let the other side close: what is on its way may be lost otherwise."""
        try:
            async with self._greeting_deadline():
                await link.send(encode_greeting(Refused(VERSION, wire_error(error))))
                await link.receive()
        except MeshError:
            pass

    def _greeting_deadline(self) -> Deadline:
        seconds = self._around.config.greeting_timeout_s
        return Deadline(
            self._around.timers,
            seconds,
            lambda: LinkClosedError(f"no greeting within {seconds} s"),
        )

    def _given(self, *, guest: bool) -> Limits:
        config = self._around.config
        if guest:
            return Limits(config.guest_max_calls, config.guest_max_request_bytes)
        return Limits(config.max_calls, config.max_request_bytes)

    # --- which links there are ------------------------------------------------

    def _adopt(self, link: Link, peer: RemotePeer) -> None:
        given = self._given(guest=peer.certificate is None)
        channel = Channel(link, peer, given, self._around, self._changed)
        self._end_earlier_starts(peer)
        self._all[channel] = None
        channel.start()
        self._around.watch(lambda observer: observer.link_opened(peer.peer_id))
        self._failures.pop(peer.peer_id, None)
        old = self.get(peer.peer_id)
        if old is None:
            self._current[peer.peer_id] = channel
        else:
            self._choose(old, channel)
        self._end_surplus(peer.peer_id)

    def _end_earlier_starts(self, peer: RemotePeer) -> None:
        for old in self._of(peer.peer_id):
            if old.peer.instance != peer.instance:
                old.end(LinkClosedError(f"{peer.peer_id.short} was started anew"), lost=True)

    def _choose(self, old: Channel, new: Channel) -> None:
        """Choose the one of two links to the same start of a peer on which calls begin.

        Dialled by the same side again: that side has lost the first. Dialled by both at once: the
        link of the lesser id, so both choose the same. Only who dialled the other one retires it:
        the peer may have dialled because it has lost what this side still believes in.
        """
        if new.peer.dialled == old.peer.dialled:
            kept, spare = new, old
            spare_is_lost = True
        else:
            newer = new.peer.dialled is (self._me < new.peer.peer_id)
            kept, spare = (new, old) if newer else (old, new)
            spare_is_lost = spare.peer.dialled
        self._current[new.peer.peer_id] = kept
        if spare_is_lost:
            spare.retire()

    def _end_surplus(self, peer_id: PeerId) -> None:
        """Bound the links of one peer, which might dial again and again and use them all."""
        links = [channel for channel in self._of(peer_id) if not channel.ending]
        current = self._current[peer_id]
        oldest_first = sorted(links, key=lambda c: (c is current, c.last_used))
        for channel in oldest_first[:-_MAX_LINKS_OF_A_PEER]:
            channel.end(LinkClosedError("the peer made too many links"), lost=False)

    def _of(self, peer_id: PeerId) -> list[Channel]:
        return [channel for channel in self._all if channel.peer.peer_id == peer_id]

    def _make_room(self, *, guest: bool) -> None:
        config = self._around.config
        links = [c for c in self._all if (c.peer.certificate is None) is guest and not c.ending]
        if len(links) < (config.max_guest_links if guest else config.max_links):
            return
        idle = [channel for channel in links if channel.idle]
        if not idle:
            raise PeerUnreachableError(
                f"all links of {self._me.short} are in use: try another peer, or later",
                retry_after_ms=1000.0,
            )
        # At once, not by and by: a peer that does not say good-bye would keep its place.
        least = min(idle, key=lambda channel: channel.last_used)
        least.end(LinkClosedError("the link made room for another"), lost=False)

    def _changed(self, channel: Channel, ended: TinkerError | None, lost: bool) -> None:
        peer_id = channel.peer.peer_id
        if self._current.get(peer_id) is channel and not channel.takes_calls:
            del self._current[peer_id]
            self._current.update(
                (peer_id, spare) for spare in self._of(peer_id) if spare.takes_calls
            )
        if ended is None:
            return
        self._around.tasks.spawn(self._forget(channel), name=f"forget {peer_id.short}")
        self._around.watch(lambda observer: observer.link_ended(peer_id, str(ended), lost))
        if lost:
            self._on_lost(peer_id)

    async def _forget(self, channel: Channel) -> None:
        await channel.ended.wait()
        self._all.pop(channel, None)
