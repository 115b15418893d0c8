"""OpenMP's threads of what serves do not spin for long: who hands tokens on needs the cores."""

import os
import subprocess
import sys

import pytest
from patience import PATIENCE_S

from tinkex._clock import SystemClock

CLOCK = SystemClock()
COMMANDS = (["serve", "--port", "0"], ["mesh", "up", "--port", "0", "--transport", "tls"])


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch brings another library elsewhere")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command_loads_pytorch_with_threads_that_sleep_soon(command, tmp_path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TINKEX_")}
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        kept.pop(name, None)
    said, ready = tmp_path / "said", tmp_path / "ready.json"
    places = ("--data-dir", str(tmp_path / "data"), "--ready-file", str(ready))
    with said.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tinkex", *command, *places],
            env={**kept, "OMP_DISPLAY_ENV": "verbose"},
            stdout=file,
            stderr=file,
        )
    try:
        until = CLOCK.monotonic() + PATIENCE_S
        while not ready.exists():
            assert process.poll() is None, said.read_text()
            assert CLOCK.monotonic() < until, said.read_text()
            CLOCK.sleep_sync(0.05)
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()
    assert "GOMP_SPINCOUNT = '20000'" in said.read_text()
