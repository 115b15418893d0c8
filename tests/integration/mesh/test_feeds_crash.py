"""A process that is killed while it appends: what it was told is written, is there.

What did not wait for the disk too: that is the operating system's, which lives on.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mesh_feeds import copy_all, member, payloads, store

from tinkex.mesh.feeds.policy import USAGE
from tinkex.mesh.roles import Role

PROGRAM = """
import asyncio, sys
from pathlib import Path
from mesh_feeds import member, store
from tinkex.mesh.roles import Role

async def main():
    folder, life = Path(sys.argv[1]), sys.argv[2]
    async with store(folder, member(1, Role.GATEWAY), inline=False) as held:
        feed = held.own("usage")

        async def writer(number):
            for count in range(100_000):
                text = f"{life}.{number}.{count}"
                await feed.append(text.encode(), flush=number % 2 == 0)
                print(text, flush=True)

        await asyncio.gather(*(writer(number) for number in range(8)))

asyncio.run(main())
"""
SUPPORT = Path(__file__).parents[2] / "support"


def killed_while_appending(folder, life, after):
    """What the process said was written before it was killed."""
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, folder, str(life)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=SUPPORT,
    )
    try:
        said = [child.stdout.readline().strip() for _ in range(after)]
        child.kill()
        said += child.stdout.read().split("\n")[:-1]  # the last line may be torn
    finally:
        child.kill()
        child.stdout.close()
        child.wait(timeout=30)
    assert child.returncode == -9
    return said


@pytest.mark.parametrize("lives", [3])
async def test_killed_process_loses_nothing_and_forks_nothing(tmp_path, lives):
    written = []
    async with store(tmp_path / "peer", member(2)) as peer:
        for life in range(lives):
            written += killed_while_appending(tmp_path / "mine", life, after=30 * (life + 1))
            shutil.copytree(tmp_path / "mine", tmp_path / f"disk-{life}")
            disk = store(tmp_path / f"disk-{life}", member(1, Role.GATEWAY))
            async with disk:  # opening checks all of it
                there = [text.decode() for text in await payloads(disk, USAGE)]
                assert set(written) <= set(there)
                assert len(there) == len(set(there))
                await copy_all(disk, peer, USAGE)
        assert peer.forks() == []
        assert len(await peer.heads(USAGE)) == lives
        assert set(written) <= {text.decode() for text in await payloads(peer, USAGE)}
