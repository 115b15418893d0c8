"""Workers on machines of their own, joined by wires that a test cuts, slows down or makes lossy.

A machine is a network namespace that has nothing but loopback; between each two of them relays in
this process carry UDP packets or TCP bytes. Nothing else connects them, and every machine sees the
others at their own addresses, so workers run unchanged, and no way around a wire exists.
"""

import asyncio
import contextlib
import itertools
import socket
import threading
from random import Random

import pytest
from mesh_processes import Processes
from mesh_relays import NetworkNamespace

from tinkex.mesh.transport.base import Contact
from tinkex.mesh.workers.folder import WorkerFolder

PORT = 4433
"""Where every worker listens, on the address of its machine."""


class Host:
    """One machine: its namespace, and the address by which the others know it."""

    def __init__(self, number):
        self.namespace = NetworkNamespace()
        self.host = f"127.0.1.{number}"

    @property
    def address(self):
        return (self.host, PORT)

    def socket(self, kind, address):
        made = self.namespace.run(socket.socket, socket.AF_INET, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setblocking(False)
        made.bind(address)
        return made


class Wire:
    """What lies between two machines. `loss` and `delay_s` may be set at any time.

    Attributes:
        loss: share of packets that do not arrive; UDP alone.
        delay_s: the longest that packets or bytes are held up; drawn anew for each.
        stall_s: as `delay_s`, for one piece in twenty.
        passed, lost: packets, or pieces of bytes.
    """

    def __init__(self, loop, rng):
        self.loss = self.delay_s = self.stall_s = 0.0
        self.passed = self.lost = 0
        self._loop, self._rng = loop, rng
        self._whole = asyncio.Event()
        self._whole.set()

    def cut(self):
        self._loop.call_soon_threadsafe(self._whole.clear)

    def mend(self):
        self._loop.call_soon_threadsafe(self._whole.set)

    def packet(self, send, *args):
        """Send a packet, now or later, or lose it."""
        if not self._whole.is_set() or self._rng.random() < self.loss:
            self.lost += 1
            return
        self.passed += 1
        late = self._late()
        if late:
            self._loop.call_later(late, send, *args)
        else:
            send(*args)

    async def bytes_pass(self):
        """Wait until bytes may go on: TCP loses none, it repeats them."""
        late = self._late()
        if late:
            await asyncio.sleep(late)  # noqa: TID251 - it is the fault
        await self._whole.wait()
        self.passed += 1

    def _late(self):
        longest = self.stall_s if self._rng.random() < 0.05 else self.delay_s
        return self._rng.uniform(0, longest) if longest else 0.0


class _UdpEnd(asyncio.DatagramProtocol):
    """Stands on one machine for another; hands what is sent to that one to its like over there."""

    def __init__(self, wire, here):
        self._wire = wire
        self._last = here.address
        self.there = None

    def connection_made(self, transport):
        self._transport = transport

    def datagram_received(self, data, addr):
        self._last = addr  # a worker that joins listens elsewhere than later
        self._wire.packet(self.there.deliver, data)

    def deliver(self, data):
        if not self._transport.is_closing():
            self._transport.sendto(data, self._last)


class Hosts:
    """All machines of a test and the wires between them; relays run in a thread of their own.

    Args:
        transport: `tls` has TCP relayed, `iroh` UDP.
        seed: of losses and delays.
    """

    def __init__(self, transport, *, seed=0):
        self._transport, self._seed = transport, seed
        self._hosts = {}
        self._wires = {}
        self._ends = []
        self._doors = {}
        self._numbers = itertools.count(1)
        self._tasks = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relays")
        self._thread.start()

    def host(self, name):
        """The machine of a worker; made, and wired to all others, when it is first asked for."""
        if name not in self._hosts:
            made = Host(next(self._numbers))
            for other, machine in self._hosts.items():
                self._do(self._connect(frozenset({name, other}), made, machine))
            self._hosts[name] = made
        return self._hosts[name]

    def wires(self, *names):
        """All wires, or those at one of these machines."""
        return [
            wire for ends, wire in self._wires.items() if not names or not ends.isdisjoint(names)
        ]

    def part(self, *groups):
        """Cut every wire between machines of different groups."""
        for ends, wire in self._wires.items():
            if not any(ends <= set(group) for group in groups):
                wire.cut()

    def heal(self):
        for wire in self._wires.values():
            wire.mend()

    def door(self, name, url):
        """The address on this machine by which a page on another one's loopback is reached."""
        host, port = url.removeprefix("http://").split(":")
        if (name, port) not in self._doors:
            self._doors[name, port] = self._do(self._open_door(self.host(name), (host, int(port))))
        return f"http://127.0.0.1:{self._doors[name, port]}"

    def close(self):
        self._do(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        for machine in self._hosts.values():
            machine.namespace.close()

    def _do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _connect(self, ends, one, other):
        rng = Random(f"{self._seed}: {sorted(ends)}")
        wire = self._wires[ends] = Wire(self._loop, rng)
        if self._transport == "tls":
            await self._listen(wire, one, other)
            await self._listen(wire, other, one)
            return
        near, far = _UdpEnd(wire, one), _UdpEnd(wire, other)
        near.there, far.there = far, near
        for end, here, there in ((near, one, other), (far, other, one)):
            made = here.socket(socket.SOCK_DGRAM, there.address)
            transport, _ = await self._loop.create_datagram_endpoint(lambda end=end: end, sock=made)
            self._ends.append(transport)

    async def _listen(self, wire, here, there):
        """Have connections to a machine's address, made on another one, end on that machine."""

        async def accepted(reader, writer):
            await wire.bytes_pass()
            made = there.socket(socket.SOCK_STREAM, (here.host, 0))
            await self._carry(reader, writer, made, there.address, wire)

        made = here.socket(socket.SOCK_STREAM, there.address)
        self._ends.append(await asyncio.start_server(self._owned(accepted), sock=made))

    async def _open_door(self, machine, target):
        async def accepted(reader, writer):
            made = machine.socket(socket.SOCK_STREAM, ("127.0.0.1", 0))
            await self._carry(reader, writer, made, target, None)

        server = await asyncio.start_server(self._owned(accepted), "127.0.0.1", 0)
        self._ends.append(server)
        return server.sockets[0].getsockname()[1]

    def _owned(self, accepted):
        async def handle(reader, writer):
            task = asyncio.current_task()
            self._tasks.add(task)
            try:
                await accepted(reader, writer)
            except (OSError, asyncio.CancelledError):
                pass  # nobody listens there, or the test is over
            finally:
                self._tasks.discard(task)
                writer.close()

        return handle

    async def _carry(self, reader, writer, made, target, wire):
        try:
            await self._loop.sock_connect(made, target)
            there_reader, there_writer = await asyncio.open_connection(sock=made)
        except BaseException:
            made.close()
            raise
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, there_writer, wire))
                group.create_task(_pump(there_reader, writer, wire))
        finally:
            there_writer.close()

    async def _shut(self):
        for end in self._ends:
            end.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # noqa: TID251 - lets the sockets close


