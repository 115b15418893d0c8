"""Accounts, keys, usage and adapters over a client worker's local HTTP: what the CLI calls.

Owns the paths. Every request names its caller in `Authorization`: the worker keeps no session, so
none can be had by whoever else runs on this machine. What is asked goes to a gateway as it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkex.errors import AuthenticationError, BadRequestError
from tinkex.mesh.api.gateway import GatewayApi
from tinkex.mesh.rpc.service import method_of
from tinkex.mesh.workers.http import credential_of, read_body

MAX_BODY_BYTES = 64 * 2**10
CREDENTIAL_FIELDS = frozenset({"access_token", "credential"})

Ask = Callable[[Callable[..., Any], msgspec.Struct], Awaitable[msgspec.Struct]]
"""Asks a gateway: the `GatewayApi` method, and its request."""


@dataclass(frozen=True, slots=True)
class _Path:
    verb: str
    path: str
    method: Callable[..., Any]


PATHS = (
    _Path("POST", "/register", GatewayApi.rpc_register),
    _Path("POST", "/login", GatewayApi.rpc_login),
    _Path("POST", "/refresh", GatewayApi.rpc_refresh),
    _Path("POST", "/logout", GatewayApi.rpc_logout),
    _Path("POST", "/close-account", GatewayApi.rpc_close_account),
    _Path("POST", "/password", GatewayApi.rpc_change_password),
    _Path("POST", "/keys", GatewayApi.rpc_create_key),
    _Path("GET", "/keys", GatewayApi.rpc_list_keys),
    _Path("DELETE", "/keys/{key_id}", GatewayApi.rpc_revoke_key),
    _Path("GET", "/usage", GatewayApi.rpc_usage),
    _Path("POST", "/adapters", GatewayApi.rpc_publish),
    _Path("DELETE", "/adapters/{name:path}", GatewayApi.rpc_unpublish),
)


def account_routes(ask: Ask) -> list[Route]:
    """Make the routes, to be mounted below `/mesh`; the application tells their errors."""
    return [Route(one.path, _handler(one, ask), methods=[one.verb]) for one in PATHS]


def _handler(path: _Path, ask: Ask) -> Callable[[Request], Awaitable[Response]]:
    message = method_of(path.method).request

    async def handle(request: Request) -> Response:
        reply = await ask(path.method, await _message(request, message))
        content = orjson.dumps(readable(reply))
        return Response(content, media_type="application/json")

    return handle


def readable(reply: Any) -> Any:
    """Return a reply for JSON: bytes in hexadecimal, as peer ids are written everywhere else.

    Sets come in order: the same answer is the same text, whichever process writes it.
    """
    return _in_hex(msgspec.to_builtins(reply, builtin_types=(bytes,), order="deterministic"))


def _in_hex(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: _in_hex(one) for name, one in value.items()}
    return [_in_hex(one) for one in value] if isinstance(value, list | tuple) else value


async def _message(request: Request, message: type[msgspec.Struct]) -> msgspec.Struct:
    """Put a message together of the body, the path, the query and the credential.

    Raises:
        APIStatusError: 400 for what is no such message, 401 without a credential, 413 for a body
            that is too long.
    """
    fields: dict[str, Any] = await _body(request)
    fields |= {**request.query_params, **request.path_params}
    for name in CREDENTIAL_FIELDS.intersection(message.__struct_fields__):
        fields[name] = _credential(request)
    try:
        return msgspec.convert(fields, message, strict=not request.query_params)
    except msgspec.ValidationError as error:
        raise BadRequestError(f"The request does not fit: {error}.") from None


async def _body(request: Request) -> dict[str, Any]:
    found = await read_body(request, MAX_BODY_BYTES)
    if not found:
        return {}
    try:
        content = orjson.loads(found)
    except ValueError:
        raise BadRequestError("The body is no JSON.") from None
    if not isinstance(content, dict) or CREDENTIAL_FIELDS & content.keys():
        raise BadRequestError(
            "The body is a JSON object; the credential goes into `Authorization: Bearer ...`."
        )
    return content


def _credential(request: Request) -> str:
    found = credential_of(request.scope)
    if not found:
        raise AuthenticationError(
            "Send `Authorization: Bearer ...` with the access token of `tinkex mesh login`, or an "
            "API key."
        )
    return found
