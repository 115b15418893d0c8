"""Backups: whole or not there, of one moment, and put back as they were."""

import asyncio
import json
import os
import shutil
import stat

import pytest

from tinkex.errors import DamagedDataError, InputError, StorageError
from tinkex.server.files import backup as module
from tinkex.server.files.backup import MANIFEST_NAME, back_up, restore
from tinkex.server.files.check import check_data_dir
from tinkex.server.files.layout import DATABASE_NAME
from tinkex.testing.clock import VirtualClock


def take(data, target, **options):
    return back_up(data.path, target, clock=VirtualClock(), **options)


def adapter(folder, name):
    return folder / "checkpoints" / "sess-1:train:0" / "weights" / name / "adapter"


@pytest.mark.parametrize("link", [False, True])
async def test_restored_folder_is_the_one_that_was_copied(data, tmp_path, link):
    await data.save("one", b"first")
    await data.save("two", b"second")
    taken = take(data, tmp_path / "backup", link=link)
    assert (taken.folders, taken.cuts) == (2, 1)
    await data.delete("one")
    await data.save("two", b"changed")
    restored = tmp_path / "restored"
    assert restore(tmp_path / "backup", restored).files == taken.files
    assert adapter(restored, "one").read_bytes() == b"first"
    assert adapter(restored, "two").read_bytes() == b"second"
    assert (restored / "api_key").read_text() == "tml-secret"
    assert check_data_dir(restored).ok
    assert check_data_dir(restored).folders == 2
    assert not (restored / MANIFEST_NAME).exists()
    assert check_data_dir(tmp_path / "backup").ok
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup", "data", "restored"]


async def test_snapshots_come_along_and_those_that_go_have_the_cut_taken_again(data, tmp_path):
    await data.save("one")
    old = data.snapshot(1)
    data.sampler()
    done = []

    def after_cut():
        if not done:
            done.append(data.snapshot(2, b"newer"))
            data.execute("DELETE FROM run_snapshots WHERE generation = 1")
            shutil.rmtree(old)

    assert take(data, tmp_path / "backup", after_cut=after_cut).cuts == 2
    restore(tmp_path / "backup", tmp_path / "restored")
    below = tmp_path / "restored" / "snapshots"
    assert sorted(path.name for path in below.iterdir()) == ["sess-1:sample:0", "sess-1:train:0"]
    assert [path.name for path in (below / "sess-1:train:0").iterdir()] == ["2"]
    assert (below / "sess-1:train:0" / "2" / "state.safetensors").read_bytes() == b"newer"
    assert check_data_dir(tmp_path / "restored").errors == []


async def test_file_that_goes_while_others_are_copied_is_held(data, tmp_path, monkeypatch):
    await data.save("one", b"first")
    await data.save("two", b"second")
    copy = shutil.copyfile

    def copy_and_delete(source, target):
        if data.folder("two").exists():
            shutil.rmtree(data.folder("two"))
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", copy_and_delete)
    assert take(data, tmp_path / "backup").cuts == 1
    assert adapter(tmp_path / "backup", "two").read_bytes() == b"second"
    assert not list(data.path.glob(".pinned-*"))


async def test_disk_without_links_is_copied_as_well(data, tmp_path, monkeypatch):
    await data.save("one", b"first")

    def refuse(_source, _target):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert take(data, tmp_path / "backup", link=True).cuts == 1
    assert adapter(tmp_path / "backup", "one").read_bytes() == b"first"


async def test_links_share_files_and_copies_do_not(data, tmp_path):
    await data.save("one")
    take(data, tmp_path / "linked", link=True)
    take(data, tmp_path / "copied")
    assert adapter(tmp_path / "linked", "one").samefile(adapter(data.path, "one"))
    assert not adapter(tmp_path / "copied", "one").samefile(adapter(data.path, "one"))


