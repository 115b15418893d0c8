"""A data folder as a server leaves it, without an engine."""

import hashlib
import json
import shutil
import sqlite3
from contextlib import closing

import pytest

from tinkex.server.files.layout import CHECKPOINTS_NAME, DATABASE_NAME
from tinkex.server.files.private import private_file, private_folder
from tinkex.server.files.records import record_folder, total_size
from tinkex.server.storage.blobs import Blobs, CheckpointKey
from tinkex.server.storage.store import CheckpointRow, RunRow, SessionRow, Store

RUN = "sess-1:train:0"


class DataFolder:
    """Saves and deletes checkpoints as a server does."""

    def __init__(self, path, migrated_database):
        self.path = path
        private_folder(path)
        private_file(path / DATABASE_NAME)
        shutil.copyfile(migrated_database, path / DATABASE_NAME)
        self.store = Store(path / DATABASE_NAME)
        self.blobs = Blobs(path / CHECKPOINTS_NAME)

    async def begin(self):
        await self.store.open()
        common = {"owner": "acc", "created_at": 1.0, "user_metadata": None}
        session = SessionRow(
            session_id="sess-1",
            sdk_version=None,
            project_id=None,
            display_name=None,
            tags=[],
            **common,
        )
        await self.store.add_session(session)
        run = RunRow(
            run_id=RUN,
            session_id="sess-1",
            base_model="tiny",
            lora_rank=4,
            train_attn=True,
            train_mlp=True,
            train_unembed=True,
            last_request_at=1.0,
            **common,
        )
        await self.store.add_run(run)
        (self.path / "api_key").write_text("tml-secret")
        private_file(self.path / "api_key")

    def folder(self, name):
        return self.blobs.folder(CheckpointKey(RUN, "weights", name))

    async def save(self, name, content=b"weights"):
        key = CheckpointKey(RUN, "weights", name)
        with self.blobs.write(key, overwrite=True) as folder:
            folder.mkdir()
            (folder / "adapter").write_bytes(content)
            (folder / "tinkex.json").write_text("{}")
        files = record_folder(self.folder(name))
        row = CheckpointRow(
            run_id=RUN,
            owner="acc",
            kind="weights",
            name=name,
            created_at=1.0,
            size_bytes=total_size(files),
            has_optimizer=False,
            expires_at=None,
            user_metadata=None,
            files=files,
        )
        await self.store.put_checkpoint(row)

    def snapshot(self, generation, content=b"state"):
        """Write a run's snapshot and its row."""
        folder = self.path / "snapshots" / RUN / str(generation)
        folder.mkdir(parents=True)
        (folder / "state.safetensors").write_bytes(content)
        described = {"sha256": hashlib.sha256(content).hexdigest()}
        (folder / "state.json").write_text(json.dumps(described))
        self.execute("INSERT INTO run_snapshots VALUES (?, ?, 'sess-1', 1, 1.0)", RUN, generation)
        return folder

    def sampler(self):
        """Write a sampler's weights that were never saved by name, and its row."""
        folder = self.path / "snapshots" / "sess-1:sample:0"
        folder.mkdir(parents=True)
        (folder / "adapter").write_bytes(b"weights")
        described = {"sha256": {"adapter": hashlib.sha256(b"weights").hexdigest()}}
        (folder / "tinkex.json").write_text(json.dumps(described))
        self.execute(
            "INSERT INTO samplers (sampler_id, session_id, owner, base_model, created_at, run_id)"
            " VALUES ('sess-1:sample:0', 'sess-1', 'acc', 'tiny', 1.0, ?)",
            RUN,
        )
        return folder

    def execute(self, statement, *values):
        with closing(sqlite3.connect(self.path / DATABASE_NAME)) as connection:
            connection.execute(statement, values)
            connection.commit()

    async def delete(self, name):
        key = CheckpointKey(RUN, "weights", name)
        await self.store.remove_checkpoint(key, at=2.0)
        self.blobs.delete(key)


@pytest.fixture
async def data(tmp_path, migrated_database):
    folder = DataFolder(tmp_path / "data", migrated_database)
    await folder.begin()
    yield folder
    await folder.store.close()
