"""Keys of persons: personal fields are encrypted under them, and erasing the key erases the person.

Owns the keys, each in one table alone, encrypted under a key that comes from the worker's secret
key: a copy of the file without the worker's key shows nobody's data. They go to other auth workers
only (`replication`). An erasure is an entry of a feed of its own: every auth worker that has it
destroys the key, and refuses it ever after, also from an older backup.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tinkex.errors import DamagedDataError, InputError, NotFoundError
from tinkex.mesh.feeds import saved
from tinkex.mesh.feeds.database import Transaction
from tinkex.mesh.feeds.entry import Entry
from tinkex.mesh.feeds.policy import ERASURES
from tinkex.mesh.feeds.store import FeedStore
from tinkex.mesh.tasks import Tasks

KEY_BYTES = 32
KEY_ID_BYTES = 8
_NONCE_BYTES = 12
MAX_PERSON_CHARS = 128


class PersonKey(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A person's key as it goes to another auth worker, over an encrypted link."""

    person: str
    key_id: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"PersonKey({self.key_id.hex()})"


class Vault:
    """Encrypts and decrypts persons' fields.

    Args:
        store: an open store of an auth worker.
        on_error: told of a key that could not be destroyed at once; the next start tries again.
        random: so many random bytes.
    """

    def __init__(
        self,
        store: FeedStore,
        *,
        on_error: Callable[[BaseException], None],
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._store = store
        self._random = random
        self._tasks = Tasks(on_error=on_error)
        self._keys: dict[tuple[str, bytes], bytes] = {}
        self._erased: set[str] = set()
        self._newest: dict[str, bytes] = {}
        self._on_keys: list[Callable[[Sequence[PersonKey]], None]] = []
        self._unsubscribe: Callable[[], None] | None = None

    async def open(self) -> None:
        """Read the keys, and destroy those of persons who were erased.

        Raises:
            DamagedDataError: a key is not what was written, or was written by another worker.
        """
        self._unsubscribe = self._store.subscribe(ERASURES, self._arrived)
        erased = [_person_of(entry) async for entry in self._store.entries(ERASURES)]
        await self._destroy([person for person in erased if person])
        rows = await self._store.read(_rows)
        for person, key_id, wrapped in rows:
            self._remember(PersonKey(person, key_id, self._unwrap(person, key_id, wrapped)))

    async def close(self) -> None:
        """Stop following erasures. Harmless twice."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        await self._tasks.finished()

    async def seal(self, person: str, plain: bytes, *, field: str) -> bytes:
        """Encrypt a field of a person, making the person's key where there is none.

        Args:
            person: an id that says nothing about the person.
            plain: the field.
            field: what it is; to be given again to read it.

        Raises:
            NotFoundError: the person was erased.
            InputError: the id is empty or too long.
        """
        if not 0 < len(person) <= MAX_PERSON_CHARS:
            raise InputError(f"a person's id has 1 to {MAX_PERSON_CHARS} characters")
        self._check_there(person)
        if person not in self._newest:
            key = PersonKey(person, self._random(KEY_ID_BYTES), self._random(KEY_BYTES))
            await self.add([key])
        self._check_there(person)
        key_id = self._newest[person]
        nonce = self._random(_NONCE_BYTES)
        cipher = AESGCM(self._keys[person, key_id])
        return key_id + nonce + cipher.encrypt(nonce, plain, _bound_to(person, field))

    def unseal(self, person: str, sealed: bytes, *, field: str) -> bytes:
        """Decrypt a field.

        Raises:
            NotFoundError: the person was erased, or the key has not come from its peer yet.
            DamagedDataError: it is no field of that name of this person.
        """
        self._check_there(person)
        key_id, nonce = sealed[:KEY_ID_BYTES], sealed[KEY_ID_BYTES:][:_NONCE_BYTES]
        key = self._keys.get((person, key_id))
        if key is None:
            raise NotFoundError("the key of this personal field is not here (yet): try again")
        try:
            return AESGCM(key).decrypt(
                nonce, sealed[KEY_ID_BYTES + _NONCE_BYTES :], _bound_to(person, field)
            )
        except (InvalidTag, ValueError) as error:
            raise DamagedDataError(f"a personal field ({field}) is not what was written") from error

    def erased(self, person: str) -> bool:
        """Whether a person was erased."""
        return person in self._erased

    async def erase(self, person: str) -> None:
        """Make everything that was sealed for a person unreadable, here and at every auth worker.

        Raises:
            StorageError, TrustError: as `OwnFeed.append`.
        """
        await self._store.own(ERASURES).append(person.encode())
        await self._destroy([person])

    async def after(self, arrival: int, limit: int) -> tuple[list[PersonKey], int]:
        """Keys that came after a number, and the last one's, for another auth worker."""
        rows = await self._store.read(lambda connection: _rows_after(connection, arrival, limit))
        keys: list[PersonKey] = []
        for number, person, key_id in rows:
            key = self._keys.get((person, key_id))
            if key is not None:
                keys.append(PersonKey(person, key_id, key))
            elif person not in self._erased:
                break  # on the disk, and not told here yet: the next question is given it
            arrival = number
        return keys, arrival

    async def add(self, keys: Sequence[PersonKey]) -> None:
        """Keep keys; those of erased persons are refused.

        Raises:
            InputError: one has not the form of a key.
        """
        for key in keys:
            if (
                len(key.key) != KEY_BYTES
                or len(key.key_id) != KEY_ID_BYTES
                or not 0 < len(key.person) <= MAX_PERSON_CHARS
            ):
                raise InputError("a person's key has not the form that it must have")
        new = [key for key in keys if (key.person, key.key_id) not in self._keys]
        if not new:
            return
        wrapped = [(key, self._wrap(key)) for key in new]

        def put(transaction: Transaction) -> None:
            there = [(key, data) for key, data in wrapped if key.person not in self._erased]
            for key, data in there:
                saved.put_key(transaction.connection, key.person, key.key_id, data)
            added = partial(self._added, [key for key, _ in there])
            transaction.after_commit.append(partial(self._store.call_soon, added))

        await self._store.database.write(put)

    def on_keys(self, callback: Callable[[Sequence[PersonKey]], None]) -> Callable[[], None]:
        """Have `callback` told of keys as they are added, made here or come from elsewhere.

        Returns:
            What ends that.
        """
        self._on_keys.append(callback)
        return lambda: self._on_keys.remove(callback)

    def _added(self, keys: Sequence[PersonKey]) -> None:
        for key in keys:
            self._remember(key)
        for callback in tuple(self._on_keys):
            callback(keys)

    def _remember(self, key: PersonKey) -> None:
        if key.person not in self._erased:
            self._keys[key.person, key.key_id] = key.key
            self._newest[key.person] = max(self._newest.get(key.person, b""), key.key_id)

    def _check_there(self, person: str) -> None:
        if person in self._erased:
            raise NotFoundError("this person's data were erased, and cannot be read any more")

    def _arrived(self, entries: Sequence[Entry]) -> None:
        persons = [person for person in map(_person_of, entries) if person]
        if persons:
            self._forget(persons)
            self._tasks.spawn(self._destroy(persons), name="destroy keys of erased persons")

    def _forget(self, persons: Sequence[str]) -> None:
        self._erased.update(persons)
        for person, key_id in [known for known in self._keys if known[0] in self._erased]:
            del self._keys[person, key_id]
            self._newest.pop(person, None)

    async def _destroy(self, persons: Sequence[str]) -> None:
        self._forget(persons)

        def delete(transaction: Transaction) -> None:
            for person in persons:
                transaction.execute("DELETE FROM vault_keys WHERE person = ?", (person,))

        if persons:
            await self._store.database.write(delete)
            await self._store.database.checkpoint()

    def _wrap(self, key: PersonKey) -> bytes:
        nonce = self._random(_NONCE_BYTES)
        bound = _bound_to(key.person, key.key_id.hex())
        return nonce + self._own_cipher().encrypt(nonce, key.key, bound)

    def _unwrap(self, person: str, key_id: bytes, wrapped: bytes) -> bytes:
        nonce, rest = wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:]
        try:
            return self._own_cipher().decrypt(nonce, rest, _bound_to(person, key_id.hex()))
        except (InvalidTag, ValueError) as error:
            raise DamagedDataError(
                "a person's key cannot be read: the file is damaged, or belongs to a worker with "
                "another secret key; restore that key, or recover from another auth worker"
            ) from error

    def _own_cipher(self) -> AESGCM:
        seed = self._store.member.key_pair.seed
        derive = HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=b"tinkex-mesh-1 vault")
        return AESGCM(derive.derive(seed))


def _bound_to(person: str, field: str) -> bytes:
    return msgspec.msgpack.encode((person, field))


def _person_of(entry: Entry) -> str:
    return "" if entry.opens_epoch else entry.payload.decode(errors="replace")


def _rows(connection: sqlite3.Connection) -> list[tuple[str, bytes, bytes]]:
    rows = connection.execute("SELECT person, key_id, wrapped FROM vault_keys ORDER BY arrival")
    return rows.fetchall()


def _rows_after(
    connection: sqlite3.Connection, arrival: int, limit: int
) -> list[tuple[int, str, bytes]]:
    return connection.execute(
        "SELECT arrival, person, key_id FROM vault_keys WHERE arrival > ? ORDER BY arrival LIMIT ?",
        (arrival, limit),
    ).fetchall()
