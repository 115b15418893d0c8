"""What workers know of accounts is what their store holds, once they waited for it."""

import asyncio
import threading

import pytest
from mesh_feeds import ROOT, copy_all, member, settle, store

from tinkex.errors import AuthenticationError
from tinkex.mesh.accounts.credentials import digest
from tinkex.mesh.accounts.events import KeyPublished, encode_events
from tinkex.mesh.feeds.policy import ACCOUNTS_PUBLIC
from tinkex.mesh.roles import Role
from tinkex.mesh.workers.public_accounts import PublicView

KEY = "tmk-1"
PUBLISHED = KeyPublished(
    at=0.0,
    key_id="key-1",
    account_id="acc-1",
    key_hash=digest(KEY),
    scopes=("infer",),
    expires_at=None,
    token_cap=None,
)


async def test_a_key_that_is_stored_is_known_once_the_view_is_current(tmp_path):
    source = store(tmp_path / "auth", member(1, Role.AUTH))
    held = store(tmp_path / "gateway", member(2, Role.GATEWAY), inline=False)
    await source.open()
    await held.open()
    view = PublicView(held, ROOT.peer_id, on_error=pytest.fail)
    await view.open()
    await source.own(ACCOUNTS_PUBLIC).append(encode_events([PUBLISHED]))
    committed, go_on = threading.Event(), threading.Event()
    commit = held.database.commit

    def commit_and_pause(connection):
        """Let readers see what was written a while before anybody is told of it."""
        commit(connection)
        committed.set()
        go_on.wait(20)

    held.database.commit = commit_and_pause
    coming = asyncio.ensure_future(copy_all(source, held, ACCOUNTS_PUBLIC))
    await asyncio.to_thread(committed.wait, 20)
    assert await held.heads(ACCOUNTS_PUBLIC)
    with pytest.raises(AuthenticationError):
        view.verify(KEY, 0.0)
    current = asyncio.ensure_future(view.current())
    await settle()
    go_on.set()
    await current
    assert view.verify(KEY, 0.0).account_id == "acc-1"
    await coming
    for one in (view, held, source):
        await one.close()
