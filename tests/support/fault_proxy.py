"""A relay of TCP connections that spoils some of them: what a bad network does to a client.

Each connection is relayed by two threads, and meets the fault that the test chose for it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from contextlib import contextmanager

CHUNK = 65536
GARBAGE = bytes(range(256)) * 8


class Relay:
    """One connection on its way; the fault acts on the server's answers."""

    def __init__(self, client, upstream, fault):
        self.client = client
        self.upstream = upstream
        self.fault = fault

    def run(self):
        if self.fault == "reset":
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.client.recv(CHUNK)
            self.client.close()
            return
        if self.fault == "garbage":
            self.client.recv(CHUNK)
            self.client.sendall(GARBAGE)
            self.client.close()
            return
        if isinstance(self.fault, bytes):  # an answer of the test's own
            self.client.recv(CHUNK)
            self.client.sendall(self.fault)
            self.client.close()
            return
        server = socket.create_connection(self.upstream)
        try:
            up = threading.Thread(target=self._pass_on, args=(self.client, server), daemon=True)
            up.start()
            self._answers(server)
        finally:
            for one in (server, self.client):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()

    def _answers(self, server):
        with contextlib.suppress(OSError):
            while data := server.recv(CHUNK):
                if self.fault == "cut":
                    self.client.sendall(data[: len(data) // 2])
                    return
                if self.fault == "half-close":
                    self.client.sendall(data[: len(data) // 2])
                    self.client.shutdown(socket.SHUT_WR)
                    return
                if self.fault == "silence":
                    continue  # the server's work is done; nobody hears of it
                if self.fault == "delay":
                    time.sleep(0.2)  # noqa: TID251 - a slow network takes real time
                if self.fault == "drip":
                    for at in range(len(data)):
                        self.client.sendall(data[at : at + 1])
                        time.sleep(0.0005)  # noqa: TID251 - as above
                    continue
                self.client.sendall(data)

    @staticmethod
    def _pass_on(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextmanager
def fault_proxy(upstream_url, choose):
    """Yield the proxy's URL; `choose(n)` gives the fault of the n-th connection, or None."""
    host, _, port = upstream_url.removeprefix("http://").partition(":")
    listener = socket.create_server(("127.0.0.1", 0))
    open_now, lock, stopping = set(), threading.Lock(), threading.Event()

    def relay(connection, number):
        with lock:
            open_now.add(connection)
        try:
            with contextlib.suppress(OSError):
                Relay(connection, (host, int(port)), choose(number)).run()
        finally:
            connection.close()
            with lock:
                open_now.discard(connection)

    def accept():
        number = 0
        while not stopping.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=relay, args=(connection, number), daemon=True)
            thread.start()
            number += 1

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stopping.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        with lock:
            for connection in open_now:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        acceptor.join(5)
