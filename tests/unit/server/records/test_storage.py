"""How long checkpoints lay on the disk, by the hour."""

import sqlite3
from contextlib import closing

import pytest
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from tinkex.server.migrations import migrate
from tinkex.server.records.storage import gigabyte_hours, note_erased, note_stored
from tinkex.server.records.tables import STORAGE_SPANS
from tinkex.server.storage.blobs import CheckpointKey

HOUR = 3600
KEY = CheckpointKey("r", "weights", "a")


def span(began, ended, gigabytes=1, owner="o"):
    group = {"owner": owner, "session_id": "s", "base_model": "b", "project_id": "p"}
    return {"size_bytes": gigabytes * 10**9, "began_at": began, "ended_at": ended, **group}


def hours(*spans, start=0, end=4 * HOUR, now=100 * HOUR):
    return {
        (hour // HOUR, group[0]): amount
        for hour, group, amount in gigabyte_hours(spans, start=start, end=end, now=now)
    }


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (span(0, 4 * HOUR), {0: 1, 1: 1, 2: 1, 3: 1}),
        (span(0.5 * HOUR, 2.25 * HOUR), {0: 0.5, 1: 1, 2: 0.25}),
        (span(1.25 * HOUR, 1.75 * HOUR, gigabytes=2), {1: 1}),
        (span(-50 * HOUR, 1 * HOUR), {0: 1}),
        (span(3 * HOUR, None), {3: 1}),
        (span(3.5 * HOUR, 99 * HOUR), {3: 0.5}),
        (span(5 * HOUR, 6 * HOUR), {}),
        (span(2 * HOUR, 2 * HOUR), {}),
    ],
)
def test_a_span_is_counted_in_the_hours_it_touches(one, expected):
    assert hours(one) == pytest.approx({(hour, "o"): v for hour, v in expected.items()})


def test_a_span_that_goes_on_is_counted_until_now():
    assert hours(span(0, None), now=1.5 * HOUR) == pytest.approx({(0, "o"): 1, (1, "o"): 0.5})


def test_spans_of_one_group_add_up_and_others_stay_apart():
    found = hours(span(0, HOUR), span(0, HOUR, gigabytes=3), span(0, HOUR, owner="p"))
    assert found == pytest.approx({(0, "o"): 4, (0, "p"): 1})


async def test_writing_over_a_checkpoint_ends_one_span_and_begins_another(database, rows):
    async with database.begin() as connection:
        for at, size in ((10.0, 5), (10.0, 5), (20.0, 7)):
            await note_stored(connection, KEY, owner="o", size_bytes=size, at=at)
        await note_erased(connection, KEY, at=30.0)
    found = [(row.began_at, row.ended_at, row.size_bytes) for row in await rows(STORAGE_SPANS)]
    assert found == [(10.0, 20.0, 5), (20.0, 30.0, 7)]


def upgrade(database, revision):
    """Make the database of an older server."""
    config = Config()
    config.set_main_option("script_location", "tinkex.server:migrations")
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    engine = create_engine(f"sqlite:///{database}")
    environment = EnvironmentContext(
        config, scripts, fn=lambda found, _context: scripts._upgrade_revs(revision, found)
    )
    with environment, engine.begin() as connection:
        environment.configure(connection=connection, transactional_ddl=True)
        environment.run_migrations()
    engine.dispose()


def test_checkpoints_of_an_older_server_are_stored_since_they_were_made(tmp_path):
    database = tmp_path / "db.sqlite3"
    upgrade(database, "0007")
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "INSERT INTO sessions (session_id, owner, created_at, status, tags)"
            " VALUES ('s', 'o', 1.0, 'finished', '[]')"
        )
        connection.execute(
            "INSERT INTO training_runs (run_id, session_id, owner, base_model, lora_rank,"
            " train_attn, train_mlp, train_unembed, created_at, last_request_at)"
            " VALUES ('r', 's', 'o', 'b', 4, 1, 1, 1, 1.0, 1.0)"
        )
        connection.execute(
            "INSERT INTO checkpoints (run_id, owner, kind, name, created_at, size_bytes,"
            " has_optimizer, public) VALUES ('r', 'o', 'weights', 'a', 5.0, 7, 1, 0)"
        )
    migrate(database)
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(
            "SELECT run_id, kind, name, owner, size_bytes, began_at, ended_at FROM storage_spans"
        ).fetchall()
    assert rows == [("r", "weights", "a", "o", 7, 5.0, None)]
