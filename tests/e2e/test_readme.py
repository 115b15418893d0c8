"""The README's program does what the README says."""

import os
import re
import subprocess
import sys
from pathlib import Path

from patience import PATIENCE_S

ROOT = Path(__file__).parents[2]


def test_readme_program_trains_and_samples(server):
    program = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    environment = os.environ | {
        "TINKER_BASE_URL": server.address.url,
        "TINKER_API_KEY": server.address.api_key,
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *steps, reply = done.stdout.strip().splitlines()
    losses = [float(line.split()[1]) for line in steps]
    assert len(losses) == 10
    assert losses[-1] < losses[0] / 2
    assert "fox" in reply
