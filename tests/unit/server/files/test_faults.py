"""What the disk refuses, and what it has damaged, as errors that say what to do."""

import errno
import sqlite3
from contextlib import closing

import pytest
from sqlalchemy import event, text

from tinkex.errors import DamagedDataError, EngineError, InputError, StorageError
from tinkex.server.files.faults import database_fault, storing
from tinkex.server.storage.store import SessionRow, Store


def session(number, name="x"):
    return SessionRow(
        session_id=f"s{number}",
        owner="a",
        created_at=1.0,
        sdk_version=None,
        project_id=None,
        display_name=name,
        tags=[],
        user_metadata=None,
    )


async def test_database_that_may_not_grow_is_a_storage_error_and_takes_rows_again(tmp_path):
    database = tmp_path / "db"
    store = Store(database)
    await store.open()
    pages = 0

    def limit(connection, _record):
        connection.execute(f"PRAGMA max_page_count = {pages}")

    engine = store._engine
    async with engine.connect() as connection:
        pages = (await connection.execute(text("PRAGMA page_count"))).scalar() + 1
    await engine.dispose()
    event.listen(engine.sync_engine, "connect", limit)
    with pytest.raises(StorageError, match="disk is full") as caught:
        await store.add_session(session(1, "x" * 100_000))
    assert caught.value.retry_after_ms > 0
    assert caught.value.category == "server"
    await engine.dispose()
    pages = 2**30
    await store.add_session(session(1, "x" * 100_000))
    assert await store.session("a", "s1") is not None
    await store.close()


async def test_damaged_page_under_a_running_server_is_told_and_never_read(tmp_path):
    database = tmp_path / "db"
    store = Store(database)
    await store.open()
    for number in range(5):
        await store.add_session(session(number))
    await store.close()
    with closing(sqlite3.connect(database)) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'sessions'"
        page = connection.execute(query).fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    store = Store(database)
    await store.open()
    await store.sessions("a", limit=1, offset=0)
    await store._engine.dispose()
    with database.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xa5" * 64)
    with pytest.raises(DamagedDataError, match="tinkex restore"):
        await store.session("a", "s3")
    await store.close()


def test_each_reason_of_the_disk_is_named():
    for number, words in (
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "disk is full"),
        (errno.EFBIG, "disk is full"),
        (errno.EIO, "refused the thing"),
    ):
        with pytest.raises(StorageError, match=words), storing("the thing"):
            raise OSError(number, "reason")


def test_engines_error_about_the_disk_becomes_one_and_others_stay():
    with pytest.raises(StorageError, match="disk is full"), storing("the thing"):
        raise EngineError("cannot write") from OSError(errno.ENOSPC, "full")
    with pytest.raises(EngineError, match="other"), storing("the thing"):
        raise EngineError("other")
    with pytest.raises(InputError), storing("the thing"):
        raise InputError("theirs")


def test_errors_of_the_statement_are_not_the_disks():
    with closing(sqlite3.connect(":memory:")) as connection, pytest.raises(sqlite3.Error) as caught:
        connection.execute("SELECT nonsense FROM nowhere")
    assert database_fault(caught.value) is None
    assert database_fault(ValueError()) is None
    assert database_fault(None) is None