async def test_backup_and_restored_folder_are_private(data, tmp_path):
    await data.save("one")
    umask = os.umask(0)
    try:
        take(data, tmp_path / "backup")
        restore(tmp_path / "backup", tmp_path / "restored")
    finally:
        os.umask(umask)
    for folder in (tmp_path / "backup", tmp_path / "restored"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


async def test_checkpoint_deleted_or_saved_anew_meanwhile_has_the_cut_taken_again(data, tmp_path):
    await data.save("one", b"first")
    await data.save("two", b"second")
    loop = asyncio.get_running_loop()
    changes = iter([data.delete("one"), data.save("two", b"changed")])

    def after_cut():
        for change in changes:
            asyncio.run_coroutine_threadsafe(change, loop).result(10)
            return

    taken = await asyncio.to_thread(take, data, tmp_path / "backup", after_cut=after_cut)
    assert taken.cuts == 3
    restore(tmp_path / "backup", tmp_path / "restored")
    assert not adapter(tmp_path / "restored", "one").exists()
    assert adapter(tmp_path / "restored", "two").read_bytes() == b"changed"


async def test_backup_of_a_folder_that_never_rests_is_given_up_and_leaves_nothing(data, tmp_path):
    await data.save("n0")
    loop = asyncio.get_running_loop()
    count = 0

    async def replace():
        nonlocal count
        await data.delete(f"n{count}")
        count += 1
        await data.save(f"n{count}")

    def after_cut():
        asyncio.run_coroutine_threadsafe(replace(), loop).result(10)

    with pytest.raises(StorageError, match="given up"):
        await asyncio.to_thread(take, data, tmp_path / "backup", after_cut=after_cut)
    assert count == module.MAX_CUTS
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


async def test_damaged_checkpoint_is_named_and_no_backup_is_left(data, tmp_path):
    await data.save("one")
    adapter(data.path, "one").write_bytes(b"Weights")
    with pytest.raises(DamagedDataError, match="weights/one is damaged: adapter"):
        take(data, tmp_path / "backup")
    adapter(data.path, "one").unlink()
    with pytest.raises(DamagedDataError, match="weights/one is damaged: adapter"):
        take(data, tmp_path / "backup")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


async def test_backup_takes_no_folder_that_is_there_and_no_folder_without_database(data, tmp_path):
    (tmp_path / "backup").mkdir()
    with pytest.raises(InputError, match="there already"):
        take(data, tmp_path / "backup")
    with pytest.raises(InputError, match="no data folder"):
        back_up(tmp_path, tmp_path / "other", clock=VirtualClock())


async def test_neither_data_folder_nor_backup_takes_the_other_into_itself(data, tmp_path):
    await data.save("one")
    with pytest.raises(InputError, match="lies in the data folder"):
        take(data, data.path / "snapshots" / "backup")  # the next start would erase it
    assert not (data.path / "snapshots").exists()
    take(data, tmp_path / "backup")
    with pytest.raises(InputError, match="lies in the backup"):
        restore(tmp_path / "backup", tmp_path / "backup" / "restored")
    assert restore(tmp_path / "backup", tmp_path / "restored").folders == 1


async def test_restore_touches_no_folder_that_holds_something(data, tmp_path):
    await data.save("one")
    take(data, tmp_path / "backup")
    await data.save("later")
    with pytest.raises(InputError, match="not empty"):
        restore(tmp_path / "backup", data.path)
    assert adapter(data.path, "later").exists()
    (tmp_path / "empty").mkdir()
    restore(tmp_path / "backup", tmp_path / "empty")
    assert check_data_dir(tmp_path / "empty").ok


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: adapter(b, "one").write_bytes(b"Weights"),
        lambda b: adapter(b, "one").unlink(),
        lambda b: (b / DATABASE_NAME).write_bytes(b"no database"),
        lambda b: (b / "api_key").write_text("tml-other!"),
        lambda b: (b / "planted").write_text(""),
        lambda b: (b / MANIFEST_NAME).write_text("{"),
        lambda b: (b / MANIFEST_NAME).write_text('{"format_version": 1}'),
    ],
)
async def test_damaged_backup_is_refused_and_nothing_is_restored(data, tmp_path, damage):
    await data.save("one")
    take(data, tmp_path / "backup")
    damage(tmp_path / "backup")
    with pytest.raises(DamagedDataError):
        restore(tmp_path / "backup", tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out"])
async def test_manifest_that_names_a_file_outside_is_refused(data, tmp_path, name):
    take(data, tmp_path / "backup")
    path = tmp_path / "backup" / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    manifest["files"][name] = [0, ""]
    path.write_text(json.dumps(manifest))
    with pytest.raises(DamagedDataError, match="outside"):
        restore(tmp_path / "backup", tmp_path / "restored")


async def test_backup_of_a_newer_form_and_a_folder_that_is_none_are_refused(data, tmp_path):
    take(data, tmp_path / "backup")
    path = tmp_path / "backup" / MANIFEST_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(InputError, match="newer"):
        restore(tmp_path / "backup", tmp_path / "restored")
    with pytest.raises(InputError, match="no backup"):
        restore(data.path, tmp_path / "restored")


async def test_full_disk_is_a_typed_error_and_leaves_nothing(data, tmp_path, monkeypatch):
    await data.save("one")

    def full(_source, _target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(StorageError, match="full"):
        take(data, tmp_path / "backup")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
