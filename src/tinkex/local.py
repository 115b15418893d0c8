"""Start a `tinkex serve` of one's own in a child process, and stop it again.

Owns the child's life; knows nothing of the API it speaks. The demo, the benchmarks and the tests
use it, and a notebook can: `with LocalServer(data_dir) as server: ServiceClient(**server.login)`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypedDict

from tinkex._clock import Clock, SystemClock
from tinkex.errors import ServerStartError

_POLL_SECONDS = 0.02
_LOG_TAIL_LINES = 20


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """What the server wrote into its ready file."""

    url: str
    api_key: str
    pid: int
    base_models: tuple[str, ...]

    def __repr__(self) -> str:
        """Leave the key out: a repr ends up in logs."""
        return f"ServerAddress(url={self.url!r}, pid={self.pid}, base_models={self.base_models})"

    @classmethod
    def read(cls, path: Path) -> ServerAddress:
        """Read a ready file."""
        fields = json.loads(path.read_bytes())
        return cls(
            url=fields["url"],
            api_key=fields["api_key"],
            pid=fields["pid"],
            base_models=tuple(fields["base_models"]),
        )


class Login(TypedDict):
    """Keyword arguments of a `ServiceClient`."""

    base_url: str
    api_key: str


class LocalServer:
    """A `tinkex serve` child process on a free loopback port.

    It ends with the block, and also when this process is killed. Ctrl-C does not reach it.

    Args:
        data_dir: where it keeps its database, key, checkpoints and `server.log`.
        arguments: further arguments of `tinkex serve`.
        environment: the child's whole environment; None inherits this process's.
        start_timeout: seconds to wait until it serves requests.
        clock: waits between two looks at the ready file.

    Raises:
        ServerStartError: on entering, when the child ends or is not ready in time; the message
            carries the end of its log.
    """

    def __init__(
        self,
        data_dir: Path | str,
        arguments: Sequence[str] = (),
        *,
        environment: Mapping[str, str] | None = None,
        start_timeout: float = 60.0,
        clock: Clock | None = None,
    ) -> None:
        self.data_dir = Path(data_dir)
        self.log_path = self.data_dir / "server.log"
        self.start_seconds = 0.0
        """Seconds from the start of the process until it served requests."""
        self._arguments = list(arguments)
        self._environment = dict(environment) if environment is not None else None
        self._start_timeout = start_timeout
        self._clock = clock or SystemClock()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._address: ServerAddress | None = None

    @property
    def address(self) -> ServerAddress:
        """URL, key and base models of the running server."""
        if self._address is None:
            raise ServerStartError("The server is not running: use `with LocalServer(...)`.")
        return self._address

    @property
    def login(self) -> Login:
        """Keyword arguments for a `ServiceClient` that talks to this server."""
        return Login(base_url=self.address.url, api_key=self.address.api_key)

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self.address.pid

    def __enter__(self) -> Self:
        """Start the child and wait until it serves requests."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        ready = self.data_dir / "ready.json"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tinkex", "serve", "--port", "0"]
        command += ["--data-dir", str(self.data_dir), "--ready-file", str(ready)]
        command += ["--until-stdin-ends"]  # no server is left behind by a program that was killed
        self._log = self.log_path.open("wb")
        start = self._clock.monotonic()
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter, no shell
            command + self._arguments,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=self._environment,
            # a terminal's Ctrl-C is this program's business: it may want to save what it has done
            process_group=0,
        )
        try:
            self._address = self._wait_until_ready(self._process, ready, start)
        except BaseException:
            self.stop()
            raise
        self.start_seconds = self._clock.monotonic() - start
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the child."""
        self.stop()

    def stop(self, timeout: float = 20.0) -> None:
        """Ask the child to end, and end it if it does not within `timeout` seconds."""
        process, self._process, self._address = self._process, None, None
        if process is not None:
            process.terminate()
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdin is not None
            process.stdin.close()  # not before: that is a second wish to stop, which is at once
        if self._log is not None:
            self._log.close()
            self._log = None

    def _wait_until_ready(
        self, process: subprocess.Popen[bytes], ready: Path, start: float
    ) -> ServerAddress:
        while not ready.exists():
            if process.poll() is not None:
                raise ServerStartError(
                    f"`tinkex serve` ended with exit code {process.returncode} before it was "
                    f"ready. Its last lines:\n{self._log_tail()}"
                )
            if self._clock.monotonic() - start > self._start_timeout:
                raise ServerStartError(
                    f"`tinkex serve` was not ready after {self._start_timeout:g} s. "
                    f"Its last lines:\n{self._log_tail()}"
                )
            self._clock.sleep_sync(_POLL_SECONDS)
        return ServerAddress.read(ready)

    def _log_tail(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_TAIL_LINES:]) or "(it printed nothing)"
