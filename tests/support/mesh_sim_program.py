"""One simulated life in a process of its own: prints its fingerprint, and what was seen.

    python tests/support/mesh_sim_program.py 27 '{"auths": 3}'

A failure ends it with the failed check, all faults and the seed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from mesh_sim_scenario import Scenario

from tinkex.testing.simulation import simulate


def main(seed, shape):
    with tempfile.TemporaryDirectory() as folder:

        async def live():
            scenario = Scenario(seed, Path(folder), **shape)
            return await scenario.run(), scenario.summary()

        print(*simulate(live(), seed=seed))  # noqa: T201 - a program


def begun(seed, shape, *, hash_seed):
    """Start the program; sets and dictionaries of strings have another order for each hash seed."""
    return subprocess.Popen(
        [sys.executable, __file__, str(seed), json.dumps(shape)],
        env=os.environ | {"PYTHONHASHSEED": str(hash_seed)},
        stdout=subprocess.PIPE,
        text=True,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})
