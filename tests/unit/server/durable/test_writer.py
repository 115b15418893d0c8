"""The writer: in order, many to a commit, refused work leaves nothing, the rest is never lost."""

import sqlite3
import threading

import pytest

from tinkex.server.durable.writer import DatabaseWriter


class Gate:
    """Holds the writer's thread within a commit, so that work gathers behind it."""

    def __init__(self):
        self.opened = threading.Event()

    def __call__(self, _connection):
        assert self.opened.wait(10)


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "db.sqlite3"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (name TEXT UNIQUE)")
    connection.close()
    return path


@pytest.fixture
async def writer(database):
    found = []
    writer = DatabaseWriter(
        database, on_fault=found.append, on_stalled=lambda: writer.stalls.append(None)
    )
    writer.faults, writer.stalls = found, []
    writer.start()
    yield writer
    await writer.stop()


def insert(name):
    return lambda connection: connection.execute("INSERT INTO t VALUES (?)", (name,))


def names(database):
    connection = sqlite3.connect(database)
    found = [row[0] for row in connection.execute("SELECT name FROM t ORDER BY rowid")]
    connection.close()
    return found


def fail_once(error):
    """Work that the disk refuses the first two times: in its group, and by itself."""
    attempts = []

    def work(connection):
        attempts.append(None)
        if len(attempts) <= 2:
            raise error
        insert("late")(connection)

    return work


async def test_what_was_awaited_is_on_disk(writer, database):
    await writer.write(insert("a"))
    assert names(database) == ["a"]


async def test_work_is_done_in_the_order_in_which_it_came(writer, database):
    gate = Gate()
    held = writer.write(gate)
    written = [writer.write(insert(str(i))) for i in range(50)]
    gate.opened.set()
    await held
    for one in written:
        await one
    assert names(database) == [str(i) for i in range(50)]


async def test_what_gathers_behind_a_commit_is_one_commit(writer, database):
    gate = Gate()
    held = writer.write(gate)
    for i in range(3):
        writer.write(insert(str(i)))
    # Another connection sees none of the three while a fourth piece of work of the group runs.
    seen_inside = writer.write(lambda _connection: names(database))
    gate.opened.set()
    await held
    assert await seen_inside == []
    assert len(names(database)) == 3


async def test_refused_work_fails_alone(writer, database):
    gate = Gate()
    held = writer.write(gate)
    good = writer.write(insert("a"), refusable=True)
    twice = writer.write(insert("a"), refusable=True)
    after = writer.write(insert("b"))
    gate.opened.set()
    await held
    await good
    with pytest.raises(sqlite3.IntegrityError):
        await twice
    await after
    assert names(database) == ["a", "b"]


async def test_what_must_not_be_lost_is_tried_until_the_disk_takes_it(writer, database):
    gate = Gate()
    writer.write(gate)
    waiting = writer.write(fail_once(sqlite3.OperationalError("database or disk is full")))
    refused = writer.write(insert("refused"), refusable=True)
    behind = writer.write(insert("behind"))
    gate.opened.set()
    with pytest.raises(sqlite3.OperationalError, match="full"):
        await refused
    assert writer.stalled
    assert writer.stalls
    assert not waiting.done()
    writer.retry()
    await waiting
    await behind
    assert not writer.stalled
    assert names(database) == ["late", "behind"]
    assert [str(fault) for fault in writer.faults] == [
        "the disk takes nothing; what is unwritten is kept"
    ]


async def test_a_bug_in_what_must_not_be_lost_is_reported_and_dropped(writer, database):
    def bug(_connection):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await writer.write(bug)
    await writer.write(insert("next"))
    assert names(database) == ["next"]
    assert [type(fault) for fault in writer.faults] == [ZeroDivisionError]


async def test_stop_writes_what_was_handed_in_and_refuses_more(writer, database):
    gate = Gate()
    writer.write(gate)
    last = writer.write(insert("last"))
    gate.opened.set()
    await writer.stop()
    await last
    assert names(database) == ["last"]
    with pytest.raises(sqlite3.OperationalError, match="stopping"):
        await writer.write(insert("after"))


async def test_deleted_rows_are_overwritten_and_the_file_is_the_owners_alone(writer, database):
    secret = "a user's own words, " * 8
    await writer.write(insert(secret))
    await writer.write(lambda connection: connection.execute("DELETE FROM t"))
    await writer.stop()
    assert secret.encode() not in database.read_bytes()
    assert database.stat().st_mode & 0o777 == 0o600
