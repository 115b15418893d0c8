"""`tinkex check`: what is lost is told from what is untidy, by name."""

import hashlib
import json
import os
import shutil
import sqlite3
from contextlib import closing

import pytest

from tinkex.errors import ConfigurationError, InputError
from tinkex.server.files.check import check_data_dir
from tinkex.server.files.database import check_database, seal_database
from tinkex.server.files.layout import DATABASE_NAME
from tinkex.server.files.lock import locked
from tinkex.server.migrations import HEAD

PATH = "tinker://sess-1:train:0/weights/one"


async def test_sound_folder_of_a_running_server_has_no_findings(data):
    await data.save("one")
    await data.save("two", b"more")
    report = check_data_dir(data.path)
    assert (report.errors, report.warnings, report.ok) == ([], [], True)
    assert (report.folders, report.files) == (2, 4)
    assert report.size_bytes == len(b"weights") + len(b"more") + 2 * len("{}")
    assert report.revision == HEAD
    assert report.as_json()["ok"] is True


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "adapter").write_bytes(b"Weights"), "adapter has another SHA-256"),
        (lambda f: (f / "adapter").unlink(), "adapter is missing"),
        (lambda f: f.rename(f.parent.parent / "elsewhere"), "folder is missing"),
        (lambda f: (f / "tinkex.json").write_text("{} "), "tinkex.json has 3 bytes, 2 were saved"),
    ],
)
async def test_changed_checkpoint_is_an_error_with_its_path(data, change, words):
    await data.save("one")
    await data.save("two")
    change(data.folder("one"))
    (error,) = check_data_dir(data.path).errors
    assert (error.kind, error.where) == ("checkpoint", PATH)
    assert words in error.problem


async def test_quick_check_reads_no_contents(data):
    await data.save("one")
    (data.folder("one") / "adapter").write_bytes(b"Weights")
    assert check_data_dir(data.path, hashes=False).ok
    assert not check_data_dir(data.path).ok


async def test_orphan_and_unfinished_save_are_warnings(data):
    await data.save("one")
    (data.folder("one").parent / "orphan").mkdir()
    (data.folder("one").parent / ".staging-1").mkdir()
    report = check_data_dir(data.path)
    assert report.ok
    assert {one.where.rpartition("/")[2] for one in report.warnings} == {"orphan", ".staging-1"}


async def test_folder_without_a_row_is_work_of_the_server_that_runs(data):
    """A snapshot is renamed before its row is written, and erased after its row is gone."""
    unnamed = data.snapshot(1)
    data.execute("DELETE FROM run_snapshots")
    (unnamed.parent / ".2.part").mkdir()
    with locked(data.path):
        report = check_data_dir(data.path)
        assert (report.errors, report.warnings) == ([], [])
    assert [one.kind for one in check_data_dir(data.path).warnings] == ["orphan", "orphan"]


async def test_save_that_was_killed_before_its_row_is_no_error(data):
    await data.save("one")
    folder = data.folder("one")
    folder.rename(folder.parent / ".replaced-one")
    folder.mkdir()
    (folder / "adapter").write_bytes(b"newer")
    assert check_data_dir(data.path).ok


async def test_folder_that_others_may_enter_is_a_warning_that_names_what_they_read(data):
    data.path.chmod(0o755)
    (data.path / "api_key").chmod(0o644)
    (warning,) = check_data_dir(data.path).warnings
    assert warning.kind == "permissions"
    assert "api_key" in warning.problem
    assert "chmod" in warning.problem
    assert DATABASE_NAME not in warning.problem


async def test_snapshots_are_held_against_their_own_manifests(data):
    run, sampler = data.snapshot(1), data.sampler()
    data.snapshot(2)
    assert check_data_dir(data.path).errors == []
    assert check_data_dir(data.path).warnings == []
    assert check_data_dir(data.path).folders == 3
    (run / "state.safetensors").write_bytes(b"State")
    (sampler / "adapter").unlink()
    one, two = check_data_dir(data.path).errors
    assert (one.kind, one.where) == ("snapshot", "snapshot 1 of run sess-1:train:0")
    assert "state.safetensors has another SHA-256" in one.problem
    assert (two.kind, two.where) == ("snapshot", "sampler sess-1:sample:0")
    data.execute("DELETE FROM run_snapshots WHERE generation = 1")
    data.execute("UPDATE sessions SET status = 'finished'")
    report = check_data_dir(data.path)
    assert report.errors == []
    assert {one.where for one in report.warnings} == {
        "snapshots/sess-1:train:0/1",
        "snapshots/sess-1:sample:0",
    }


@pytest.mark.parametrize("text", ["", "{}", '{"sha256": 5}', "[]"])
async def test_snapshot_whose_manifest_says_nothing_is_damaged(data, text):
    (data.snapshot(1) / "state.json").write_text(text)
    (error,) = check_data_dir(data.path).errors
    assert error.problem == "state.json is damaged"


