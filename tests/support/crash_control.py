"""Drives the server of `crash_server`: starts it, kills it, starts it again, reads its trace."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

KEYS = ("tml-first-user-0123456789", "tml-other-user-0123456789")
START_S = 120.0
"""Loading torch takes a while on a machine that is busy."""
# Below the range from which systems take ports for outgoing connections: nobody takes it while the
# server is down.
PORTS = (20_000, 32_000)


def free_port():
    """Choose a port that nobody listens on now."""
    order = random.SystemRandom()
    while True:
        port = order.randrange(*PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Forge:
    """The process that forks servers; one at a time."""

    def __init__(self):
        self.ended = threading.Event()
        """Set while no server lives."""
        self.pid = None
        """Of the server."""
        self._events = queue.Queue()
        self._process = None

    def __enter__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("crash_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        threading.Thread(target=self._listen, daemon=True).start()
        self.wait("loaded")
        return self

    def __exit__(self, *_):
        self.signal(signal.SIGKILL)
        self._process.stdin.close()
        self._process.wait(START_S)
        self._process.stdout.close()

    def start(self, command):
        """Begin a life."""
        self.ended.clear()
        self._process.stdin.write((json.dumps(command) + "\n").encode())
        self._process.stdin.flush()
        self.pid = self.wait("pid")

    def signal(self, number):
        """End the life and wait for its end; harmless when it has ended."""
        if self.pid is not None and not self.ended.is_set():
            os.kill(self.pid, number)
            assert self.ended.wait(START_S)

    def wait(self, name):
        """Wait for an event; None when the server ended before it."""
        while True:
            event = self._events.get(timeout=START_S)
            if name in event:
                return event[name]
            if "gone" in event or (name == "ready" and "ended" in event):
                return None

    def _listen(self):
        for line in self._process.stdout:
            event = json.loads(line)
            if "ended" in event:
                self.ended.set()
            self._events.put(event)
        self.ended.set()
        self._events.put({"gone": True})


class CrashServer:
    """A server with one data folder and one port, and many lives.

    Args:
        forge: makes the lives.
        folder: for its data, log and trace.
        settings: of `ServerConfig`, with `limits` as a dict.
    """

    def __init__(self, forge, folder, **settings):
        folder.mkdir(parents=True, exist_ok=True)
        self.data_dir = folder / "data"
        self.log = folder / "server.log"
        self.trace = folder / "trace.jsonl"
        self.url = ""
        self._forge = forge
        self._settings = {
            "data_dir": str(self.data_dir),
            "port": free_port(),
            "api_keys": KEYS,
            "device": "cpu",
            "threads": 1,
            "log_level": "warning",
            "shutdown_grace_s": 1.0,
            **settings,
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def start(self, plan=None, *, ready=True, **settings):
        """Begin a life that ends as `plan` says; wait until it serves unless `ready` is false."""
        self._forge.start(
            {
                "settings": {**self._settings, **settings},
                "plan": plan or {},
                "trace": str(self.trace),
                "log": str(self.log),
            }
        )
        if ready:
            url = self._forge.wait("ready")
            assert url is not None, self.log.read_text()[-4000:]
            self.url = url

    def kill(self):
        """End the life at once, as a crash does; harmless when it has ended."""
        self._forge.signal(signal.SIGKILL)

    def stop(self):
        """Ask the server to stop, and wait until it has."""
        self._forge.signal(signal.SIGTERM)

    def died(self, seconds):
        """Wait for the server to end itself; say whether it has."""
        return self._forge.ended.wait(seconds)

    def traced(self, what):
        """Return what the trace has of one kind: (its value, the other of the pair, if any)."""
        lines = [json.loads(line) for line in self.trace.read_text().splitlines()]
        return [tuple(line.values()) for line in lines if what in line]

    def counted(self, what):
        return Counter(values[0] for values in self.traced(what))
