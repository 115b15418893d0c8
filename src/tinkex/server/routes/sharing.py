"""Checkpoints after they were saved: publish, expiry, copies, downloads."""

from __future__ import annotations

from email.utils import formatdate
from typing import TYPE_CHECKING

from starlette.routing import Route

from tinkex.server.files.access import hidden
from tinkex.server.files.downloads import DOWNLOADS
from tinkex.server.http.middleware import error_reply
from tinkex.server.openapi.describe import Media, Query, described
from tinkex.server.records.audit import AuditEvent
from tinkex.server.records.projects import check_project
from tinkex.server.refusal import invalid_fields
from tinkex.server.routes.messages import (
    caller_of,
    json_reply,
    key_in_path,
    message_reply,
    owner_of,
    read_json,
)
from tinkex.server.storage.checkpoints import parse_path
from tinkex.types import (
    CheckpointArchiveUrlResponse,
    CopyWeightsRequest,
    CopyWeightsResponse,
    SetTtlRequest,
)
from tinkex.wire.headers import ACCEPT, IDEMPOTENCY_KEY, WEIGHTS_ACCESS_TOKEN

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from tinkex.server.files.ranges import ContentReply
    from tinkex.server.services import Services

_CHECKPOINT = "/training_runs/{run_id}/checkpoints/{kind}/{name}"


class SignatureQuery(Query):
    """A signature; without a good one the answer is a 401."""

    expires: str = ""
    content: str = ""
    signature: str = ""


class SharingRoutes:
    """Routes about checkpoints that are there."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[Route]:
        """List the routes."""
        return [
            Route(f"{_CHECKPOINT}/publish", self.publish, methods=["POST"]),
            Route(f"{_CHECKPOINT}/publish", self.unpublish, methods=["DELETE"]),
            Route(f"{_CHECKPOINT}/ttl", self.set_ttl, methods=["PUT"]),
            Route(f"{_CHECKPOINT}/external_weights_urls", self.urls, methods=["GET"]),
            Route(f"{_CHECKPOINT}/archive", self.archive, methods=["GET"]),
            Route("/copy_weights", self.copy, methods=["POST"]),
            Route("/downloads/{path:path}", self.download, methods=["GET", "HEAD"]),
        ]

    async def publish(self, request: Request) -> Response:
        """Let every key of the server read a checkpoint."""
        await self._s.sharing.set_public(owner_of(request), key_in_path(request), public=True)
        await self._note(request, AuditEvent.CHECKPOINT_PUBLISHED)
        return json_reply({})

    async def unpublish(self, request: Request) -> Response:
        """Let its owner's key alone read a checkpoint."""
        await self._s.sharing.set_public(owner_of(request), key_in_path(request), public=False)
        await self._note(request, AuditEvent.CHECKPOINT_UNPUBLISHED)
        return json_reply({})

    @described(request=SetTtlRequest)
    async def set_ttl(self, request: Request) -> Response:
        """Say when a checkpoint ends."""
        message, _ = await read_json(request, SetTtlRequest)
        await self._s.sharing.set_ttl(owner_of(request), key_in_path(request), message.ttl_seconds)
        await self._note(request, AuditEvent.CHECKPOINT_TTL_SET, ttl_seconds=message.ttl_seconds)
        return json_reply({})

    async def urls(self, request: Request) -> Response:
        """Sign the addresses of an export's files."""
        found = await self._s.downloads.urls(
            owner_of(request), key_in_path(request), _here(request)
        )
        await self._note(request, AuditEvent.CHECKPOINT_READ, purpose="download")
        return message_reply(found)

    @described(
        response=CheckpointArchiveUrlResponse,
        faults={302: "The archive is at Location, until Expires: for `Accept: application/gzip`."},
    )
    async def archive(self, request: Request) -> Response:
        """Sign the address of a checkpoint as one archive, for the official SDKs up to 0.25."""
        found = await self._s.downloads.archive_url(
            owner_of(request), key_in_path(request), _here(request)
        )
        await self._note(request, AuditEvent.CHECKPOINT_READ, purpose="download")
        if "application/gzip" not in request.headers.get(ACCEPT, ""):
            return message_reply(found)
        ends = formatdate(found.expires.timestamp(), usegmt=True)
        return error_reply(
            302, "The archive is at Location.", {"Location": found.url, "Expires": ends}
        )

    async def copy(self, request: Request) -> Response:
        """Copy a checkpoint."""
        message, _ = await read_json(request, CopyWeightsRequest)
        token = request.headers.get(WEIGHTS_ACCESS_TOKEN) or message.weights_access_token
        if message.session_id is not None or message.model_seq_id is not None:
            raise invalid_fields(
                "session_id and model_seq_id are not available for copies on this server: give "
                "destination_project_id, or neither."
            )
        if message.destination_project_id is not None:
            check_project(message.destination_project_id, "destination_project_id")
        path = await self._s.sharing.copy(
            owner_of(request),
            message.source_path,
            project_id=message.destination_project_id,
            ttl_seconds=message.ttl_seconds,
            access=None if token is None else hidden(token),
            once=request.headers.get(IDEMPOTENCY_KEY) or request.state.request_id,
        )
        await self._note_copy(request, message.source_path, path)
        return message_reply(CopyWeightsResponse(tinker_path=path))

    async def _note(self, request: Request, event: AuditEvent, **details: str | int | None) -> None:
        caller = caller_of(request)
        await self._s.records.audit.note_checkpoint(
            event, key_in_path(request), owner=caller.owner, key_id=caller.key_id, **details
        )

    async def _note_copy(self, request: Request, source: str, copy: str) -> None:
        caller, audit = caller_of(request), self._s.records.audit
        who = {"owner": caller.owner, "key_id": caller.key_id}
        await audit.note_checkpoint(
            AuditEvent.CHECKPOINT_READ, parse_path(source), **who, purpose="copy"
        )
        await audit.note_checkpoint(
            AuditEvent.CHECKPOINT_CREATED, parse_path(copy), **who, copy_of=source
        )

    @described(response=(Media("application/octet-stream"),), query=SignatureQuery)
    async def download(self, request: Request) -> ContentReply:
        """Send a file or an archive, or the rest of it, to whoever has its signed address."""
        path = f"{DOWNLOADS}/{request.path_params['path']}"
        return await self._s.downloads.reply(path, request.query_params)


def _here(request: Request) -> str:
    """Return this server's address as the client knows it."""
    return f"{request.url.scheme}://{request.url.netloc}"
