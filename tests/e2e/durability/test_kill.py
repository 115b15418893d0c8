"""The kill test: two users train and sample with the official SDK while the server is killed.

Everything that they are given must be, to the last bit, what a server gives that is left alone.
"""

import logging
import random
import sys
from collections import defaultdict

import pytest
from crash_server import TORN
from crash_worlds import (
    AT_RANDOM,
    damage_after,
    kill_at,
    killed_world,
    quiet_world,
    random_kills,
    stop_after,
)

from tinkex.server.durable.points import (
    CHECKPOINT_RECORDED,
    JOURNAL_WRITTEN,
    POINTS,
    RESULT_READY,
    RESULT_SENT,
    SNAPSHOT_RENAMED,
    STEP_BEGUN,
)

pytestmark = [
    pytest.mark.interop,
    pytest.mark.timeout(1200),  # half a minute, where nothing else runs
    # The official package warns of its own deprecated calls, and leaves sockets to the collector.
    pytest.mark.filterwarnings("ignore"),
]

ALL_POINTS = (*POINTS, TORN)
SEED = 20_261_121


@pytest.fixture
def worlds(forge, tmp_path, load_sdk, caplog, capsys):
    """Run both worlds: (the one with kills, the quiet one); print what was hit."""
    sdk = load_sdk("tinker")
    caplog.set_level(logging.ERROR, logger="tinker")
    # it tells of its own old calls at each of them
    caplog.handler.addFilter(lambda record: "DEPRECATED" not in record.getMessage())

    def run(kills, *, from_the_start=False, **settings):
        killed = killed_world(
            sdk,
            forge,
            tmp_path / "killed",
            kills,
            from_the_start=from_the_start,
            **settings,
        )
        rounds = [program.rounds for program in killed.programs]
        quiet = quiet_world(sdk, forge, tmp_path / "quiet", rounds, **settings)
        with capsys.disabled():
            sys.stdout.write(told(killed, rounds))
        assert caplog.messages == []
        return killed, quiet

    return run


def told(killed, rounds):
    """Write what was hit."""
    total = sum(killed.kills.values())
    lines = [
        (
            f"\nseed {SEED}: {total} kills in {rounds} rounds of two users, "
            f"{killed.replaying} of them during a replay; {killed.damaged} snapshots damaged"
        )
    ]
    for point in (*ALL_POINTS, AT_RANDOM):
        reached = killed.reached[point] or ""
        lines.append(f"  {killed.kills[point]:3} kills  {reached:>6} times reached  {point}")
    return "\n".join(lines) + "\n"


def check(killed, quiet):
    """Compare the two worlds."""
    for interrupted, plain in zip(killed.programs, quiet.programs, strict=True):
        assert interrupted.error is None, (interrupted.error, killed.log[-4000:])
        assert plain.error is None
        for ours, theirs in zip(interrupted.notes, plain.notes, strict=True):
            assert ours == theirs
        assert len(interrupted.unseeded) == len(plain.unseeded)
        # The SDK asks for another session when it does not hear of the first.
        assert interrupted.sessions >= plain.sessions == 1
    assert killed.files == quiet.files
    assert all("weights/last/optimizer.safetensors" in files for files in killed.files)
    for what in (killed.accepted, killed.answers):
        found = defaultdict(set)
        for name, content in what:
            found[name].add(content)
        assert {name: contents for name, contents in found.items() if len(contents) > 1} == {}
    assert killed.left == quiet.left == (0, 0, [])
    asked = {name for _, name in killed.accepted}
    assert asked - {name for name, _ in killed.answers} == set()
    assert "level=error" not in killed.log
    assert "replay differs" not in killed.log


def test_five_kills_change_nothing(worlds):
    kills = [
        kill_at(JOURNAL_WRITTEN, hit=2),
        kill_at(TORN),
        kill_at(STEP_BEGUN),
        kill_at(SNAPSHOT_RENAMED),
        kill_at(RESULT_SENT, hit=3),
        stop_after(0.5),
    ]
    killed, quiet = worlds(kills, snapshot_steps=6, snapshot_quiet_s=0.5)
    check(killed, quiet)
    assert killed.kills == {AT_RANDOM: 1, **{plan["point"]: 1 for plan in kills[:-1]}}
    assert [point for point in ALL_POINTS if not killed.reached[point]] == []


@pytest.mark.soak
def test_kills_while_runs_are_made_change_nothing(worlds):
    """The first request of all is killed on its way, then the second, and so on."""
    kills = [kill_at(JOURNAL_WRITTEN, hit=hit) for hit in (1, 1, 1, 2, 2, 3)]
    kills += [kill_at(point, hit=2) for point in (RESULT_READY, CHECKPOINT_RECORDED, RESULT_SENT)]
    killed, quiet = worlds(kills, from_the_start=True, snapshot_steps=2, snapshot_quiet_s=0.5)
    check(killed, quiet)
    assert killed.kills[JOURNAL_WRITTEN] == 6


@pytest.mark.soak
@pytest.mark.parametrize("snapshot_steps", [1, 4, 1000])
def test_fifty_kills_change_nothing(worlds, snapshot_steps):
    order = random.Random(f"{SEED} {snapshot_steps}")
    kills = random_kills(ALL_POINTS, times=3, moments=19, order=order)
    # once more as soon as the replay begins, and again
    kills += [kill_at(TORN), kill_at(STEP_BEGUN), kill_at(TORN), kill_at(TORN)]
    for other in (stop_after, damage_after):
        kills += [other(order.uniform(0.5, 3.0)) for _ in range(4)]
    order.shuffle(kills)
    killed, quiet = worlds(kills, snapshot_steps=snapshot_steps, snapshot_quiet_s=2.0)
    check(killed, quiet)
    assert sum(killed.kills.values()) >= 50
    assert [point for point in ALL_POINTS if not killed.kills[point]] == []
    assert killed.replaying > 0 or snapshot_steps == 1
    assert "snapshot damaged" in killed.log or snapshot_steps == 1000
