"""Checkpoint folders: whole or not there, and never outside the data folder."""

import pytest

from tinkex.errors import InputError
from tinkex.server.files.records import record_folder
from tinkex.server.storage.blobs import Blobs, CheckpointKey

RUN = "sess-1:train:0"
KEY = CheckpointKey(RUN, "weights", "step-1")


def save(blobs, key=KEY, content="x", *, overwrite=False):
    with blobs.write(key, overwrite=overwrite) as folder:
        folder.mkdir()
        (folder / "file").write_text(content)


def test_checkpoint_lies_where_its_names_say(tmp_path):
    blobs = Blobs(tmp_path)
    save(blobs, content="four")
    assert (tmp_path / RUN / "weights" / "step-1" / "file").read_text() == "four"
    assert blobs.exists(KEY)
    assert blobs.size(KEY) == 4


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "a\x00b", "a\nb", "a b", "n" * 201]
)
def test_name_that_leads_elsewhere_is_refused(tmp_path, name):
    blobs = Blobs(tmp_path / "root")
    with pytest.raises(InputError, match="checkpoint name"):
        blobs.folder(CheckpointKey(RUN, "weights", name))
    with pytest.raises(InputError):
        blobs.folder(CheckpointKey(name, "weights", "x"))
    with pytest.raises(InputError):
        blobs.folder(CheckpointKey(RUN, name, "x"))


@pytest.mark.parametrize("name", ["a", "0001", "x:y@z", "a.b-c_d", "a..b", "n" * 200])
def test_ordinary_name_stays_inside_and_comes_back(tmp_path, name):
    blobs = Blobs(tmp_path)
    key = CheckpointKey(RUN, "weights", name)
    save(blobs, key)
    assert blobs.folder(key).parent == tmp_path / RUN / "weights"
    blobs.recover({key: None})
    assert blobs.exists(key)


def test_existing_checkpoint_is_kept_without_overwrite(tmp_path):
    blobs = Blobs(tmp_path)
    save(blobs, content="old")
    with pytest.raises(InputError, match="exists already"):
        save(blobs, content="new")
    assert (blobs.folder(KEY) / "file").read_text() == "old"


@pytest.mark.parametrize(
    ("kind", "advice"), [("weights", "overwrite=True"), ("sampler_weights", "delete it first")]
)
def test_refusal_names_what_the_call_can_do(tmp_path, kind, advice):
    blobs, key = Blobs(tmp_path), CheckpointKey(RUN, kind, "a")
    save(blobs, key)
    with pytest.raises(InputError, match=f"another name, or {advice}"):
        save(blobs, key)


def test_overwrite_replaces_and_leaves_nothing_beside(tmp_path):
    blobs = Blobs(tmp_path)
    save(blobs, content="old")
    save(blobs, content="new", overwrite=True)
    assert (blobs.folder(KEY) / "file").read_text() == "new"
    assert [p.name for p in blobs.folder(KEY).parent.iterdir()] == ["step-1"]


def test_failed_save_leaves_what_was_there(tmp_path):
    blobs = Blobs(tmp_path)
    save(blobs, content="old")

    def fail():
        with blobs.write(KEY, overwrite=True) as folder:
            folder.mkdir()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert (blobs.folder(KEY) / "file").read_text() == "old"
    assert [p.name for p in blobs.folder(KEY).parent.iterdir()] == ["step-1"]


def test_delete_removes_and_may_be_repeated(tmp_path):
    blobs = Blobs(tmp_path)
    save(blobs)
    blobs.delete(KEY)
    blobs.delete(KEY)
    assert not blobs.exists(KEY)


def test_recovery_clears_half_written_and_unknown_folders(tmp_path):
    blobs = Blobs(tmp_path)
    save(blobs)
    parent = blobs.folder(KEY).parent
    (parent / ".staging-dead").mkdir()
    (parent / "orphan").mkdir()
    blobs.recover({KEY: None})
    assert [p.name for p in parent.iterdir()] == ["step-1"]


def test_recovery_brings_back_what_a_killed_overwrite_moved_away(tmp_path):
    blobs = Blobs(tmp_path)
    save(blobs, content="old")
    folder = blobs.folder(KEY)
    folder.rename(folder.parent / ".replaced-step-1")
    blobs.recover({KEY: None})
    assert (folder / "file").read_text() == "old"


def test_kill_before_the_row_of_an_overwrite_keeps_the_recorded_one(tmp_path):
    blobs = Blobs(tmp_path)
    save(blobs, content="old")
    recorded = record_folder(blobs.folder(KEY))
    draft = blobs.draft(KEY, overwrite=True)
    draft.folder.mkdir()
    (draft.folder / "file").write_text("new")
    draft.place()  # and here the server is killed
    blobs.recover({KEY: recorded})
    assert (blobs.folder(KEY) / "file").read_text() == "old"
    assert [p.name for p in blobs.folder(KEY).parent.iterdir()] == ["step-1"]


def test_kill_after_the_row_of_an_overwrite_keeps_the_new_one(tmp_path):
    blobs = Blobs(tmp_path)
    save(blobs, content="old")
    draft = blobs.draft(KEY, overwrite=True)
    draft.folder.mkdir()
    (draft.folder / "file").write_text("new")
    draft.place()
    blobs.recover({KEY: record_folder(blobs.folder(KEY))})
    assert (blobs.folder(KEY) / "file").read_text() == "new"
    assert [p.name for p in blobs.folder(KEY).parent.iterdir()] == ["step-1"]


def test_draft_that_is_undone_after_it_was_placed_gives_the_old_one_back(tmp_path):
    blobs = Blobs(tmp_path)
    save(blobs, content="old")
    draft = blobs.draft(KEY, overwrite=True)
    draft.folder.mkdir()
    draft.place()
    draft.undo()
    assert (blobs.folder(KEY) / "file").read_text() == "old"
    assert [p.name for p in blobs.folder(KEY).parent.iterdir()] == ["step-1"]


def test_recovery_of_a_fresh_folder_does_nothing(tmp_path):
    Blobs(tmp_path / "none").recover({})