async def test_checkpoint_of_before_records_is_held_against_its_own_manifest(data):
    await data.save("one")
    sums = {"adapter": hashlib.sha256(b"weights").hexdigest()}
    (data.folder("one") / "tinkex.json").write_text(json.dumps({"sha256": sums}))
    data.execute("UPDATE checkpoints SET files = NULL")
    report = check_data_dir(data.path)
    assert (report.errors, report.unrecorded) == ([], 1)
    (data.folder("one") / "adapter").write_bytes(b"Weights")
    assert "adapter has another SHA-256" in check_data_dir(data.path).errors[0].problem


async def test_name_in_the_database_that_climbs_is_an_error(data):
    await data.save("one")
    data.execute("UPDATE checkpoints SET name = '../../../etc'")
    (error,) = check_data_dir(data.path).errors
    assert error.kind == "database"


async def test_flipped_page_is_an_error_and_stops_a_server(data):
    for number in range(5):
        await data.save(f"n{number}")
    await data.store.close()
    database = data.path / DATABASE_NAME
    flip_page(database, "checkpoints_by_owner")
    (error, *_) = check_data_dir(data.path).errors
    assert error.kind == "database"
    with pytest.raises(ConfigurationError, match="tinkex restore"):
        check_database(database)


async def test_byte_that_flips_in_a_text_while_no_server_runs_is_found(data):
    await data.save("one")
    await data.store.close()
    database = data.path / DATABASE_NAME
    seal_database(database)
    before = database.stat()
    content = database.read_bytes()
    at = content.index(b"tiny")  # the base model's name, in no index
    database.write_bytes(content[:at] + b"tinY" + content[at + 4 :])
    check_database(database)  # a program wrote to it, as far as anybody can tell
    os.utime(database, ns=(before.st_atime_ns, before.st_mtime_ns))  # a disk does not
    with pytest.raises(ConfigurationError, match="nothing wrote to it"):
        check_database(database)
    (error,) = check_data_dir(data.path).errors
    assert error.kind == "database"
    database.write_bytes(content)
    os.utime(database, ns=(before.st_atime_ns, before.st_mtime_ns))
    check_database(database)
    assert check_data_dir(data.path).ok


async def test_database_in_use_is_not_sealed(data):
    await data.save("one")
    seal_database(data.path / DATABASE_NAME)
    assert not list(data.path.glob("*-seal"))


async def test_file_that_is_no_database_stops_a_server(tmp_path):
    database = tmp_path / DATABASE_NAME
    database.write_bytes(b"SQLite format 3\x00" + b"\xff" * 5000)
    with pytest.raises(ConfigurationError, match="damaged"):
        check_database(database)
    assert check_data_dir(tmp_path).errors[0].kind == "database"


async def test_database_of_a_newer_tinkex_is_named(data):
    await data.store.close()
    with closing(sqlite3.connect(data.path / DATABASE_NAME)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    (error,) = check_data_dir(data.path).errors
    assert "newer tinkex" in error.problem
    assert "9999" in error.problem


async def test_row_that_names_no_row_is_an_error(data):
    await data.store.close()
    with closing(sqlite3.connect(data.path / DATABASE_NAME)) as connection:
        connection.execute("DELETE FROM sessions")
        connection.commit()
    assert "training_runs" in check_data_dir(data.path).errors[0].problem


def test_folder_without_a_database_is_no_data_folder(tmp_path):
    with pytest.raises(InputError, match="no data folder"):
        check_data_dir(tmp_path)


def flip_page(database, name):
    """Flip bytes in the middle of the first page of a table or an index."""
    with closing(sqlite3.connect(database)) as connection:
        size = connection.execute("PRAGMA page_size").fetchone()[0]
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        page = connection.execute(query, (name,)).fetchone()[0]
    with database.open("r+b") as file:
        file.seek((page - 1) * size)
        content = bytearray(file.read(size))
        for at in range(8, 40):  # the list of cells: where each begins
            content[at] ^= 0xA5
        file.seek((page - 1) * size)
        file.write(content)


def test_database_whose_making_was_cut_off_is_rolled_back_and_served(tmp_path):
    """Killed in its first start or in a migration, it has a journal beside it."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    with closing(sqlite3.connect(before / DATABASE_NAME, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 1")  # so that what is begun comes to the disk
        connection.execute("CREATE TABLE kept (value)")
        connection.execute("BEGIN")
        connection.execute("CREATE TABLE begun (value)")
        row = ("x" * 4000,)
        connection.executemany("INSERT INTO begun VALUES (?)", [row] * 50)
        for file in before.iterdir():  # as a kill at this moment leaves it
            shutil.copyfile(file, after / file.name)
        connection.execute("ROLLBACK")
    database = after / DATABASE_NAME
    assert database.with_name(f"{DATABASE_NAME}-journal").stat().st_size
    check_database(database)
    with closing(sqlite3.connect(database)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
    assert tables == [("kept",)]