async def _pump(reader, writer, wire):
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            if wire is not None:
                await wire.bytes_pass()
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        writer.write_eof()


class ProcessesApart(Processes):
    """The processes of one network, each on a machine of its own.

    Args:
        folder: of all their folders.
        transport: what they talk over.
        hosts: where they run.
    """

    def __init__(self, folder, transport, hosts):
        super().__init__(folder, transport)
        self.hosts = hosts

    def contact_of(self, name):
        """Where a worker is, or will be."""
        peer_id = WorkerFolder(self.folder / name).key_pair.peer_id
        return Contact(peer_id, (f"{self.transport}:{self.hosts.host(name).host}:{PORT}",))

    def init_with(self, *auths):
        """Make a network of several auth workers, and start them."""
        self.init()
        for name in auths:
            self.invite("auth", peer=self.contact_of(name).peer_id)
        invited = {name: self.invite_auth(name, "auth") for name in auths}
        first = self.start("auth", wait=False)
        others = [self.start(name, "--join", invited[name], wait=False) for name in auths]
        for worker in (first, *others):
            self.wait_ready(worker)

    def invite_auth(self, name, *through):
        contacts = [self.contact_of(one) for one in through]
        return self.invite("auth", peer=self.contact_of(name).peer_id, contacts=contacts)

    def start(self, name, *arguments, **options):
        machine = self.hosts.host(name)
        return super().start(name, "--bind", f"{machine.host}:{PORT}", *arguments, **options)

    def page(self, name, kind="admin_url"):
        return self.hosts.door(name, self.workers[name].ready[kind])

    def spawn(self, name, command, **options):
        return self.hosts.host(name).namespace.run(super().spawn, name, command, **options)


@contextlib.contextmanager
def processes_apart(folder, transport, *, seed=0):
    """Make a network whose workers run apart; all of it ends with the block.

    Skips the test where the machine allows no network namespaces.
    """
    try:
        NetworkNamespace().close()
    except OSError as error:
        pytest.skip(f"no network namespaces here ({error.strerror})")
    with contextlib.closing(Hosts(transport, seed=seed)) as hosts:
        processes = ProcessesApart(folder, transport, hosts)
        try:
            yield processes
        finally:
            hosts.heal()
            processes.stop()
