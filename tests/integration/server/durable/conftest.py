"""A server that is stopped or crashes, and the next one on what it left."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import asynccontextmanager

import pytest
from server_support import batch_json, serving

from tinkex._clock import SystemClock


@pytest.fixture
def life(make_config, make_engine):
    """Serve one data folder after another: `async with life() as api`."""

    @asynccontextmanager
    async def serve(clock=None, **settings):
        config = make_config(**settings)
        async with serving(config, make_engine(), clock or SystemClock()) as api:
            yield api

    return serve


@pytest.fixture
def crashed(tmp_path):
    """Copy a data folder as a crash at this moment would leave it; return the copy.

    The server goes on meanwhile. So the database goes first: what it names was in place before it
    said so. A folder that gets its real name while it is copied is one that a crash left half made.
    """
    copies = []

    def copy_file(source, target):
        try:
            shutil.copy2(source, target)
        except FileNotFoundError:
            return

    def copy(api):
        target = tmp_path / f"crashed-{len(copies)}"
        copies.append(target)
        target.mkdir()
        source = api.services.config.data_dir
        database = [path.name for path in source.glob("tinkex.sqlite3*")]
        for name in sorted(database):
            copy_file(source / name, target / name)
        for part in source.iterdir():
            if part.is_dir():
                copy_tree(part, target / part.name)
            elif part.name not in database:
                copy_file(part, target / part.name)
        return target

    def copy_tree(source, target):
        try:
            parts = list(source.iterdir())
        except FileNotFoundError:
            return
        target.mkdir()
        for part in parts:
            (copy_tree if part.is_dir() else copy_file)(part, target / part.name)

    return copy


class Trainer:
    """Trains one run by hand."""

    def __init__(self, api, model_id, seq_id=0):
        self.api = api
        self.model_id = model_id
        self.seq_id = seq_id

    def on(self, api):
        """Go on with the next server."""
        return Trainer(api, self.model_id, self.seq_id)

    async def send(self, endpoint, body=None, **more):
        self.seq_id += 1
        body = body or {"model_id": self.model_id, "seq_id": self.seq_id}
        return await self.api.ok(endpoint, {**body, **more})

    async def batch(self, tokens=(5, 6, 7, 8, 9)):
        body = batch_json(self.model_id, self.seq_id + 1, tokens)
        return await self.send("/forward_backward", body)

    async def step(self):
        return await self.send("/optim_step", adam_params={"learning_rate": 0.01})

    async def train(self, tokens=(5, 6, 7, 8, 9)):
        """Train one step; return the loss."""
        batch, step = await self.batch(tokens), await self.step()
        await self.api.result(step)
        return (await self.api.result(batch))["metrics"]["loss:sum"]

    async def loss(self):
        """Say where training stands, to the last bit."""
        body = batch_json(self.model_id, self.seq_id + 1)
        body["forward_input"] = body.pop("forward_backward_input")
        return (await self.api.result(await self.send("/forward", body)))["metrics"]

    async def save(self, name):
        future = await self.send("/save_weights", path=name)
        return (await self.api.result(future))["path"]


@pytest.fixture
def trainer():
    async def make(api, **kwargs):
        return Trainer(api, await api.model(**kwargs))

    return make


@pytest.fixture
def rows():
    """Ask a server's database, as it is on disk."""

    def ask(api, query):
        path = api.services.config.data_dir / "tinkex.sqlite3"
        connection = sqlite3.connect(path)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    return ask
