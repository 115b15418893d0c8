"""The same two programs on a server that is killed again and again, and on one that is not."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections import Counter
from contextlib import closing
from dataclasses import dataclass

from crash_control import KEYS, CrashServer
from crash_program import CHUNK_DATUMS, EACH_KIND, WAIT_S, Program

from tinkex.server.files.layout import DATABASE_NAME, SNAPSHOTS_NAME

MAX_HIT = 3
"""A point's kill comes at one of its first so many times in a life."""
AT_RANDOM = "at a random moment"
LONGEST_LIFE_S = 240.0
"""A planned point that is not reached by then is given up: the test fails, and says so."""


@dataclass
class World:
    """What came of one server and two users."""

    programs: list
    files: list
    """By user: sha256 of every file of every checkpoint, by name."""
    kills: Counter
    """Kills by point."""
    replaying: int
    """Kills at a point in the middle of a replay."""
    damaged: int
    """Snapshots that were damaged between two lives."""
    reached: Counter
    """Times that a point was reached."""
    accepted: list
    """(digest of a request, the id it got)."""
    answers: list
    """(id, digest of what was told)."""
    left: tuple
    """What is left of sessions that are finished: (bodies, snapshots, folders of snapshots)."""
    log: str


def kill_at(point, *, hit=1):
    return {"point": point, "hit": hit}


def stop_after(seconds):
    """Stop by SIGTERM, as an operator would, in the middle of everything."""
    return {"after": seconds, "gently": True}


def damage_after(seconds):
    """Kill, then flip a bit of the last snapshot of the first user's run."""
    return {"after": seconds, "damage": True}


def kill_after(seconds):
    """Kill from outside, so long after the life began: while it starts, replays or serves."""
    return {"after": seconds}


def random_kills(points, *, times, moments, order):
    """Plan kills at each point, `times` over, and at random moments, in random order."""
    made = [kill_at(one, hit=order.randint(1, MAX_HIT)) for one in points for _ in range(times)]
    made += [kill_after(order.uniform(0.0, 2.5)) for _ in range(moments)]
    order.shuffle(made)
    return made


def killed_world(sdk, forge, folder, kills, *, from_the_start=False, **settings):
    """Run both programs while the server is killed as `kills` say; they end after the last.

    Unless it goes `from_the_start`, both have their session and run when the first kill comes.
    """
    over = threading.Event()
    with _server(forge, folder, settings) as server:
        server.start()
        ends = [lambda done: over.is_set() and done >= EACH_KIND] * len(KEYS)
        programs, threads = _start(sdk, server, ends)
        try:
            for program in programs:
                assert from_the_start or program.begun.wait(WAIT_S)
            server.kill()
            outside, damaged = 1, 0
            for plan in kills:
                outside += _live(server, plan)
                if "damage" in plan:
                    damaged += _damage(server.data_dir / "snapshots" / programs[0].model_id)
            server.start(ready=False)
        finally:
            over.set()
            for thread in threads:
                thread.join(WAIT_S)
        world = _world(server, programs)
    world.kills[AT_RANDOM] = outside
    world.damaged = damaged
    return world


def _live(server, plan):
    """Live one planned life; return how often it was killed from outside: once or not."""
    if "gently" in plan:
        server.start()
        server.died(plan["after"])
        server.stop()
        return 0
    if "after" in plan:
        server.start(ready=False)
        ended = server.died(plan["after"])
    else:
        server.start(plan, ready=False)
        ended = server.died(LONGEST_LIFE_S)
    server.kill()
    return 0 if ended else 1


def _damage(folder):
    """Flip a bit of the newest of several snapshots; return how many were damaged: one or none."""
    generations = sorted((path for path in folder.glob("[0-9]*")), key=lambda one: int(one.name))
    if len(generations) < 2:
        return 0
    file = generations[-1] / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[-9] ^= 4
    file.write_bytes(data)
    return 1


def quiet_world(sdk, forge, folder, rounds, **settings):
    """Run the same programs for as many rounds each, and leave the server alone."""
    with _server(forge, folder, settings) as server:
        server.start()
        ends = [lambda done, limit=limit: done >= limit for limit in rounds]
        programs, threads = _start(sdk, server, ends)
        for thread in threads:
            thread.join(WAIT_S)
        return _world(server, programs)


def _server(forge, folder, settings):
    return CrashServer(
        forge, folder, **{"limits": {"fwdbwd_max_chunk_len": CHUNK_DATUMS}, **settings}
    )


def _start(sdk, server, ends):
    programs = [
        Program(sdk, {"base_url": server.url, "api_key": key}, number)
        for number, key in enumerate(KEYS)
    ]
    threads = [
        threading.Thread(target=program.go, args=(end,), daemon=True)
        for program, end in zip(programs, ends, strict=True)
    ]
    for thread in threads:
        thread.start()
    return programs, threads


def _world(server, programs):
    server.stop()
    files = [
        _checkpoint_files(server.data_dir / "checkpoints" / program.model_id)
        for program in programs
    ]
    return World(
        programs=programs,
        files=files,
        kills=server.counted("killed"),
        damaged=0,
        replaying=sum(replaying for _, replaying in server.traced("killed")),
        reached=server.counted("reached"),
        accepted=server.traced("accepted"),
        answers=server.traced("answer"),
        left=_left(server.data_dir),
        log=server.log.read_text(),
    )


def _left(data_dir):
    with closing(sqlite3.connect(data_dir / DATABASE_NAME)) as connection:
        (bodies,) = connection.execute(
            "SELECT count(*) FROM journal WHERE body IS NOT NULL"
        ).fetchone()
        (snapshots,) = connection.execute("SELECT count(*) FROM run_snapshots").fetchone()
    return bodies, snapshots, sorted(path.name for path in (data_dir / SNAPSHOTS_NAME).iterdir())


def _checkpoint_files(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
