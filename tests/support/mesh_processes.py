"""A mesh of real processes: one for each worker, over a real transport, on loopback."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tinkex._clock import SystemClock
from tinkex.mesh.config import parse_contact
from tinkex.mesh.roles import Role
from tinkex.mesh.trust.rootkey import PassphraseCipher
from tinkex.mesh.workers.founding import Founder, found

PASSPHRASE = "correct horse battery staple"
CLOCK = SystemClock()
START_S = 240.0
STOP_S = 90.0
PROGRAM = (sys.executable, "-m", "tinkex")
CHEAP = PassphraseCipher(memory_kib=64, passes=1)
"""What the root key's file costs to open where the test is not about that."""


@dataclass
class WorkerProcess:
    """One worker."""

    name: str
    process: subprocess.Popen
    ready_path: Path
    log_path: Path

    @property
    def ready(self):
        return json.loads(self.ready_path.read_text())

    @property
    def alive(self):
        return self.process.poll() is None

    def log(self):
        return self.log_path.read_text()

    def kill(self):
        """End it as a crash would: nothing is flushed, nobody is told."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(STOP_S)

    def stop(self):
        """End it as a service manager would; return its exit status."""
        if self.alive:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)


@dataclass
class Processes:
    """The processes of one network, by the names of their folders."""

    folder: Path
    transport: str
    settings: dict = field(default_factory=dict)
    """Variables of every worker's environment."""
    workers: dict = field(default_factory=dict)

    def tinkex(self, *arguments, check=True, stdin=None, **environment):
        """Run one command to its end; return its standard output."""
        done = subprocess.run(
            [*PROGRAM, *map(str, arguments)],
            env=self._environment(environment),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )
        if check:
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()
        return done

    def init(self, *, by_command=False):
        """Make the network."""
        if by_command:
            self.tinkex("mesh", "init", "--name", "tests", "--data-dir", self.folder)
        else:
            found(self.folder, "tests", PASSPHRASE, clock=CLOCK, cipher=CHEAP)

    def invite(self, role, *, peer=None, contacts=()):
        """Make an invitation; without contacts, to join through the auth worker of the founder."""
        if role != "auth" and not contacts:
            contacts = [parse_contact(self.workers["auth"].ready["contact"])]
        founder = Founder(self.folder, PASSPHRASE)
        peer = None if peer is None else str(peer)
        return founder.invite(Role(role), contacts=contacts, now=CLOCK.now(), peer=peer)

    def start(
        self, name, *arguments, role=None, join=True, wait=True, program=PROGRAM, **environment
    ):
        """Start a worker in the folder of its name; it joins if it has not."""
        role = role or name.rpartition("-")[0] or name
        data_dir = self.folder / name
        more = []
        if join and role != "auth" and not (data_dir / "membership").exists():
            more = ["--join", self.invite(role)]
        if role == "client" and "--port" not in arguments:
            more += ["--port", "0"]
        return self.run(
            name,
            "mesh",
            role,
            "--data-dir",
            self.folder,
            "--name",
            name,
            "--transport",
            self.transport,
            *more,
            *arguments,
            wait=wait,
            program=program,
            **environment,
        )

    def start_all(self, *names):
        """Start workers at the same time."""
        for worker in [self.start(name, wait=False) for name in names]:
            self.wait_ready(worker)

    def run(self, name, *arguments, wait=True, program=PROGRAM, **environment):
        """Start a command that goes on until it is told to stop."""
        ready_path = self.folder / f"{name}.ready.json"
        ready_path.unlink(missing_ok=True)
        log_path = self.folder / f"{name}.log"
        with log_path.open("a") as log:
            process = self.spawn(
                name,
                [*program, *map(str, arguments), "--ready-file", str(ready_path)],
                env=self._environment(environment),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        worker = self.workers[name] = WorkerProcess(name, process, ready_path, log_path)
        if wait:
            self.wait_ready(worker)
        return worker

    def spawn(self, name, command, **options):
        """Begin a process."""
        return subprocess.Popen(command, **options)

    def wait_ready(self, worker):
        deadline = CLOCK.monotonic() + START_S
        while not worker.ready_path.exists():
            assert worker.alive, worker.log()
            assert CLOCK.monotonic() < deadline, worker.log()
            CLOCK.sleep_sync(0.02)

    def stop(self):
        """End every process that was started here, by its id."""
        for worker in reversed(self.workers.values()):
            if worker.alive:
                worker.process.send_signal(signal.SIGTERM)
        for worker in self.workers.values():
            try:
                worker.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait(STOP_S)

    def _environment(self, more):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TINKEX_")}
        return {
            **kept,
            "TINKEX_MESH_PASSPHRASE": PASSPHRASE,
            # Tests look often whether something has come true.
            "TINKEX_MESH_GATEWAY_ACCOUNT_CALLS_PER_MINUTE": "100000",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            # Else iroh reads every library's symbols at its first error: 50 MB.
            "RUST_BACKTRACE": "0",
            **self.settings,
            **{name.upper(): str(value) for name, value in more.items()},
        }


@contextmanager
def mesh_processes(folder, transport):
    """Make a network in a folder; its processes end with the block."""
    processes = Processes(folder, transport)
    try:
        yield processes
    finally:
        processes.stop()
