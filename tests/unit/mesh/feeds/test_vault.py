"""Keys of persons, and their erasure."""

import asyncio
import threading

import pytest
from mesh_feeds import copy_all, member, settle, store

from tinkex.errors import DamagedDataError, InputError, NotFoundError
from tinkex.mesh.feeds import saved
from tinkex.mesh.feeds.policy import ERASURES
from tinkex.mesh.feeds.vault import PersonKey, Vault

FEED = "accounts-public"


async def vault(held):
    errors = []
    made = Vault(held, on_error=errors.append)
    await made.open()
    return made


async def test_field_is_read_again_by_its_person_and_name_alone(tmp_path):
    async with store(tmp_path) as held:
        safe = await vault(held)
        sealed = await safe.seal("u1", b"ada@example.org", field="email")
        assert safe.unseal("u1", sealed, field="email") == b"ada@example.org"
        assert await safe.seal("u1", b"ada@example.org", field="email") != sealed
        with pytest.raises(DamagedDataError, match="email"):
            safe.unseal("u1", sealed[:-1] + b"x", field="email")
        with pytest.raises(DamagedDataError):
            safe.unseal("u1", sealed, field="name")
        with pytest.raises(NotFoundError, match="yet"):
            safe.unseal("u2", sealed, field="email")
        await safe.close()
    async with store(tmp_path) as held:
        safe = await vault(held)
        assert safe.unseal("u1", sealed, field="email") == b"ada@example.org"
        await safe.close()
        await safe.close()


async def test_erased_person_is_unreadable_here_and_at_peers_also_from_an_older_copy(tmp_path):
    async with store(tmp_path / "1") as one, store(tmp_path / "2", member(2)) as two:
        first, second = await vault(one), await vault(two)
        sealed = await first.seal("u1", b"ada", field="name")
        kept = await first.seal("u2", b"bob", field="name")
        keys, last = await first.after(0, 100)
        assert last == 2
        await second.add(keys)
        await second.add(keys)
        assert second.unseal("u1", sealed, field="name") == b"ada"
        await first.erase("u1")
        assert first.erased("u1")
        await copy_all(one, two, ERASURES)
        await second.add(keys)
        for safe in (first, second):
            with pytest.raises(NotFoundError, match="erased"):
                safe.unseal("u1", sealed, field="name")
            with pytest.raises(NotFoundError, match="erased"):
                await safe.seal("u1", b"ada", field="name")
            assert safe.unseal("u2", kept, field="name") == b"bob"
            assert [k.person for k in (await safe.after(0, 9))[0]] == ["u2"]
            await safe.close()
        assert await first.after(2, 9) == ([], 2)
        secret = keys[0].key
    async with store(tmp_path / "2", member(2)) as two:
        second = await vault(two)
        await second.add(keys)
        with pytest.raises(NotFoundError):
            second.unseal("u1", sealed, field="name")
        await second.close()
    for path in tmp_path.rglob("feeds.db*"):
        assert secret not in path.read_bytes()


async def test_key_whose_bearer_has_gone_is_kept_and_given_on(tmp_path):
    begun, held_up = threading.Event(), threading.Event()

    def hold_up(_):
        begun.set()
        held_up.wait()

    async with (
        store(tmp_path / "1") as one,
        store(tmp_path / "2", member(2), inline=False) as two,
    ):
        first, second = await vault(one), await vault(two)
        sealed = await first.seal("u1", b"ada", field="name")
        keys, _ = await first.after(0, 9)
        busy = asyncio.create_task(two.database.write(hold_up))
        await asyncio.to_thread(begun.wait)
        bringing = asyncio.create_task(second.add(keys))
        await settle()
        bringing.cancel()  # its link was lost
        held_up.set()
        await busy
        await second.seal("u2", b"bob", field="name")
        assert second.unseal("u1", sealed, field="name") == b"ada"
        assert [key.person for key in (await second.after(0, 9))[0]] == ["u1", "u2"]
        for safe in (first, second):
            await safe.close()


async def test_person_who_is_erased_while_entries_are_read_is_in_no_file_once_they_were(tmp_path):
    async with store(tmp_path) as held:
        safe = await vault(held)
        await safe.seal("u1", b"ada", field="name")
        wrapped = await held.read(
            lambda connection: connection.execute("SELECT wrapped FROM vault_keys").fetchone()[0]
        )
        await held.own(FEED).append_many([b"%d" % n for n in range(1000)])
        history = held.entries(FEED)
        await anext(history)
        await safe.erase("u1")
        assert len([entry async for entry in history]) == 999
        for path in tmp_path.iterdir():
            assert wrapped not in path.read_bytes()
        await safe.close()


async def test_key_that_is_on_the_disk_a_moment_before_it_is_known_is_given_afterwards(tmp_path):
    async with store(tmp_path) as held:
        safe = await vault(held)
        key = PersonKey("u1", bytes(8), bytes(32))
        wrapped = safe._wrap(key)
        await held.database.write(
            lambda transaction: saved.put_key(transaction.connection, "u1", key.key_id, wrapped)
        )
        keys, last = await safe.after(0, 9)
        assert keys == []
        await safe.add([key])
        assert await safe.after(last, 9) == ([key], 1)
        await safe.close()


async def test_file_without_the_workers_key_shows_no_persons_key(tmp_path):
    async with store(tmp_path) as held:
        safe = await vault(held)
        await safe.seal("u1", b"ada", field="name")
        ((key_of_u1,), _) = await safe.after(0, 9)
        await safe.close()
    assert key_of_u1.key not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert key_of_u1.key.hex() not in repr(key_of_u1)
    assert "u1" not in repr(key_of_u1)
    async with store(tmp_path, member(2)) as held:
        with pytest.raises(DamagedDataError, match="another secret key"):
            await vault(held)


@pytest.mark.parametrize(
    "bad",
    [
        PersonKey("u", b"short", bytes(32)),
        PersonKey("u", bytes(8), b"short"),
        PersonKey("", bytes(8), bytes(32)),
    ],
)
async def test_key_without_the_form_of_one_is_refused(tmp_path, bad):
    async with store(tmp_path, member(2)) as held:
        safe = await vault(held)
        with pytest.raises(InputError):
            await safe.add([bad])
        with pytest.raises(InputError):
            await safe.seal("", b"", field="name")
        await safe.close()
