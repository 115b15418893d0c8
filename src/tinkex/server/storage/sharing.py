"""What becomes of a checkpoint after it was saved: shared, given an end, copied.

Owns the rules; rows and folders are `checkpoints` and `blobs`.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tinkex.errors import InputError
from tinkex.server.files.faults import damaged_checkpoint, storing
from tinkex.server.files.records import differences
from tinkex.server.refusal import not_found
from tinkex.server.storage.blobs import CheckpointKey
from tinkex.server.storage.store import RunRow, SessionRow

if TYPE_CHECKING:
    from tinkex.server.services import Services
    from tinkex.server.storage.store import CheckpointRow

MIN_TTL_S = 3600
MAX_TTL_S = 10 * 366 * 86_400


def check_ttl(ttl_seconds: int | None) -> None:
    """Check how long a checkpoint is to stay; None keeps it for good.

    Raises:
        InputError: it is out of bounds.
    """
    if ttl_seconds is not None and not MIN_TTL_S <= ttl_seconds <= MAX_TTL_S:
        raise InputError(
            f"ttl_seconds is {ttl_seconds}: it must be {MIN_TTL_S} (an hour) to {MAX_TTL_S} (ten "
            "years), or None for a checkpoint that stays."
        )


class Sharing:
    """Publishing, expiry and copies of checkpoints."""

    def __init__(self, services: Services) -> None:
        self._s = services

    async def set_public(self, owner: str, key: CheckpointKey, *, public: bool) -> None:
        """Let every key of the server read a checkpoint, or its owner's alone. Idempotent.

        Raises:
            Refusal: 404 when the owner has no such checkpoint.
        """
        await self._change(owner, key, public=public)

    async def set_ttl(self, owner: str, key: CheckpointKey, ttl_seconds: int | None) -> None:
        """Say when a checkpoint ends, counted from now.

        Raises:
            Refusal: 404 when the owner has no such checkpoint.
            InputError: the time is out of bounds.
        """
        check_ttl(ttl_seconds)
        expires_at = None if ttl_seconds is None else self._s.clock.now() + ttl_seconds
        await self._change(owner, key, expires_at=expires_at)
        self._s.checkpoints.watch(expires_at)

    async def copy(
        self,
        owner: str,
        source_path: str,
        *,
        project_id: str | None,
        ttl_seconds: int | None,
        once: str,
        access: str | None = None,
    ) -> str:
        """Copy a checkpoint that the owner may read into a training run of its own.

        Args:
            owner: whose the copy is.
            source_path: what is copied; the copy keeps its kind and its name.
            project_id: of the copy's session.
            ttl_seconds: how long the copy stays; the source's end is not taken over.
            once: a repetition with the same text gives the same copy.
            access: a token for the source, as `files.access.hidden` gives it.

        Returns:
            The copy's tinker path.

        Raises:
            InputError: there is no such checkpoint, or the time is out of bounds.
            DamagedDataError: it is not as it was saved.
            StorageError: the disk refused; nothing of the copy is left.
        """
        check_ttl(ttl_seconds)
        source = await self._s.checkpoints.resolve(owner, source_path, access)
        name = hashlib.sha256(f"{owner}\n{once}\n{source_path}".encode()).hexdigest()[:32]
        key = CheckpointKey(f"copy-{name}:train:0", source.kind, source.name)
        if await self._s.store.checkpoint(owner, key, now=self._s.clock.now()) is not None:
            return key.path
        await self._make_run(owner, source, key.run_id, project_id)
        async with self._s.checkpoints.changing:  # files and row are to be of one save
            if await self._s.store.checkpoint(owner, key, now=self._s.clock.now()) is not None:
                return key.path  # a repetition overtook this one
            source = await self._s.checkpoints.resolve(owner, source_path, access)
            with storing(f"the copy of {source_path}"):
                await asyncio.to_thread(self._copy_files, source, key)
            now = self._s.clock.now()
            expires_at = None if ttl_seconds is None else now + ttl_seconds
            copied = replace(
                source,
                run_id=key.run_id,
                owner=owner,
                created_at=now,
                expires_at=expires_at,
                public=False,
            )
            try:
                await self._s.store.put_checkpoint(copied)
            except Exception:
                await asyncio.to_thread(self._s.blobs.delete, key)
                raise
        self._s.checkpoints.watch(expires_at)
        return key.path

    def _copy_files(self, source: CheckpointRow, key: CheckpointKey) -> None:
        """Copy a checkpoint's folder, but no damaged one. Blocks."""
        folder = self._s.blobs.folder(source.key)
        problems = [] if source.files is None else differences(folder, source.files)
        if problems:
            raise damaged_checkpoint(source.key.path, problems[0])
        self._s.blobs.copy(source.key, key)

    async def _change(self, owner: str, key: CheckpointKey, **values: Any) -> None:
        # In one statement: of what was read before, all may be otherwise by now.
        store, now = self._s.store, self._s.clock.now()
        if not await store.change_checkpoint(owner, key, now=now, **values):
            raise not_found(f"There is no checkpoint {key.path} with this key.")

    async def _make_run(
        self, owner: str, source: CheckpointRow, run_id: str, project_id: str | None
    ) -> None:
        """Make the training run that holds a copy; nobody trains it."""
        if await self._s.store.run(owner, run_id) is not None:
            return  # an earlier attempt came this far
        original = await self._s.store.run(source.owner, source.run_id)
        assert original is not None, "the database holds a checkpoint's run with the checkpoint"
        now = self._s.clock.now()
        session_id = run_id.partition(":")[0]
        await self._s.store.add_session(
            SessionRow(
                session_id=session_id,
                owner=owner,
                created_at=now,
                sdk_version=None,
                project_id=project_id,
                display_name=f"copy of {source.key.path}",
                tags=[],
                user_metadata=None,
                status="finished",
            )
        )
        await self._s.store.add_run(
            RunRow(
                run_id=run_id,
                session_id=session_id,
                owner=owner,
                base_model=original.base_model,
                lora_rank=original.lora_rank,
                train_attn=original.train_attn,
                train_mlp=original.train_mlp,
                train_unembed=original.train_unembed,
                user_metadata=None,
                created_at=now,
                last_request_at=now,
            )
        )
