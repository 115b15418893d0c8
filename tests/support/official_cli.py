"""The official command line, imported once: each call is a process of its own, forked off that one.

Importing the official package, with torch and transformers, takes three seconds of processor time,
and the tests call its commands forty times. What a call does after that is what
`python -m tinker.cli` does: its arguments, folder, environment, input, output and end are its own.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

STREAMS = ("stdin", "stdout", "stderr")
# Read as the package is imported, so what differs needs a Python of its own.
READ_AT_IMPORT = "HF_"
AT_IMPORT = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


class OfficialCli:
    """Calls commands, one at a time; the process that has imported them starts with the first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._end(self._process)

    def run(
        self,
        *arguments: str,
        env: dict[str, str],
        cwd: Path | str = ".",
        stdin: str = "",
        timeout: float,
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end; `env` is all of its environment."""
        if any(n.startswith(READ_AT_IMPORT) and AT_IMPORT.get(n) != v for n, v in env.items()):
            return subprocess.run(
                [sys.executable, "-m", "tinker.cli", *arguments],
                env=env,
                cwd=cwd,
                input=stdin,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        with tempfile.TemporaryDirectory() as folder, self._lock:
            files = {name: Path(folder) / name for name in STREAMS}
            for name, file in files.items():
                file.write_text(stdin if name == "stdin" else "")
            call: dict[str, Any] = {name: str(file) for name, file in files.items()}
            call |= {"arguments": arguments, "env": env, "cwd": str(Path(cwd).resolve())}
            code = self._call(json.dumps(call), timeout)
            said = {name: files[name].read_text() for name in ("stdout", "stderr")}
        return subprocess.CompletedProcess(arguments, code, **said)

    def _call(self, line: str, timeout: float) -> int:
        process = self._process or self._start()
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        print(line, file=process.stdin, flush=True)
        ready, _, _ = select.select([process.stdout], [], [], timeout)
        code = process.stdout.readline() if ready else ""
        if not code:
            self._process = None
            self._end(process)
            raise TimeoutError(f"no end after {timeout:g} s: {line}")
        return int(code)

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **AT_IMPORT},
            text=True,
            start_new_session=True,
        )

    def _end(self, process: subprocess.Popen[str]) -> None:
        """End it, and a call that hangs."""
        with process, suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def main() -> None:
    """Import the commands, then fork for each line of the input, and say how each fork ended."""
    from tinker.cli import commands

    for module in pkgutil.iter_modules(commands.__path__):
        importlib.import_module(f"{commands.__name__}.{module.name}")
    gc.collect()
    gc.freeze()  # a fork copies no page for the collector's sake
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            become(json.loads(line))
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201 - told to the tests


def become(call: dict[str, Any]) -> None:
    """Be `python -m tinker.cli` in this process, to its end."""
    for number, name in enumerate(STREAMS):
        file = os.open(call[name], os.O_WRONLY if number else os.O_RDONLY)
        os.dup2(file, number)
        os.close(file)
        mode = "w" if number else "r"
        setattr(sys, name, open(number, mode, buffering=1, closefd=False))  # noqa: SIM115 - kept
    os.chdir(call["cwd"])
    os.environ.clear()
    os.environ.update(call["env"])
    sys.argv = ["tinker.cli", *call["arguments"]]
    runpy.run_module("tinker.cli", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
