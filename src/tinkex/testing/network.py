"""A simulated network: links with delays, stalls and breaks; partitions, crashes, restarts.

Owns what happens to frames between peers. It is a `MemoryNetwork`, so the same worker code runs on
it, inside `tinkex.testing.simulation.simulate`. Everything is drawn from one seed, each link from
its own part of it, so that what one link does depends on no other.

It behaves as TCP and QUIC do: no frame is lost or overtaken while its link lives. What a network
loses shows as a pause; what it loses for long, as a link that ends, or, between partitions and
from a machine that lost its power, as one that says nothing more.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from contextvars import Context
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from tinkex.errors import LinkClosedError, PeerUnreachableError
from tinkex.mesh.transport.dialling import DIAL_S
from tinkex.mesh.transport.memory import MemoryLink, MemoryNetwork, MemoryTransport, Pipe
from tinkex.mesh.transport.queue import WINDOW_BYTES, FrameQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tinkex.mesh.identity import PeerId
    from tinkex.mesh.transport.base import Contact


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """What links are like. Times in seconds."""

    delay_s: tuple[float, float] = (0.001, 0.02)
    """One way, drawn evenly for each frame."""
    stall_share: float = 0.0
    """Of frames that wait for one that was lost and sent again."""
    stall_s: tuple[float, float] = (0.05, 0.5)
    """How long they wait."""
    break_every_s: float | None = None
    """How long a link lives in the mean, if it ends by itself at all (drawn exponentially)."""


CALM = Weather()
"""Some delay, and nothing else."""
_NOWHERE = Context()
"""What is on its way is in no process, and arrives whatever becomes of who sent it."""


class SimNetwork(MemoryNetwork):
    """Peers and links in virtual time.

    Args:
        seed: everything is drawn from it.
        weather: what links are like; `weather` may be set anew at any time.
    """

    def __init__(self, *, seed: object, weather: Weather = CALM) -> None:
        super().__init__()
        self.seed = seed
        self.weather = weather
        self._groups: dict[PeerId, int] = {}
        self._pipes: dict[SimPipe, None] = {}
        self._dark: set[PeerId] = set()
        self._made = 0
        self._history = hashlib.blake2b(digest_size=16)
        self._dials = Random(f"{seed}/dials")  # noqa: S311 - a simulation

    @property
    def fingerprint(self) -> str:
        """Of all that was delivered so far: who to whom, when, how many bytes."""
        return self._history.hexdigest()

    def partition(self, *groups: Iterable[PeerId]) -> None:
        """Let nothing through between peers of different groups; who is in none is with the first.

        Links stay, and say nothing, until `heal`.
        """
        self._groups = {
            peer: number for number, group in enumerate(groups) for peer in group if number
        }

    def heal(self) -> None:
        """Let everything through; what waited arrives."""
        self._groups = {}
        for pipe in list(self._pipes):
            pipe.resume()

    def cut(self, one: PeerId, other: PeerId) -> bool:
        """Whether nothing goes between two peers."""
        return self._groups.get(one, 0) != self._groups.get(other, 0)

    def break_links(self, one: PeerId, other: PeerId) -> None:
        """End every link between two peers, with what is on its way; both ends notice."""
        for pipe in list(self._pipes):
            if {pipe.source, pipe.target} == {one, other}:
                pipe.lose("the connection was lost")

    def crash(self, peer: PeerId, *, power: bool = False) -> None:
        """End a peer as SIGKILL does: at once; its machine tells those at the other ends.

        What it was doing is the caller's to cancel. A new transport with its key is its restart.

        Args:
            peer: who.
            power: its machine is gone too, and tells nobody anything.
        """
        for transport in self.listening():
            if transport.contact.peer_id == peer:
                transport.vanish("killed", told=None if power else "the connection was reset")
        if power:
            self._dark.add(peer)

    def listen(self, address: str, transport: MemoryTransport) -> None:
        """Let a transport be found; see `MemoryNetwork.listen`."""
        super().listen(address, transport)
        self._dark.discard(transport.contact.peer_id)

    def make_pipes(self, dialler: PeerId, listener: PeerId) -> tuple[Pipe, Pipe]:
        """Make both directions of a link."""
        self._made += 1
        rng = Random(f"{self.seed}/{dialler}/{listener}/{self._made}")  # noqa: S311 - a simulation
        there = SimPipe(self, dialler, listener, rng)
        back = SimPipe(self, listener, dialler, rng)
        self._pipes[there] = self._pipes[back] = None
        if self.weather.break_every_s is not None:
            asyncio.get_running_loop().call_later(
                rng.expovariate(1.0 / self.weather.break_every_s),
                _break,
                there,
                back,
                context=_NOWHERE,
            )
        return there, back

    async def connect(self, dialler: PeerId, contact: Contact) -> MemoryLink:
        """Make a link, which takes a round trip, or a while to fail where nothing gets through."""
        if contact.peer_id in self._dark or self.cut(dialler, contact.peer_id):
            await asyncio.sleep(DIAL_S)  # noqa: TID251 - it is the simulated time
            raise PeerUnreachableError(
                f"{contact.peer_id.short} cannot be reached: no answer in {DIAL_S:g} seconds"
            )
        low, high = self.weather.delay_s
        await asyncio.sleep(2 * self._dials.uniform(low, high))  # noqa: TID251 - as above
        return await super().connect(dialler, contact)

    def note(self, *facts: object) -> None:
        """Put something that happened into the fingerprint, with its time."""
        self._history.update(repr((asyncio.get_running_loop().time(), *facts)).encode())

    def forget(self, pipe: SimPipe) -> None:
        """Keep a pipe no longer that has ended."""
        self._pipes.pop(pipe, None)


class SimPipe:
    """One direction of a simulated link.

    Args:
        network: what the weather is, and who is cut off.
        source: who sends.
        target: who receives.
        rng: of this link.
    """

    def __init__(self, network: SimNetwork, source: PeerId, target: PeerId, rng: Random) -> None:
        self._network = network
        self.source = source
        self.target = target
        self._rng = rng
        self._flying: deque[bytes | str] = deque()  # a string is the end, and says why
        self._due = 0
        self._last_arrival = 0.0
        self._arrived = FrameQueue()
        self._unread = 0
        self._writers: deque[tuple[bytes, asyncio.Future[None]]] = deque()
        self._stopped: str | None = None
        self._callback: Callable[[str], None] | None = None

    async def put(self, frame: bytes) -> None:
        """Send a frame; see `Pipe.put`."""
        if self.offer(frame):
            return
        writer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (frame, writer)
        self._writers.append(entry)
        try:
            await writer
        except asyncio.CancelledError:
            if entry in self._writers:
                self._writers.remove(entry)
            raise

    def offer(self, frame: bytes) -> bool:
        """Send a frame if that needs no waiting; see `Pipe.offer`."""
        if self._stopped is not None:
            raise LinkClosedError(self._stopped)
        if self._writers or self._unread >= WINDOW_BYTES:
            return False
        self._unread += len(frame)
        self._launch(frame)
        return True

    async def get(self) -> bytes:
        """Wait for a frame; see `Pipe.get`."""
        frame = await self._arrived.get()
        self._free(len(frame))
        return frame

    def poll(self) -> bytes | None:
        """Take a frame, if one has arrived; see `Pipe.poll`."""
        frame = self._arrived.poll()
        if frame is not None:
            self._free(len(frame))
        return frame

    def listen(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when something has arrived; see `Pipe.listen`."""
        self._arrived.listen(callback)

    def end(self, reason: str) -> None:
        """Tell the receiver, who hears of it after what is on its way."""
        if self._stopped is None:
            self.stop(reason)
            self._launch(reason)

    def stop(self, reason: str) -> None:
        """Let nothing in any more; see `Pipe.stop`."""
        if self._stopped is None:
            self._stopped = reason
            for _, writer in self._writers:
                if not writer.done():
                    writer.set_exception(LinkClosedError(reason))
            self._writers.clear()

    def refuse(self, reason: str) -> None:
        """Want nothing more; see `Pipe.refuse`."""
        self._arrived.close(reason, discard=True)
        self._finish(reason)

    def lose(self, reason: str) -> None:
        """Let the receiver notice by itself that the link is gone, and what was on its way."""
        self._flying.clear()
        self._finish(reason)

    def when_ended(self, callback: Callable[[str], None]) -> None:
        """Have the receiver told; see `Pipe.when_ended`."""
        self._callback = callback

    def resume(self) -> None:
        """Deliver what is due, if anything gets through."""
        while self._due and self._flying and not self._network.cut(self.source, self.target):
            self._due -= 1
            self._deliver(self._flying.popleft())

    def _launch(self, item: bytes | str) -> None:
        loop = asyncio.get_running_loop()
        weather = self._network.weather
        delay = self._rng.uniform(*weather.delay_s)
        if self._rng.random() < weather.stall_share:
            delay += self._rng.uniform(*weather.stall_s)
        self._flying.append(item)
        # None overtakes another; so what follows a frame that stalls waits with it.
        self._last_arrival = max(self._last_arrival, loop.time() + delay)
        loop.call_at(self._last_arrival, self._one_more_is_due, context=_NOWHERE)

    def _one_more_is_due(self) -> None:
        self._due += 1
        self.resume()

    def _deliver(self, item: bytes | str) -> None:
        if self._arrived.closed:
            return
        size = item if isinstance(item, str) else len(item)
        self._network.note(self.source.short, self.target.short, size)
        if isinstance(item, str):
            self._finish(item)
        else:
            self._arrived.put_now(item)

    def _finish(self, reason: str) -> None:
        self._arrived.close(reason)
        self._network.forget(self)
        callback, self._callback = self._callback, None
        if callback is not None:
            callback(reason)

    def _free(self, size: int) -> None:
        self._unread -= size
        while self._writers and self._unread < WINDOW_BYTES:
            frame, writer = self._writers.popleft()
            if not writer.done():
                self._unread += len(frame)
                self._launch(frame)  # here: whoever sends next is not to overtake it
                writer.set_result(None)


def _break(there: SimPipe, back: SimPipe) -> None:
    there.lose("the connection was lost")
    back.lose("the connection was lost")
