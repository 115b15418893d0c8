"""What two hops cost when nothing is done on them: the floor under `mesh_gateway.py`'s latency.

    python benchmarks/mesh_floor.py [--requests 300] [--work-ms 7]

Three processes, as there: a client, a relay and a source, over asyncio's own TLS on loopback. They
exchange plain bytes: no messages, calls, checks or accounts. The source works for `--work-ms` in a
thread of its own (a small model's matrices, with torch) and says how long that took; what a request
takes beyond it is the floor. `--work-ms 0` shows the same code while it is warm.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import os
import queue
import ssl
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

REQUEST, REPLY = b"q" * 600, b"r" * 300
"""About as long as a request and a token's reply are."""
TOOK = struct.Struct("<d")
WARM_UP = 20
START_S = 60.0


def make_certificate(folder: Path) -> None:
    """Write a certificate that nobody checks, and its key."""
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "floor")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    dated = builder.not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
    pem = dated.sign(key, None).public_bytes(serialization.Encoding.PEM)
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    pem += key.private_bytes(serialization.Encoding.PEM, form, plain)
    (folder / "both.pem").write_bytes(pem)


class Wire(asyncio.Protocol):
    """One end of a connection; hands on what comes."""

    def __init__(self, came: Callable[[Wire, bytes], None]) -> None:
        self._came = came
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Hand it on."""
        self._came(self, data)


async def listen(folder: Path, name: str, came: Callable[[Wire, bytes], None]) -> None:
    """Serve until killed; the port is written down."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Wire(came), "127.0.0.1", 0, ssl=context)
    made = folder / f"{name}.new"
    made.write_text(str(server.sockets[0].getsockname()[1]))
    made.rename(folder / name)
    await server.serve_forever()


async def connect(folder: Path, name: str, came: Callable[[Wire, bytes], None]) -> Wire:
    """Connect to one that serves."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    port = int((folder / name).read_text())
    loop = asyncio.get_running_loop()
    _, wire = await loop.create_connection(lambda: Wire(came), "127.0.0.1", port, ssl=context)
    return wire


async def source(folder: Path, work_ms: float) -> None:
    """Answer each request after some work, done in a thread."""
    import torch

    torch.set_num_threads(1)
    layers = [torch.randn(1024, 1024) / 32 for _ in range(12)]
    asked: queue.SimpleQueue[Wire] = queue.SimpleQueue()
    loop = asyncio.get_running_loop()

    def work() -> None:
        while True:
            wire, began = asked.get(), time.monotonic()
            hidden = torch.ones(1, 1024)
            while (time.monotonic() - began) * 1000 < work_ms:
                for layer in layers:
                    hidden = torch.nn.functional.linear(hidden, layer)
            reply = TOOK.pack(time.monotonic() - began) + REPLY
            loop.call_soon_threadsafe(wire.transport.write, reply)

    threading.Thread(target=work, daemon=True).start()
    await listen(folder, "source", lambda wire, _: asked.put(wire))


async def relay(folder: Path) -> None:
    """Hand on what comes, both ways; for one client."""
    front: list[Wire] = []
    back = await connect(folder, "source", lambda _, data: front[0].transport.write(data))

    def came(wire: Wire, data: bytes) -> None:
        front[:] = [wire]
        back.transport.write(data)

    await listen(folder, "relay", came)


async def client(folder: Path, requests: int) -> list[float]:
    """Ask one after the other; milliseconds beyond the source's work."""
    reply: asyncio.Future[bytes]
    wire = await connect(folder, "relay", lambda _, data: reply.set_result(data))
    beyond = []
    for _ in range(requests + WARM_UP):
        reply = asyncio.get_running_loop().create_future()
        began = time.monotonic()
        wire.transport.write(REQUEST)
        (worked,) = TOOK.unpack_from(await reply)
        beyond.append((time.monotonic() - began - worked) * 1000)
    return beyond[WARM_UP:]


def measured(requests: int, work_ms: float) -> list[float]:
    """Run the three."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_certificate(folder)
        running = []
        try:
            for role in ("source", "relay"):
                command = [sys.executable, __file__, "--role", role, "--folder", place]
                running.append(subprocess.Popen([*command, "--work-ms", str(work_ms)]))
                until = time.monotonic() + START_S
                while not (folder / role).exists():
                    assert running[-1].poll() is None, f"the {role} did not start"
                    assert time.monotonic() < until, f"the {role} does not get ready"
                    time.sleep(0.05)
            return asyncio.run(client(folder, requests))
        finally:
            for process in running:
                process.kill()
                process.wait()


def main() -> int:
    """Run it, or one of its processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--work-ms", type=float, default=7.0)
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role == "source":
        asyncio.run(source(given.folder, given.work_ms))
    elif given.role == "relay":
        asyncio.run(relay(given.folder))
    else:
        beyond = measured(given.requests, given.work_ms)
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
        print(
            f"two hops with nothing on them, {given.requests} requests of {given.work_ms:g} ms "
            f"work: p50 {statistics.median(beyond):.2f}, best tenth "
            f"{statistics.quantiles(beyond, n=10)[0]:.2f} ms; load average {load:.1f} a core"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
