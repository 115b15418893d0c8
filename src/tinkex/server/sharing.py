"""What becomes of a checkpoint after it was saved: shared, given an end, copied, handed out.

Owns the rules; rows and folders are `checkpoints` and `blobs`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tinkex.errors import InputError
from tinkex.server.blobs import CheckpointKey
from tinkex.server.refusal import not_found
from tinkex.server.store import RunRow, SessionRow
from tinkex.types import ExternalWeightsUrlsResponse

if TYPE_CHECKING:
    from pathlib import Path

    from tinkex.server.services import Services
    from tinkex.server.store import CheckpointRow

MIN_TTL_S = 3600
MAX_TTL_S = 10 * 366 * 86_400
DOWNLOADS = "/api/v1/downloads"
"""Signed addresses begin with it; no key is asked for below it."""


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
    """Publishing, expiry, copies and downloads of checkpoints."""

    def __init__(self, services: Services) -> None:
        self._s = services

    async def set_public(self, owner: str, key: CheckpointKey, *, public: bool) -> None:
        """Let every key of the server read a checkpoint, or its owner's alone. Idempotent.

        Raises:
            Refusal: 404 when the owner has no such checkpoint.
        """
        row = await self._owned(owner, key)
        if row.public != public:
            await self._s.store.put_checkpoint(replace(row, public=public))

    async def set_ttl(self, owner: str, key: CheckpointKey, ttl_seconds: int | None) -> None:
        """Say when a checkpoint ends, counted from now.

        Raises:
            Refusal: 404 when the owner has no such checkpoint.
            InputError: the time is out of bounds.
        """
        check_ttl(ttl_seconds)
        row = await self._owned(owner, key)
        expires_at = None if ttl_seconds is None else self._s.clock.now() + ttl_seconds
        await self._s.store.put_checkpoint(replace(row, expires_at=expires_at))
        self._s.checkpoints.watch(expires_at)

    async def copy(
        self,
        owner: str,
        source_path: str,
        *,
        project_id: str | None,
        ttl_seconds: int | None,
        once: str,
    ) -> str:
        """Copy a checkpoint that the owner may read into a training run of its own.

        Args:
            owner: whose the copy is.
            source_path: what is copied; the copy keeps its kind and its name.
            project_id: of the copy's session.
            ttl_seconds: how long the copy stays; the source's end is not taken over.
            once: a repetition with the same text gives the same copy.

        Returns:
            The copy's tinker path.

        Raises:
            InputError: there is no such checkpoint, or the time is out of bounds.
        """
        check_ttl(ttl_seconds)
        source = await self._s.checkpoints.resolve(owner, source_path)
        name = hashlib.sha256(f"{owner}\n{once}\n{source_path}".encode()).hexdigest()[:32]
        key = CheckpointKey(f"copy-{name}:train:0", source.kind, source.name)
        if await self._s.store.checkpoint(owner, key, now=self._s.clock.now()) is not None:
            return key.path
        await self._make_run(owner, source, key.run_id, project_id)
        await asyncio.to_thread(self._s.blobs.copy, source.key, key)
        now = self._s.clock.now()
        expires_at = None if ttl_seconds is None else now + ttl_seconds
        await self._s.store.put_checkpoint(
            replace(
                source,
                run_id=key.run_id,
                owner=owner,
                created_at=now,
                expires_at=expires_at,
                public=False,
            )
        )
        self._s.checkpoints.watch(expires_at)
        return key.path

    async def urls(
        self, owner: str, key: CheckpointKey, base_url: str
    ) -> ExternalWeightsUrlsResponse:
        """Sign an address for each file of an export.

        Raises:
            Refusal: 404 when the owner has no such checkpoint.
            InputError: it is no export.
        """
        row = await self._owned(owner, key)
        if row.kind != "external_weights":
            raise InputError(
                f"{key.path} is no export: make one with save_weights_external and ask for its "
                "addresses."
            )
        names = await asyncio.to_thread(self._s.blobs.files, key)
        signed = {
            name: self._s.signed_urls.sign(base_url, f"{DOWNLOADS}/{_segments(key)}/{name}")
            for name in names
        }
        expires = min(end for _, end in signed.values())
        return ExternalWeightsUrlsResponse(
            urls={name: url for name, (url, _) in signed.items()},
            expires=datetime.fromtimestamp(expires, UTC),
        )

    async def file(self, path: str) -> tuple[Path, str]:
        """Find the file of a signed path: (where it lies, its SHA-256 in base64).

        Raises:
            Refusal: 404 when it is there no more.
        """
        run_id, kind, name, file = path.removeprefix(f"{DOWNLOADS}/").split("/", 3)
        key = CheckpointKey(run_id, kind, name)
        gone = not_found("This file is there no more: its checkpoint was deleted or has expired.")
        if key not in await self._s.store.all_checkpoint_keys():
            raise gone
        found = self._s.blobs.folder(key) / file
        if file not in await asyncio.to_thread(self._s.blobs.files, key):
            raise gone
        digest = await asyncio.to_thread(_sha256, found)
        return found, base64.b64encode(digest).decode()

    async def _owned(self, owner: str, key: CheckpointKey) -> CheckpointRow:
        row = await self._s.store.checkpoint(owner, key, now=self._s.clock.now())
        if row is None:
            raise not_found(f"There is no checkpoint {key.path} with this key.")
        return row

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


def _segments(key: CheckpointKey) -> str:
    return f"{key.run_id}/{key.kind}/{key.name}"


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
