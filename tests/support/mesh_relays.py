"""Relays on loopback that spoil what passes: UDP packets lost, TCP bytes late, cut up or changed.

They know nothing of what they carry. A test puts one before a listening peer and dials it instead.
Iroh finds the direct way past a relay that loses packets; so its peer lives in a network namespace
of its own, which only the relay has sockets in.
"""

import asyncio
import concurrent.futures
import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from random import Random

_CLONE_NEWNET = 0x40000000
_SET_FLAGS = 0x8914  # SIOCSIFFLAGS
_UP_AND_RUNNING = 0x1 | 0x40


class NetworkNamespace:
    """A network of its own with nothing but loopback; sockets and processes are made inside.

    Raises:
        OSError: the machine does not allow it.
    """

    def __init__(self) -> None:
        self._inside = concurrent.futures.ThreadPoolExecutor(1)
        try:
            self.run(_leave)
        except OSError:
            self.close()
            raise

    def run(self, function, *args, **options):
        """Call `function` inside."""
        return self._inside.submit(function, *args, **options).result()

    def close(self) -> None:
        self._inside.shutdown()


def _leave() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:  # of this thread alone
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SET_FLAGS, struct.pack("16sh", b"lo", _UP_AND_RUNNING))


def _udp_socket(address) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setblocking(False)
    made.bind(address)
    return made


class UdpRelay(asyncio.DatagramProtocol):
    """Hands packets to a peer in a namespace, and its answers back. `loss` may be set anew.

    Use it as `async with UdpRelay(namespace, ("127.0.0.1", 4433), loss=0.1, rng=rng) as relay`.
    """

    def __init__(self, namespace: NetworkNamespace, target, *, loss: float, rng: Random) -> None:
        self.namespace = namespace
        self.target = target
        self.loss = loss
        self.rng = rng
        self.passed = self.lost = 0
        self._ways: dict[tuple[str, int], asyncio.DatagramTransport] = {}
        self._opening: dict[tuple[str, int], asyncio.Task] = {}

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        self._front, _ = await loop.create_datagram_endpoint(
            lambda: self, sock=_udp_socket(("127.0.0.1", 0))
        )
        return self

    async def __aexit__(self, *_):
        self._front.close()
        await asyncio.gather(*self._opening.values())
        for way in self._ways.values():
            way.close()
        await asyncio.sleep(0)  # noqa: TID251 - lets the sockets close

    @property
    def address(self) -> str:
        host, port = self._front.get_extra_info("sockname")
        return f"{host}:{port}"

    def datagram_received(self, data, addr):
        if not self._let_through():
            return
        if addr in self._ways:
            self._ways[addr].sendto(data, self.target)
        elif addr not in self._opening:  # what comes meanwhile is lost, as packets may be
            self._opening[addr] = asyncio.ensure_future(self._open(data, addr))

    async def _open(self, data, addr):
        way, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _WayBack(self, addr),
            sock=self.namespace.run(_udp_socket, ("127.0.0.1", 0)),
        )
        self._ways[addr] = way
        way.sendto(data, self.target)

    def came_back(self, data, addr):
        if self._let_through():
            self._front.sendto(data, addr)

    def _let_through(self) -> bool:
        through = self.rng.random() >= self.loss
        self.passed += through
        self.lost += not through
        return through


class _WayBack(asyncio.DatagramProtocol):
    def __init__(self, relay: UdpRelay, addr) -> None:
        self.relay, self.addr = relay, addr

    def datagram_received(self, data, addr):
        self.relay.came_back(data, self.addr)


class TcpRelay:
    """Hands bytes to a peer and back, in pieces, each late by up to `delay_s`.

    Args:
        target: host and port.
        rng: draws the pieces and the delays.
        delay_s: the longest.
        piece: the most bytes at a time.

    Attributes:
        change_at: the byte on its way to the peer, counted from the first, that is changed.
    """

    def __init__(self, target, *, rng: Random, delay_s=0.0, piece=1 << 16) -> None:
        self.target = target
        self.rng = rng
        self.delay_s = delay_s
        self.piece = piece
        self.change_at: int | None = None
        self.sent_there = 0
        self._tasks: list[asyncio.Task] = []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def address(self) -> str:
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def _relay(self, reader, writer):
        self._tasks.append(asyncio.current_task())
        there_reader, there_writer = await asyncio.open_connection(*self.target)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, there_writer, there=True))
                group.create_task(self._pump(there_reader, writer, there=False))
        finally:
            writer.close()
            there_writer.close()

    async def _pump(self, reader, writer, *, there):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(self.rng.randint(1, self.piece)):
                if self.delay_s:
                    await asyncio.sleep(self.rng.uniform(0, self.delay_s))  # noqa: TID251 - it is the fault
                writer.write(self._spoilt(data) if there else data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()

    def _spoilt(self, data):
        start = self.sent_there
        self.sent_there += len(data)
        if self.change_at is None or not start <= self.change_at < self.sent_there:
            return data
        changed = bytearray(data)
        changed[self.change_at - start] ^= 1
        return bytes(changed)
