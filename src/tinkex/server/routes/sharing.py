"""Checkpoints after they were saved: publish, expiry, copies, downloads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import FileResponse
from starlette.routing import Route

from tinkex.server.checkpoints import parse_id
from tinkex.server.refusal import invalid_fields, unauthorized
from tinkex.server.routes.messages import json_reply, message_reply, owner_of, read_json
from tinkex.server.sharing import DOWNLOADS
from tinkex.types import CopyWeightsRequest, CopyWeightsResponse, SetTtlRequest
from tinkex.wire.headers import IDEMPOTENCY_KEY, REPR_DIGEST, WEIGHTS_ACCESS_TOKEN

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from tinkex.server.blobs import CheckpointKey
    from tinkex.server.services import Services

_CHECKPOINT = "/training_runs/{run_id}/checkpoints/{checkpoint_id:path}"


class SharingRoutes:
    """Routes about checkpoints that are there."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[Route]:
        """List the routes; they stand before those that take a checkpoint's id to the end."""
        return [
            Route(f"{_CHECKPOINT}/publish", self.publish, methods=["POST"]),
            Route(f"{_CHECKPOINT}/publish", self.unpublish, methods=["DELETE"]),
            Route(f"{_CHECKPOINT}/ttl", self.set_ttl, methods=["PUT"]),
            Route(f"{_CHECKPOINT}/external_weights_urls", self.urls, methods=["GET"]),
            Route("/copy_weights", self.copy, methods=["POST"]),
            Route("/downloads/{path:path}", self.download, methods=["GET", "HEAD"]),
        ]

    async def publish(self, request: Request) -> Response:
        """Let every key of the server read a checkpoint."""
        await self._s.sharing.set_public(owner_of(request), _key(request), public=True)
        return json_reply({})

    async def unpublish(self, request: Request) -> Response:
        """Let its owner's key alone read a checkpoint."""
        await self._s.sharing.set_public(owner_of(request), _key(request), public=False)
        return json_reply({})

    async def set_ttl(self, request: Request) -> Response:
        """Say when a checkpoint ends."""
        message, _ = await read_json(request, SetTtlRequest)
        await self._s.sharing.set_ttl(owner_of(request), _key(request), message.ttl_seconds)
        return json_reply({})

    async def urls(self, request: Request) -> Response:
        """Sign the addresses of an export's files."""
        here = f"{request.url.scheme}://{request.url.netloc}"
        found = await self._s.sharing.urls(owner_of(request), _key(request), here)
        return message_reply(found)

    async def copy(self, request: Request) -> Response:
        """Copy a checkpoint."""
        message, _ = await read_json(request, CopyWeightsRequest)
        if WEIGHTS_ACCESS_TOKEN in request.headers or message.weights_access_token is not None:
            raise invalid_fields(
                "weights_access_token is not available on this server: the checkpoint's owner can "
                "publish it instead."
            )
        if message.session_id is not None or message.model_seq_id is not None:
            raise invalid_fields(
                "session_id and model_seq_id are not available for copies on this server: give "
                "destination_project_id, or neither."
            )
        path = await self._s.sharing.copy(
            owner_of(request),
            message.source_path,
            project_id=message.destination_project_id,
            ttl_seconds=message.ttl_seconds,
            once=request.headers.get(IDEMPOTENCY_KEY) or request.state.request_id,
        )
        return message_reply(CopyWeightsResponse(tinker_path=path))

    async def download(self, request: Request) -> Response:
        """Send a file of an export, or the rest of it, to whoever has its signed address."""
        path = f"{DOWNLOADS}/{request.path_params['path']}"
        if not self._s.signed_urls.accepts(path, request.query_params):
            raise unauthorized(
                "This address is not signed, or its signature has ended: ask for the addresses "
                "of the export again."
            )
        found, digest = await self._s.sharing.file(path)
        headers = {REPR_DIGEST: f"sha-256=:{digest}:"}
        return FileResponse(found, media_type="application/octet-stream", headers=headers)


def _key(request: Request) -> CheckpointKey:
    return parse_id(request.path_params["run_id"], request.path_params["checkpoint_id"])
