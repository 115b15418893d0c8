"""What a server does by itself, again and again: a disk that refuses it once does not end it."""

import sqlite3
from contextlib import closing

import pytest
from server_support import sample_json, settle

from tinkex.server.files.layout import DATABASE_NAME
from tinkex.server.records.records import PRUNE_EVERY_S
from tinkex.server.storage.checkpoints import SWEEP_RETRY_S


@pytest.fixture
def refusing(virtual):
    """Have the database refuse to delete from a table, or do so again."""
    database = virtual.services.config.data_dir / DATABASE_NAME

    def change(statement):
        with closing(sqlite3.connect(database, isolation_level=None)) as connection:
            connection.execute(statement)

    def refuse(table, *, yes=True):
        if yes:
            what = f"BEFORE DELETE ON {table} BEGIN SELECT RAISE(FAIL, 'refused'); END"
            change(f"CREATE TRIGGER refusing {what}")
        else:
            change("DROP TRIGGER refusing")

    return refuse


async def done(api):
    """Let the tasks that a timer began come to their end."""
    await settle(50)
    await api.services.tasks.finished()
    await settle(50)


async def rows(api, table):
    database = api.services.config.data_dir / DATABASE_NAME
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


async def test_expired_checkpoint_is_deleted_later_where_the_database_refuses_it(virtual, refusing):
    api, model = virtual, await virtual.model()
    folders = api.services.config.data_dir / "checkpoints" / model / "weights"
    for number, name in enumerate(("one", "two")):
        body = {"model_id": model, "seq_id": number + 1, "path": name, "ttl_seconds": 3600}
        await api.result(await api.ok("/save_weights", body))
    refusing("checkpoints")
    api.clock.advance(3601)
    await done(api)
    assert sorted(path.name for path in folders.iterdir()) == ["one", "two"]
    refusing("checkpoints", yes=False)
    api.clock.advance(SWEEP_RETRY_S + 1)
    await done(api)
    assert list(folders.iterdir()) == []


async def test_old_records_are_erased_later_where_the_database_refuses_it(virtual, refusing):
    api = virtual
    body = sample_json(None) | {"base_model": "tiny/qwen3"}
    del body["sampling_session_id"], body["seq_id"]
    await api.result(await api.ok("/asample", body))
    await api.services.ledger.flush()
    assert await rows(api, "requests") == 1
    refusing("requests")
    api.clock.advance(api.services.config.trace_retention_s + 1)
    await done(api)
    assert await rows(api, "requests") == 1
    refusing("requests", yes=False)
    api.clock.advance(PRUNE_EVERY_S + 1)
    await done(api)
    assert await rows(api, "requests") == 0
